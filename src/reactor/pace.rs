//! Which writes a reactor does itself, and when write-back is asked for.
//!
//! A write into the page cache takes microseconds, a hand-over to a lane several
//! times that. But it may wait: for memory, or for what write-back has locked.
//! So a device writes at once for as long as that turns out to be quick.
#![expect(unsafe_code, reason = "getrusage(2) of a thread has no safe form here")]

use std::time::{Duration, Instant};

/// A write of at most this many sectors is done at once, if it can be expected
/// to be quick: the copy of 128 KiB takes tens of microseconds.
const INLINE_SECTORS: u64 = 256;
/// The same where the reactor has others to serve, who would wait for it: 64 VMs
/// that boot at once take 6 % less time (docs/BENCHMARKS.md), and longer writes
/// find another core.
const INLINE_SHARED_SECTORS: u64 = 64;
/// A write that took longer than this, and in which the thread gave the CPU up
/// of its own accord, was not quick: the kernel made it wait. A thread that was
/// only preempted says nothing of the disk (on a busy host that mistook most
/// slow writes, and a lane costs several times an inline write).
const SLOW: Duration = Duration::from_millis(1);
/// Waits up to this harm nobody on a reactor that has nobody else to serve: the
/// guest would wait for the lane as well, and longer.
const SLOW_ALONE: Duration = Duration::from_millis(4);
/// For so many times a slow write's duration the device's writes go to its
/// lane, where waiting harms nobody else: a twentieth of the reactor's time is
/// the most that it can lose so.
const PENALTY: u32 = 20;
const PENALTY_MAX: Duration = Duration::from_secs(300);

/// Bytes written since the last flush after which write-back is asked for, so
/// that a flush finds little to do however much was written before it. Sooner
/// would take the CPU from short bursts of writes, which then wait for their own
/// write-back.
const BURST_BYTES: u64 = 128 << 20;
/// The same once that has happened: who writes more than a burst is written back
/// in steps, the last of which is all that a flush finds.
const STEP_BYTES: u64 = 32 << 20;
/// A flush of so many bytes takes CPU time that others feel. Giving way is not free:
/// 64 VMs that boot at once, which flush less at a time, took 5 to 10 % longer
/// when all of them did.
const LONG_FLUSH_BYTES: u64 = 256 << 10;
/// Bytes written during one write-back after which writes go to the lane: the
/// disk doesn't keep up, and what is written now would be waited for in the next
/// flush, or sooner, when the kernel makes writers wait.
const BEHIND_BYTES: u64 = 48 << 20;

/// How often a thread has given the CPU up of its own accord, as getrusage(2)
/// counts it: looked at after each sleep and each slow write only, as a look
/// costs 150 ns. Between two looks at most a contended lock waits otherwise.
#[derive(Debug, Default)]
pub(super) struct Waits(i64);

impl Waits {
    /// Looks; whether there were any since the last look.
    pub(super) fn look(&mut self) -> bool {
        // SAFETY: a plain C struct for which zero is valid, filled by the call.
        let now = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage.ru_nvcsw
        };
        now != std::mem::replace(&mut self.0, now)
    }
}

/// What a write meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings {
    /// Bytes written since write-back was last asked for, or a flush began.
    pub(super) unsynced: u64,
    /// The reactor has no other device to serve.
    pub(super) alone: bool,
    /// A flush is writing the leaf's map, and holds the file's lock for that.
    pub(super) writing_map: bool,
}

/// Decides which writes of one device are done at once.
#[derive(Debug, Default)]
pub(super) struct WritePace {
    /// Until then, writes go to the lane.
    lane_until: Option<Instant>,
    write_back_running: bool,
    /// Write-back was asked for since the last flush.
    past_burst: bool,
    /// Changes that the lane has in hand and that take long, and the others.
    large: u32,
    small: u32,
    /// When the lane began or ended one of them.
    lane_moved: Option<Instant>,
}

impl WritePace {
    /// Whether a write of `sectors` from `start` may be done at once. Only
    /// whole pages: for a part of one the kernel may have to read the rest.
    pub(super) fn is_inline(&mut self, start: u64, sectors: u64, around: Surroundings) -> bool {
        let pages = start.is_multiple_of(8) && sectors.is_multiple_of(8);
        let most = if around.alone { INLINE_SECTORS } else { INLINE_SHARED_SECTORS };
        if !pages || sectors > most {
            return false;
        }
        // Who has nobody else to serve may wait for the lock as well as the lane.
        if around.writing_map && !around.alone {
            return false;
        }
        if self.write_back_running && around.unsynced > BEHIND_BYTES {
            return false;
        }
        if self.large > 0 || self.small > 0 && self.lane_stands_still() {
            return false;
        }
        match self.lane_until {
            None => true,
            Some(until) if Instant::now() >= until => {
                self.lane_until = None;
                true
            }
            Some(_) => false,
        }
    }

    /// The lane holds the file's lock while it writes or zeroes, and a write
    /// here would wait for it. Where it is done with each in no time, that is no
    /// reason to hand it more.
    fn lane_stands_still(&self) -> bool {
        self.lane_moved.is_some_and(|when| when.elapsed() > SLOW)
    }

    /// The lane was given a change: of more than [`Self::is_large`], or zeroing.
    pub(super) fn lane_began(&mut self, large: bool) {
        if self.large + self.small == 0 {
            self.lane_moved = Some(Instant::now());
        }
        *(if large { &mut self.large } else { &mut self.small }) += 1;
    }

