//! What a reactor keeps of a device: its queues and its state.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::backlog::Backlog;
use super::call::{CALL_WAITS, Call, Called, Caller};
use super::pace::WritePace;
use super::{DeviceId, Mailbox, QueueSetup, ReactorCounters};
use crate::disk::Disk;
use crate::disk::lanes::Lanes;
use crate::guest_memory::GuestMemory;
use crate::logging::limit::log_for;
use crate::request::Limits;
use crate::virtqueue::{InflightRegion, QueueError, SplitQueue};

/// A running queue.
pub(super) struct Queue {
    pub(super) ring: SplitQueue,
    inflight: Option<Arc<InflightRegion>>,
    /// Requests of an earlier backend that this one takes up.
    pub(super) resubmitted: u16,
    pub(super) kick: Option<OwnedFd>,
    call: Option<Call>,
    /// The frontend made a call wait: it gets no more.
    call_waits: bool,
    caller: Caller,
    pub(super) enabled: bool,
    pub(super) in_flight: u32,
    /// Chains were given back that the driver has not been shown.
    pub(super) unpublished: bool,
    pub(super) stopping: Option<SyncSender<Option<u16>>>,
}

impl Queue {
    pub(super) fn new(
        setup: QueueSetup,
        memory: &GuestMemory,
        caller: &Caller,
    ) -> Result<Self, QueueError> {
        let mut ring = SplitQueue::new(&setup.ring, memory)?;
        let mut resubmitted = 0;
        if let Some(region) = setup.inflight.clone() {
            resubmitted = ring.track(region, setup.index)?.unwrap_or(0);
        }
        let mut queue = Self {
            ring,
            inflight: setup.inflight,
            resubmitted,
            kick: setup.kick,
            call: None,
            call_waits: false,
            caller: caller.clone(),
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
        if self.call_waits {
            return;
        }
        self.call = call.map(|fd| self.caller.through(fd));
        self.make_call();
    }

    #[inline]
    fn make_call(&mut self) {
        if let Some(call) = &mut self.call
            && call.make() == Called::Waited
        {
            self.end_calls();
        }
    }

    fn end_calls(&mut self) {
        (self.call, self.call_waits) = (None, true);
    }

    /// Shows the driver what was given back, and calls it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, counters: &ReactorCounters) {
        self.unpublished = false;
        if self.ring.publish() {
            counters.calls.add(u64::from(self.call.is_some()));
            self.make_call();
        }
    }

    /// As [`Self::publish`], for queues that stop together: where one's call
    /// waited, the others make none.
    fn publish_last(&mut self, calls_wait: &mut bool, counters: &ReactorCounters) {
        if *calls_wait {
            self.end_calls();
        }
        self.publish(counters);
        *calls_wait |= self.call_waits;
    }

    pub(super) fn is_served(&self) -> bool {
        self.enabled && self.stopping.is_none()
    }
}

/// A memory table that waits for the requests that use the old one.
pub(super) type PendingMemory = (Arc<GuestMemory>, SyncSender<Result<(), QueueError>>);

/// A device.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) disk: Arc<Disk>,
    pub(super) caller: Caller,
    pub(super) lanes: Option<Lanes>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) queues: Vec<Option<Queue>>,
    pub(super) write_back: bool,
    pub(super) pace: WritePace,
    /// Its reads that could not be answered at once.
    pub(super) backlog: Backlog,
    /// The queue that is the first in the next turn.
    pub(super) next_queue: usize,
    pub(super) in_flight: u32,
    /// In the list of devices that are polled; its kicks are off.
    pub(super) hot: bool,
    /// Had work since the last look at who may cool down.
    pub(super) worked: bool,
    pub(super) broken: bool,
    /// Kicks since a queue was started, as far as they came one by one.
    pub(super) kicks: u32,
    /// Its rings have shown something since, or it was told that they don't.
    pub(super) rings_show: bool,
    pub(super) pending_memory: Option<PendingMemory>,
    pub(super) detaching: Option<SyncSender<()>>,
}

