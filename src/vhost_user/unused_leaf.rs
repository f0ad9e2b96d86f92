//! A leaf that no guest has used: it is given to no guest that runs with another disk.
//!
//! A guest that runs had a disk, and its frontend comes back. Where the leaf of that disk
//! is lost and a new one has taken its place, or was reverted to the root, such a guest
//! would go on with caches of the old disk and destroy both. So it is kept out. It is
//! known by the inflight region that a backend wrote for it; where a revert has cut it off,
//! also by its process. A guest that begins anew comes from another process, with an empty
//! region or none; from its first queue on the leaf is its, and it may come back at any
//! time.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::process::FrontendProcess;

#[derive(Debug, Default)]
enum State {
    /// No guest has used it.
    Unused {
        /// Runs with the disk as it was.
        kept_out: Option<FrontendProcess>,
        /// Why the last frontend was kept out, if one was.
        trouble: Option<String>,
    },
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
    /// the disk. `kept_out` had it before it was reverted, and has run ever since.
    pub fn new(
        leaf: &Path,
        kept_out: Option<FrontendProcess>,
        remember: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State::Unused { kept_out, trouble: None });
        Self { leaf: leaf.to_owned(), state, remember: Box::new(remember) }
    }

    /// Why a frontend was kept out, as long as no guest uses the leaf.
    pub fn trouble(&self) -> Option<String> {
        match &*self.lock() {
            State::Unused { trouble, .. } => trouble.clone(),
            State::Used => None,
        }
    }

    /// A frontend has connected.
    ///
    /// # Errors
    /// A sentence, if its process had the leaf before a revert, and no guest since.
    pub(super) fn admit(&self, stream: &UnixStream) -> Result<(), String> {
        match &mut *self.lock() {
            State::Unused { kept_out: Some(process), trouble } if process.has_connected(stream) => {
                Err(keep_out(
                    trouble,
                    format!(
                        "process {} still has the disk as it was before the revert of the leaf \
                         {}: end it and start the VM anew",
                        process.pid(),
                        self.leaf.display()
                    ),
                ))
            }
            State::Unused { .. } | State::Used => Ok(()),
        }
    }

    /// A frontend comes with a guest that runs.
    ///
    /// # Errors
    /// A sentence, if no guest has used the leaf: it is not this guest's.
    pub(super) fn admit_running(&self) -> Result<(), String> {
        match &mut *self.lock() {
            State::Used => Ok(()),
            State::Unused { trouble, .. } => Err(keep_out(
                trouble,
                format!(
                    "its guest runs with another disk than the leaf {}, which is new or was \
                     reverted, and which no guest has used since: end its hypervisor and start \
                     the VM anew, or put the leaf that it had in that place",
                    self.leaf.display()
                ),
            )),
        }
    }

    /// A guest uses the leaf from now on.
    pub(super) fn begin_use(&self) {
        let mut state = self.lock();
        if let State::Unused { .. } = &*state {
            (self.remember)();
            *state = State::Used;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes why a frontend is kept out.
fn keep_out(trouble: &mut Option<String>, why: String) -> String {
    *trouble = Some(why.clone());
    why
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
        let leaf = UnusedLeaf::new(Path::new("/l/web1.leaf"), None, move || {
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

    #[test]
    fn a_process_that_had_the_leaf_before_a_revert_is_kept_out_until_another_uses_it() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let this = FrontendProcess::open(rustix::process::getpid());
        let leaf = UnusedLeaf::new(Path::new("/l/web1.leaf"), this, || ());
        let why = leaf.admit(&ours).unwrap_err();
        let own = format!("process {} still has the disk", std::process::id());
        assert!(why.starts_with(&own) && leaf.trouble() == Some(why));
        leaf.begin_use();
        assert_eq!((leaf.admit(&ours), leaf.trouble()), (Ok(()), None));
        let another = Path::new("/l/web2.leaf");
        assert_eq!(UnusedLeaf::new(another, None, || ()).admit(&ours), Ok(()));
    }
}