    /// The lane is done with a change.
    pub(super) fn lane_ended(&mut self, large: bool) {
        let count = if large { &mut self.large } else { &mut self.small };
        *count = count.saturating_sub(1);
        self.lane_moved = Some(Instant::now());
    }

    /// Whether a write of so many sectors takes the lane long.
    pub(super) fn is_large(sectors: u64) -> bool {
        sectors > INLINE_SHARED_SECTORS
    }

    /// Whether a flush takes long that so many bytes wait for.
    pub(super) fn is_long(unsynced: u64) -> bool {
        unsynced >= LONG_FLUSH_BYTES
    }

    /// Learns from a write that began at `begun` and is done; `alone` if the
    /// reactor has no other device to serve.
    pub(super) fn wrote(&mut self, begun: Instant, alone: bool, waits: &mut Waits) {
        let took = begun.elapsed();
        if took > SLOW {
            let limit = if alone { SLOW_ALONE } else { SLOW };
            if waits.look() && took > limit {
                self.lane_until = Some(Instant::now() + (took * PENALTY).min(PENALTY_MAX));
            }
        }
    }

    /// Whether write-back is to be asked for, `unsynced` bytes after the last
    /// time.
    pub(super) fn wants_write_back(&self, unsynced: u64) -> bool {
        let most = if self.past_burst { STEP_BYTES } else { BURST_BYTES };
        !self.write_back_running && unsynced >= most
    }

    /// It was asked for.
    pub(super) fn write_back_began(&mut self) {
        (self.write_back_running, self.past_burst) = (true, true);
    }

    /// What was under way is written.
    pub(super) fn write_back_ended(&mut self) {
        self.write_back_running = false;
    }

    /// A flush begins: what is written from here on is another burst.
    pub(super) fn flush_began(&mut self) {
        self.past_burst = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Surroundings = Surroundings { unsynced: 0, alone: true, writing_map: false };
    const SHARED: Surroundings = Surroundings { alone: false, ..ALONE };

    #[test]
    fn a_burst_is_left_alone_and_what_follows_is_written_back_in_steps_until_a_flush() {
        let mut pace = WritePace::default();
        assert!(!pace.wants_write_back(BURST_BYTES - 1));
        assert!(pace.wants_write_back(BURST_BYTES));
        pace.write_back_began();
        assert!(!pace.wants_write_back(BURST_BYTES), "one at a time");
        pace.write_back_ended();
        assert!(pace.wants_write_back(STEP_BYTES));
        pace.flush_began();
        assert!(!pace.wants_write_back(STEP_BYTES));
    }

    #[test]
    fn only_whole_pages_of_a_disk_that_keeps_up_are_written_at_once() {
        let mut pace = WritePace::default();
        assert!(pace.is_inline(8, 8, ALONE));
        assert!(!pace.is_inline(4, 8, ALONE) && !pace.is_inline(8, 4, ALONE));
        assert!(!pace.is_inline(8, INLINE_SECTORS + 8, ALONE));
        let longer = INLINE_SHARED_SECTORS + 8;
        assert!(pace.is_inline(8, longer, ALONE) && !pace.is_inline(8, longer, SHARED));
        pace.write_back_began();
        assert!(!pace.is_inline(8, 8, Surroundings { unsynced: BEHIND_BYTES + 1, ..ALONE }));
    }

    #[test]
    fn beside_others_nothing_is_written_at_once_while_a_flush_holds_the_files_lock() {
        let mut pace = WritePace::default();
        assert!(!pace.is_inline(8, 8, Surroundings { writing_map: true, ..SHARED }));
        assert!(pace.is_inline(8, 8, Surroundings { writing_map: true, ..ALONE }));
    }

    #[test]
    fn nothing_is_written_at_once_beside_what_the_lane_does_for_long() {
        let mut pace = WritePace::default();
        pace.lane_began(true);
        pace.lane_began(true);
        assert!(!pace.is_inline(8, 8, ALONE));
        pace.lane_ended(true);
        assert!(!pace.is_inline(8, 8, ALONE));
        pace.lane_ended(true);
        assert!(pace.is_inline(8, 8, ALONE));
        // Small ones, as long as they are done quickly: else a queue that is
        // never empty would never get out of its lane.
        pace.lane_began(false);
        assert!(pace.is_inline(8, 8, ALONE));
        pace.lane_moved = Instant::now().checked_sub(SLOW * 2);
        assert!(!pace.is_inline(8, 8, ALONE));
        pace.lane_ended(false);
        assert!(pace.is_inline(8, 8, ALONE));
    }

    #[test]
    fn however_long_a_write_waited_those_at_once_cost_a_small_part_of_the_time() {
        let begun = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        let (mut pace, mut waits) = (WritePace::default(), Waits(-1));
        pace.wrote(begun, false, &mut waits);
        let until = pace.lane_until.unwrap();
        assert!(until - Instant::now() > Duration::from_secs(55));
    }

    #[test]
    fn a_write_that_waited_long_sends_those_after_it_to_the_lane() {
        let now = Instant::now();
        let ago = |time: Duration| now.checked_sub(time).expect("the machine runs that long");
        let wait = |waits: &mut Waits| {
            waits.look();
            waits.0 -= 1;
        };
        let (mut pace, mut waits) = (WritePace::default(), Waits::default());
        wait(&mut waits);
        pace.wrote(ago(SLOW * 2), true, &mut waits);
        assert!(pace.is_inline(8, 8, ALONE), "alone it harms nobody");
        wait(&mut waits);
        pace.wrote(ago(SLOW * 2), false, &mut waits);
        assert!(!pace.is_inline(8, 8, ALONE));
    }
}
