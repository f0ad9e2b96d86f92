//! Chains on their way from the ring to being served, a few at a time.
//!
//! Each request's parts come from memory that another CPU wrote last, or that
//! nobody has touched for long: its descriptors, its header, the place of its
//! status, its data. One after the other these waits add up; so all chains of
//! a batch are popped first, then all are parsed, then each is served while the
//! data of those behind it is on its way (docs/BENCHMARKS.md).

use super::budget;
use super::completion::Completion;
use super::device::Device;
use super::serve::MEMORY_GONE;
use crate::cache::Reader;
use crate::disk::Ahead;
use crate::prefetch;
use crate::request::{self, Command, ParsedRequest, RequestError};
use crate::virtqueue::Chain;

/// Chains of a batch: enough for their waits to overlap, few enough for what
/// they fetch to stay in the CPU's first cache.
const BATCH: usize = 8;
/// The data of so many requests behind the one that is served is on its way.
const AHEAD: usize = 2;

/// One chain.
#[derive(Debug, Default)]
struct Popped {
    chain: Chain,
    request: Option<ParsedRequest>,
    data: Ahead,
}

/// A chain, the answer that it is owed, and what it asks for.
pub(super) type Taken<'a> = (&'a mut Chain, Completion, Result<Command, RequestError>);

/// Some chains of one queue. Kept and refilled.
#[derive(Debug)]
pub(super) struct Batch {
    list: [Popped; BATCH],
    count: usize,
    cost: u64,
    full: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Self { list: std::array::from_fn(|_| Popped::default()), count: 0, cost: 0, full: false }
    }
}

impl Batch {
    /// Pops until the batch is full, the queue is empty, or what was popped
    /// costs `most`; how many. An error ends the device, after these, or lets the
    /// queue wait for memory.
    pub(super) fn fill(&mut self, device: &mut Device, index: usize, most: u64) -> usize {
        (self.count, self.cost, self.full) = (0, 0, false);
        let Some(ring) = device.queues[index].as_mut().and_then(|queue| queue.ring.here()) else {
            return 0;
        };
        #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
        ring.fetch_descriptors(BATCH as u16);
        while self.count < BATCH && self.cost < most {
            let popped = &mut self.list[self.count];
            match ring.pop(&device.memory, &mut popped.chain) {
                Ok(true) => {}
                Ok(false) => return self.count,
                Err(e) => {
                    // A ring that is gone reads as zeros: name the cause.
                    if device.is_faulted() {
                        device.break_with(&MEMORY_GONE);
                    } else {
                        device.note_error(index, e);
                    }
                    return self.count;
                }
            }
            let chain = &popped.chain;
            self.cost += budget::of_chain(chain);
            if let Some(header) = chain.readable.first() {
                prefetch::line(header.ptr());
            }
            self.count += 1;
        }
        self.full = true;
        self.count
    }

    /// Parses all and finds where their data is.
    pub(super) fn parse(&mut self, device: &Device, reader: &Reader) {
        let limits = device.limits();
        for popped in &mut self.list[..self.count] {
            let parsed = request::parse(&mut popped.chain, &limits);
            popped.data = match &parsed.command {
                Ok(Command::Read(range)) => device.disk.ahead(reader, *range),
                _ => Ahead::default(),
            };
            popped.data.touch();
            popped.request = Some(parsed);
        }
        self.list[..self.count.min(AHEAD)].iter().for_each(|popped| popped.data.fetch());
    }

    /// Fetches the data of a chain that is served a little after `at`.
    #[inline]
    pub(super) fn fetch_ahead(&self, at: usize) {
        if at + AHEAD < self.count {
            self.list[at + AHEAD].data.fetch();
        }
    }

    /// A chain of queue `queue` that is to be served now.
    #[inline]
    pub(super) fn take(&mut self, at: usize, queue: u16) -> Option<Taken<'_>> {
        let popped = &mut self.list[at];
        let request = popped.request.take()?;
        let completion = Completion::new(queue, popped.chain.head, &request);
        Some((&mut popped.chain, completion, request.command))
    }

    /// What the chains cost (see [`budget`]).
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Whether there may be more in the queue.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }
}
