//! The log: plain sentences on stderr, chosen by LEAFBLK_LOG.
//!
//! On a terminal or in a file a line starts with the time in UTC. Where stderr
//! is the systemd journal, which has its own time stamps, it starts with the
//! level as sd-daemon(3) writes it, so that `journalctl -p warning` works.
//!
//! Logging waits for nobody ([`lines`]), and lines that a VM can cause are
//! counted for it ([`limit`]).

pub(crate) mod internal;
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

use crate::config::nearest;

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

/// Whether `text` is a filter whose parts each name a level or a module that logs. To
/// env_filter alone any other word is a module, of which nothing is ever logged.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(text: &str) -> Result<(), String> {
    let parsed = env_filter::Builder::new().try_parse(text).map(|_| ());
    parsed.map_err(|error| error.to_string())?;
    // What follows a slash is a regular expression for the lines.
    let parts = text.split('/').next().unwrap_or_default().split(',').map(str::trim);
    for part in parts.filter(|part| !part.is_empty()) {
        let (module, level) = part.split_once('=').map_or((part, None), |(m, l)| (m, Some(l)));
        let is_level = level.is_none() && module.parse::<LevelFilter>().is_ok();
        if !is_level && !logs(module) {
            let what = if level.is_none() { "no level and no module" } else { "no module" };
            let levels = ["off", "error", "warn", "info", "debug", "trace"];
            let rooms: Vec<_> = rooms().map(|room| format!("leafblk::{room}")).collect();
            let known = levels.into_iter().chain(CRATES).chain(rooms.iter().map(String::as_str));
            let hint = nearest::hint(module, known);
            return Err(format!(
                "{module} is {what} that logs; the levels are {}{hint}",
                levels.join(", ")
            ));
        }
    }
    Ok(())
}

/// The crates that log through `log`.
const CRATES: [&str; 3] = ["leafblk", "mio", "virtio_queue"];

/// leafblk's rooms, as its library lists them: `cache`, `leaf`, …
fn rooms() -> impl Iterator<Item = &'static str> {
    include_str!("lib.rs").lines().filter_map(|line| {
        let room = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))?;
        room.strip_suffix(';')
    })
}

/// Whether `module` is a crate that logs, or lies in one; in leafblk, in one of its
/// rooms.
fn logs(module: &str) -> bool {
    match module.split_once("::") {
        None => CRATES.contains(&module),
        Some(("leafblk", within)) => {
            let room = within.split("::").next();
            rooms().any(|known| room == Some(known))
        }
        Some((krate, _)) => CRATES.contains(&krate),
    }
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
        for good in ["", "debug", "WARN", "off,leafblk::leaf=info", "leafblk::cache::fill"] {
            check_filter(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, part) in [
            ("leafblk=loud", "loud"),
            ("verbose", "verbose is no level and no module"),
            ("warn,leafblk::cahce=trace", "leafblk::cahce is no module"),
            ("leafblk::cahce=trace", "did you mean leafblk::cache?"),
            ("inof", "did you mean info?"),
        ] {
            let error = check_filter(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn the_rooms_of_the_library_are_known() {
        let rooms: Vec<_> = rooms().collect();
        assert!(["boot", "cache", "leaf", "virtqueue"].iter().all(|room| rooms.contains(room)));
        assert!(rooms.iter().all(|room| room.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }

    #[test]
    fn only_what_is_not_ordinary_has_a_word() {
        assert_eq!(word(Level::Info), "");
        assert_eq!(word(Level::Warn), "warning: ");
        assert_eq!(journal_prefix(Level::Warn), "<4>");
    }
}
