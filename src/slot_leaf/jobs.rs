//! Operations in flight, by token.
#![expect(unsafe_code, reason = "buffers of operations in flight, by address")]

use super::page::Page;
use super::word::Slot;
use crate::engine::{Engine, Op, Token};

/// What an operation is for.
#[derive(Debug)]
pub(super) enum Job {
    /// A stretch of a batch is written.
    Extent { batch: u64, extent: usize },
    /// The old slot of a batch's block is read.
    Merge { batch: u64, part: usize, page: Box<Page> },
    /// Batches up to this one are made durable.
    Sync { covers: u64 },
    /// A checkpoint writes this slot.
    Node { slot: Slot },
    /// A checkpoint makes durable what it wrote.
    CheckpointSync,
    /// A slot is read for the caller.
    Fetch { tag: u64, block: u64, frame: u32, slot: Slot, crc: u32 },
}

/// The operations.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<Option<Job>>,
    free: Vec<Token>,
}

impl Jobs {
    /// How many there are.
    pub(super) fn in_flight(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    /// Whether there is such a one.
    pub(super) fn has(&self, is_such: impl Fn(&Job) -> bool) -> bool {
        self.jobs.iter().flatten().any(is_such)
    }

    /// Submits an operation; false where the engine has no room.
    pub(super) fn submit(&mut self, io: &mut impl Engine, op: Op<'_>, job: Job) -> bool {
        let token = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            Token::try_from(self.jobs.len() - 1).unwrap_or(Token::MAX)
        });
        // SAFETY: each buffer is a frame that isn't free, or a page that the job, its batch or
        // its checkpoint owns, and each list of them an extent's or a checkpoint's; all of
        // them stay until the token is completed.
        if unsafe { io.submit(op, token) } {
            self.jobs[token as usize] = Some(job);
            return true;
        }
        self.free.push(token);
        false
    }

    /// The operation is done: what it was for, if there was one.
    pub(super) fn end(&mut self, token: Token) -> Option<Job> {
        let job = self.jobs.get_mut(token as usize).and_then(Option::take)?;
        self.free.push(token);
        Some(job)
    }
}
