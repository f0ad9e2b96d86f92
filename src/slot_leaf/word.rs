//! What a leaf says of one block of a disk: a slot, and a kind for each sector.

use std::fmt;

/// Bytes of a block, of a slot and of a frame.
pub const BLOCK_LEN: usize = 4096;
/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = 8;

/// A place of 4 KiB in a leaf's file, counted from its start.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Slot(pub u64);

impl Slot {
    /// Slots that a file may have.
    pub const COUNT_MAX: u64 = 1 << 40;

    /// The offset in the file, in bytes.
    pub fn offset(self) -> u64 {
        self.0 * BLOCK_LEN as u64
    }
}

/// Some sectors of a block: bit 0 is the first.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Mask(pub u8);

impl Mask {
    /// No sector.
    pub const NONE: Self = Self(0);
    /// All sectors.
    pub const ALL: Self = Self(0xff);

    /// `count` sectors from `first` on; both are within a block.
    pub fn of(first: u32, count: u32) -> Self {
        let bits = ((1_u32 << count) - 1) << first;
        Self(u8::try_from(bits & 0xff).unwrap_or(0xff))
    }

    /// Sectors of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Sectors of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Sectors of this and not of the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the sector is one of them.
    pub fn has(self, sector: u32) -> bool {
        self.0 >> sector & 1 == 1
    }

    /// The numbers of its sectors.
    pub fn sectors(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |i| self.0 >> i & 1 == 1)
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08b}", self.0)
    }
}

/// One block, as 64 bits: the slot in the low 40, then three masks of 8: sectors whose
/// data is in the slot, sectors that are zeros, and sectors whose data was damaged on the
/// disk before it could be kept. What is in no mask is the root's. No sector is in two
/// masks, and the slot is 0 where no sector's data is in it.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Word(u64);

impl Word {
    /// Nothing of the leaf's: the root shows.
    pub const ROOT: Self = Self(0);
    /// A block of zeros.
    pub const ZEROS: Self = Self(0xff << 48);

    /// A block with data in `slot`; each mask gives way to those before it.
    pub fn new(slot: Slot, data: Mask, zeros: Mask, damaged: Mask) -> Self {
        let zeros = zeros.without(data);
        let damaged = damaged.without(data.or(zeros));
        let slot = if data.is_empty() { 0 } else { slot.0 & (Slot::COUNT_MAX - 1) };
        let masks = u64::from(data.0) | u64::from(zeros.0) << 8 | u64::from(damaged.0) << 16;
        Self(slot | masks << 40)
    }

    /// From a file; `None` where it breaks the rules above.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let word = Self(bits);
        let slot = Slot(bits & (Slot::COUNT_MAX - 1));
        (Self::new(slot, word.data(), word.zeros(), word.damaged()) == word).then_some(word)
    }

    /// For a file.
    pub fn bits(self) -> u64 {
        self.0
    }

    fn mask(self, at: u32) -> Mask {
        Mask(u8::try_from(self.0 >> at & 0xff).unwrap_or(0))
    }

    /// Sectors whose data is in the slot.
    pub fn data(self) -> Mask {
        self.mask(40)
    }

    /// Sectors that are zeros.
    pub fn zeros(self) -> Mask {
        self.mask(48)
    }

    /// Sectors that can't be read any more.
    pub fn damaged(self) -> Mask {
        self.mask(56)
    }

    /// Where the data is, if there is any.
    pub fn slot(self) -> Option<Slot> {
        (!self.data().is_empty()).then_some(Slot(self.0 & (Slot::COUNT_MAX - 1)))
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Word({:?} data {:?} zeros {:?})", self.slot(), self.data(), self.zeros())
    }
}
