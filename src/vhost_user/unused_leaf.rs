//! A leaf that no guest has used: it is given to no guest that runs with another disk.
//!
//! A guest that runs had a disk, and its frontend comes back with the inflight region
//! that a backend wrote for it. Where the leaf of that disk is lost and a new one has
//! taken its place, such a guest would go on with caches of the old disk and destroy
//! both. So it is kept out. A guest that begins anew comes with an empty region, or
//! none; from its first queue on the leaf is its, and it may come back at any time.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
enum State {
    /// No guest has used it; why the last frontend was kept out, if one was.
    Unused(Option<String>),
    #[default]
    Used,
}

/// A leaf that may not have been used yet.
pub struct UnusedLeaf {
    leaf: PathBuf,
    state: Mutex<State>,
    /// Remembers that a guest uses it. Called once, before the guest does.
    remember: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for UnusedLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnusedLeaf").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl UnusedLeaf {
    /// The leaf at `leaf` has not been used; `remember` notes that it is, and may wait for
    /// the disk.
    pub fn new(leaf: &Path, remember: impl Fn() + Send + Sync + 'static) -> Self {
        let state = Mutex::new(State::Unused(None));
        Self { leaf: leaf.to_owned(), state, remember: Box::new(remember) }
    }

    /// Why a frontend was kept out, as long as no guest uses the leaf.
    pub fn trouble(&self) -> Option<String> {
        match &*self.lock() {
            State::Unused(trouble) => trouble.clone(),
            State::Used => None,
        }
    }

    /// A frontend comes with a guest that runs.
    ///
    /// # Errors
    /// A sentence, if no guest has used the leaf: it is not this guest's.
    pub(super) fn admit_running(&self) -> Result<(), String> {
        let mut state = self.lock();
        match &mut *state {
            State::Used => Ok(()),
            State::Unused(trouble) => {
                let why = format!(
                    "its guest runs with another disk than the leaf {}, which no guest has used \
                     yet: put the leaf that it had in that place, or end its hypervisor and start \
                     the VM anew",
                    self.leaf.display()
                );
                *trouble = Some(why.clone());
                Err(why)
            }
        }
    }

    /// A guest uses the leaf from now on.
    pub(super) fn begin_use(&self) {
        let mut state = self.lock();
        if let State::Unused(_) = &*state {
            (self.remember)();
            *state = State::Used;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_guest_that_runs_is_admitted_once_another_has_begun_to_use_the_leaf() {
        let remembered = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&remembered);
        let leaf = UnusedLeaf::new(Path::new("/l/web1.leaf"), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(leaf.trouble(), None);
        let why = leaf.admit_running().unwrap_err();
        assert!(why.contains("/l/web1.leaf") && leaf.trouble() == Some(why));
        leaf.begin_use();
        leaf.begin_use();
        assert_eq!((leaf.trouble(), leaf.admit_running()), (None, Ok(())));
        assert_eq!(remembered.load(Ordering::Relaxed), 1);
    }
}
