//! States that only a mistake in leafblk can bring about, and that its types do not
//! exclude. Whoever finds one says so here, and fails what it concerns: a request with
//! IOERR, a fill for all who wait. So they show, in the log and as
//! `leafblk_internal_errors_total`; a debug build panics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limit::Seldom;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many were found since the process started.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Notes one. Returns, but in a debug build, and there as well where the thread panics
/// already.
#[cold]
pub(crate) fn note(what: fmt::Arguments<'_>) {
    static SELDOM: Seldom = Seldom::new();
    COUNT.fetch_add(1, Ordering::Relaxed);
    SELDOM.error(format_args!("{what}; this is a mistake in leafblk: please report it"));
    debug_assert!(std::thread::panicking(), "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_counted_and_a_debug_build_panics() {
        let before = count();
        let noted = std::panic::catch_unwind(|| note(format_args!("part 7 ended twice")));
        assert_eq!(noted.is_err(), cfg!(debug_assertions));
        assert!(count() > before);
    }
}
