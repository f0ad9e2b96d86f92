//! The device as one connection sees it, and what each vhost-user message does
//! to it.
//!
//! [`messages`] says which function a message goes to. Those on features,
//! protocol features and the status are in [`negotiation`], on guest memory in
//! [`memory`], on queues in [`vrings`], and on the configuration space, with the
//! write cache that it has a field for, in [`config`]. What concerns the whole
//! device is here: how it comes, comes back, is reset and goes.

mod config;
mod memory;
mod messages;
mod negotiation;
mod vrings;

use std::fs::File;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error, Result};

use super::inflight::Inflight;
use super::session::Session;
use super::unused_leaf::UnusedLeaf;
use super::vring::Vring;
use crate::disk::Disk;
use crate::guest_memory::{Account, GuestMemory};
use crate::leaf::WriteCache;
use crate::logging::limit::log_for;
use crate::reactor::{Command, DeviceId, Mailbox};

/// The device as one connection sees it.
///
/// Closing what a frontend brings and unmapping its memory can take long: for
/// the last use of a large file, for an eventfd that many wait for. So a reactor
/// is never the last to have any of it: what is here is let go only after the
/// reactor has answered that it is done with it.
pub(super) struct Handler {
    disk: Arc<Disk>,
    reactor: Arc<Mailbox>,
    session: Arc<Session>,
    device: DeviceId,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    /// The `writeback` field of the configuration space. The disk remembers
    /// it: this connection may come after others of the same guest.
    write_back_field: bool,
    /// The frontend brought an inflight region that it had before.
    came_back: bool,
    status: u8,
    account: Arc<Account>,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    inflight: Inflight,
    /// A leaf that no guest may have used yet.
    unused: Option<Arc<UnusedLeaf>>,
    error: Option<String>,
}

/// The handler, also where an earlier message's handling panicked.
pub(super) fn lock(handler: &Mutex<Handler>) -> MutexGuard<'_, Handler> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler {
    /// A device that no message has come for.
    ///
    /// # Errors
    /// A sentence: the reactor is gone, or nobody waits for the device any more.
    pub(super) fn attach(
        disk: Arc<Disk>,
        queues: u16,
        reactor: Arc<Mailbox>,
        session: &Arc<Session>,
    ) -> std::result::Result<Self, String> {
        let device = reactor
            .ask(|answer| Command::Attach(Arc::clone(&disk), answer))
            .ok_or("the reactor is gone; restart leafblk")?;
        if let Err(given_up) = session.attached(device) {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
            return Err(given_up.to_string());
        }
        let write_back_field = disk.write_cache() != WriteCache::Off;
        Ok(Self {
            session: Arc::clone(session),
            disk,
            reactor,
            device,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            write_back_field,
            came_back: false,
            status: 0,
            account: Account::new(),
            memory: Arc::default(),
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            inflight: Inflight::default(),
            unused: None,
            error: None,
        })
    }

    /// The same, where no guest may have used the disk's leaf yet.
    pub(super) fn with_unused_leaf(mut self, unused: Option<Arc<UnusedLeaf>>) -> Self {
        self.unused = unused;
        self
    }

    /// What the last message failed for, in words.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    fn fail<T>(&mut self, why: impl ToString) -> Result<T> {
        self.error = Some(why.to_string());
        Err(Error::InvalidParam)
    }

    fn ask<T>(&self, make: impl FnOnce(SyncSender<T>) -> Command) -> Result<T> {
        self.reactor.ask(make).ok_or(Error::BackendInternalError)
    }

    /// Takes an inflight region, and notes whether the frontend had it before.
    fn take_inflight(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let taken = self.inflight.take(given, file, self.vrings.len(), &self.account);
        if let Some(unused) = &self.unused
            && self.inflight.region().is_some_and(|region| region.is_written())
            && let Err(why) = unused.admit_running()
        {
            return self.fail(why);
        }
        match taken {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.came_back = true;
                self.disk.counters().reconnects.add(1);
                let name = self.disk.name();
                log_for!(self.disk, Info, "VM {name}: its frontend has come back");
                Ok(())
            }
            Err(why) => self.fail(why),
        }
    }

    /// Stops the queues and forgets what the driver has set up. Memory, protocol
    /// features and the inflight region stay.
    fn reset(&mut self) {
        self.forget_vrings();
        // The `writeback` field stays. After a reset it may be either (virtio
        // 1.3, 5.2.5), and QEMU, which resets a device also to pause it, goes on
        // to show the guest what it was.
        self.features = 0;
        self.status = 0;
        let _ = self.tell_agreed();
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.session.end(&self.reactor);
    }
}
