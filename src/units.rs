//! Sectors and bytes, and the only conversions between them.
//!
//! A sector is 512 bytes, always (virtio 1.3, 5.2.4: "the capacity … in
//! 512-byte sectors", whatever `blk_size` says).

use std::fmt;

/// Bytes in a sector.
pub const SECTOR_SIZE: u64 = 512;
const SECTOR_SHIFT: u32 = 9;

/// A disk's logical block: what a guest addresses it by, and so what its requests are
/// whole numbers of. The units of virtio-blk stay sectors.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BlockSize {
    /// 512 bytes, one sector.
    #[default]
    Sector,
    /// 4096 bytes: a "4Kn" disk.
    FourKib,
}

impl BlockSize {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Sector, Self::FourKib];

    /// The block of so many bytes, if there is one.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|size| u64::from(size.to_bytes()) == bytes)
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> u32 {
        match self {
            Self::Sector => 512,
            Self::FourKib => 4096,
        }
    }

    /// Its sectors, a power of two.
    #[inline]
    pub const fn sectors(self) -> u64 {
        match self {
            Self::Sector => 1,
            Self::FourKib => 8,
        }
    }

    /// Whether so many sectors are whole blocks.
    #[inline]
    pub const fn divides(self, sectors: u64) -> bool {
        sectors & (self.sectors() - 1) == 0
    }
}

/// The number of a 512-byte sector on a disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The offset of the sector's first byte. Wraps for sectors beyond 2⁵⁵,
    /// which no [`SectorRange`] contains.
    #[inline]
    pub const fn to_bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `count` sectors from `start` on. Its end in bytes fits an `i64`, as file
/// offsets do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
pub struct SectorRange {
    start: Sector,
    count: u64,
}

impl SectorRange {
    /// The range, or `None` if its end in bytes exceeds `i64::MAX`.
    #[inline]
    pub const fn new(start: Sector, count: u64) -> Option<Self> {
        match start.0.checked_add(count) {
            Some(end) if end <= (i64::MAX as u64) >> SECTOR_SHIFT => Some(Self { start, count }),
            _ => None,
        }
    }

    /// The first `sectors` sectors of a disk; `None` as for [`Self::new`].
    pub const fn whole(sectors: u64) -> Option<Self> {
        Self::new(Sector(0), sectors)
    }

    /// The first sector.
    #[inline]
    pub const fn start(self) -> Sector {
        self.start
    }

    /// How many sectors.
    #[inline]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The first sector after the range.
    #[inline]
    pub const fn end(self) -> Sector {
        Sector(self.start.0 + self.count)
    }

    /// Whether there is no sector in it.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The range's length in bytes.
    #[inline]
    pub const fn byte_len(self) -> u64 {
        self.count << SECTOR_SHIFT
    }

    /// The offset of the range's first byte.
    #[inline]
    pub const fn byte_offset(self) -> u64 {
        self.start.to_bytes()
    }

    /// The first `count` sectors and the rest; all and nothing where `count`
    /// is larger than the range.
    #[inline]
    pub const fn split_at(self, count: u64) -> (Self, Self) {
        let first = if count < self.count { count } else { self.count };
        (
            Self { start: self.start, count: first },
            Self { start: Sector(self.start.0 + first), count: self.count - first },
        )
    }

    /// The sectors that both ranges have.
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Self { start, count: end.0.saturating_sub(start.0) }
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sectors {} to {}", self.start, self.end())
    }
}

/// A few ranges of sectors, none of them empty.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ranges {
    ranges: [SectorRange; Self::MAX],
    count: usize,
}

impl Ranges {
    /// How many there may be.
    pub const MAX: usize = 16;

    /// Adds the range, unless it is empty; false where there is no room.
    #[must_use]
    pub fn push(&mut self, range: SectorRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let Some(place) = self.ranges.get_mut(self.count) else {
            return false;
        };
        *place = range;
        self.count += 1;
        true
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[SectorRange] {
        &self.ranges[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_ranges_as_fit_are_kept_and_empty_ones_are_not() {
        let range = |start, count| SectorRange::new(Sector(start), count).unwrap();
        let mut ranges = Ranges::default();
        for start in 0..Ranges::MAX as u64 {
            assert!(ranges.push(range(start, 0)) && ranges.push(range(start, 1)));
        }
        assert!(ranges.push(range(99, 0)) && !ranges.push(range(99, 1)));
        assert_eq!(ranges.as_slice().len(), Ranges::MAX);
        assert_eq!(ranges.as_slice().last(), Some(&range(15, 1)));
    }

    #[test]
    fn a_block_is_512_or_4096_bytes() {
        for size in BlockSize::ALL {
            assert_eq!(BlockSize::from_bytes(size.to_bytes().into()), Some(size));
            assert_eq!(size.sectors() * SECTOR_SIZE, u64::from(size.to_bytes()));
            assert!(size.divides(0) && size.divides(size.sectors() * 3));
        }
        assert!(!BlockSize::FourKib.divides(4) && BlockSize::Sector.divides(5));
        for other in [0, 1, 513, 1024, 2048, 8192] {
            assert_eq!(BlockSize::from_bytes(other), None);
        }
    }

    #[test]
    fn a_range_past_the_last_file_offset_does_not_exist() {
        assert!(SectorRange::new(Sector(u64::MAX), 1).is_none());
        assert!(SectorRange::new(Sector(1 << 54), 1).is_none());
        assert!(SectorRange::new(Sector(0), (1 << 54) - 1).is_some());
    }

    #[test]
    fn splitting_keeps_every_sector_once() {
        let range = SectorRange::new(Sector(3), 5).unwrap();
        let (a, b) = range.split_at(2);
        assert_eq!((a.start().0, a.count(), b.start().0, b.count()), (3, 2, 5, 3));
        assert!(range.split_at(9).1.is_empty());
    }

    #[test]
    fn the_intersection_of_disjoint_ranges_is_empty() {
        let a = SectorRange::new(Sector(0), 4).unwrap();
        let b = SectorRange::new(Sector(4), 4).unwrap();
        assert!(a.intersection(b).is_empty());
        assert_eq!(a.intersection(a), a);
    }
}
