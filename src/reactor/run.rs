//! The loop of one reactor.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::batch::Batch;
use super::counters::{DEVICES_PER_CLOCK, ReactorCounters, TurnClock};
use super::device::{Device, Queue, forget_kick};
use super::idle::IdleWindow;
use super::mailbox::Mail;
use super::pace::Waits;
use super::serve::MEMORY_GONE;
use super::task::{Answered, Part, Slab, Task};
use super::{Command, DeviceId, Mailbox, QueueSetup};
use crate::cache::{Cache, Reader, Waiter};
use crate::io::engine::Engine;
use crate::logging::limit::log_for;
use crate::metrics::Tally;
use crate::virtqueue::QueueError;

/// Busy turns between looks at epoll. A turn may copy 1 MiB, and a neighbour
/// whose notifications are on is only seen by a look.
const TURNS_PER_LOOK: u64 = 8;
/// Idle turns between looks: a look costs 100 ns, an idle turn a few.
const IDLE_TURNS_PER_LOOK: u32 = 64;
/// Turns between looks at which devices have cooled down.
const TURNS_PER_COOLING: u64 = 1 << 14;
/// Events that one look takes.
const EVENTS: usize = 64;
/// How long to sleep while something must be tried again, or a queue has no
/// eventfd to wake us, in milliseconds.
const RETRY_MS: i32 = 1;

/// epoll's word for the mailbox and the ring; other values are device places.
const TOKEN_MAIL: u64 = u64::MAX;
const TOKEN_RING: u64 = u64::MAX - 1;

/// A reactor's own state; lives on its thread.
pub(super) struct Runner {
    pub(super) index: u16,
    pub(super) reader: Reader,
    pub(super) engine: Engine,
    pub(super) peers: Arc<[Arc<Mailbox>]>,
    epoll: OwnedFd,
    pub(super) devices: Vec<Option<Box<Device>>>,
    next_id: u32,
    pub(super) hot: Vec<usize>,
    pub(super) tasks: Slab<Task>,
    pub(super) parts: Slab<Part>,
    pub(super) runnable: Vec<u32>,
    pub(super) stalled: Vec<u32>,
    /// Queues with something to publish: device place, queue.
    pub(super) unpublished: Vec<(usize, u16)>,
    /// Deferred requests that were answered in this turn.
    pub(super) answered: Vec<Answered>,
    /// What the queue being served has had answered at once.
    pub(super) tally: Tally,
    pub(super) clock: TurnClock,
    pub(super) counters: Arc<ReactorCounters>,
    pub(super) waiters: Vec<Waiter>,
    /// Boxed, so that taking it out for a turn moves a pointer: moving 8 chains
    /// there and back cost a request at queue depth 1 a fifth of its time.
    pub(super) batch: Option<Box<Batch>>,
    mail: Vec<Mail>,
    scratch: Vec<u32>,
    window: IdleWindow,
    turns: u64,
    pub(super) waits: Waits,
    stop: bool,
}

