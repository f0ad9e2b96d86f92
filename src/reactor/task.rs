//! Requests that could not be served at once, and the parts that they wait for.
//!
//! A *task* is one such request; a *part* is one stretch of a read that waits:
//! for a cache block, or for the leaf's disk. Both live in slabs whose entries,
//! with the lists in them, are used again; few of them, so that what a guest once
//! asked for doesn't stay in memory for ever.

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
    /// A change of the leaf by its lane: one that takes long, or a short one.
    Change { large: bool },
    /// A flush.
    Flush,
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
    /// In its device's backlog, or being run.
    pub(super) scheduled: bool,
}

impl Task {
    /// Whether a read has nothing more to do or to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.pending == 0 && (self.failed || self.rest.is_empty())
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

/// Entries whose lists are kept when they are free.
const KEPT: usize = 256;
/// Buffers that a kept list has room for, 4 KiB: twice what a driver's request
/// has that keeps to `seg_max`. Longer lists are made anew.
const LIST_KEPT: usize = 256;

/// What a slab is made of.
pub(super) trait Entry: Default {
    /// Its list.
    fn bufs(&mut self) -> &mut Vec<GuestBuf>;
}

impl Entry for Task {
    fn bufs(&mut self) -> &mut Vec<GuestBuf> {
        &mut self.bufs
    }
}

impl Entry for Part {
    fn bufs(&mut self) -> &mut Vec<GuestBuf> {
        &mut self.bufs
    }
}

/// Entries that keep their place when they are freed, and some their lists.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<T>,
    /// Free, with their lists: at most [`KEPT`]. They are used first.
    free: Vec<u32>,
    /// Free, without.
    bare: Vec<u32>,
}

impl<T: Entry> Slab<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), bare: Vec::new() }
    }

    /// A free entry, as it was left.
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().or_else(|| self.bare.pop()).unwrap_or_else(|| {
            self.entries.push(T::default());
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        })
    }

    pub(super) fn give_back(&mut self, id: u32) {
        debug_assert!(!self.free.contains(&id), "entry {id} is free already");
        let bufs = self.entries[id as usize].bufs();
        bufs.clear();
        if self.free.len() < KEPT {
            if bufs.capacity() > LIST_KEPT {
                *bufs = Vec::new();
            }
            self.free.push(id);
        } else {
            *bufs = Vec::new();
            self.bare.push(id);
        }
    }

    #[inline]
    pub(super) fn get(&mut self, id: u32) -> &mut T {
        &mut self.entries[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_were_needed_once_give_their_memory_back() {
        let mut slab = Slab::<Part>::new();
        let ids: Vec<u32> = (0..4096).map(|_| slab.take()).collect();
        for (i, id) in ids.into_iter().enumerate() {
            slab.get(id).bufs.reserve_exact(if i % 2 == 0 { 128 } else { 1024 });
            slab.give_back(id);
        }
        let kept: usize = slab.entries.iter().map(|part| part.bufs.capacity()).sum();
        assert!(kept <= KEPT * LIST_KEPT, "{kept} buffers");
        // What is used next has its list still.
        let kept_lists = (0..KEPT).filter(|_| {
            let id = slab.take();
            slab.get(id).bufs.capacity() > 0
        });
        assert_eq!(kept_lists.count(), KEPT / 2);
        let (a, b) = (slab.take(), slab.take());
        assert_ne!(a, b);
        assert_eq!(slab.entries.len(), 4096, "places are used again");
    }
}
