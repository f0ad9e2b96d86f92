//! Which requests are in flight, in memory that outlives the process.
//!
//! Owns the layout of the *inflight region* (vhost-user, "Inflight I/O
//! tracking", split virtqueues) and its writing and reading. The frontend keeps
//! the region; after a crash of the backend it hands it to the next one, which
//! takes up what was popped and not given back. Knows nothing of messages: who
//! makes the memory and who brings it is `vhost_user`'s business.
//!
//! | offset | bytes | a queue's part of the region, native byte order |
//! | --- | --- | --- |
//! | 0 | 8 | features: 0 |
//! | 8 | 2 | version: 1; 0 where nothing was written yet |
//! | 10 | 2 | states that follow: the queue size that the frontend asked for |
//! | 12 | 2 | head of the list of chains in the last batch |
//! | 14 | 2 | the used ring's index after the last complete batch |
//! | 16 | 16 each | a state for each head: in flight (1 byte), padding (5), next in the batch's list (2), order (8) |
//!
//! # Rings that are longer than the frontend said
//!
//! A frontend asks for a region before it says how long the rings are. QEMU asks for
//! its `queue-size` property, 128 by default; but its virtio-mmio lets the driver
//! choose any ring of up to 1024 entries (QEMU's microvm, and `virt` on Arm). So a
//! region that is made here has an *extension* for each queue: behind all parts come
//! as many times the states that a queue lacks to 1024. The frontend keeps a region of
//! any length, and says how long it is when it hands it back. The parts are the same
//! with an extension or without, so that an older leafblk can go on with either.
//!
//! # Why nothing is lost and nothing done twice, wherever the process dies
//!
//! Stores become visible in program order (they are release stores; on x86 plain
//! moves), and a killed process's stores are not undone.
//!
//! - *Popped, not marked:* it is not in flight, and [`Recovered::next_avail`] =
//!   used index + requests in flight still points at it: popped again.
//! - *Marked, not shown as used:* in flight, resubmitted. A write is repeated
//!   with the same data before the guest was told of the first.
//! - *Shown as used, marks not cleared:* the region's used index is behind the
//!   ring's by the batch's size; that many chains of the list are cleared.
//!   They may be offered again meanwhile: then they are popped as new.
//! - *Marks cleared, index not stored:* clearing them again changes nothing.
//!
//! Invariant: whatever the frontend writes into the region, all access stays in
//! it, and a recovery ends after at most one look at each state.
#![expect(unsafe_code, reason = "atomics in memory that the frontend shares")]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use super::QueueError;
use crate::guest_memory::{Account, GuestMemory, GuestMemoryError, RegionSpec};

const VERSION: u16 = 1;
/// Parts and extensions begin on cache lines of their own.
const PART_ALIGN: u64 = 64;
/// States that a queue has in its part and its extension: what the longest ring
/// needs that a frontend may have.
pub const STATES_MAX: u16 = 1024;

#[repr(C)]
struct Header {
    features: AtomicU64,
    version: AtomicU16,
    states: AtomicU16,
    last_batch: AtomicU16,
    used_index: AtomicU16,
}

#[repr(C)]
struct State {
    in_flight: AtomicU8,
    padding: [AtomicU8; 5],
    next: AtomicU16,
    order: AtomicU64,
}

const _: () = assert!(size_of::<Header>() == 16 && size_of::<State>() == 16);

/// Where what is in a region.
#[derive(Clone, Copy, Debug)]
pub struct RegionLayout {
    queues: u16,
    /// States of a part.
    states: u16,
    /// States of an extension; 0 where there are none.
    more: u16,
}

impl RegionLayout {
    /// That of a new region for so many queues, which the frontend takes to be of
    /// `queue_size` entries.
    pub fn new(queues: u16, queue_size: u16) -> Self {
        Self { queues, states: queue_size, more: STATES_MAX.saturating_sub(queue_size) }
    }

    /// That of a region of `len` bytes which such a frontend hands back: with
    /// extensions if they fit. `None` where not even the parts do.
    pub fn of_len(len: u64, queues: u16, queue_size: u16) -> Option<Self> {
        let whole = Self::new(queues, queue_size);
        let parts = Self { more: 0, ..whole };
        [whole, parts].into_iter().find(|layout| layout.len_bytes() <= len)
    }

    /// Bytes of the region.
    pub fn len_bytes(self) -> u64 {
        u64::from(self.queues) * (self.part_bytes() + self.extension_bytes())
    }

    fn part_bytes(self) -> u64 {
        (16 + 16 * u64::from(self.states)).next_multiple_of(PART_ALIGN)
    }

    fn extension_bytes(self) -> u64 {
        (16 * u64::from(self.more)).next_multiple_of(PART_ALIGN)
    }

    pub(super) fn part_offset(self, queue: u16) -> u64 {
        u64::from(queue) * self.part_bytes()
    }

