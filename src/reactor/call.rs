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

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Mailbox;
use crate::disk::Disk;

/// How long a VM whose call waited may start no queue, the first time; twice
/// as long each further time. Each costs its neighbours a pause of at most two
/// ticks of the watchdog, so that a frontend that goes on for ever takes less
/// than a thousandth of their time.
const PENALTY_FIRST: Duration = Duration::from_secs(1);
const PENALTY_MAX: Duration = Duration::from_secs(64);
/// After so long without another one, all is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Why a device ends whose call waited.
pub(super) const CALL_WAITS: &str = "its frontend made a call wait (its eventfd is full, and \
                                     blocking)";

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
        Call { eventfd: fd, caller: self.clone() }
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
}

impl Call {
    /// Calls the driver.
    #[inline]
    pub(super) fn make(&self) -> Called {
        // Not vmm-sys-util's EventFd: that one tries again after EINTR.
        let write = || rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        match self.caller.reactor.pulse.in_call(write) {
            Err(Errno::INTR) => {
                self.caller.reactor.strikes.add(self.caller.disk.name(), Instant::now());
                Called::Waited
            }
            // EAGAIN: the counter is full, so a call is pending.
            _ => Called::Done,
        }
    }
}

/// Which VMs' calls have waited.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    // Taken where a queue starts and where a call waited; never on the way of
    // a request.
    of_vm: Mutex<HashMap<String, Strike>>,
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
    fn a_strike_is_forgotten_after_a_while() {
        let strikes = Strikes::default();
        let now = Instant::now();
        (0..5).for_each(|_| strikes.add("web1", now));
        let later = now + FORGOTTEN_AFTER;
        strikes.add("web1", later);
        assert_eq!(strikes.penalty_left("web1", later), Some(PENALTY_FIRST));
    }
}
