//! Many VMs replay one trace at once, from one thread that sleeps when it has
//! nothing to do: the backend needs the processor more.
//!
//! Each VM keeps a few requests in flight in the trace's order. A flush waits
//! for all before it, and all after it wait for it. A request that touches a
//! sector which is being written, or writes one in flight, waits: a guest's
//! page cache does the same.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::time::{ClockId, clock_gettime};

use crate::client::{Client, Kind, Load, Op, Wait};
use crate::data;
use crate::trace::{Content, Trace};
use crate::util::{Context, Error, Result, check_signals, to_u64, to_usize};

/// Requests that a VM keeps in flight.
pub(crate) const DEPTH: usize = 4;
const HANG: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };

/// What one replay took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replayed {
    pub wall: Duration,
    /// CPU of the thread that plays the guests.
    pub client_cpu: Duration,
}

/// One VM on its way through the trace.
struct Vm<'a> {
    trace: &'a Trace,
    next: usize,
    /// The request's index, for each slot in flight.
    in_flight: [Option<usize>; DEPTH],
    seed: u64,
    reads: u64,
}

impl Vm<'_> {
    /// Whether request `index` may go beside those in flight.
    fn may_start(&self, index: usize) -> bool {
        let op = &self.trace.ops[index];
        self.in_flight.iter().flatten().all(|&other| {
            let other = &self.trace.ops[other];
            let flush = op.kind == Kind::Flush || other.kind == Kind::Flush;
            let both_read = op.kind == Kind::Read && other.kind == Kind::Read;
            let apart = op.offset + to_u64(op.len) <= other.offset
                || other.offset + to_u64(other.len) <= op.offset;
            !flush && (both_read || apart)
        })
    }

    fn finished(&self) -> bool {
        self.next == self.trace.ops.len() && self.in_flight.iter().all(Option::is_none)
    }
}

impl Load for Vm<'_> {
    fn next(&mut self, slot: usize, buffer: &mut [u8]) -> Option<Op> {
        let index = self.next;
        let op = *self.trace.ops.get(index)?;
        if !self.may_start(index) {
            return None;
        }
        self.next += 1;
        self.in_flight[slot] = Some(index);
        if op.kind == Kind::Write {
            data::fill(&mut buffer[..op.len], self.seed, op.offset);
        }
        Some(op)
    }

    fn done(&mut self, slot: usize, op: &Op, buffer: &[u8]) -> Result<()> {
        let index =
            self.in_flight[slot].take().ok_or_else(|| Error::from("a request completed twice"))?;
        if op.kind != Kind::Read {
            return Ok(());
        }
        self.reads += 1;
        // One in eight, and every VM starts with another: together they see all.
        if (self.reads + self.seed) & 7 != 0 {
            return Ok(());
        }
        for part in &self.trace.parts[index] {
            let seed = match part.content {
                Content::Root => data::ROOT,
                Content::Written => self.seed,
                Content::Unknown => continue,
            };
            let bytes = &buffer[part.start..part.start + part.len];
            data::check_sectors(bytes, seed, op.offset + to_u64(part.start))?;
        }
        Ok(())
    }
}

/// Replays `trace` on all clients at once and says what it took. Client `n`
/// writes the pattern of `first_seed + n`.
pub(crate) fn replay(clients: &mut [Client], trace: &Trace, first_seed: u64) -> Result<Replayed> {
    let mut vms = Vec::with_capacity(clients.len());
    let mut free: Vec<Vec<usize>> = Vec::with_capacity(clients.len());
    let waiting = || "waiting for backends".to_owned();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(waiting)?;
    for (index, client) in clients.iter_mut().enumerate() {
        client.set_wait(Wait::Sleep);
        // SAFETY: the fd belongs to the client, which is borrowed until this
        // function returns.
        let fd = unsafe { BorrowedFd::borrow_raw(client.completion_fd()?) };
        // By edges: an eventfd then needs no reading, and a wake-up costs the
        // same however many VMs there are.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, fd, epoll::EventData::new_u64(to_u64(index)), flags).context(waiting)?;
        vms.push(Vm {
            trace,
            next: 0,
            in_flight: [None; DEPTH],
            seed: first_seed + to_u64(index),
            reads: 0,
        });
        free.push((0..DEPTH).collect());
    }
    let mut events = Vec::with_capacity(clients.len());
    let (started, cpu) = (Instant::now(), thread_cpu());
    let mut running = vms.len();
    for ((client, vm), free) in clients.iter_mut().zip(&mut vms).zip(&mut free) {
        advance(client, vm, free)?;
    }
    while running > 0 {
        check_signals()?;
        events.clear();
        let ready =
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&HANG)).context(waiting)?;
        if ready == 0 {
            return Err(Error::from("no VM made progress for two minutes"));
        }
        for event in &events {
            let index = to_usize(event.data.u64());
            let was_running = !vms[index].finished();
            advance(&mut clients[index], &mut vms[index], &mut free[index])?;
            running -= usize::from(was_running && vms[index].finished());
        }
    }
    Ok(Replayed { wall: started.elapsed(), client_cpu: thread_cpu().saturating_sub(cpu) })
}

/// CPU that this thread has used.
fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Takes what completed and submits what may go, until neither is left.
fn advance(client: &mut Client, vm: &mut Vm, free: &mut Vec<usize>) -> Result<()> {
    loop {
        while let Some(&slot) = free.last() {
            if !client.submit(slot, vm)? {
                break;
            }
            free.pop();
        }
        let before = free.len();
        client.reap(false, vm, free)?;
        if free.len() == before {
            return Ok(());
        }
    }
}
