//! The log: plain sentences on stderr, chosen by LEAFBLK_LOG.
//!
//! On a terminal or in a file a line starts with the time in UTC. Where stderr
//! is the systemd journal, which has its own time stamps, it starts with the
//! level as sd-daemon(3) writes it, so that `journalctl -p warning` works.

use std::env;
use std::io::Write;

use env_logger::{Builder, Env, WriteStyle};
use log::Level;

/// The variable that chooses what is logged, in env_logger's syntax: `debug`,
/// `warn`, `leafblk::cache=trace,info`.
pub const LOG_VARIABLE: &str = "LEAFBLK_LOG";

/// leafblk's own news, and other crates' troubles.
const DEFAULT_FILTER: &str = "warn,leafblk=info";

/// Starts logging. A second call changes nothing.
pub fn init() {
    let journal = stderr_is_journal();
    let mut builder = Builder::from_env(Env::new().filter_or(LOG_VARIABLE, DEFAULT_FILTER));
    builder
        .write_style(WriteStyle::Never)
        .format(move |out, record| {
            let level = record.level();
            if journal {
                writeln!(out, "{}{}", journal_prefix(level), record.args())
            } else {
                let time = out.timestamp();
                writeln!(out, "{time} {}{}", word(level), record.args())
            }
        });
    // Fails only where a logger is set already, for example by a test.
    let _ = builder.try_init();
}

/// Nothing for ordinary news: most lines are.
const fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    }
}

const fn journal_prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether stderr is the stream that JOURNAL_STREAM names (systemd.exec(5)):
/// the variable alone is inherited by children whose stderr is elsewhere.
fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    names_file(&stream, stat.st_dev, stat.st_ino)
}

fn names_file(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_stream_must_name_this_very_file() {
        assert!(names_file("8:1234", 8, 1234));
        for other in ["8:1235", "9:1234", "8", "", "8:1234:5", "a:b"] {
            assert!(!names_file(other, 8, 1234), "{other}");
        }
    }

    #[test]
    fn only_what_is_not_ordinary_has_a_word() {
        assert_eq!(word(Level::Info), "");
        assert_eq!(word(Level::Warn), "warning: ");
        assert_eq!(journal_prefix(Level::Warn), "<4>");
    }
}
