//! A record: what one batch of writes holds, in one slot.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | magic |
//! | 8..24 | the key of the opening that wrote it |
//! | 24..32 | its number; a record's successor has the next one |
//! | 32..40 | the slot that it is in |
//! | 40..48 | the slot that its successor will be in |
//! | 48..56 | the number of a record that was durable, with all before it, when this was written |
//! | 56..60 | entries |
//! | 60..64 | CRC-32C of all 4096 bytes, these four as zeros |
//! | 64.. | entries of 24 bytes |
//!
//! An entry of data: block, [`Word`], CRC-32C of the slot, 1. A run of zeros: first
//! block, blocks, 0, 2. Numbers are little-endian.

use super::page::Bytes;
use super::word::{BLOCK_LEN, Slot, Word};

/// Entries that a record may have.
pub const ENTRIES_MAX: usize = (BLOCK_LEN - HEADER_LEN) / ENTRY_LEN;
const HEADER_LEN: usize = 64;
const ENTRY_LEN: usize = 24;
const MAGIC: [u8; 8] = *b"LEAFREC1";
const CRC_AT: usize = 60;
const DATA: u32 = 1;
const ZEROS: u32 = 2;

/// Random for each opening of a leaf: a record of an earlier one, left over in a slot, has
/// another and is none of this chain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Key(pub [u8; 16]);

/// What a record says of blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// A block is this now.
    Block {
        /// The block's number on the disk.
        block: u64,
        /// What it is.
        word: Word,
        /// The slot's checksum; 0 without a slot.
        crc: u32,
    },
    /// Blocks are zeros now.
    Zeros {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// A record without its entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// See the table.
    pub key: Key,
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub slot: Slot,
    /// Where the next one will be.
    pub successor: Slot,
    /// What was durable.
    pub synced: u64,
}

/// The record as bytes; at most [`ENTRIES_MAX`] entries are taken.
pub fn encode(header: &Header, entries: &[Entry], into: &mut [u8; BLOCK_LEN]) {
    into.fill(0);
    let entries = &entries[..entries.len().min(ENTRIES_MAX)];
    into.put(0, &MAGIC);
    into.put(8, &header.key.0);
    into.put_u64(24, header.number);
    into.put_u64(32, header.slot.0);
    into.put_u64(40, header.successor.0);
    into.put_u64(48, header.synced);
    into.put_u32(56, u32::try_from(entries.len()).unwrap_or(0));
    for (i, entry) in entries.iter().enumerate() {
        let at = HEADER_LEN + i * ENTRY_LEN;
        let (first, second, crc, kind) = match *entry {
            Entry::Block { block, word, crc } => (block, word.bits(), crc, DATA),
            Entry::Zeros { first, count } => (first, count, 0, ZEROS),
        };
        into.put_u64(at, first);
        into.put_u64(at + 8, second);
        into.put_u32(at + 16, crc);
        into.put_u32(at + 20, kind);
    }
    into.seal(CRC_AT);
}

/// The record in these bytes, if they are one that is whole and in `slot`. `blocks` are
/// those of the disk: what lies beyond makes a record invalid.
pub fn decode(bytes: &[u8; BLOCK_LEN], slot: Slot, blocks: u64) -> Option<(Header, Vec<Entry>)> {
    if bytes[..8] != MAGIC || !bytes.is_sealed(CRC_AT) || bytes.u64_at(32) != slot.0 {
        return None;
    }
    let count = usize::try_from(bytes.u32_at(56)).ok().filter(|count| *count <= ENTRIES_MAX)?;
    let mut key = [0; 16];
    key.copy_from_slice(&bytes[8..24]);
    let header = Header {
        key: Key(key),
        number: bytes.u64_at(24),
        slot,
        successor: Slot(bytes.u64_at(40)),
        synced: bytes.u64_at(48),
    };
    let entry = |i: usize| {
        let at = HEADER_LEN + i * ENTRY_LEN;
        let (first, second) = (bytes.u64_at(at), bytes.u64_at(at + 8));
        let crc = bytes.u32_at(at + 16);
        match bytes.u32_at(at + 20) {
            DATA if first < blocks => {
                Some(Entry::Block { block: first, word: Word::from_bits(second)?, crc })
            }
            ZEROS if first.checked_add(second)? <= blocks => {
                Some(Entry::Zeros { first, count: second })
            }
            _ => None,
        }
    };
    let entries = (0..count).map(entry).collect::<Option<Vec<_>>>()?;
    (header.successor.0 < Slot::COUNT_MAX).then_some((header, entries))
}
