//! The last trouble with a VM's frontend or driver: kept when it is gone, so that who comes
//! later sees why a guest had no disk.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Something that ended a connection or stopped the device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// When it came last.
    pub at: SystemTime,
    /// What it was.
    pub why: String,
    /// How often it came, or another of its kind, without a request being served between.
    pub times: u64,
    /// Whether it ended a connection, as the next one may.
    pub ended_connection: bool,
}

#[derive(Debug)]
struct Entry {
    trouble: Trouble,
    /// Requests that the VM had been served by then.
    requests: u64,
}

/// The last one of a VM.
#[derive(Debug, Default)]
pub(super) struct LastTrouble(Mutex<Option<Entry>>);

impl LastTrouble {
    /// Trouble came when the VM had been served `requests`.
    pub(super) fn note(&self, why: String, ended_connection: bool, requests: u64) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.as_ref().filter(|last| last.requests == requests);
        let times = before.map_or(0, |last| last.trouble.times) + 1;
        let trouble = Trouble { at: SystemTime::now(), why, times, ended_connection };
        *last = Some(Entry { trouble, requests });
    }

    /// The last trouble, if there was any.
    pub(super) fn get(&self) -> Option<Trouble> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map(|last| last.trouble.clone())
    }

    /// The last trouble, if it ended a connection and no request was served after it:
    /// the VM has been served `requests`.
    pub(super) fn goes_on(&self, requests: u64) -> Option<Trouble> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref().filter(|last| last.requests == requests);
        last.map(|last| &last.trouble).filter(|trouble| trouble.ended_connection).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_goes_on_until_a_request_is_served_and_is_kept_after_it() {
        let last = LastTrouble::default();
        assert_eq!((last.get(), last.goes_on(0)), (None, None));
        for times in 1..4 {
            last.note("no shared memory".into(), true, 7);
            let trouble = last.goes_on(7).unwrap();
            assert_eq!((trouble.why.as_str(), trouble.times), ("no shared memory", times));
        }
        assert_eq!(last.goes_on(8), None);
        assert_eq!(last.get().unwrap().times, 3);
        last.note("another".into(), true, 8);
        assert_eq!(last.goes_on(8).unwrap().times, 1, "what is over doesn't count");
    }

    #[test]
    fn a_device_that_stopped_says_nothing_of_the_next_connection() {
        let last = LastTrouble::default();
        last.note("nonsense in its ring".into(), false, 0);
        assert_eq!(last.goes_on(0), None);
        assert_eq!(last.get().unwrap().why, "nonsense in its ring");
    }
}
