//! Requests that could not be served at once, and the parts that they wait for.
//!
//! A *task* is one such request; a *part* is one stretch of a read that waits:
//! for a cache block, or for the leaf's disk. Both live in slabs whose entries,
//! with the lists in them, are used again.

use super::DeviceId;
use super::completion::Completion;
use crate::cache::FillTicket;
use crate::disk::BufCursor;
use crate::metrics::Operation;
use crate::metrics::clock::Stamp;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Parts that one task may wait for at a time.
pub(super) const TASK_PARTS_MAX: u32 = 16;

/// What a task is about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum TaskKind {
    /// In the free list.
    #[default]
    Free,
    /// A read, served by parts.
    Read,
    /// Whatever a lane does for the guest.
    Lane,
    /// Write-back: nobody's request.
    WriteBack,
}

/// One request in flight.
#[derive(Debug, Default)]
pub(super) struct Task {
    pub(super) kind: TaskKind,
    /// The answer that is owed; none for write-back, nor in the free list.
    pub(super) completion: Option<Completion>,
    /// When its chain was taken.
    pub(super) started: Stamp,
    /// The device's place.
    pub(super) slot: usize,
    pub(super) bufs: Vec<GuestBuf>,
    pub(super) rest: SectorRange,
    pub(super) cursor: BufCursor,
    pub(super) pending: u32,
    pub(super) failed: bool,
    /// In the list of runnable tasks, or being run.
    pub(super) scheduled: bool,
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

/// What a part waits for.
#[derive(Debug, Default)]
pub(super) enum PartKind {
    #[default]
    Free,
    /// A cache block: filled by this part if there is a ticket, by another
    /// otherwise. How many bytes of it have been read.
    Block(Option<FillTicket>, u32),
    /// The leaf's disk.
    Leaf,
}

/// One stretch of a read.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) kind: PartKind,
    pub(super) task: u32,
    pub(super) range: SectorRange,
    pub(super) cursor: BufCursor,
    /// For the leaf: the buffers that are still to be filled.
    pub(super) bufs: Vec<GuestBuf>,
}

/// Entries that keep their place, and their lists, when they are freed.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<T>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// A free entry, as it was left.
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(T::default());
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        })
    }

    pub(super) fn give_back(&mut self, id: u32) {
        debug_assert!(!self.free.contains(&id), "entry {id} is free already");
        self.free.push(id);
    }

    #[inline]
    pub(super) fn get(&mut self, id: u32) -> &mut T {
        &mut self.entries[id as usize]
    }
}
