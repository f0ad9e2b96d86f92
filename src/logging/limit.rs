//! How many lines one VM may cause, and how many one kind of error.
//!
//! Guests and frontends cause lines at will, by connecting or by nonsense in
//! their rings. Each VM has a budget of them, so that none fills the log or
//! hides what is said of the others. Errors of a VM's disk, of which each request
//! may meet one, are said once in ten seconds ([`Seldom`]), each VM's by itself.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Lines at once.
const BURST: u32 = 256;
/// One more after so long.
const EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Budget {
    lines: u32,
    /// When the last line was added to it.
    filled: Instant,
    left_out: u64,
}

/// One VM's budget.
#[derive(Debug)]
pub(crate) struct Limit(Mutex<Budget>);

impl Default for Limit {
    fn default() -> Self {
        Self(Mutex::new(Budget { lines: BURST, filled: Instant::now(), left_out: 0 }))
    }
}

impl Limit {
    /// Whether a line may be logged, which ends in the answer then.
    pub(crate) fn allow(&self) -> Option<LeftOut> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<LeftOut> {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let more = now.saturating_duration_since(budget.filled).as_secs() / EVERY.as_secs();
        if more > 0 {
            budget.filled = now;
            budget.lines = u32::try_from(more).map_or(BURST, |m| budget.lines.saturating_add(m));
            budget.lines = budget.lines.min(BURST);
        }
        match budget.lines.checked_sub(1) {
            Some(left) => budget.lines = left,
            None => {
                budget.left_out += 1;
                return None;
            }
        }
        Some(LeftOut(std::mem::take(&mut budget.left_out)))
    }
}

/// How many lines of a VM were left out before one that is logged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more lines of this VM before it)"),
        }
    }
}

/// Errors of one VM, or of one place in the code: the first shows, then one in ten
/// seconds, with how many there were between.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    /// When the next may be logged, in seconds of this process.
    next_second: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self { next_second: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Logs an error, or counts it.
    pub(crate) fn error(&self, error: fmt::Arguments<'_>) {
        static START: OnceLock<Instant> = OnceLock::new();
        let now = START.get_or_init(Instant::now).elapsed().as_secs();
        match self.allow_at(now) {
            None => {}
            Some(0) => log::error!("{error}"),
            Some(more) => log::error!("{error} (and {more} more errors before it)"),
        }
    }

    /// How many were left out, if one may be logged in this second.
    fn allow_at(&self, now: u64) -> Option<u64> {
        let (next, relaxed) = (self.next_second.load(Ordering::Relaxed), Ordering::Relaxed);
        let until = now + EVERY.as_secs();
        if now < next || self.next_second.compare_exchange(next, until, relaxed, relaxed).is_err() {
            self.left_out.fetch_add(1, relaxed);
            return None;
        }
        Some(self.left_out.swap(0, relaxed))
    }
}

/// Logs a line that a VM caused, within the budget of its disk.
macro_rules! log_for {
    ($disk:expr, $level:ident, $($line:tt)+) => {
        if log::log_enabled!(log::Level::$level)
            && let Some(left_out) = $disk.log_limit().allow()
        {
            log::log!(log::Level::$level, "{}{left_out}", format_args!($($line)+));
        }
    };
}
pub(crate) use log_for;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_errors_that_come_all_the_time_one_in_ten_seconds_is_logged() {
        let seldom = Seldom::new();
        assert_eq!(seldom.allow_at(0), Some(0), "the first one");
        assert_eq!((0..10).find_map(|second| seldom.allow_at(second)), None);
        assert_eq!(seldom.allow_at(10), Some(10));
        assert_eq!(seldom.allow_at(1_000), Some(0));
    }

    #[test]
    fn a_vm_that_causes_lines_without_end_gets_few_and_the_next_one_counts_the_rest() {
        let limit = Limit::default();
        let mut now = Instant::now();
        let lines = (0..1_000).filter(|_| limit.allow_at(now).is_some()).count();
        assert_eq!(lines, BURST as usize);
        now += EVERY;
        let left_out = limit.allow_at(now).unwrap();
        assert_eq!(left_out.to_string(), " (and 744 more lines of this VM before it)");
        assert!(limit.allow_at(now).is_none());
        now += EVERY * 1_000_000;
        assert_eq!((0..1_000).filter(|_| limit.allow_at(now).is_some()).count(), BURST as usize);
    }
}
