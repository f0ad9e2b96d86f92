//! What a reactor keeps of a device: its queues and its state.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::call::{CALL_WAITS, Call, Called, Caller};
use super::kick::Kick;
use super::pace::WritePace;
use super::{Agreed, DeviceId, Mailbox, QueueSetup, ReactorCounters};
use crate::disk::Disk;
use crate::disk::lanes::Lanes;
use crate::guest_memory::GuestMemory;
use crate::logging::limit::{Seldom, log_for};
use crate::request::Limits;
use crate::virtqueue::{InflightRegion, QueueError, Ring, SplitQueue};

/// A running queue.
pub(super) struct Queue {
    index: u16,
    pub(super) ring: Ring,
    inflight: Option<Arc<InflightRegion>>,
    /// Requests of an earlier backend that this one takes up.
    pub(super) resubmitted: u16,
    pub(super) kick: Kick,
    call: Option<Call>,
    /// The frontend made a call wait: it gets no more.
    call_waits: bool,
    caller: Caller,
    enabled: bool,
    /// Ever: what is in flight then may be finished.
    was_enabled: bool,
    pub(super) in_flight: u32,
    /// Its next chain is not in memory: nobody looks at it until that may be otherwise.
    waits: bool,
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
        let mut ring = Ring::new(&setup.ring, memory)?;
        let mut resubmitted = 0;
        if let (Some(region), Some(ring)) = (setup.inflight.clone(), ring.here()) {
            resubmitted = ring.track(region, setup.index)?.unwrap_or(0);
        }
        let mut queue = Self {
            index: setup.index,
            ring,
            inflight: setup.inflight,
            resubmitted,
            kick: Kick::polled(),
            call: None,
            call_waits: false,
            caller: caller.clone(),
            enabled: setup.enabled,
            was_enabled: setup.enabled,
            in_flight: 0,
            waits: false,
            unpublished: false,
            stopping: None,
        };
        queue.set_call(setup.call);
        Ok(queue)
    }

    /// Waits for kicks in `epoll`, under `token`. Until then, and where it fails, the
    /// queue is polled.
    ///
    /// # Errors
    /// As [`Kick::watch`].
    pub(super) fn watch(
        &mut self,
        epoll: &Arc<OwnedFd>,
        kick: OwnedFd,
        token: u64,
    ) -> io::Result<()> {
        self.kick = Kick::watch(epoll, kick, token)?;
        Ok(())
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
        if self.ring.here().is_some_and(SplitQueue::publish) {
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

    /// Whether there is something to take.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        // One that stops has no more than what an earlier backend left.
        let may_run = self.enabled || (self.stopping.is_some() && self.was_enabled);
        may_run && !self.waits && self.ring.has_available()
    }

    pub(super) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.was_enabled |= enabled;
    }

    /// Stops it when nothing of it is in flight, and answers then.
    pub(super) fn stop(&mut self, answer: SyncSender<Option<u16>>) {
        self.stopping = Some(answer);
        if let Some(ring) = self.ring.here() {
            ring.close();
        }
    }

    /// Looks for the ring in another memory table, after the driver was shown what
    /// was given back.
    fn move_to(&mut self, memory: &GuestMemory, disk: &Disk) {
        self.waits = false;
        let was_away = self.ring.away();
        self.ring.move_to(memory);
        let (name, index) = (disk.name(), self.index);
        match (was_away, self.ring.away()) {
            (None, Some(why)) => log_for!(
                disk,
                Info,
                "VM {name}: queue {index} waits until its ring is in shared memory again: {why}"
            ),
            (Some(_), None) => log_for!(disk, Info, "VM {name}: queue {index} goes on"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

/// How long requests wait for memory after some was taken away: a VMM that cuts a region
/// in two takes it away first, and gives the parts back one by one.
const MEMORY_SETTLES: Duration = Duration::from_secs(1);

/// A memory table that waits for the requests that use the old one.
pub(super) type PendingMemory = (Arc<GuestMemory>, SyncSender<()>);

/// A device.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) disk: Arc<Disk>,
    pub(super) caller: Caller,
    pub(super) lanes: Option<Lanes>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) queues: Vec<Option<Queue>>,
    pub(super) agreed: Agreed,
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
    /// Says of requests that they are refused, not of each.
    pub(super) refusals: Seldom,
    pub(super) pending_memory: Option<PendingMemory>,
    /// Until when memory that was taken away is expected to come back.
    pub(super) memory_settles_at: Option<Instant>,
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
            // Until the features say otherwise: every write durable, any sector.
            agreed: Agreed::default(),
            pace: WritePace::default(),
            backlog: Backlog::default(),
            next_queue: 0,
            in_flight: 0,
            hot: false,
            worked: false,
            broken: false,
            kicks: 0,
            rings_show: false,
            refusals: Seldom::new(),
            pending_memory: None,
            memory_settles_at: None,
            detaching: None,
        }
    }

    /// What requests are checked against: a disk may grow at any time.
    #[inline]
    pub(super) fn limits(&self) -> Limits {
        Limits {
            capacity_sectors: self.disk.sectors(),
            unit: self.agreed.unit,
            read_only: self.disk.is_read_only(),
        }
    }

    /// Whether chains may be popped.
    #[inline]
    pub(super) fn is_served(&self) -> bool {
        !self.broken && self.pending_memory.is_none() && self.detaching.is_none()
    }

    /// The rings that are in memory.
    pub(super) fn rings(&mut self) -> impl Iterator<Item = &mut SplitQueue> {
        self.queues.iter_mut().flatten().filter_map(|queue| queue.ring.here())
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
            // Why its guest waits is said: not what its memory may lack.
            self.rings_show = true;
            self.disk.counters().device_faults.add(1);
            self.disk.device_stopped(why);
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

    /// Takes another memory table: at once where it has all that the old one has, so
    /// that requests in flight may go on; else when there are none.
    pub(super) fn change_memory(&mut self, memory: Arc<GuestMemory>, answer: SyncSender<()>) {
        if self.pending_memory.is_none() && memory.has_all_of(&self.memory) {
            for queue in self.queues.iter_mut().flatten() {
                queue.waits = false;
                if queue.ring.away().is_some() {
                    queue.move_to(&memory, &self.disk);
                }
            }
            self.memory = memory;
            let _ = answer.send(());
        } else {
            self.pending_memory = Some((memory, answer));
        }
    }

    /// Lets requests fail for which memory did not come back in time.
    pub(super) fn end_patience(&mut self, now: Instant) {
        if self.memory_settles_at.is_some_and(|at| at <= now) {
            self.memory_settles_at = None;
            for queue in self.queues.iter_mut().flatten() {
                queue.ring.set_patient(false);
                queue.waits = false;
            }
        }
    }

    /// Whether something is to be tried again soon, without being told.
    pub(super) fn is_impatient(&self) -> bool {
        self.memory_settles_at.is_some() && self.queues.iter().flatten().any(|q| q.waits)
    }

    /// A queue's next chain can't be taken: ends the device, or lets the queue wait for
    /// the chain's memory.
    pub(super) fn note_error(&mut self, index: usize, error: QueueError) {
        let Some(queue) = self.queues[index].as_mut().filter(|_| error.is_about_memory()) else {
            return self.break_with(&error);
        };
        queue.waits = true;
        // A request was seen: its ring is in memory that is shared.
        self.rings_show = true;
        if self.memory_settles_at.is_none() {
            let name = self.disk.name();
            log_for!(
                self.disk,
                Warn,
                "VM {name}: queue {index} waits until its VMM shares more memory, or its guest \
                 resets the disk: {error}"
            );
        }
    }

    /// Does what waited for requests to end: stopping a queue, other memory.
    /// True if the device is to be forgotten.
    pub(super) fn settle(&mut self, counters: &ReactorCounters) -> bool {
        let mut calls_wait = false;
        let served = self.is_served();
        for slot in &mut self.queues {
            // What an earlier backend left is done first, where it can be.
            let is_done = |q: &Queue| q.in_flight == 0 && !(served && q.has_work());
            let stop = slot.as_mut().filter(|q| q.stopping.is_some() && is_done(q));
            if let Some(queue) = stop {
                queue.publish_last(&mut calls_wait, counters);
                let next = queue.ring.next_avail();
                let answer = queue.stopping.take();
                *slot = None;
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
            for queue in self.queues.iter_mut().flatten() {
                queue.publish_last(&mut calls_wait, counters);
                queue.move_to(&memory, &self.disk);
                queue.ring.set_patient(true);
            }
            self.memory_settles_at = Some(Instant::now() + MEMORY_SETTLES);
            if calls_wait {
                self.break_with(&CALL_WAITS);
            }
            self.memory = memory;
            let _ = answer.send(());
        }
        if let Some(answer) = self.detaching.take() {
            for slot in &mut self.queues {
                if let Some(queue) = slot {
                    queue.publish_last(&mut calls_wait, counters);
                }
                *slot = None;
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
