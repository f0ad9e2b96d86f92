//! The log: plain sentences on stderr, chosen by LEAFBLK_LOG.
//!
//! On a terminal or in a file a line starts with the time in UTC. Where stderr
//! is the systemd journal, which has its own time stamps, it starts with the
//! level as sd-daemon(3) writes it, so that `journalctl -p warning` works.
//!
//! Logging waits for nobody ([`lines`]), and lines that a VM can cause are
//! counted for it ([`limit`]).

pub(crate) mod limit;
mod lines;

use std::env;
use std::io::Write;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use env_filter::Filter;
use env_logger::{Target, WriteStyle};
use lines::{Lines, Pen};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// The variable that chooses what is logged, in env_logger's syntax: `debug`,
/// `warn`, `leafblk::cache=trace,info`. It wins over the configuration file.
pub const LOG_VARIABLE: &str = "LEAFBLK_LOG";

/// leafblk's own news, and other crates' troubles.
const DEFAULT_FILTER: &str = "warn,leafblk=info";

/// The process's logger: env_logger's lines, chosen by a filter that can be
/// replaced.
struct Logger {
    filter: RwLock<Filter>,
    format: env_logger::Logger,
    /// `None` where the thread that writes could not be had: then whoever logs
    /// writes.
    lines: Option<Arc<Lines>>,
}

/// How long the end waits for whoever reads stderr.
const LAST_LINES_MAX: Duration = Duration::from_secs(2);

static LOGGER: OnceLock<Logger> = OnceLock::new();

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.read().unwrap_or_else(PoisonError::into_inner).enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.read().unwrap_or_else(PoisonError::into_inner).matches(record) {
            self.format.log(record);
        }
    }

    fn flush(&self) {
        if let Some(lines) = &self.lines {
            lines.wait_written(LAST_LINES_MAX);
        }
    }
}

/// Whether `text` is a filter.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(text: &str) -> Result<(), String> {
    let parsed = env_filter::Builder::new().try_parse(text).map(|_| ());
    parsed.map_err(|error| error.to_string())
}

fn filter(from_file: Option<&str>) -> Filter {
    let variable = env::var(LOG_VARIABLE).ok();
    let text = variable.as_deref().or(from_file).unwrap_or(DEFAULT_FILTER);
    env_filter::Builder::new().parse(text).build()
}

/// Starts logging what LEAFBLK_LOG asks for, or `from_file` where it is not
/// set. A second call changes nothing.
pub fn init(from_file: Option<&str>) {
    let journal = stderr_is_journal();
    let logger = LOGGER.get_or_init(|| start(journal, filter(from_file)));
    // Fails only where a logger is set already, for example by a test.
    if log::set_logger(logger).is_ok() {
        reload(from_file);
    }
}

fn start(journal: bool, filter: Filter) -> Logger {
    let left_out = move |count| {
        let time = jiff::Timestamp::now();
        let what = format!("{count} lines of the log were left out: stderr took none");
        match journal {
            true => format!("{}{what}\n", journal_prefix(Level::Warn)),
            false => format!("{time:.0} {}{what}\n", word(Level::Warn)),
        }
    };
    let lines = Lines::start(std::io::stderr(), left_out).ok();
    let target = match &lines {
        Some(lines) => Target::Pipe(Box::new(Pen(Arc::clone(lines)))),
        None => Target::Stderr,
    };
    Logger {
        filter: RwLock::new(filter),
        lines,
        format: env_logger::Builder::new()
            .filter_level(LevelFilter::Trace)
            .target(target)
            .write_style(WriteStyle::Never)
            .format(move |out, record| {
                let level = record.level();
                if journal {
                    writeln!(out, "{}{}", journal_prefix(level), record.args())
                } else {
                    let time = out.timestamp();
                    writeln!(out, "{time} {}{}", word(level), record.args())
                }
            })
            .build(),
    }
}

/// Says a line on stderr as it is, behind what was logged, and returns when all
/// of it is written: for the end of the process. Where nobody reads stderr it
/// gives up after 2 s.
pub fn say_last(line: Option<&str>) {
    match LOGGER.get().and_then(|logger| logger.lines.as_ref()) {
        Some(lines) => {
            if let Some(line) = line {
                lines.push(format!("{line}\n").as_bytes());
            }
            lines.wait_written(LAST_LINES_MAX);
        }
        None => {
            if let Some(line) = line {
                // Without stderr there is nobody to tell.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

/// Chooses anew what is logged, as [`init`] does.
pub fn reload(from_file: Option<&str>) {
    if let Some(logger) = LOGGER.get() {
        let filter = filter(from_file);
        log::set_max_level(filter.filter());
        *logger.filter.write().unwrap_or_else(PoisonError::into_inner) = filter;
    }
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
    fn a_filter_that_is_none_is_told() {
        check_filter("warn,leafblk::cache=trace").unwrap();
        assert!(check_filter("leafblk=loud").is_err());
    }

    #[test]
    fn only_what_is_not_ordinary_has_a_word() {
        assert_eq!(word(Level::Info), "");
        assert_eq!(word(Level::Warn), "warning: ");
        assert_eq!(journal_prefix(Level::Warn), "<4>");
    }
}
