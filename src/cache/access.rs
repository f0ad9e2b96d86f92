//! The two ways to a slot's bytes: a reader's shared look at a published block,
//! and a ticket's sole use of a slot that is being filled.
//!
//! Owns the argument why these never meet:
//!
//! - A block's bytes are written by its ticket alone, before the entry is
//!   published, and again only after eviction *and* a quiescent state of every
//!   online reader (see [`super::epoch`]).
//! - A [`BlockRef`] borrows its [`Reader`]; `quiesce` and `offline` borrow it
//!   mutably. So no reference outlives the reader's next quiescent state, and
//!   that is checked by the compiler.
//! - A lookup checks that the reader is online and of the same cache.
//! - An eviction ends no reference: other threads may evict a block between two
//!   lookups, and its bytes stay for whoever holds what the first lookup found. So a
//!   block is looked up once, and the copy takes what was found.
#![expect(unsafe_code, reason = "turns slots of the arena into slices")]

use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use super::entry::SlotIndex;
use super::epoch::{CellIndex, Epoch};
use super::fill::{FillOutcome, FillTicket, Filled};
use super::waiters::Waiter;
use super::{Cache, RootCache};

/// A thread's permission to look blocks up. While it is online, evicted slots
/// wait for its next [`Self::quiesce`]: call that often.
#[derive(Debug)]
pub struct Reader {
    cache: Arc<Cache>,
    cell: CellIndex,
    seen: Epoch,
    /// The address of the cache that this reader protects slots of: `cache`
    /// while online, 0 while offline. One comparison checks both.
    protects: usize,
}

impl Reader {
    pub(super) fn new(cache: Arc<Cache>, cell: CellIndex) -> Self {
        let mut reader = Self { cache, cell, seen: Epoch::NEVER, protects: 0 };
        reader.online();
        reader
    }

    /// Says that this thread holds no block. Costs two loads, and a store where
    /// something was evicted since. To be called at the top of a thread's loop.
    #[inline]
    pub fn quiesce(&mut self) {
        if self.protects != 0 {
            self.seen = self.cache.epochs.quiesce(self.cell, self.seen);
        }
    }

    /// Says that this thread looks nothing up until [`Self::online`], so that
    /// evictions don't wait for it. To be called before sleeping.
    pub fn offline(&mut self) {
        self.protects = 0;
        self.cache.epochs.offline(self.cell);
    }

    /// The opposite of [`Self::offline`]. A new reader is online.
    pub fn online(&mut self) {
        self.seen = self.cache.epochs.online(self.cell);
        self.protects = Arc::as_ptr(&self.cache).addr();
    }

    #[inline]
    fn assert_protects(&self, cache: &Arc<Cache>) {
        assert!(
            self.protects == Arc::as_ptr(cache).addr(),
            "a lookup needs an online reader of the same cache"
        );
    }

    /// The block in a slot of `cache`.
    ///
    /// # Safety
    /// The reader is online, and of that cache; the slot was in a published entry since
    /// the reader came online or quiesced last. It need not be any more.
    #[inline]
    unsafe fn block<'r>(&'r self, cache: &Cache, slot: SlotIndex) -> BlockRef<'r> {
        let (start, len) = (cache.slot_ptr(slot).cast_const(), cache.block_len());
        // SAFETY: the slot's bytes were initialised when it was published. They are
        // constant until it was evicted and this reader has quiesced since: its cell
        // carries an older epoch than any eviction that came after. Quiescing needs
        // `&mut Reader` and hence waits for the reference to end. The reader keeps the
        // cache and its arena alive.
        let bytes = unsafe { slice::from_raw_parts(start, len) };
        BlockRef { bytes }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.cache.epochs.unregister(self.cell);
    }
}

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup<'r> {
    /// The block, until the reader's next quiescent state.
    Hit(BlockRef<'r>),
    /// All zeros: a known hole, a block found to be zeros, or one beyond the
    /// root's end.
    Zero,
    /// Not cached: [`RootCache::begin_fill`].
    Miss,
}

/// The bytes of a cached block: always a whole block, with zeros after the
/// root's end.
#[derive(Clone, Copy, Debug)]
pub struct BlockRef<'r> {
    bytes: &'r [u8],
}

impl<'r> BlockRef<'r> {
    /// The bytes, for as long as the reader is borrowed.
    #[inline]
    pub const fn bytes(self) -> &'r [u8] {
        self.bytes
    }
}

impl Deref for BlockRef<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl RootCache {
    /// Where block `block` of the root is. Takes no lock; writes one bit where
    /// a block is hit for the first time in a round of the clock.
    ///
    /// # Panics
    /// If the reader is offline or another cache's: a bug of the caller, not
    /// to be provoked from outside.
    #[inline]
    pub fn lookup<'r>(&self, reader: &'r Reader, block: u64) -> Lookup<'r> {
        let Some(entry) = self.table.entry(block) else {
            return Lookup::Zero;
        };
        reader.assert_protects(&self.cache);
        let seen = entry.load();
        let Some(slot) = seen.ready_slot() else {
            return if seen.is_zero() { Lookup::Zero } else { Lookup::Miss };
        };
        entry.note_hit(seen);
        // SAFETY: the reader is online, and of this cache; `slot` was in a published
        // entry a moment ago.
        Lookup::Hit(unsafe { reader.block(&self.cache, slot) })
    }
}

impl Cache {
    /// Where the slot starts. Slots in entries and on lists lie in the arena.
    #[inline]
    pub(super) fn slot_ptr(&self, slot: SlotIndex) -> *mut u8 {
        self.arena.as_ptr().wrapping_add(self.slot_offset(slot))
    }
}

impl FillTicket {
    /// Ends the fill as [`Self::finish`] does with [`FillOutcome::Data`], and gives the
    /// block to who filled it, as a lookup would: before anybody can evict it, so that
    /// each fill is of use to one. `Miss` where the root was removed meanwhile.
    ///
    /// # Panics
    /// As [`RootCache::lookup`].
    pub fn finish_and_look<'r>(self, reader: &'r Reader, waiters: &mut Vec<Waiter>) -> Lookup<'r> {
        reader.assert_protects(self.cache());
        match self.end(FillOutcome::Data, waiters) {
            // SAFETY: the reader is online, of this cache, and borrowed since before the
            // slot was published.
            Filled::Slot(slot) => Lookup::Hit(unsafe { reader.block(&reader.cache, slot) }),
            Filled::Zeros => Lookup::Zero,
            Filled::Nothing => Lookup::Miss,
        }
    }

    /// The slot's bytes, a whole block, for filling without I/O. Use either
    /// this or [`Self::as_mut_ptr`], not both at once.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.as_mut_ptr(), self.cache().block_len());
        // SAFETY: the ticket is the slot's only user: it was free (no entry
        // names it, all readers have let go of it), and the role Filling keeps
        // everybody else away until the ticket is consumed. Mapped memory is
        // initialised, and `&mut self` keeps a second slice away.
        unsafe { slice::from_raw_parts_mut(start, len) }
    }
}