impl Device {
    pub(super) fn new(id: DeviceId, disk: Arc<Disk>, mailbox: &Arc<Mailbox>) -> Self {
        let lanes = disk.leaf().filter(|_| !disk.is_read_only()).map(|leaf| {
            let report = Arc::clone(mailbox);
            Lanes::new(Arc::clone(leaf), report)
        });
        Self {
            id,
            caller: Caller::new(mailbox, &disk),
            disk,
            lanes,
            memory: Arc::default(),
            queues: Vec::new(),
            // Until the features say otherwise.
            write_back: false,
            pace: WritePace::default(),
            backlog: Backlog::default(),
            next_queue: 0,
            in_flight: 0,
            hot: false,
            worked: false,
            broken: false,
            kicks: 0,
            rings_show: false,
            pending_memory: None,
            detaching: None,
        }
    }

    /// What requests are checked against: a disk may grow at any time.
    #[inline]
    pub(super) fn limits(&self) -> Limits {
        Limits { capacity_sectors: self.disk.sectors(), read_only: self.disk.is_read_only() }
    }

    /// Whether chains may be popped.
    #[inline]
    pub(super) fn is_served(&self) -> bool {
        !self.broken && self.pending_memory.is_none() && self.detaching.is_none()
    }

    /// Whether the frontend took shared memory away that was then touched.
    #[inline]
    pub(super) fn is_faulted(&self) -> bool {
        let regions = self.queues.iter().flatten().filter_map(|queue| queue.inflight.as_ref());
        self.memory.is_faulted() || regions.into_iter().any(|region| region.is_faulted())
    }

    /// Ends the device until a queue is set up anew.
    pub(super) fn break_with(&mut self, why: &dyn std::fmt::Display) {
        if !self.broken {
            self.broken = true;
            self.disk.counters().device_faults.add(1);
            let name = self.disk.name();
            log_for!(self.disk, Warn, "VM {name}: its device stops until it is reset: {why}");
        }
    }

    /// Says once that the driver kicks and its rings have never shown anything: the most
    /// common mistake, memory that looks as if it were shared (a memfd), and is mapped
    /// privately by the VMM. For a device without work.
    pub(super) fn mind_private_memory(&mut self) {
        if self.kicks_in_vain() {
            self.rings_show = true;
            let name = self.disk.name();
            log_for!(
                self.disk,
                Warn,
                "VM {name}: its guest kicks, but no request is in its memory as leafblk sees it; if \
                 the guest waits for its disk, start the VM with a shared memory backend (QEMU: \
                 share=on)"
            );
        }
    }

    /// A VMM may kick each queue once of its own when it starts it: QEMU does.
    pub(super) fn kicks_in_vain(&mut self) -> bool {
        let queues = self.queues.iter().flatten();
        self.rings_show |= queues.clone().any(|queue| queue.ring.next_avail() != 0);
        !self.rings_show && self.kicks as usize > queues.count()
    }

    /// Ends the device if its frontend made a call wait; it gets no more, of
    /// whatever queue.
    pub(super) fn break_if_a_call_waits(&mut self) {
        if self.queues.iter().flatten().any(|queue| queue.call_waits) {
            self.queues.iter_mut().flatten().for_each(Queue::end_calls);
            self.break_with(&CALL_WAITS);
        }
    }

    /// Does what waited for requests to end: stopping a queue, other memory.
    /// True if the device is to be forgotten.
    pub(super) fn settle(&mut self, epoll: i32, counters: &ReactorCounters) -> bool {
        let mut calls_wait = false;
        for slot in &mut self.queues {
            let stop = slot.as_mut().filter(|q| q.in_flight == 0 && q.stopping.is_some());
            if let Some(queue) = stop {
                queue.publish_last(&mut calls_wait, counters);
                let next = queue.ring.next_avail();
                let answer = queue.stopping.take();
                forget_kick(epoll, slot.take());
                if let Some(answer) = answer {
                    let _ = answer.send(Some(next));
                }
            }
        }
        if calls_wait {
            self.break_with(&CALL_WAITS);
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
                    queue.publish_last(&mut calls_wait, counters);
                }
                forget_kick(epoll, slot.take());
            }
            if calls_wait {
                self.break_with(&CALL_WAITS);
            }
            // Who waits for the answer has it too, and unmaps it.
            self.memory = Arc::default();
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
