//! What of a disk's or a root's work fails now, and why: for whoever asks how the VM is.
//!
//! A kind of work fails from its first error until it succeeds again and has met no
//! error for [`HOLD`] by then. Without that time a full disk would be well and ill in
//! turns: what has its place in the leaf can still be written. Activity that nobody asks
//! for any more stays as it was: an error is not taken back by silence.

use std::fmt::{Arguments, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long after its last error work counts as failing, though it succeeds again.
/// Twice the 5 s after which guests commonly write what they have gathered.
pub const HOLD: Duration = Duration::from_secs(10);

/// What a disk does for its guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Activity {
    /// Writes, discards, and background write-back.
    Write,
    /// Making writes durable.
    Flush,
    /// Reads of what the leaf holds.
    LeafRead,
    /// Reads of what the root holds and the cache doesn't: of all its VMs alike.
    RootRead,
    /// All of it: the device is stopped until its driver or frontend resets it.
    Device,
}

const KINDS: [Activity; 5] =
    [Activity::Write, Activity::Flush, Activity::LeafRead, Activity::RootRead, Activity::Device];

/// Activity that fails.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failing {
    /// What.
    pub activity: Activity,
    /// Whether some of it succeeds.
    pub in_part: bool,
    /// What the last error said.
    pub why: String,
}

#[derive(Debug)]
struct Entry {
    last_error: Instant,
    succeeded: bool,
    why: String,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        self.succeeded && now.saturating_duration_since(self.last_error) >= HOLD
    }
}

/// A disk's failures, or a root's. Any thread may tell of them; a success where nothing fails
/// costs one look at memory.
#[derive(Debug, Default)]
pub struct Failures {
    /// A bit for each kind that has not succeeded since its last error.
    failing: AtomicU8,
    entries: Mutex<[Option<Entry>; KINDS.len()]>,
}

impl Failures {
    /// Activity met an error.
    #[cold]
    pub fn failed(&self, activity: Activity, why: Arguments<'_>) {
        self.failed_at(activity, why, Instant::now());
    }

    fn failed_at(&self, activity: Activity, why: Arguments<'_>, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Entry { last_error: now, succeeded: false, why: String::new() };
        let entry = entries[activity as usize].get_or_insert_with(new);
        (entry.last_error, entry.succeeded) = (now, false);
        entry.why.clear();
        let _ = entry.why.write_fmt(why);
        self.failing.fetch_or(1 << activity as u8, Ordering::Relaxed);
    }

    /// Activity succeeded.
    #[inline]
    pub fn succeeded(&self, activity: Activity) {
        if self.failing.load(Ordering::Relaxed) & 1 << activity as u8 != 0 {
            self.note_success(activity);
        }
    }

    #[cold]
    fn note_success(&self, activity: Activity) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.failing.fetch_and(!(1 << activity as u8), Ordering::Relaxed);
        if let Some(entry) = &mut entries[activity as usize] {
            entry.succeeded = true;
        }
    }

    /// What failed does so no more: it was begun anew.
    pub fn begun_anew(&self, activity: Activity) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.failing.fetch_and(!(1 << activity as u8), Ordering::Relaxed);
        entries[activity as usize] = None;
    }

    /// What fails at this moment.
    pub fn at(&self, now: Instant) -> Vec<Failing> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = KINDS.into_iter().zip(entries.iter());
        let failing = kinds.filter_map(|(activity, entry)| {
            let entry = entry.as_ref().filter(|entry| !entry.is_over(now))?;
            Some(Failing { activity, in_part: entry.succeeded, why: entry.why.clone() })
        });
        failing.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(activity: Activity, in_part: bool, why: &str) -> Failing {
        Failing { activity, in_part, why: why.into() }
    }

    #[test]
    fn what_fails_does_so_until_it_succeeds_and_no_error_came_for_a_while() {
        let (failures, start) = (Failures::default(), Instant::now());
        let second = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(failures.at(start), []);
        failures.failed_at(Activity::Write, format_args!("no space"), start);
        assert_eq!(failures.at(second(9_999)), [failing(Activity::Write, false, "no space")]);
        failures.succeeded(Activity::Flush);
        assert_eq!(failures.at(second(9_999)).len(), 1, "a flush is no write");
        failures.succeeded(Activity::Write);
        assert_eq!(failures.at(second(9)), [failing(Activity::Write, true, "no space")]);
        assert_eq!(failures.at(second(10)), []);
    }

    #[test]
    fn errors_and_successes_in_turns_are_one_failure_from_the_first_to_the_last() {
        let (failures, start) = (Failures::default(), Instant::now());
        let second = |seconds| start + Duration::from_secs(seconds);
        for time in 0..60 {
            failures.failed_at(Activity::Write, format_args!("error {time}"), second(time));
            assert_eq!(
                failures.at(second(time)),
                [failing(Activity::Write, false, &format!("error {time}"))]
            );
            failures.succeeded(Activity::Write);
            assert_eq!(failures.at(second(time)).len(), 1);
        }
        assert_eq!(failures.at(second(68)).len(), 1);
        assert_eq!(failures.at(second(69)), []);
        failures.failed_at(Activity::Write, format_args!("again"), second(80));
        assert_eq!(failures.at(second(200)).len(), 1);
    }

    #[test]
    fn kinds_of_work_fail_apart_and_one_that_is_begun_anew_at_once_no_more() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.failed_at(Activity::RootRead, format_args!("gone"), now);
        failures.failed_at(Activity::Device, format_args!("nonsense"), now);
        let both = [
            failing(Activity::RootRead, false, "gone"),
            failing(Activity::Device, false, "nonsense"),
        ];
        assert_eq!(failures.at(now), both);
        failures.begun_anew(Activity::Device);
        assert_eq!(failures.at(now), both[..1]);
    }
}
