//! The closed loops that the rows drive: random and sequential reads, writes of
//! blocks that were never written, and a stopwatch around any of them.

use std::time::Instant;

use crate::client::{Kind, Load, Op};
use crate::data;
use crate::util::{Result, Rng, to_u64, to_usize};

/// Bytes of a random request.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of a sequential request.
pub(crate) const LARGE: usize = 128 << 10;

/// Reads at random block offsets. One in 64 is checked whole.
pub(crate) struct RandomReads {
    rng: Rng,
    blocks: u64,
    seed: u64,
    count: u64,
}

impl RandomReads {
    /// Reads below `bytes`, which hold the pattern of `seed`.
    pub(crate) fn new(bytes: u64, seed: u64, sequence: u64) -> Self {
        Self { rng: Rng::new(sequence), blocks: bytes / to_u64(BLOCK), seed, count: 0 }
    }
}

impl Load for RandomReads {
    #[inline]
    fn next(&mut self, _slot: usize, _buffer: &mut [u8]) -> Option<Op> {
        Some(Op {
            kind: Kind::Read,
            offset: self.rng.below(self.blocks) * to_u64(BLOCK),
            len: BLOCK,
        })
    }

    #[inline]
    fn done(&mut self, _slot: usize, op: &Op, buffer: &[u8]) -> Result<()> {
        self.count += 1;
        if self.count & 63 == 1 {
            data::check(buffer, self.seed, op.offset)?;
        }
        Ok(())
    }
}

/// Reads or writes a range from end to end in large requests, over and over or
/// once. One read in 16 is checked.
pub(crate) struct Sequential {
    kind: Kind,
    bytes: u64,
    at: u64,
    once: bool,
    seed: u64,
    count: u64,
}

impl Sequential {
    /// The first `bytes`, which hold the pattern of `seed`, or will.
    pub(crate) const fn new(kind: Kind, bytes: u64, seed: u64, once: bool) -> Self {
        Self { kind, bytes, at: 0, once, seed, count: 0 }
    }
}

impl Load for Sequential {
    fn next(&mut self, _slot: usize, buffer: &mut [u8]) -> Option<Op> {
        if self.at >= self.bytes {
            if self.once {
                return None;
            }
            self.at = 0;
        }
        let op =
            Op { kind: self.kind, offset: self.at, len: LARGE.min(to_usize(self.bytes - self.at)) };
        self.at += to_u64(op.len);
        if op.kind == Kind::Write {
            data::fill(&mut buffer[..op.len], self.seed, op.offset);
        }
        Some(op)
    }

    fn done(&mut self, _slot: usize, op: &Op, buffer: &[u8]) -> Result<()> {
        self.count += 1;
        if op.kind == Kind::Read && self.count & 15 == 1 {
            data::check_sectors(buffer, self.seed, op.offset)?;
        }
        Ok(())
    }
}

/// Writes each block of `order` once.
pub(crate) struct FreshWrites<'a> {
    order: &'a [u32],
    submitted: usize,
    seed: u64,
}

impl<'a> FreshWrites<'a> {
    /// Writes the pattern of `seed` to the blocks in `order`.
    pub(crate) const fn new(order: &'a [u32], seed: u64) -> Self {
        Self { order, submitted: 0, seed }
    }

    /// How many blocks were written, from the start of the order.
    pub(crate) const fn submitted(&self) -> usize {
        self.submitted
    }
}

impl Load for FreshWrites<'_> {
    #[inline]
    fn next(&mut self, _slot: usize, buffer: &mut [u8]) -> Option<Op> {
        let block = *self.order.get(self.submitted)?;
        self.submitted += 1;
        let offset = u64::from(block) * to_u64(BLOCK);
        data::fill(&mut buffer[..BLOCK], self.seed, offset);
        Some(Op { kind: Kind::Write, offset, len: BLOCK })
    }

    #[inline]
    fn done(&mut self, _slot: usize, _op: &Op, _buffer: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Checks every `step`th block of an order: written ones hold one pattern, the
/// others another.
pub(crate) struct CheckBlocks<'a> {
    order: &'a [u32],
    at: usize,
    step: usize,
    seed: u64,
}

impl<'a> CheckBlocks<'a> {
    /// About `samples` blocks of `order`, expected to hold the pattern of `seed`.
    pub(crate) fn new(order: &'a [u32], samples: usize, seed: u64) -> Self {
        Self { order, at: 0, step: (order.len() / samples).max(1), seed }
    }
}

impl Load for CheckBlocks<'_> {
    fn next(&mut self, _slot: usize, _buffer: &mut [u8]) -> Option<Op> {
        let block = *self.order.get(self.at)?;
        self.at += self.step;
        Some(Op { kind: Kind::Read, offset: u64::from(block) * to_u64(BLOCK), len: BLOCK })
    }

    fn done(&mut self, _slot: usize, op: &Op, buffer: &[u8]) -> Result<()> {
        data::check(buffer, self.seed, op.offset)
    }
}

/// One request.
pub(crate) struct Once(pub Option<Op>);

impl Load for Once {
    fn next(&mut self, _slot: usize, _buffer: &mut [u8]) -> Option<Op> {
        self.0.take()
    }

    fn done(&mut self, _slot: usize, _op: &Op, _buffer: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Measures each request of another load. Its samples are nanoseconds.
pub(crate) struct Timed<L> {
    inner: L,
    started: Vec<Instant>,
    samples_ns: Vec<u64>,
}

impl<L> Timed<L> {
    /// Times up to `depth` requests at once; keeps at most `capacity` samples.
    pub(crate) fn new(inner: L, depth: usize, capacity: usize) -> Self {
        Self {
            inner,
            started: vec![Instant::now(); depth],
            samples_ns: Vec::with_capacity(capacity),
        }
    }

    /// The samples, sorted.
    pub(crate) fn into_sorted(mut self) -> Vec<u64> {
        self.samples_ns.sort_unstable();
        self.samples_ns
    }
}

impl<L: Load> Load for Timed<L> {
    #[inline]
    fn next(&mut self, slot: usize, buffer: &mut [u8]) -> Option<Op> {
        let op = self.inner.next(slot, buffer)?;
        self.started[slot] = Instant::now();
        Some(op)
    }

    #[inline]
    fn done(&mut self, slot: usize, op: &Op, buffer: &[u8]) -> Result<()> {
        if self.samples_ns.len() < self.samples_ns.capacity() {
            let elapsed = self.started[slot].elapsed().as_nanos();
            self.samples_ns.push(u64::try_from(elapsed).unwrap_or(u64::MAX));
        }
        self.inner.done(slot, op, buffer)
    }
}
