//! The loop of one reactor.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use super::Mailbox;
use super::backlog::Rounds;
use super::batch::Batch;
use super::block_wait::Aside;
use super::budget;
use super::counters::{DEVICES_PER_CLOCK, ReactorCounters, TurnClock};
use super::device::Device;
use super::idle::IdleWindow;
use super::mailbox::Mail;
use super::manners::Manners;
use super::pace::Waits;
use super::slab::{Lists, Slab};
use super::task::{Answered, Part, Task};
use crate::cache::{Cache, Reader, Waiter};
use crate::io::engine::Engine;
use crate::metrics::Tally;
use crate::thread::own_id;

/// Busy turns between looks at epoll. A turn may copy 1 MiB, and a neighbour
/// whose notifications are on is only seen by a look.
const TURNS_PER_LOOK: u64 = 8;
/// Idle turns between looks: a look costs 100 ns, an idle turn a few.
const IDLE_TURNS_PER_LOOK: u32 = 64;
/// Turns between looks at which devices have cooled down.
const TURNS_PER_COOLING: u64 = 1 << 14;
/// How long to sleep while something must be tried again, or a queue has no
/// eventfd to wake us, in milliseconds.
const RETRY_MS: i32 = 1;

/// epoll's word for the mailbox and the ring; other values are device places.
pub(super) const TOKEN_MAIL: u64 = u64::MAX;
pub(super) const TOKEN_RING: u64 = u64::MAX - 1;

/// A reactor's own state; lives on its thread.
pub(super) struct Runner {
    pub(super) index: u16,
    pub(super) reader: Reader,
    pub(super) engine: Engine,
    pub(super) peers: Arc<[Arc<Mailbox>]>,
    pub(super) epoll: Arc<OwnedFd>,
    pub(super) devices: Vec<Option<Box<Device>>>,
    pub(super) next_id: u32,
    pub(super) hot: Vec<usize>,
    pub(super) tasks: Slab<Task>,
    pub(super) parts: Slab<Part>,
    /// Of buffers, for tasks and parts.
    pub(super) lists: Lists,
    /// For a part that reads a block aside, unless one does.
    pub(super) aside: Option<Aside>,
    /// Whose turn it is among the devices with deferred reads.
    pub(super) rounds: Rounds,
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
    window: IdleWindow,
    pub(super) turns: u64,
    pub(super) waits: Waits,
    pub(super) manners: Manners,
    pub(super) stop: bool,
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
        counters.thread_id.set(u64::from(own_id().unsigned_abs()));
        let clock = TurnClock::new();
        let manners = Manners::new(clock.begun());
        Ok(Self {
            index,
            reader: cache.reader().map_err(io::Error::other)?,
            engine,
            peers,
            epoll: Arc::new(epoll),
            devices: Vec::new(),
            next_id: 0,
            hot: Vec::new(),
            tasks: Slab::new(),
            parts: Slab::new(),
            lists: Lists::default(),
            aside: Some(Aside::default()),
            rounds: Rounds::default(),
            unpublished: Vec::new(),
            answered: Vec::new(),
            tally: Tally::default(),
            clock,
            counters,
            waiters: Vec::new(),
            batch: Some(Box::default()),
            mail: Vec::new(),
            window: IdleWindow::new(poll_us),
            turns: 0,
            waits: Waits::default(),
            manners,
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
            worked |= self.run_deferred();
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
                self.mind_others();
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

    /// Hands reads to the kernel.
    pub(super) fn submit(&mut self) {
        if let Err(e) = self.engine.submit() {
            log::error!("io_uring takes no reads, trying again: {e}");
        }
    }

    /// What a turn collected: hands reads to the kernel, shows used chains.
    fn flush_turn(&mut self) {
        self.submit();
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
        let retry = !self.rounds.is_empty() || !self.hot.is_empty() || self.engine.must_submit();
        self.counters.sleeps.add(1);
        self.reader.offline();
        self.mailbox().pulse.sleeps();
        self.look(if retry { RETRY_MS } else { -1 });
        self.mailbox().pulse.woke();
        self.reader.online();
        self.window.woke(self.clock.woke());
        self.note_rest();
        self.waits.look();
    }

    /// What a turn may cost (see [`super::budget`]).
    #[inline]
    pub(super) fn turn_cost(&self) -> u64 {
        budget::of_turn(self.hot.len().max(self.rounds.len()) <= 1)
    }

    pub(super) fn serve_hot(&mut self) -> bool {
        let (mut worked, mut next) = (false, 0);
        // A device's turn may end it.
        while let Some(slot) = self.hot.get(next) {
            worked |= self.serve_device(*slot);
            next += 1;
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
}
