//! The superblock: what a leaf is, its index, and where its chain of records begins.
//!
//! It is in slots 0 and 1, twice the same. A checkpoint replaces the one, makes that
//! durable, and then the other: at every instant one of them is whole, and damage to one
//! leaves the other.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | magic |
//! | 8..12 | version, 1 |
//! | 12..16 | depth of the index |
//! | 16..32 | the leaf's UUID |
//! | 32..40 | sectors of the disk |
//! | 40..48 | its number: the newer one counts |
//! | 48..56 | the slot of the first record after the checkpoint |
//! | 56..64 | that record's number |
//! | 64..68 | openings since the checkpoint, at least 1 |
//! | 68..72 | CRC-32C of all 4096 bytes, these four as zeros |
//! | 128..320 | per opening its key (16 bytes) and the number of its first record (8) |
//! | 1024..4096 | the index's table: 256 entries of 12 bytes |
//!
//! Numbers are little-endian. A root's identity is added when the format replaces the
//! first one.

use super::index::{DEPTH_MAX, FAN_OUT, Place, decode_table_at, encode_table_at};
use super::page::Bytes;
use super::record::Key;
use super::word::{BLOCK_LEN, BLOCK_SECTORS, Slot};

const MAGIC: [u8; 8] = *b"LEAFBLK2";
const VERSION: u32 = 1;
const CRC_AT: usize = 68;
const OPENINGS_AT: usize = 128;
const TABLE_AT: usize = 1024;
/// The two places.
pub const PLACES: [Slot; 2] = [Slot(0), Slot(1)];
/// The first slot that is no superblock's.
pub const FIRST: Slot = Slot(2);
/// Openings without a checkpoint between them.
pub const OPENINGS_MAX: usize = 8;

/// One opening of a leaf: its records have this key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Opening {
    /// Its key.
    pub key: Key,
    /// The number of its first record.
    pub first: u64,
}

/// The superblock.
#[derive(Clone, Debug, PartialEq)]
pub struct Superblock {
    /// The leaf's UUID.
    pub uuid: [u8; 16],
    /// Sectors of the disk.
    pub sectors: u64,
    /// Levels of directories below the table.
    pub depth: u32,
    /// The newer one counts.
    pub number: u64,
    /// Where the chain begins.
    pub chain: Slot,
    /// The number of the record there.
    pub record: u64,
    /// Openings since the checkpoint, the last one the present one.
    pub openings: Vec<Opening>,
    /// The index.
    pub table: [Place; FAN_OUT],
}

impl Superblock {
    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.sectors.div_ceil(BLOCK_SECTORS)
    }

    /// The key of the record with this number.
    pub fn key_of(&self, record: u64) -> Option<Key> {
        let opening = self.openings.iter().rev().find(|opening| opening.first <= record)?;
        Some(opening.key)
    }

    /// As bytes.
    pub fn encode(&self, into: &mut [u8; BLOCK_LEN]) {
        into.fill(0);
        into.put(0, &MAGIC);
        into.put_u32(8, VERSION);
        into.put_u32(12, self.depth);
        into.put(16, &self.uuid);
        into.put_u64(32, self.sectors);
        into.put_u64(40, self.number);
        into.put_u64(48, self.chain.0);
        into.put_u64(56, self.record);
        let openings = &self.openings[..self.openings.len().min(OPENINGS_MAX)];
        into.put_u32(64, u32::try_from(openings.len()).unwrap_or(0));
        for (i, opening) in openings.iter().enumerate() {
            into.put(OPENINGS_AT + i * 24, &opening.key.0);
            into.put_u64(OPENINGS_AT + i * 24 + 16, opening.first);
        }
        encode_table_at(&self.table, into, TABLE_AT);
        into.seal(CRC_AT);
    }

    /// The superblock in these bytes, if it is whole.
    pub fn decode(bytes: &[u8; BLOCK_LEN]) -> Option<Self> {
        if bytes[..8] != MAGIC || bytes.u32_at(8) != VERSION || !bytes.is_sealed(CRC_AT) {
            return None;
        }
        let count = usize::try_from(bytes.u32_at(64)).ok()?;
        let depth = bytes.u32_at(12);
        if count == 0 || count > OPENINGS_MAX || depth > DEPTH_MAX {
            return None;
        }
        let opening = |i: usize| {
            let at = OPENINGS_AT + i * 24;
            let mut key = [0; 16];
            key.copy_from_slice(&bytes[at..at + 16]);
            Opening { key: Key(key), first: bytes.u64_at(at + 16) }
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        let superblock = Self {
            uuid,
            sectors: bytes.u64_at(32),
            depth,
            number: bytes.u64_at(40),
            chain: Slot(bytes.u64_at(48)),
            record: bytes.u64_at(56),
            openings: (0..count).map(opening).collect(),
            table: decode_table_at(bytes, TABLE_AT)?,
        };
        // A count from 1 on, which has room above: none comes near it in a leaf's life.
        let counts = |number: u64| (1..1 << 62).contains(&number);
        let is_counted = counts(superblock.number) && counts(superblock.record);
        let fits = super::index::depth_for(superblock.blocks()).is_some_and(|least| least <= depth);
        let chain = FIRST.0..Slot::COUNT_MAX;
        (fits && is_counted && chain.contains(&superblock.chain.0)).then_some(superblock)
    }
}