impl Runner {
    pub(super) fn new(
        index: u16,
        cache: &Arc<Cache>,
        peers: Arc<[Arc<Mailbox>]>,
        poll_us: u32,
    ) -> io::Result<Self> {
        let engine = Engine::new()?;
        if let Some(file) = cache.lifetime_fd() {
            engine.keep_open(file)?;
        }
        let raw = epoll::create(true)?;
        #[expect(unsafe_code, reason = "the epoll crate returns a bare number")]
        // SAFETY: a descriptor that was just made and is nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        let mailbox = &peers[usize::from(index)];
        for (fd, token) in [(mailbox.poll_fd(), TOKEN_MAIL), (engine.poll_fd(), TOKEN_RING)] {
            // The mailbox's counter is never read, only its edges count.
            let edge =
                if token == TOKEN_MAIL { epoll::Events::EPOLLET } else { epoll::Events::empty() };
            let event = epoll::Event::new(epoll::Events::EPOLLIN | edge, token);
            epoll::ctl(raw, epoll::ControlOptions::EPOLL_CTL_ADD, fd, event)?;
        }
        let counters = Arc::clone(mailbox.counters());
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        counters.thread_id.set(u64::from(thread.unsigned_abs()));
        Ok(Self {
            index,
            reader: cache.reader().map_err(io::Error::other)?,
            engine,
            peers,
            epoll,
            devices: Vec::new(),
            next_id: 0,
            hot: Vec::new(),
            tasks: Slab::new(),
            parts: Slab::new(),
            runnable: Vec::new(),
            stalled: Vec::new(),
            unpublished: Vec::new(),
            answered: Vec::new(),
            tally: Tally::default(),
            clock: TurnClock::new(),
            counters,
            waiters: Vec::new(),
            batch: Some(Box::default()),
            mail: Vec::new(),
            scratch: Vec::new(),
            window: IdleWindow::new(poll_us),
            turns: 0,
            waits: Waits::default(),
            stop: false,
        })
    }

    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.peers[usize::from(self.index)]
    }

    /// Runs until told to stop.
    pub(super) fn run(&mut self) {
        // Looked at without finding anything since the clock was read.
        let (mut idle_turns, mut idle_devices) = (0u32, 0);
        while !self.stop {
            // Nothing of the cache is held here.
            self.reader.quiesce();
            let mut worked = self.read_mail();
            worked |= self.reap();
            worked |= self.run_tasks();
            if worked {
                self.lap();
            }
            worked |= self.serve_hot();
            self.flush_turn();
            self.turns = self.turns.wrapping_add(1);
            if self.turns.is_multiple_of(TURNS_PER_COOLING) {
                self.cool(false);
            }
            if worked {
                idle_turns = 0;
                if self.turns.is_multiple_of(TURNS_PER_LOOK) {
                    self.look(0);
                }
                continue;
            }
            idle_turns = idle_turns.wrapping_add(1);
            if idle_turns.is_multiple_of(IDLE_TURNS_PER_LOOK) && self.look(0) {
                continue;
            }
            std::hint::spin_loop();
            idle_devices += self.hot.len().max(1);
            if idle_devices < DEVICES_PER_CLOCK && !self.window.is_zero() {
                continue;
            }
            idle_devices = 0;
            let idle_ns = self.clock.idle();
            if self.window.is_over(idle_ns) && !self.cool(true) {
                self.sleep();
            }
        }
    }

    /// What a turn collected: hands reads to the kernel, shows used chains.
    fn flush_turn(&mut self) {
        if let Err(e) = self.engine.submit() {
            log::error!("io_uring takes no reads, trying again: {e}");
        }
        while let Some((slot, queue)) = self.unpublished.pop() {
            let Some(device) = self.devices.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            if let Some(queue) = device.queues.get_mut(usize::from(queue)).and_then(Option::as_mut)
            {
                queue.publish(&self.counters);
            }
            device.break_if_a_call_waits();
        }
        if !self.answered.is_empty() {
            self.count_answered();
        }
    }

    fn sleep(&mut self) {
        let retry = !self.stalled.is_empty() || !self.hot.is_empty();
        self.counters.sleeps.add(1);
        self.reader.offline();
        self.mailbox().pulse.sleeps();
        self.look(if retry { RETRY_MS } else { -1 });
        self.mailbox().pulse.woke();
        self.reader.online();
        self.window.woke(self.clock.woke());
        self.waits.look();
    }

    /// Takes events; whether there were any.
    fn look(&mut self, timeout: i32) -> bool {
        self.counters.looks.add(1);
        self.counters.polls.set(self.turns);
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); EVENTS];
        let count = match epoll::wait(self.epoll.as_raw_fd(), timeout, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => {
                log::error!("epoll failed: {e}");
                0
            }
        };
        for event in &events[..count] {
            // Copied out, since the struct is packed.
            let token = event.data;
            if token != TOKEN_MAIL
                && token != TOKEN_RING
                && let Ok(slot) = usize::try_from(token)
            {
                self.counters.kicks.add(1);
                self.heat(slot);
            }
        }
        count > 0
    }

    /// Polls a device from now on, and wants no kicks of it.
    pub(super) fn heat(&mut self, slot: usize) {
        let Some(device) = self.devices.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        device.worked = true;
        if !device.hot {
            device.hot = true;
            self.hot.push(slot);
            device.queues.iter_mut().flatten().for_each(|q| q.ring.disable_notifications());
        }
    }

    /// Lets devices without work be kicked again instead of polled: those that
    /// had none since the last time, or `all`. Whether one had some after all.
    fn cool(&mut self, all: bool) -> bool {
        let mut found = false;
        let mut hot = mem::take(&mut self.hot);
        hot.retain(|slot| {
            let Some(device) = self.devices.get_mut(*slot).and_then(Option::as_mut) else {
                return false;
            };
            if mem::take(&mut device.worked) && !all {
                return true;
            }
            // A ring that is gone may look like one without work.
            if device.is_faulted() {
                device.break_with(&MEMORY_GONE);
            }
            let served = device.is_served();
            let mut keep = false;
            for queue in device.queues.iter_mut().flatten() {
                let more = queue.ring.enable_notifications();
                found |= more && served && queue.is_served();
                keep |= (more && served && queue.is_served()) || queue.kick.is_none();
            }
            if keep {
                device.queues.iter_mut().flatten().for_each(|q| q.ring.disable_notifications());
            }
            device.hot = keep;
            keep
        });
        self.hot = hot;
        found
    }

    fn serve_hot(&mut self) -> bool {
        let mut worked = false;
        for i in 0..self.hot.len() {
            worked |= self.serve_device(self.hot[i]);
        }
        worked
    }

    fn run_tasks(&mut self) -> bool {
        let mut worked = false;
        if !self.stalled.is_empty() {
            let mut list = mem::replace(&mut self.stalled, mem::take(&mut self.scratch));
            let before = list.len();
            for part in list.drain(..) {
                self.start_part(part);
            }
            worked |= self.stalled.len() < before;
            self.scratch = list;
        }
        if !self.runnable.is_empty() {
            worked = true;
            let mut list = mem::replace(&mut self.runnable, mem::take(&mut self.scratch));
            for task in list.drain(..) {
                self.advance(task);
            }
            self.scratch = list;
        }
        worked
    }

    fn read_mail(&mut self) -> bool {
        let mut mail = mem::take(&mut self.mail);
        self.peers[usize::from(self.index)].take(&mut mail);
        let any = !mail.is_empty();
        for item in mail.drain(..) {
            match item {
                Mail::Command(command) => self.command(command),
                Mail::Done { task, result, bufs } => self.lane_done(task, result, bufs),
                Mail::Filled { part, ok } => self.filled(part, ok),
            }
        }
        self.mail = mail;
        any
    }

    fn place_of(&self, id: DeviceId) -> Option<usize> {
        self.devices.iter().position(|d| d.as_ref().is_some_and(|d| d.id == id))
    }

    fn device(&mut self, id: DeviceId) -> Option<&mut Device> {
        let slot = self.place_of(id)?;
        self.devices[slot].as_deref_mut()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Attach(disk, answer) => {
                let id = DeviceId(self.next_id);
                self.next_id = self.next_id.wrapping_add(1);
                let device = Device::new(id, disk, self.mailbox());
                let free = self.devices.iter().position(Option::is_none);
                let slot = free.unwrap_or_else(|| {
                    self.devices.push(None);
                    self.devices.len() - 1
                });
                device.disk.counters().connections.add(1);
                device.disk.counters().connected.set(1);
                self.devices[slot] = Some(Box::new(device));
                self.count_devices();
                let _ = answer.send(id);
            }
            Command::Detach(id, answer) => {
                if let Some(slot) = self.place_of(id) {
                    self.with_device(slot, |device| device.detaching = Some(answer));
                }
            }
            Command::SetMemory(id, memory, answer) => {
                if let Some(slot) = self.place_of(id) {
                    self.with_device(slot, |device| device.pending_memory = Some((memory, answer)));
                }
            }
            Command::Stop(id, queue, answer) => {
                let Some(slot) = self.place_of(id) else {
                    return;
                };
                self.with_device(slot, |device| {
                    match device.queues.get_mut(usize::from(queue)).and_then(Option::as_mut) {
                        Some(queue) => queue.stopping = Some(answer),
                        None => drop(answer.send(None)),
                    }
                });
            }
            Command::Start(id, setup, answer) => {
                let result = self.start_queue(id, *setup);
                let _ = answer.send(result);
            }
            Command::Enable(id, queue, enabled, answer) => {
                self.with_queue(id, queue, |queue| queue.enabled = enabled);
                if let Some(slot) = self.place_of(id) {
                    self.heat(slot);
                }
                let _ = answer.send(());
            }
            Command::SetCall(id, queue, call, answer) => {
                self.with_queue(id, queue, |queue| queue.set_call(call));
                if let Some(device) = self.device(id) {
                    device.break_if_a_call_waits();
                }
                let _ = answer.send(());
            }
            Command::SetWriteBack(id, write_back, answer) => {
                if let Some(device) = self.device(id) {
                    device.write_back = write_back;
                }
                let _ = answer.send(());
            }
            Command::Ping(answer) => drop(answer.send(())),
            Command::Shutdown => self.stop = true,
        }
    }

    fn with_queue(&mut self, id: DeviceId, queue: u16, change: impl FnOnce(&mut Queue)) {
        let device = self.device(id);
        let queue = device.and_then(|d| d.queues.get_mut(usize::from(queue)));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            change(queue);
        }
    }

    /// Changes a device, then does what may now be done with it.
    fn with_device(&mut self, slot: usize, change: impl FnOnce(&mut Device)) {
        if let Some(device) = self.devices[slot].as_deref_mut() {
            change(device);
        }
        self.settle(slot);
    }

    /// See [`Device::settle`].
    pub(super) fn settle(&mut self, slot: usize) {
        let epoll = self.epoll.as_raw_fd();
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return;
        };
        if device.settle(epoll, &self.counters) {
            device.disk.counters().connected.set(0);
            self.devices[slot] = None;
            self.count_devices();
            self.hot.retain(|hot| *hot != slot);
        } else if device.is_served() {
            // A queue may have been held up by what is settled now.
            self.heat(slot);
        }
    }

    fn start_queue(&mut self, id: DeviceId, setup: QueueSetup) -> Result<(), QueueError> {
        let epoll = self.epoll.as_raw_fd();
        let Some(slot) = self.place_of(id) else {
            return Ok(());
        };
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return Ok(());
        };
        let index = usize::from(setup.index);
        while device.queues.len() <= index {
            device.queues.push(None);
        }
        debug_assert!(device.queues[index].is_none(), "a queue is stopped before it starts");
        forget_kick(epoll, device.queues[index].take());
        if let Some(left) = device.caller.penalty_left() {
            return Err(QueueError::Penalty(left.as_secs() + 1));
        }
        let queue = Queue::new(setup, &device.memory, &device.caller)?;
        if let Some(kick) = &queue.kick {
            let events = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
            let event = epoll::Event::new(events, slot as u64);
            if let Err(e) =
                epoll::ctl(epoll, epoll::ControlOptions::EPOLL_CTL_ADD, kick.as_raw_fd(), event)
            {
                let name = device.disk.name();
                log_for!(device.disk, Warn, "VM {name}: can't wait for kicks, polling: {e}");
            }
        }
        if queue.resubmitted > 0 {
            let (count, name) = (u64::from(queue.resubmitted), device.disk.name());
            log_for!(
                device.disk,
                Info,
                "VM {name}: resubmitting {count} requests of queue {index}"
            );
            device.disk.counters().resubmitted.add(count);
        }
        device.queues[index] = Some(queue);
        device.broken = false;
        device.break_if_a_call_waits();
        // What came before the kick was watched must be looked for; and a
        // device that is hot already has to disable this queue's kicks too.
        device.hot = false;
        self.hot.retain(|hot| *hot != slot);
        self.heat(slot);
        Ok(())
    }
}
