//! The tables: for each root a flat array, block number → entry.
//!
//! Owns the arrays and the ids of the roots. Root blocks are dense, so there is
//! no hash: 100 GiB at 64 KiB blocks is 6.25 MiB of table. Knows nothing of
//! what entries mean.

use std::sync::Arc;

use super::CacheError;
use super::directory::RootKey;
use super::entry::AtomicEntry;
use crate::units::{SECTOR_SIZE, Sector, SectorRange};

/// A root's place among the cache's roots; used again after its removal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct RootId(u32);

/// One block of one root.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct BlockKey {
    pub(super) root: RootId,
    pub(super) block: u32,
}

/// Where the blocks of one root are.
#[derive(Debug)]
pub(super) struct RootTable {
    id: RootId,
    key: Option<RootKey>,
    root: SectorRange,
    block_bytes: u32,
    entries: Box<[AtomicEntry]>,
}

impl RootTable {
    /// The entry, or `None` beyond the root's end.
    #[inline]
    pub(super) fn entry(&self, block: u64) -> Option<&AtomicEntry> {
        self.entries.get(usize::try_from(block).ok()?)
    }

    pub(super) const fn id(&self) -> RootId {
        self.id
    }

    /// The image that it is, if a later process may know it again.
    pub(super) const fn key(&self) -> Option<RootKey> {
        self.key
    }

    pub(super) const fn blocks(&self) -> usize {
        self.entries.len()
    }

    /// The root's sectors in the block: fewer than a whole block's at the end.
    pub(super) fn sectors_of(&self, block: u64) -> SectorRange {
        let sectors = u64::from(self.block_bytes) / SECTOR_SIZE;
        block
            .checked_mul(sectors)
            .and_then(|start| SectorRange::new(Sector(start), sectors))
            .map_or_else(SectorRange::default, |range| range.intersection(self.root))
    }
}

/// The roots that share a cache.
#[derive(Debug, Default)]
pub(super) struct Roots {
    roots: Vec<Option<Root>>,
}

#[derive(Debug)]
struct Root {
    table: Arc<RootTable>,
    zero_blocks: u64,
    closing: bool,
}

impl Roots {
    /// A new table, all blocks empty.
    ///
    /// # Errors
    /// [`CacheError::RootTooLarge`] where the table can't be had.
    pub(super) fn add(
        &mut self,
        sectors: u64,
        block_bytes: u32,
        key: Option<RootKey>,
    ) -> Result<Arc<RootTable>, CacheError> {
        let too_large = || CacheError::RootTooLarge { sectors, block_bytes };
        let root = SectorRange::whole(sectors).ok_or_else(too_large)?;
        let blocks = u32::try_from(root.byte_len().div_ceil(u64::from(block_bytes)))
            .map_err(|_| too_large())?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(blocks as usize).map_err(|_| too_large())?;
        entries.resize_with(blocks as usize, AtomicEntry::empty);
        let free = self.roots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.roots.len());
        let table = Arc::new(RootTable {
            id: RootId(u32::try_from(index).map_err(|_| too_large())?),
            key,
            root,
            block_bytes,
            entries: entries.into_boxed_slice(),
        });
        let added = Some(Root { table: Arc::clone(&table), zero_blocks: 0, closing: false });
        match self.roots.get_mut(index) {
            Some(place) => *place = added,
            None => self.roots.push(added),
        }
        Ok(table)
    }

    /// From now on nothing is added to the root's blocks. Its id stays taken
    /// until [`Self::remove`], as slots still carry it.
    pub(super) fn close(&mut self, id: RootId) {
        if let Some(Some(root)) = self.roots.get_mut(id.0 as usize) {
            root.closing = true;
        }
    }

    /// Forgets the root; how many zero blocks it had.
    pub(super) fn remove(&mut self, id: RootId) -> u64 {
        let root = self.roots.get_mut(id.0 as usize).and_then(Option::take);
        root.map_or(0, |root| root.zero_blocks)
    }

    /// Whether this very table (not a later one with its id) is in use and not
    /// about to be removed.
    pub(super) fn contains(&self, table: &Arc<RootTable>) -> bool {
        matches!(
            self.roots.get(table.id.0 as usize),
            Some(Some(root)) if Arc::ptr_eq(&root.table, table) && !root.closing
        )
    }

    /// Notes that the root has this many more zero blocks.
    pub(super) fn count_zero(&mut self, id: RootId, blocks: u64) {
        if let Some(Some(root)) = self.roots.get_mut(id.0 as usize) {
            root.zero_blocks += blocks;
        }
    }

    /// The entry of a block of a root that has not been removed.
    pub(super) fn entry(&self, key: BlockKey) -> Option<&AtomicEntry> {
        let root = self.roots.get(key.root.0 as usize)?.as_ref()?;
        root.table.entry(u64::from(key.block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_ends_where_the_root_does() {
        let table = Roots::default().add(129, 65536, None).unwrap();
        assert_eq!(table.blocks(), 2);
        assert_eq!(table.sectors_of(0).count(), 128);
        assert_eq!(table.sectors_of(1).count(), 1);
        assert!(table.sectors_of(2).is_empty());
        assert!(table.sectors_of(u64::MAX).is_empty());
        assert!(table.entry(2).is_none());
    }

    #[test]
    fn a_root_beyond_the_largest_file_or_table_is_an_error() {
        for sectors in [u64::MAX, 1 << 54, (1 << 32) * 8 + 1] {
            assert!(Roots::default().add(sectors, 4096, None).is_err(), "{sectors}");
        }
    }

    #[test]
    fn an_id_is_used_again_and_its_old_table_is_not_mistaken_for_the_new() {
        let mut roots = Roots::default();
        let (a, b) = (roots.add(8, 4096, None).unwrap(), roots.add(8, 4096, None).unwrap());
        assert_ne!(a.id(), b.id());
        roots.remove(a.id());
        let c = roots.add(8, 4096, None).unwrap();
        assert_eq!(a.id(), c.id());
        assert!(!roots.contains(&a) && roots.contains(&b) && roots.contains(&c));
    }
}