    pub(super) fn extension_offset(self, queue: u16) -> u64 {
        self.part_offset(self.queues) + u64::from(queue) * self.extension_bytes()
    }
}

/// The region of one frontend, for all its queues.
#[derive(Debug)]
pub struct InflightRegion {
    memory: GuestMemory,
    start: *mut u8,
    layout: RegionLayout,
}

// SAFETY: `start` leads into `memory`, which is no thread's property. This module
// reads and writes it by atomics; the frontend, and a guest whose RAM is the same
// file, change it at will (see `GuestMemory`): no value in it is trusted.
unsafe impl Send for InflightRegion {}
// SAFETY: as for Send.
unsafe impl Sync for InflightRegion {}

impl InflightRegion {
    /// The region at `offset` of `file`. It counts in `account`.
    ///
    /// # Errors
    /// As for guest memory: the file is no memory, too short, or can't be mapped.
    pub fn map(
        file: File,
        offset: u64,
        layout: RegionLayout,
        account: &Arc<Account>,
    ) -> Result<Self, GuestMemoryError> {
        let size = layout.len_bytes();
        // Guest memory brings what this needs: the seal, the look at the
        // length, the guard against a file that is cut short later.
        let spec = RegionSpec { guest_addr: 0, size, user_addr: 0, mmap_offset: offset, file };
        let memory = GuestMemory::map(vec![spec], account)?;
        let start = memory.translate(0, size).ok_or(GuestMemoryError::BadRange)?;
        if !start.addr().is_multiple_of(align_of::<Header>()) {
            return Err(GuestMemoryError::BadRange);
        }
        Ok(Self { memory, start, layout })
    }

    /// The address at `offset`, which is less than the region's length.
    fn at(&self, offset: u64) -> *const u8 {
        #[expect(clippy::cast_possible_truncation, reason = "less than the mapping's length")]
        self.start.cast_const().wrapping_add(offset as usize)
    }

    /// Whether a backend has written to it: what is in it is of a guest that runs.
    pub fn is_written(&self) -> bool {
        (0..self.layout.queues).any(|queue| {
            let header: *const Header = self.at(self.layout.part_offset(queue)).cast();
            // SAFETY: inside the region and aligned, by `map` and the layout; mapped as long
            // as `self`. All fields are atomics (see `Tracker::header`).
            unsafe { &*header }.version.load(Ordering::Acquire) != 0
        })
    }

    /// Whether the frontend took the region away and it was then touched. What
    /// was written there is lost.
    pub fn is_faulted(&self) -> bool {
        self.memory.is_faulted()
    }
}

/// What a queue goes on with.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Heads of chains in flight, the first to be resubmitted last.
    pub(super) heads: Vec<u16>,
    /// The index of the next chain to take from the ring.
    pub(super) next_avail: u16,
}

/// Between two stores whose order matters: tests let the process die here.
#[inline]
pub(super) fn crash_point() {
    #[cfg(test)]
    super::tests::inflight::crash_point();
}

/// One queue's part of the region, and its extension if its ring is that long.
#[derive(Debug)]
pub(super) struct Tracker {
    _region: Arc<InflightRegion>,
    /// States in the part.
    in_part: u16,
    /// States in both.
    count: u16,
    header: *const Header,
    states: *const State,
    more: *const State,
    order: u64,
    /// As in the header: what is read is never what the frontend wrote.
    last_batch: u16,
}

// SAFETY: as for the region, which it keeps mapped; `&self` changes atomics only.
unsafe impl Send for Tracker {}

impl Tracker {
    /// The part of queue `queue`, which has `size` entries and whose used ring
    /// stands at `used_index`; and what an earlier backend left to be done.
    /// `None` where none has run on the region: it is made ready.
    ///
    /// # Errors
    /// [`QueueError::Inflight`], [`QueueError::InflightTooShort`], for a region that
    /// can't be this queue's.
    pub(super) fn new(
        region: Arc<InflightRegion>,
        queue: u16,
        size: u16,
        used_index: u16,
    ) -> Result<(Self, Option<Recovered>), QueueError> {
        let layout = region.layout;
        if queue >= layout.queues {
            return Err(QueueError::Inflight("has no part for this queue"));
        }
        let needs_more = size > layout.states;
        let count = layout.states + if needs_more { layout.more } else { 0 };
        if size > count {
            return Err(QueueError::InflightTooShort { states: count, size });
        }
        let part = region.at(layout.part_offset(queue));
        let more = if needs_more {
            region.at(layout.extension_offset(queue)).cast()
        } else {
            std::ptr::null()
        };
        let mut tracker = Self {
            in_part: layout.states,
            count,
            header: part.cast(),
            states: part.wrapping_add(size_of::<Header>()).cast(),
            more,
            order: 0,
            last_batch: 0,
            _region: region,
        };
        let version = tracker.header().version.load(Ordering::Acquire);
        match version {
            0 => {
                tracker.initialise(used_index);
                Ok((tracker, None))
            }
            VERSION => {
                let recovered = tracker.recover(size, used_index)?;
                Ok((tracker, Some(recovered)))
            }
            _ => Err(QueueError::Inflight("is of a version that is not known")),
        }
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: inside the region and aligned, by `new`; mapped as long as
        // `self`. All fields are atomics, so that the reference promises nothing
        // of what others do to the memory (see `GuestMemory`).
        unsafe { &*self.header }
    }

