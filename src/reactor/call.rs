//! Calling a driver through an eventfd that its frontend has open too.
//!
//! A write to an eventfd whose counter is full waits until somebody reads it,
//! unless O_NONBLOCK is set; and that flag belongs to the open file, so the
//! frontend can clear it at any time after we set it. Linux has no write to an
//! eventfd that never waits: RWF_NOWAIT is refused, as eventfd has no
//! `write_iter`, and a poll before the write proves nothing. So the write is
//! done between two stores that the [`super::watchdog`] reads, which interrupts
//! one that lasts. EINTR then tells this from all else: only a write that waits
//! can be interrupted, and no honest frontend fills 2^64 - 2 calls.
//!
//! The two stores cost 1 ns of the 228 of the write (docs/ARCHITECTURE.md).
//!
//! A write that doesn't wait can be slow: it wakes all who wait for the eventfd,
//! 50 ns each, with interrupts off, and a frontend can make that hundreds of
//! thousands by epoll sets. So calls are timed, by a clock that takes 10 ns. One
//! that took over [`SLOW`] may just have been preempted; after it, the CPU time
//! of calls is looked at too, and a VM whose calls keep taking much of it ends as if
//! one had waited. A single one says nothing: where leafblk runs in a virtual machine
//! itself, what its host takes away for others looks like CPU time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Mailbox;
use crate::disk::Disk;
use crate::metrics::clock::Clock;

/// How long a VM whose call waited may start no queue, the first time; twice
/// as long each further time. Each costs its neighbours a pause of at most two
/// ticks of the watchdog, so that a frontend that goes on for ever takes less
/// than a thousandth of their time.
const PENALTY_FIRST: Duration = Duration::from_secs(1);
const PENALTY_MAX: Duration = Duration::from_secs(64);
/// After so long without another one, all is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Why a device ends whose call waited.
pub(super) const CALL_WAITS: &str = "its frontend made a call wait (its eventfd is full and \
                                     blocking, or too many wait for it)";

/// How long a call may take. One takes well below a thousandth of that.
const SLOW: Duration = Duration::from_millis(1);
/// Calls whose CPU time is looked at after a slow one: a look costs over 1 us.
const LOOKS: u32 = 64;
/// What the slow calls of a VM may take of the CPU before they count as one that
/// waits, beyond a part of all time since: a host that takes away half of the CPU, 1.6 ms
/// at a time, makes the looks find 4 % in calls at most.
const SLOW_MAX: Duration = Duration::from_millis(200);
/// One in so many parts of all time.
const SLOW_PART: u32 = 20;
/// What one call counts at most: the whole machine may have stood still meanwhile.
const SLOW_CALL_MAX: Duration = Duration::from_millis(25);

/// What became of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(super) enum Called {
    /// The driver knows, or knew already.
    Done,
    /// The write waited and was interrupted. It would wait again.
    Waited,
}

/// Makes a device's calls.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    reactor: Arc<Mailbox>,
    disk: Arc<Disk>,
}

impl Caller {
    pub(super) fn new(reactor: &Arc<Mailbox>, disk: &Arc<Disk>) -> Self {
        Self { reactor: Arc::clone(reactor), disk: Arc::clone(disk) }
    }

    /// The call that goes through `fd`, which was checked to be an eventfd.
    pub(super) fn through(&self, fd: OwnedFd) -> Call {
        Call { eventfd: fd, caller: self.clone(), clock: Clock::shared(), looks: 1 }
    }

    /// How long the VM may not start a queue, if at all.
    pub(super) fn penalty_left(&self) -> Option<Duration> {
        self.reactor.strikes.penalty_left(self.disk.name(), Instant::now())
    }
}

/// One queue's way to call its driver.
#[derive(Debug)]
pub(super) struct Call {
    eventfd: OwnedFd,
    caller: Caller,
    clock: Clock,
    /// Calls from here on whose CPU time is looked at.
    looks: u32,
}

impl Call {
    /// Calls the driver.
    #[inline]
    pub(super) fn make(&mut self) -> Called {
        let cpu_time = (self.looks > 0).then(cpu_time);
        let begun = self.clock.now();
        // Not vmm-sys-util's EventFd: that one tries again after EINTR.
        let write = || rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        let result = self.caller.reactor.pulse.in_call(write);
        let nanos = self.clock.nanos(begun, self.clock.now());
        if result == Err(Errno::INTR) {
            self.caller.reactor.strikes.add(self.caller.disk.name(), Instant::now());
            return Called::Waited;
        }
        // EAGAIN: the counter is full, so a call is pending.
        match cpu_time {
            None if u128::from(nanos) <= SLOW.as_nanos() => Called::Done,
            _ => self.look(nanos, cpu_time),
        }
    }

