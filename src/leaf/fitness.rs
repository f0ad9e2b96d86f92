//! Whether a leaf still takes writes, and why not.
//!
//! Two things end that until it is opened again. A sync that failed: what was
//! acknowledged may be gone, so the live map is made nobody's ([`Leaf::poison`]). A
//! panic: what is in memory may be half changed, such as a map page that was taken
//! for a flush and not written; all that was acknowledged is in the page cache and
//! in the live map's file, which the next opening takes over ([`Leaf::abandon`]).

use std::sync::{LockResult, PoisonError};

use super::{Leaf, LeafError};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// What a leaf is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
enum Fitness {
    Whole = 0,
    /// A panic may have left something half done.
    Abandoned = 1,
    /// A sync failed.
    Poisoned = 2,
}

/// One that gets worse and never better.
#[derive(Debug, Default)]
pub(super) struct State(AtomicU8);

impl State {
    #[inline]
    fn get(&self) -> Fitness {
        match self.0.load(Ordering::Acquire) {
            0 => Fitness::Whole,
            1 => Fitness::Abandoned,
            _ => Fitness::Poisoned,
        }
    }

    fn worsen(&self, to: Fitness) {
        self.0.fetch_max(to as u8, Ordering::AcqRel);
    }
}

impl Leaf {
    /// Whether nothing is acknowledged any more: a sync failed, or a part of
    /// leafblk did ([`Self::abandon`]).
    pub fn is_poisoned(&self) -> bool {
        self.fitness.get() != Fitness::Whole
    }

    /// Nothing is acknowledged from here on. Nor may a later daemon take the
    /// live map over: it has bits whose data the kernel gave up on, and those
    /// sectors would read as holes, as zeros. The durable map has none of them.
    pub(super) fn poison(&self) {
        self.fitness.worsen(Fitness::Poisoned);
        if let Err(error) = self.map.disown() {
            log::error!("leaf {}: can't disown its live map: {error}", self.path.display());
        }
    }

    /// Nothing is acknowledged from here on, since a thread panicked while it
    /// worked on the leaf. What was acknowledged before is there when the leaf is
    /// opened again: the live map stays its own.
    ///
    /// Returns what the leaf answers from then on.
    pub fn abandon(&self) -> LeafError {
        self.fitness.worsen(Fitness::Abandoned);
        LeafError::Abandoned { path: self.path.clone() }
    }

    /// What the leaf answers instead of an acknowledgement.
    pub fn refusal(&self) -> Option<LeafError> {
        let path = || self.path.clone();
        match self.fitness.get() {
            Fitness::Whole => None,
            Fitness::Abandoned => Some(LeafError::Abandoned { path: path() }),
            Fitness::Poisoned => Some(LeafError::Poisoned { path: path() }),
        }
    }

    #[inline]
    pub(super) fn check_not_poisoned(&self) -> Result<(), LeafError> {
        self.refusal().map_or(Ok(()), Err)
    }

    /// Locks what must not be found half changed: a thread that panicked while it
    /// held the lock ends the leaf, before anybody else has it.
    pub(super) fn lock_whole<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
    ) -> Result<MutexGuard<'a, T>, LeafError> {
        let locked: LockResult<_> = mutex.lock();
        let guard = locked.map_err(|_: PoisonError<_>| self.abandon())?;
        self.check_not_poisoned().map(|()| guard)
    }
}