    /// The state of a head, if there is one.
    #[inline]
    fn state(&self, head: u16) -> Option<&State> {
        let state = match head {
            _ if head < self.in_part => self.states.wrapping_add(usize::from(head)),
            _ if head < self.count => self.more.wrapping_add(usize::from(head - self.in_part)),
            _ => return None,
        };
        // SAFETY: as above; a part has `in_part` states, an extension the others.
        Some(unsafe { &*state })
    }

    fn all_states(&self) -> impl Iterator<Item = (u16, &State)> {
        (0..self.count).filter_map(|head| Some((head, self.state(head)?)))
    }

    /// The version comes last: whoever dies before has written nothing.
    fn initialise(&self, used_index: u16) {
        for (_, state) in self.all_states() {
            state.in_flight.store(0, Ordering::Relaxed);
            state.next.store(0, Ordering::Relaxed);
            state.order.store(0, Ordering::Relaxed);
        }
        crash_point();
        let header = self.header();
        header.features.store(0, Ordering::Relaxed);
        header.states.store(self.in_part, Ordering::Relaxed);
        header.last_batch.store(0, Ordering::Relaxed);
        header.used_index.store(used_index, Ordering::Relaxed);
        crash_point();
        header.version.store(VERSION, Ordering::Release);
    }

    fn recover(&mut self, size: u16, used_index: u16) -> Result<Recovered, QueueError> {
        if self.header().states.load(Ordering::Relaxed) != self.in_part {
            return Err(QueueError::Inflight(
                "has another number of states than it was given with",
            ));
        }
        self.last_batch = self.header().last_batch.load(Ordering::Relaxed);
        self.finish_batch(used_index)?;
        let mut found = Vec::new();
        for (head, state) in self.all_states() {
            if state.in_flight.load(Ordering::Relaxed) != 0 {
                if head >= size {
                    return Err(QueueError::Inflight("has requests beyond the queue's end"));
                }
                found.push((state.order.load(Ordering::Relaxed), head));
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        self.order = found.first().map_or(0, |(order, _)| order.wrapping_add(1));
        let heads: Vec<u16> = found.into_iter().map(|(_, head)| head).collect();
        #[expect(clippy::cast_possible_truncation, reason = "at most a queue's size")]
        let next_avail = used_index.wrapping_add(heads.len() as u16);
        Ok(Recovered { heads, next_avail })
    }

    /// Clears what an earlier backend showed as used without clearing it.
    fn finish_batch(&self, used_index: u16) -> Result<(), QueueError> {
        let header = self.header();
        let batch = used_index.wrapping_sub(header.used_index.load(Ordering::Relaxed));
        if batch > self.count {
            // The ring begins anew, as after a reset of the driver: nothing can
            // be in flight of it.
            if self.all_states().any(|(_, state)| state.in_flight.load(Ordering::Relaxed) != 0) {
                return Err(QueueError::Inflight("does not fit the used ring"));
            }
        } else {
            let mut head = self.last_batch;
            for _ in 0..batch {
                let outside = QueueError::Inflight("lists a chain that does not exist");
                let state = self.state(head).ok_or(outside)?;
                state.in_flight.store(0, Ordering::Relaxed);
                crash_point();
                head = state.next.load(Ordering::Relaxed);
            }
        }
        header.used_index.store(used_index, Ordering::Release);
        Ok(())
    }

    /// A chain was popped, and nothing of it done yet.
    #[inline]
    pub(super) fn popped(&mut self, head: u16) {
        if let Some(state) = self.state(head) {
            state.order.store(self.order, Ordering::Relaxed);
            crash_point();
            state.in_flight.store(1, Ordering::Release);
            crash_point();
        }
        self.order = self.order.wrapping_add(1);
    }

    /// A chain is in the used ring, and not shown yet.
    #[inline]
    pub(super) fn used(&mut self, head: u16) {
        if let Some(state) = self.state(head) {
            state.next.store(self.last_batch, Ordering::Relaxed);
            crash_point();
            self.header().last_batch.store(head, Ordering::Release);
            crash_point();
            self.last_batch = head;
        }
    }

    /// The batch of these heads was shown; the used index is `used_index` now.
    #[inline]
    pub(super) fn published(&self, heads: impl Iterator<Item = u16>, used_index: u16) {
        for state in heads.filter_map(|head| self.state(head)) {
            state.in_flight.store(0, Ordering::Release);
            crash_point();
        }
        self.header().used_index.store(used_index, Ordering::Release);
    }
}