    /// Looks at a call that took `nanos`, and before which the thread had used
    /// so much CPU time, if that is known.
    #[cold]
    fn look(&mut self, nanos: u64, cpu_time_before: Option<Duration>) -> Called {
        self.looks = self.looks.saturating_sub(1);
        if Duration::from_nanos(nanos) <= SLOW {
            return Called::Done;
        }
        self.looks = LOOKS;
        let used = cpu_time_before.map(|before| cpu_time().saturating_sub(before));
        let (strikes, name) = (&self.caller.reactor.strikes, self.caller.disk.name());
        match used.filter(|used| *used > SLOW) {
            Some(used) if strikes.add_slow(name, used, Instant::now()) => Called::Waited,
            _ => Called::Done,
        }
    }
}

/// What the current thread has used of the CPU.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

/// Which VMs' calls have waited.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    // Taken where a queue starts and where a call waited; never on the way of
    // a request.
    of_vm: Mutex<HashMap<String, Strike>>,
    /// Slow calls that are no strike yet.
    slow: Mutex<HashMap<String, Slow>>,
}

/// What slow calls of a VM have taken of the CPU, less its part of the time since.
#[derive(Clone, Copy, Debug)]
struct Slow {
    taken: Duration,
    last: Instant,
}

impl Slow {
    fn taken_at(&self, now: Instant) -> Duration {
        self.taken.saturating_sub(now.duration_since(self.last) / SLOW_PART)
    }
}

#[derive(Clone, Copy, Debug)]
struct Strike {
    count: u32,
    last: Instant,
}

impl Strike {
    fn penalty(&self) -> Duration {
        let doublings = 1u32.checked_shl(self.count.saturating_sub(1)).unwrap_or(u32::MAX);
        PENALTY_FIRST.saturating_mul(doublings).min(PENALTY_MAX)
    }
}

impl Strikes {
    fn add(&self, vm: &str, now: Instant) {
        let mut of_vm = self.of_vm.lock().unwrap_or_else(PoisonError::into_inner);
        // Also what bounds the table.
        of_vm.retain(|_, strike| now.duration_since(strike.last) < FORGOTTEN_AFTER);
        let strike = of_vm.entry(vm.to_owned()).or_insert(Strike { count: 0, last: now });
        *strike = Strike { count: strike.count.saturating_add(1), last: now };
    }

    /// Counts a slow call, which took so much of the CPU; whether that makes a strike.
    fn add_slow(&self, vm: &str, took: Duration, now: Instant) -> bool {
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|_, slow| !slow.taken_at(now).is_zero());
        let calls = slow.entry(vm.to_owned()).or_insert(Slow { taken: Duration::ZERO, last: now });
        *calls = Slow { taken: calls.taken_at(now) + took.min(SLOW_CALL_MAX), last: now };
        let is_strike = calls.taken > SLOW_MAX;
        if is_strike {
            slow.remove(vm);
            self.add(vm, now);
        }
        is_strike
    }

    fn penalty_left(&self, vm: &str, now: Instant) -> Option<Duration> {
        let of_vm = self.of_vm.lock().unwrap_or_else(PoisonError::into_inner);
        let strike = of_vm.get(vm)?;
        strike.penalty().checked_sub(now.duration_since(strike.last)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_that_waits_doubles_the_time_without_queues_up_to_a_limit() {
        let strikes = Strikes::default();
        let mut now = Instant::now();
        assert_eq!(strikes.penalty_left("web1", now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            strikes.add("web1", now);
            assert_eq!(strikes.penalty_left("web1", now), Some(Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
            assert_eq!(strikes.penalty_left("web1", now), None);
        }
        assert_eq!(strikes.penalty_left("web2", now), None, "nobody else's");
    }

    #[test]
    fn slow_calls_are_a_strike_when_they_take_much_in_a_short_time() {
        let strikes = Strikes::default();
        let mut now = Instant::now();
        let call = SLOW_CALL_MAX;
        for round in 1..=2 {
            let count = (1..).find(|_| {
                now += call;
                strikes.add_slow("web1", call, now)
            });
            assert_eq!(count, Some(9), "each but the first pays for a twentieth");
            assert_eq!(strikes.penalty_left("web1", now), Some(Duration::from_secs(round)));
        }
        assert!(!strikes.add_slow("web2", Duration::from_hours(1), now), "a machine stood still");
    }

    #[test]
    fn slow_calls_are_none_where_they_are_a_small_part_of_the_time() {
        let strikes = Strikes::default();
        let (mut now, gap) = (Instant::now(), Duration::from_micros(1600));
        // For a quarter of an hour, one in twenty parts.
        for _ in 0..30_000 {
            now += gap * SLOW_PART;
            assert!(!strikes.add_slow("web1", gap, now));
        }
        assert_eq!(strikes.penalty_left("web1", now), None);
        now += SLOW_MAX * SLOW_PART;
        assert!(!strikes.add_slow("web2", gap, now));
        assert_eq!(strikes.slow.lock().unwrap().len(), 1, "what is paid for is forgotten");
    }

    #[test]
    fn a_strike_is_forgotten_after_a_while() {
        let strikes = Strikes::default();
        let now = Instant::now();
        (0..5).for_each(|_| strikes.add("web1", now));
        let later = now + FORGOTTEN_AFTER;
        strikes.add("web1", later);
        assert_eq!(strikes.penalty_left("web1", later), Some(PENALTY_FIRST));
    }
}
