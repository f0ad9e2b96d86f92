//! When a busy reactor lets others have its CPU for a moment.
//!
//! Whom it has called may be a thread that waits for this very CPU, where the
//! others are taken too; and the scheduler lets a reactor that has much to do
//! end its slice first, which takes a millisecond or more. So a reactor that
//! serves several devices yields (sched_yield(2)) after some time without sleep
//! in which it called somebody. Whom it called soon sleeps again.
//!
//! Somebody who doesn't keeps the CPU for a slice. Then the reactor doesn't yield
//! for many times as long. What a request waited in the ring meanwhile is in no
//! metric: its time begins when the reactor is back.

use super::run::Runner;
use crate::metrics::clock::Stamp;

/// For so long a reactor works before it yields. A yield that nobody wants takes
/// 0.3 µs, a hundredth of it.
const STINT_NS: u64 = 30_000;
/// A yield that took longer than this met somebody who doesn't sleep.
const LONG_NS: u64 = 200_000;
/// For so many times as long as it took there is no other one then,
const PENALTY: u64 = 50;
/// or for so long: it says nothing of a second later.
const PENALTY_MAX_NS: u64 = 300_000_000;

/// What a reactor remembers of it.
#[derive(Debug)]
pub(super) struct Manners {
    /// The last yield or sleep, and the calls made until then.
    since: Stamp,
    calls: u64,
    /// The last yield, and for how many nanoseconds there is no other one.
    yielded: Stamp,
    penalty_ns: u64,
}

impl Manners {
    pub(super) fn new(now: Stamp) -> Self {
        Self { since: now, calls: 0, yielded: now, penalty_ns: 0 }
    }

    /// Whether somebody is to be let in, `worked_ns` after the last rest and after
    /// so many calls in all.
    #[inline]
    fn is_due(&self, worked_ns: u64, calls: u64) -> bool {
        worked_ns >= STINT_NS && calls != self.calls
    }

    /// A yield took so long, until `now`.
    fn yielded(&mut self, took_ns: u64, now: Stamp) {
        self.yielded = now;
        self.penalty_ns = if took_ns > LONG_NS {
            (took_ns.saturating_mul(PENALTY)).min(PENALTY_MAX_NS)
        } else {
            0
        };
    }

    /// Others have had the CPU until `now`.
    fn rested(&mut self, now: Stamp, calls: u64) {
        (self.since, self.calls) = (now, calls);
    }
}

impl Runner {
    /// Lets others have the CPU if it is time; after work.
    #[inline]
    pub(super) fn mind_others(&mut self) {
        let calls = self.counters.calls.get();
        if self.hot.len() > 1
            && self.manners.is_due(self.clock.since(self.manners.since), calls)
            && self.clock.since(self.manners.yielded) >= self.manners.penalty_ns
        {
            self.yield_cpu();
        }
    }

    fn yield_cpu(&mut self) {
        // What was published or submitted is work still.
        self.lap();
        let begun = self.clock.begun();
        std::thread::yield_now();
        self.clock.idle();
        self.manners.yielded(self.clock.since(begun), self.clock.begun());
        self.note_rest();
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
        let now = Clock::shared().now();
        let mut manners = Manners::new(now);
        let slice_ns = 3_000_000;
        manners.yielded(slice_ns, now);
        manners.rested(now, 0);
        assert_eq!(manners.penalty_ns, slice_ns * PENALTY, "also after a rest");
        manners.yielded(slice_ns * 1000, now);
        assert_eq!(manners.penalty_ns, PENALTY_MAX_NS);
        manners.yielded(LONG_NS, now);
        assert_eq!(manners.penalty_ns, 0, "and is forgiven");
    }
}
