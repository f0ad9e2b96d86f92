//! Requests that could not be served at once, and the parts that they wait for.
//!
//! A *task* is one such request; a *part* is one stretch of a read that waits:
//! for a cache block, or for the leaf's disk.

use super::DeviceId;
use super::backlog::Place;
use super::block_wait::BlockWait;
use super::completion::Completion;
use super::leaf_wait::LeafWait;
use crate::disk::BufCursor;
use crate::metrics::Operation;
use crate::metrics::clock::Stamp;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Parts that one task may wait for at a time.
pub(super) const TASK_PARTS_MAX: u32 = 16;

/// One request in flight.
#[derive(Debug)]
pub(super) struct Task {
    /// The device's place.
    pub(super) slot: usize,
    /// When its chain was taken.
    pub(super) started: Stamp,
    pub(super) job: Job,
}

/// What a task is about, with the answer that is owed.
#[derive(Debug)]
pub(super) enum Job {
    /// A read, served by parts.
    Read(Read, Completion),
    /// A change of the leaf by its lane: one that takes long, or a short one.
    Change { large: bool, completion: Completion },
    /// A flush.
    Flush(Completion),
    /// Write-back: nobody's request.
    WriteBack,
}

impl Job {
    /// Whose chain it is about: a queue's place.
    pub(super) fn queue(&self) -> Option<usize> {
        match self {
            Self::Read(_, completion)
            | Self::Change { completion, .. }
            | Self::Flush(completion) => Some(usize::from(completion.queue())),
            Self::WriteBack => None,
        }
    }

    /// The answer that is owed, if there is one.
    pub(super) fn into_completion(self) -> Option<Completion> {
        match self {
            Self::Read(_, completion)
            | Self::Change { completion, .. }
            | Self::Flush(completion) => Some(completion),
            Self::WriteBack => None,
        }
    }
}

/// A read in flight.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) bufs: Vec<GuestBuf>,
    /// What no part is about.
    pub(super) rest: SectorRange,
    /// Where in the buffers that goes.
    pub(super) cursor: BufCursor,
    /// Its parts.
    pub(super) pending: u32,
    pub(super) failed: bool,
    /// In its device's backlog, or being run.
    pub(super) scheduled: bool,
}

impl Read {
    /// Whether there is nothing more to do or to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.pending == 0 && !self.goes_on()
    }

    /// Whether there is more to do than to wait.
    pub(super) fn goes_on(&self) -> bool {
        !self.failed && !self.rest.is_empty()
    }
}

impl Task {
    /// The read that it is.
    pub(super) fn read(&mut self) -> Option<&mut Read> {
        match &mut self.job {
            Job::Read(read, _) => Some(read),
            Job::Change { .. } | Job::Flush(_) | Job::WriteBack => None,
        }
    }
}

/// A deferred request whose answer is about to be shown to the driver.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) slot: usize,
    /// Places are used again, so the device is named too.
    pub(super) device: DeviceId,
    pub(super) operation: Operation,
    pub(super) started: Stamp,
}

/// One stretch of a read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) task: u32,
    /// Its device's.
    pub(super) place: Place,
    pub(super) wait: Wait,
}

/// What a part waits for.
#[derive(Debug)]
pub(super) enum Wait {
    Block(BlockWait),
    Leaf(LeafWait),
}
