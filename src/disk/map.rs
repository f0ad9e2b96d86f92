//! Where a disk's sectors would come from now, as a picture of so many cells.
//!
//! For people: it runs on a control thread, takes no lock and touches nothing
//! that a reactor writes on a hit. What it looks at is bounded: at most
//! [`BLOCKS_MAX`] blocks of the cache's table (4 bytes each) and
//! [`MAP_BYTES_MAX`] of the presence map. A larger disk is *sampled*: every
//! n-th block speaks for its neighbours.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Disk;
use crate::cache::BlockKind;
use crate::units::{Sector, SectorRange};

/// The most cells of a map.
pub const CELLS_MAX: u32 = 4096;
/// Blocks that one map looks at: 64 GiB of blocks of 64 KiB.
const BLOCKS_MAX: u64 = 1 << 20;
/// Bytes of the presence map that one map counts in full: what a leaf with
/// 64 GiB of scattered writes has.
const MAP_BYTES_MAX: u64 = 16 << 20;
/// Where a leaf has more, stretches of a cell that are looked at, and their
/// length: 4096 cells are then 16 MiB again.
const SAMPLES: u64 = 64;
const SAMPLE_SECTORS: u64 = 512;

/// A disk cut into cells of (but for rounding) equal size. The lists have one
/// number a cell: how many of its sectors are of that kind.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DiskMap {
    /// Bytes of the disk.
    pub size: u64,
    /// Whether only some blocks were looked at: the numbers are estimates.
    pub sampled: bool,
    /// Sectors that the leaf holds.
    pub leaf: Vec<u64>,
    /// Sectors of the root that are in the cache.
    pub cached: Vec<u64>,
    /// Sectors of the root that would have to be read.
    pub uncached: Vec<u64>,
    /// Sectors that are known to be zeros.
    pub zero: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    leaf: u64,
    cached: u64,
    uncached: u64,
    zero: u64,
}

/// What a map looks at.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Every n-th block.
    stride: u64,
    /// Whether the leaf's sectors are counted rather than sampled.
    count_leaf: bool,
}

impl Disk {
    /// The disk in `cells` cells: at least 1, at most [`CELLS_MAX`], and no
    /// more than there are sectors.
    pub fn map(&self, cells: u32) -> DiskMap {
        let blocks = self.root.root().sectors().div_ceil(1 << self.root.block_shift);
        let effort = Effort {
            stride: blocks.div_ceil(BLOCKS_MAX).max(1),
            count_leaf: self.leaf().is_none_or(|leaf| leaf.map_bytes_used() <= MAP_BYTES_MAX),
        };
        self.map_with(cells, effort)
    }

    fn map_with(&self, cells: u32, effort: Effort) -> DiskMap {
        // Once: the disk may grow meanwhile.
        let sectors = self.sectors();
        let cells = u64::from(cells.clamp(1, CELLS_MAX)).min(sectors.max(1));
        let boundary = |cell: u64| {
            let sector = u128::from(sectors) * u128::from(cell) / u128::from(cells);
            u64::try_from(sector).unwrap_or(sectors)
        };
        let mut map = DiskMap {
            size: sectors * 512,
            sampled: effort.stride > 1 || !effort.count_leaf,
            ..DiskMap::default()
        };
        for cell in 0..cells {
            let (start, end) = (boundary(cell), boundary(cell + 1));
            let range = SectorRange::new(Sector(start), end - start).unwrap_or_default();
            let Cell { leaf, cached, uncached, zero } = self.cell(range, effort);
            map.leaf.push(leaf);
            map.cached.push(cached);
            map.uncached.push(uncached);
            map.zero.push(zero);
        }
        map
    }

    fn cell(&self, range: SectorRange, effort: Effort) -> Cell {
        let root_end = self.root.root().sectors();
        let (on_root, beyond) = range.split_at(root_end.saturating_sub(range.start().0));
        let held = |range: SectorRange| self.leaf().map_or(0, |leaf| leaf.count_in(range));
        let mut seen = Cell::default();
        if !on_root.is_empty() {
            let first = self.root.block_of(on_root.start());
            let last = self.root.block_of(Sector(on_root.end().0 - 1));
            // From the middle of the first stretch, if the cell has a whole one.
            let start = (first + effort.stride / 2).min(last);
            for block in (start..=last).step_by(usize::try_from(effort.stride).unwrap_or(1)) {
                let sectors =
                    SectorRange::new(self.root.block_start(block), 1 << self.root.block_shift)
                        .unwrap_or_default()
                        .intersection(on_root);
                let leaf = held(sectors);
                let rest = sectors.count() - leaf.min(sectors.count());
                seen.leaf += leaf;
                match self.root.cache().kind_of(block) {
                    BlockKind::Cached => seen.cached += rest,
                    BlockKind::Zero => seen.zero += rest,
                    BlockKind::Absent => seen.uncached += rest,
                }
            }
        }
        let mut cell = if effort.stride > 1 || !effort.count_leaf {
            let leaf = if effort.count_leaf { Some(held(on_root)) } else { None };
            seen.scaled_to(on_root.count(), leaf)
        } else {
            seen
        };
        // Beyond the root only the leaf has anything.
        let leaf_beyond = if effort.count_leaf { held(beyond) } else { sample(beyond, held) };
        cell.leaf += leaf_beyond;
        cell.zero += beyond.count() - leaf_beyond.min(beyond.count());
        cell
    }
}

/// Estimates how many sectors of the range `held` counts, from
/// [`SAMPLES`] evenly spread stretches of it.
fn sample(range: SectorRange, held: impl Fn(SectorRange) -> u64) -> u64 {
    let step = range.count() / SAMPLES;
    if step <= SAMPLE_SECTORS {
        return held(range);
    }
    let stretch = |i: u64| SectorRange::new(Sector(range.start().0 + i * step), SAMPLE_SECTORS);
    let found: u64 = (0..SAMPLES).filter_map(stretch).map(held).sum();
    share(found, SAMPLES * SAMPLE_SECTORS, range.count())
}

/// `part` of `of`, as a part of `whole`.
fn share(part: u64, of: u64, whole: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(whole) / u128::from(of.max(1));
    u64::try_from(scaled).unwrap_or(whole).min(whole)
}

impl Cell {
    /// The same proportions for `sectors` sectors, of which the leaf holds
    /// `leaf` where that is known.
    fn scaled_to(self, sectors: u64, leaf: Option<u64>) -> Self {
        let others = self.cached + self.uncached + self.zero;
        let leaf = leaf.unwrap_or_else(|| share(self.leaf, self.leaf + others, sectors));
        let rest = sectors - leaf.min(sectors);
        let cached = share(self.cached, others, rest);
        let zero = share(self.zero, others, rest);
        Self { leaf, cached, zero, uncached: rest - cached - zero }
    }
}

#[cfg(test)]
mod tests;
