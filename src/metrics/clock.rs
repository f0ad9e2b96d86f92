//! A clock that is cheap to read, for latencies.
//!
//! A reactor reads it once a turn. clock_gettime(2) costs 24 ns here and the
//! CPU's own time stamp counter 10, and a turn that answers one cached read is
//! well under a microsecond. So where the kernel
//! says that the counter runs at a constant rate in all states of the CPU
//! (`constant_tsc` and `nonstop_tsc`) its ticks are used, compared once with
//! the system's clock to learn their length; elsewhere the system's clock is.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A point in time, in ticks of [`Clock`]. 0 is long ago.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stamp(u64);

/// How long the counter is compared with the system's clock: an error of 100 ns
/// in reading both is then 0.005 %.
#[cfg(target_arch = "x86_64")]
const COMPARE: Duration = Duration::from_millis(2);
/// So many readings of both: microseconds, in which a CPU is not taken away each time.
#[cfg(target_arch = "x86_64")]
const READINGS: u32 = 16;

/// The clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
    /// Nanoseconds in 2³² ticks.
    nanos_per_ticks: u64,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    #[cfg(target_arch = "x86_64")]
    TimeStampCounter,
    /// Ticks are nanoseconds from here on.
    System(Instant),
}

impl Clock {
    /// The process's clock. Takes 2 ms the first time.
    pub fn shared() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| Self::counter().unwrap_or_else(Self::system))
    }

    fn system() -> Self {
        Self { source: Source::System(Instant::now()), nanos_per_ticks: 1 << 32 }
    }

    #[cfg(target_arch = "x86_64")]
    fn counter() -> Option<Self> {
        let info = crate::io::open::kernel_text("/proc/cpuinfo").ok()?;
        let flags = info.lines().find(|line| line.starts_with("flags"))?;
        let steady = |wanted| flags.split_ascii_whitespace().any(|flag| flag == wanted);
        if !steady("constant_tsc") || !steady("nonstop_tsc") {
            return None;
        }
        let (begun, first) = both()?;
        while begun.elapsed() < COMPARE {
            std::hint::spin_loop();
        }
        let (ended, last) = both()?;
        let ticks = u128::from(last.checked_sub(first)?);
        let nanos = (ended - begun).as_nanos() << 32;
        let nanos_per_ticks = u64::try_from(nanos.checked_div(ticks)?).ok()?;
        Some(Self { source: Source::TimeStampCounter, nanos_per_ticks })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn counter() -> Option<Self> {
        None
    }

    /// Now.
    #[inline]
    pub fn now(&self) -> Stamp {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::TimeStampCounter => Stamp(time_stamp()),
            Source::System(start) => {
                Stamp(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
        }
    }

    /// Nanoseconds from one to the other; 0 if the other came first, as may
    /// seem so by some ticks on another CPU.
    #[inline]
    pub fn nanos(&self, from: Stamp, to: Stamp) -> u64 {
        let ticks = u128::from(to.0.saturating_sub(from.0));
        #[expect(clippy::cast_possible_truncation, reason = "2^64 ns are 584 years")]
        let nanos = ((ticks * u128::from(self.nanos_per_ticks)) >> 32) as u64;
        nanos
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn time_stamp() -> u64 {
    #[expect(unsafe_code, reason = "the counter's intrinsic is declared unsafe")]
    // SAFETY: reads a register; every x86-64 CPU has it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

/// The system's clock and the counter at one time: of some readings the one that took
/// the least. Between the two of a single one a busy host may well leave milliseconds,
/// which would be an error of every latency from then on.
#[cfg(target_arch = "x86_64")]
fn both() -> Option<(Instant, u64)> {
    let readings = (0..READINGS).map(|_| {
        let (before, now, after) = (time_stamp(), Instant::now(), time_stamp());
        (after.saturating_sub(before), now, before)
    });
    readings.min_by_key(|(took, ..)| *took).map(|(_, now, ticks)| (now, ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees_with_the_system(clock: Clock) {
        let (earliest, from, latest) = (Instant::now(), clock.now(), Instant::now());
        while latest.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let before = latest.elapsed().as_nanos();
        let nanos = u128::from(clock.nanos(from, clock.now()));
        let after = earliest.elapsed().as_nanos();
        // A percent: what lies between two readings may be a preemption, but
        // `before` and `after` enclose it.
        assert!(nanos + nanos / 100 + 1000 >= before && nanos <= after + after / 100 + 1000);
        assert_eq!(clock.nanos(clock.now(), from), 0, "never negative");
    }

    #[test]
    fn the_shared_clock_agrees_with_the_systems() {
        agrees_with_the_system(Clock::shared());
    }

    #[test]
    fn without_a_steady_counter_the_systems_clock_is_used() {
        agrees_with_the_system(Clock::system());
    }
}
