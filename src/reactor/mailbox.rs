//! How other threads reach a reactor.
//!
//! A list behind a lock, an atomic that says whether it is worth locking, and
//! an eventfd that wakes. Nothing on the hit path goes through here. What can
//! pile up is bounded by the requests in flight and by the control threads,
//! each of which waits for its answer.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::call::Strikes;
use super::watchdog::Pulse;
use super::{Command, ReactorCounters};
use crate::disk::lanes::Report;
use crate::leaf::LeafError;
use crate::virtqueue::GuestBuf;

/// What comes in.
pub(super) enum Mail {
    Command(Command),
    /// A lane finished a task's work.
    Done {
        task: u32,
        result: Result<(), LeafError>,
        bufs: Vec<GuestBuf>,
    },
    /// Another reactor filled a block that a part waits for, or failed to.
    Filled {
        part: u32,
        ok: bool,
    },
}

/// One reactor's mailbox.
pub struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    has_mail: AtomicBool,
    wake: EventFd,
    /// What the watchdog sees of the reactor.
    pub(super) pulse: Pulse,
    pub(super) strikes: Strikes,
    counters: Arc<ReactorCounters>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("wake", &self.wake.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Arc<Self>> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
            wake,
            pulse: Pulse::default(),
            strikes: Strikes::default(),
            counters: Arc::default(),
        }))
    }

    /// What the reactor did so far.
    pub fn counters(&self) -> &Arc<ReactorCounters> {
        &self.counters
    }

    /// Sends a command. It is answered through the sender in it.
    pub fn send(&self, command: Command) {
        self.post(Mail::Command(command));
    }

    /// Sends the command that `make` makes of an answering channel, and waits
    /// for the answer; `None` if the reactor is gone.
    pub fn ask<T>(
        &self,
        make: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command,
    ) -> Option<T> {
        let (answer, answered) = sync_channel(1);
        self.send(make(answer));
        answered.recv().ok()
    }

    pub(super) fn post(&self, mail: Mail) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
        self.has_mail.store(true, Ordering::Release);
        // EAGAIN means that the counter is full: awake enough.
        let _ = self.wake.write(1);
    }

    /// Takes everything; `into` is empty and lends its room.
    pub(super) fn take(&self, into: &mut Vec<Mail>) {
        // A look first: the swap would take the line from its other users in
        // every turn.
        if self.has_mail.load(Ordering::Relaxed) && self.has_mail.swap(false, Ordering::Acquire) {
            let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut *mail, into);
        }
    }

    /// How many messages wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Answers nothing, as a reactor that is gone.
    #[cfg(test)]
    pub(crate) fn drop_all(&self) {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn poll_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

impl Report for Mailbox {
    fn done(&self, token: u32, result: Result<(), LeafError>, bufs: Vec<GuestBuf>) {
        self.post(Mail::Done { task: token, result, bufs });
    }
}
