//! Reactors: few threads that serve the virtqueues of many devices.
//!
//! A reactor owns whole devices: it pops their chains, serves what is cached
//! at once, hands to its io_uring or to a VM's lanes whatever waits on a disk,
//! and gives chains back. It knows vrings and requests; it does not know
//! vhost-user messages, which control threads turn into [`Command`]s.
//!
//! Invariants:
//! - Every popped chain is completed exactly once (`completion`).
//! - What is done for one device before it is another's turn is bounded, in bytes
//!   and in what else costs time (`budget`).
//! - A reactor waits for nothing but epoll; a call that a frontend makes wait is
//!   interrupted by the [`watchdog`].
//! - An error in a device's ring ends that device until its ring is set up
//!   again, and nothing else.
//! - Steady-state I/O allocates nothing: tasks, parts and lists are kept.

mod backlog;
mod batch;
mod block_wait;
mod budget;
mod call;
mod commands;
mod completion;
mod counters;
mod deferred;
mod device;
mod heat;
mod idle;
mod interrupt;
mod kick;
mod leaf_wait;
mod mailbox;
mod manners;
mod pace;
mod parts;
mod run;
mod serve;
mod slab;
mod step;
mod task;
#[cfg(test)]
mod tests;
mod watchdog;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

pub use counters::ReactorCounters;
pub use mailbox::Mailbox;
pub use watchdog::Watchdog;

use crate::cache::Cache;
use crate::disk::Disk;
use crate::guest_memory::GuestMemory;
use crate::units::BlockSize;
use crate::virtqueue::{InflightRegion, QueueError, RingConfig};

/// Names a device within its reactor; never used again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DeviceId(pub(crate) u32);

/// What a control thread asks of a reactor. Each is answered, so that the
/// frontend's reply says that it has happened.
pub enum Command {
    /// Serve a disk; no queue runs yet.
    Attach(Arc<Disk>, SyncSender<DeviceId>),
    /// Stop all queues, finish what is in flight, forget the device.
    Detach(DeviceId, SyncSender<()>),
    /// Use another memory table; nothing in flight uses the old one when this is
    /// answered. A queue whose ring is not in it waits until it is in a later one.
    SetMemory(DeviceId, Arc<GuestMemory>, SyncSender<()>),
    /// Run a queue.
    Start(DeviceId, Box<QueueSetup>, SyncSender<Result<(), QueueError>>),
    /// Let a running queue be served, or not.
    Enable(DeviceId, u16, bool, SyncSender<()>),
    /// Call the driver through another eventfd.
    SetCall(DeviceId, u16, Option<OwnedFd>, SyncSender<()>),
    /// Serve requests as frontend and driver have agreed to.
    SetAgreed(DeviceId, Agreed, SyncSender<()>),
    /// Stop a queue once nothing of it is in flight, and all that an earlier backend
    /// left is done; the answer is the index of the next chain that it would have
    /// taken. What can't be done since the device is broken or the ring away stays
    /// noted as in flight.
    Stop(DeviceId, u16, SyncSender<Option<u16>>),
    /// Nothing but an answer: the reactor lives.
    Ping(SyncSender<()>),
    /// End the thread. Devices are detached before.
    Shutdown,
}

/// What was agreed to that concerns requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// Acknowledge writes before they are flushed (write-back), or after.
    pub write_back: bool,
    /// What requests are whole numbers of.
    pub unit: BlockSize,
}

/// All that a queue needs to run.
#[derive(Debug)]
pub struct QueueSetup {
    /// Which queue.
    pub index: u16,
    /// Its ring.
    pub ring: RingConfig,
    /// The eventfd by which the driver kicks; without one it is polled.
    pub kick: Option<OwnedFd>,
    /// The eventfd by which the driver is called.
    pub call: Option<OwnedFd>,
    /// Whether it may be served.
    pub enabled: bool,
    /// Where to note what is in flight; what an earlier backend noted there is
    /// done first.
    pub inflight: Option<Arc<InflightRegion>>,
}

/// Ends the process where the thread that has it panics: without its reactor a VM
/// would hang for ever, while the next process takes up what is in flight
/// (docs/durability.md).
struct EndOfAll;

impl Drop for EndOfAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A running reactor.
#[derive(Debug)]
pub struct Reactor {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Reactor {
    /// Starts the reactor numbered `index` (from 0) of those that share
    /// `cache`; `peers` are the mailboxes of all of them. Polls for at most
    /// `poll_us` microseconds before it sleeps.
    ///
    /// # Errors
    /// Where a thread, an epoll set or an io_uring can't be had.
    pub fn start(
        index: u16,
        cache: Arc<Cache>,
        peers: Arc<[Arc<Mailbox>]>,
        poll_us: u32,
    ) -> io::Result<Self> {
        let mailbox = Arc::clone(&peers[usize::from(index)]);
        let (ready, started) = sync_channel(1);
        // The io_uring belongs to the thread that makes it.
        let thread =
            std::thread::Builder::new().name(format!("reactor-{index}")).spawn(move || {
                let _end = EndOfAll;
                match run::Runner::new(index, &cache, peers, poll_us) {
                    Ok(mut runner) => {
                        let _ = ready.send(Ok(()));
                        let mailbox = Arc::clone(runner.mailbox());
                        mailbox.pulse.begin();
                        runner.run();
                        mailbox.pulse.end();
                    }
                    Err(e) => {
                        let _ = ready.send(Err(e));
                    }
                }
            })?;
        started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    /// Where to send commands.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.mailbox.send(Command::Shutdown);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
