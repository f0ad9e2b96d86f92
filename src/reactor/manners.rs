//! When a busy reactor lets others have its CPU for a moment.
//!
//! Whom it has called may be a thread that waits for this very CPU, where the
//! others are taken too; and the scheduler lets a reactor that has much to do
//! end its slice first, which takes a millisecond or more. So a reactor that
//! serves several devices yields (sched_yield(2)) after some time without sleep
//! in which it called somebody. Whom it called soon sleeps again.
//!
//! Somebody who doesn't keeps the CPU for a slice. Then it is not yielded again
//! for many times as long.

use super::run::Runner;
use crate::metrics::clock::Stamp;

/// For so long a reactor works before it yields. A yield that nobody wants takes
/// 0.3 µs, a hundredth of it.
const STINT_NS: u64 = 30_000;
/// A yield that took longer than this met somebody who doesn't sleep.
const LONG_NS: u64 = 200_000;
/// For so many times as long as it took there is no other one then.
const PENALTY: u64 = 50;

/// What a reactor remembers of it.
#[derive(Debug)]
pub(super) struct Manners {
    /// The last yield or sleep, and the calls made until then.
    since: Stamp,
    calls: u64,
    /// Nanoseconds from then on in which it doesn't yield.
    stint_ns: u64,
}

impl Manners {
    pub(super) fn new(now: Stamp) -> Self {
        Self { since: now, calls: 0, stint_ns: STINT_NS }
    }

    /// Whether it is time to yield, after `worked_ns` and so many calls in all.
    #[inline]
    fn is_due(&self, worked_ns: u64, calls: u64) -> bool {
        worked_ns >= self.stint_ns && calls != self.calls
    }

    /// A yield took so long.
    fn yielded(&mut self, took_ns: u64) {
        self.stint_ns = if took_ns > LONG_NS { took_ns.saturating_mul(PENALTY) } else { STINT_NS };
    }

    /// Others have had the CPU until `now`.
    fn rested(&mut self, now: Stamp, calls: u64) {
        (self.since, self.calls) = (now, calls);
    }
}

impl Runner {
    /// Lets others have the CPU if it is time; after work whose end was noted.
    #[inline]
    pub(super) fn mind_others(&mut self) {
        let calls = self.counters.calls.get();
        if self.hot.len() > 1 && self.manners.is_due(self.clock.since(self.manners.since), calls) {
            std::thread::yield_now();
            let took_ns = self.clock.idle();
            self.manners.yielded(took_ns);
            self.note_rest();
        }
    }

    /// Others have had the CPU.
    pub(super) fn note_rest(&mut self) {
        self.manners.rested(self.clock.begun(), self.counters.calls.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::clock::Clock;

    #[test]
    fn a_reactor_yields_after_a_stint_in_which_it_called_somebody() {
        let mut manners = Manners::new(Clock::shared().now());
        assert!(!manners.is_due(STINT_NS - 1, 1));
        assert!(!manners.is_due(STINT_NS, 0), "nobody was called");
        assert!(manners.is_due(STINT_NS, 1));
        manners.rested(Clock::shared().now(), 1);
        assert!(!manners.is_due(STINT_NS, 1) && manners.is_due(STINT_NS, 2));
    }

    #[test]
    fn whoever_keeps_the_cpu_for_a_slice_gets_little_of_the_reactors_time() {
        let mut manners = Manners::new(Clock::shared().now());
        let slice_ns = 3_000_000;
        manners.yielded(slice_ns);
        assert!(!manners.is_due(slice_ns * (PENALTY - 1), 1));
        assert!(manners.is_due(slice_ns * PENALTY, 1), "but is asked again");
        manners.yielded(LONG_NS);
        assert!(manners.is_due(STINT_NS, 1), "and is forgiven");
    }
}
