//! How control threads have the configuration read again: they ask the main thread, by
//! the channel on which signals come, and wait for its answer.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::HostError;
use super::host::Host;
use super::reload_report::Reloaded;
use super::signals::Wish;

/// The way to the main thread, and how its last reload went.
pub(super) struct ReloadRequests {
    wishes: SyncSender<Wish>,
    last: Mutex<Option<Arc<Reloaded>>>,
}

impl ReloadRequests {
    /// Requests that go to the receiver of `wishes`.
    pub(super) fn to(wishes: SyncSender<Wish>) -> Self {
        Self { wishes, last: Mutex::default() }
    }

    /// Remembers how a reload went.
    pub(super) fn done(&self, reloaded: &Arc<Reloaded>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(reloaded));
    }
}

impl Host {
    /// Has the configuration read again, as SIGHUP does, and returns when that is done.
    ///
    /// # Errors
    /// [`HostError::ReloadsWait`], [`HostError::Stopping`]. What the configuration says
    /// and can't be had is no error: the report has it.
    pub fn request_reload(&self) -> Result<Arc<Reloaded>, HostError> {
        let (answer, answered) = sync_channel(1);
        self.inner().reloads.wishes.try_send(Wish::Reload(Some(answer))).map_err(|error| {
            match error {
                TrySendError::Full(_) => HostError::ReloadsWait,
                TrySendError::Disconnected(_) => HostError::Stopping,
            }
        })?;
        // Where the process stops first, the wish is dropped with its answer.
        answered.recv().map_err(|_| HostError::Stopping)
    }

    /// How the last reload went, if there was one.
    pub fn last_reload(&self) -> Option<Arc<Reloaded>> {
        self.inner().reloads.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
