//! What a reactor keeps of a device: its queues and its state.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use vmm_sys_util::eventfd::EventFd;

use super::pace::WritePace;
use super::{DeviceId, Mailbox, QueueSetup};
use crate::disk::Disk;
use crate::disk::lanes::Lanes;
use crate::guest_memory::GuestMemory;
use crate::request::Limits;
use crate::virtqueue::{QueueError, SplitQueue};

/// A running queue.
pub(super) struct Queue {
    pub(super) ring: SplitQueue,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<EventFd>,
    pub(super) enabled: bool,
    pub(super) in_flight: u32,
    /// Chains were given back that the driver has not been shown.
    pub(super) unpublished: bool,
    pub(super) stopping: Option<SyncSender<Option<u16>>>,
}

impl Queue {
    pub(super) fn new(setup: QueueSetup, memory: &GuestMemory) -> Result<Self, QueueError> {
        let mut queue = Self {
            ring: SplitQueue::new(&setup.ring, memory)?,
            kick: setup.kick,
            call: None,
            enabled: setup.enabled,
            in_flight: 0,
            unpublished: false,
            stopping: None,
        };
        queue.set_call(setup.call);
        Ok(queue)
    }

    /// Calls the driver through `call` from now on, and once at once: an
    /// earlier backend may have shown it used chains and died before the call.
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call.map(to_eventfd);
        if let Some(call) = &self.call {
            let _ = call.write(1);
        }
    }

    /// Shows the driver what was given back, and calls it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.unpublished = false;
        if self.ring.publish()
            && let Some(call) = &self.call
        {
            // Non-blocking: a full counter means that a call is pending.
            let _ = call.write(1);
        }
    }

    pub(super) fn is_served(&self) -> bool {
        self.enabled && self.stopping.is_none()
    }
}

fn to_eventfd(fd: OwnedFd) -> EventFd {
    #[expect(unsafe_code, reason = "EventFd has no safe way in")]
    // SAFETY: the descriptor is owned, and was checked to be an eventfd.
    unsafe {
        EventFd::from_raw_fd(fd.into_raw_fd())
    }
}

/// A memory table that waits for the requests that use the old one.
pub(super) type PendingMemory = (Arc<GuestMemory>, SyncSender<Result<(), QueueError>>);

/// A device.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) disk: Arc<Disk>,
    pub(super) lanes: Option<Lanes>,
    pub(super) limits: Limits,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) queues: Vec<Option<Queue>>,
    pub(super) write_back: bool,
    pub(super) pace: WritePace,
    pub(super) in_flight: u32,
    /// In the list of devices that are polled; its kicks are off.
    pub(super) hot: bool,
    /// Had work since the last look at who may cool down.
    pub(super) worked: bool,
    pub(super) broken: bool,
    pub(super) pending_memory: Option<PendingMemory>,
    pub(super) detaching: Option<SyncSender<()>>,
}

impl Device {
    pub(super) fn new(id: DeviceId, disk: Arc<Disk>, mailbox: &Arc<Mailbox>) -> Self {
        let lanes = disk.leaf().filter(|_| !disk.is_read_only()).map(|leaf| {
            let report = Arc::clone(mailbox);
            Lanes::new(Arc::clone(leaf), report)
        });
        let limits = Limits { capacity_sectors: disk.sectors(), read_only: disk.is_read_only() };
        Self {
            id,
            disk,
            lanes,
            limits,
            memory: Arc::default(),
            queues: Vec::new(),
            write_back: true,
            pace: WritePace::default(),
            in_flight: 0,
            hot: false,
            worked: false,
            broken: false,
            pending_memory: None,
            detaching: None,
        }
    }

    /// Whether chains may be popped.
    #[inline]
    pub(super) fn is_served(&self) -> bool {
        !self.broken && self.pending_memory.is_none() && self.detaching.is_none()
    }

    /// Ends the device until a queue is set up anew.
    pub(super) fn break_with(&mut self, why: &dyn std::fmt::Display) {
        if !self.broken {
            self.broken = true;
            log::warn!("VM {}: its device stops until it is reset: {why}", self.disk.name());
        }
    }

    /// Does what waited for requests to end: stopping a queue, other memory.
    /// True if the device is to be forgotten.
    pub(super) fn settle(&mut self, epoll: i32) -> bool {
        for slot in &mut self.queues {
            let stop = slot.as_mut().filter(|q| q.in_flight == 0 && q.stopping.is_some());
            if let Some(queue) = stop {
                queue.publish();
                let next = queue.ring.next_avail();
                let answer = queue.stopping.take();
                forget_kick(epoll, slot.take());
                if let Some(answer) = answer {
                    let _ = answer.send(Some(next));
                }
            }
        }
        if self.in_flight > 0 {
            return false;
        }
        if let Some((memory, answer)) = self.pending_memory.take() {
            let rebound = self.queues.iter_mut().flatten().try_for_each(|q| q.ring.rebind(&memory));
            if let Err(e) = &rebound {
                // Their rings are gone: they must not be touched again.
                self.queues.iter_mut().for_each(|slot| forget_kick(epoll, slot.take()));
                self.break_with(e);
            }
            self.memory = memory;
            let _ = answer.send(rebound);
        }
        if let Some(answer) = self.detaching.take() {
            for slot in &mut self.queues {
                if let Some(queue) = slot {
                    queue.publish();
                }
                forget_kick(epoll, slot.take());
            }
            let _ = answer.send(());
            return true;
        }
        false
    }
}

/// Takes a queue's kick out of the epoll set before it is closed: the frontend
/// has the same eventfd open, so closing alone would not.
pub(super) fn forget_kick(epoll: i32, queue: Option<Queue>) {
    if let Some(Queue { kick: Some(kick), .. }) = queue {
        let event = epoll::Event::new(epoll::Events::empty(), 0);
        let _ = epoll::ctl(epoll, epoll::ControlOptions::EPOLL_CTL_DEL, kick.as_raw_fd(), event);
    }
}
