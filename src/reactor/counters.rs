//! What a reactor did, and the clock that tells how long.

use super::run::Runner;
use crate::metrics::clock::{Clock, Stamp};
use crate::metrics::{Counter, Gauge};

/// Counts of one reactor since it started. Its thread writes them.
#[derive(Debug, Default)]
pub struct ReactorCounters {
    /// Turns of the loop: in each, every hot device's rings are looked at.
    /// Brought up to date at each look at the epoll set.
    pub polls: Gauge,
    /// Looks at the epoll set, sleeps included.
    pub looks: Counter,
    /// Times that it slept.
    pub sleeps: Counter,
    /// Kicks that woke it, or that it found in a look. Several of one queue
    /// between two looks count as one.
    pub kicks: Counter,
    /// Drivers called.
    pub calls: Counter,
    /// Nanoseconds in which it had requests, completions or mail in hand.
    pub busy_ns: Counter,
    /// Requests that could not be answered in the turn that took them.
    pub deferred: Counter,
    /// Its thread, as the kernel numbers it.
    pub thread_id: Gauge,
    /// Devices that it serves.
    pub devices: Gauge,
}

/// A reactor's view of the clock: read after each stretch of work, and now and
/// then while there is none. Work begins where the last reading was: at the end
/// of the work before it, or at most [`DEVICES_PER_CLOCK`] looks at a device
/// ago. So no request waits for a reading.
#[derive(Debug)]
pub(super) struct TurnClock {
    clock: Clock,
    last: Stamp,
    /// Where the last work ended, or the last sleep.
    worked: Stamp,
}

/// Devices that idle turns look at between two readings of the clock: a
/// reading costs 10 ns, a look about 5.
pub(super) const DEVICES_PER_CLOCK: usize = 8;

impl TurnClock {
    pub(super) fn new() -> Self {
        let clock = Clock::shared();
        let last = clock.now();
        Self { clock, last, worked: last }
    }

    /// When the work in hand began.
    #[inline]
    pub(super) fn begun(&self) -> Stamp {
        self.last
    }

    /// A stretch of work ends; how many nanoseconds it took.
    #[inline]
    pub(super) fn lap(&mut self) -> u64 {
        let begun = std::mem::replace(&mut self.last, self.clock.now());
        self.worked = self.last;
        self.clock.nanos(begun, self.last)
    }

    /// Nanoseconds from `start` to the end of the last stretch.
    #[inline]
    pub(super) fn since(&self, start: Stamp) -> u64 {
        self.clock.nanos(start, self.last)
    }

    /// Sleep is over; how many nanoseconds there had been no work. Counting
    /// those starts anew.
    pub(super) fn woke(&mut self) -> u64 {
        let idle_ns = self.idle();
        self.worked = self.last;
        idle_ns
    }

    /// There was nothing to do; for how many nanoseconds by now.
    #[inline]
    pub(super) fn idle(&mut self) -> u64 {
        self.last = self.clock.now();
        self.clock.nanos(self.worked, self.last)
    }
}

impl Runner {
    /// A stretch of work ends; how long it took, in nanoseconds.
    #[inline]
    pub(super) fn lap(&mut self) -> u64 {
        let nanos = self.clock.lap();
        self.counters.busy_ns.add(nanos);
        nanos
    }

    /// Counts the deferred requests whose answers were just shown.
    pub(super) fn count_answered(&mut self) {
        self.lap();
        while let Some(request) = self.answered.pop() {
            if let Some(device) = self.devices.get(request.slot).and_then(Option::as_ref)
                && device.id == request.device
            {
                let nanos = self.clock.since(request.started);
                device.disk.counters().answered_one(request.operation, nanos);
            }
        }
    }

    pub(super) fn count_devices(&self) {
        self.counters.devices.set(self.devices.iter().flatten().count() as u64);
    }
}
