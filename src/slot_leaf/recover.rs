//! From a file, and what a killed process left in memory, to a leaf that can be used.
//!
//! One rule: the newest whole superblock, its index, and then the chain of records behind it
//! as far as it is whole. A record is whole if its checksum is right, its key and number are
//! the next ones, and each of its blocks has its checksum. Blocks of records that a later one
//! says were durable are not read again: damage to them is found when they are read.

use std::collections::VecDeque;
use std::io;

use super::index::{Index, LoadError, depth_for};
use super::leaf::{Leaf, Recovered, Settings};
use super::page::Page;
use super::record::{self, Entry, Key};
use super::slots::Slots;
use super::superblock::{FIRST, OPENINGS_MAX, Opening, PLACES, Superblock};
use super::word::{BLOCK_SECTORS, Slot};
use crate::write_cache::{Memory, WriteCache};

/// A leaf's file, slot by slot, for a time when nothing else is done: an open, a tool.
pub trait BlockFile {
    /// Reads a slot.
    ///
    /// # Errors
    /// As pread(2); UnexpectedEof where the file ends before the slot does.
    fn read(&mut self, slot: Slot, into: &mut Page) -> io::Result<()>;

    /// Writes a slot.
    ///
    /// # Errors
    /// As pwrite(2).
    fn write(&mut self, slot: Slot, page: &Page) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As fdatasync(2).
    fn sync(&mut self) -> io::Result<()>;
}

/// Why a leaf can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file can't be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no leaf, or both superblocks are damaged.
    #[error("it has no superblock that is whole")]
    NoSuperblock,
    /// The index is damaged.
    #[error("the index page in slot {} is damaged", .0.0)]
    DamagedIndex(Slot),
    /// Two things are said to be in one slot.
    #[error("slot {} is said to be in use for two things", .0.0)]
    SharedSlot(Slot),
    /// The disk is too large.
    #[error("a disk may have at most 4 PiB")]
    TooLarge,
}

impl From<LoadError<io::Error>> for OpenError {
    fn from(error: LoadError<io::Error>) -> Self {
        match error {
            LoadError::Read(error) => Self::Io(error),
            LoadError::Damaged(slot) => Self::DamagedIndex(slot),
        }
    }
}

/// Makes a new leaf in an empty file: nothing of the disk is its own.
///
/// # Errors
/// As the file; a size that is too large.
pub fn create(
    file: &mut impl BlockFile,
    uuid: [u8; 16],
    sectors: u64,
    key: Key,
) -> Result<(), OpenError> {
    let depth = depth_for(sectors.div_ceil(BLOCK_SECTORS)).ok_or(OpenError::TooLarge)?;
    let superblock = Superblock {
        uuid,
        sectors,
        depth,
        number: 1,
        chain: FIRST,
        record: 1,
        openings: vec![Opening { key, first: 1 }],
        table: [super::index::Place::Root; super::index::FAN_OUT],
    };
    for place in PLACES {
        write_superblock(file, place, &superblock)?;
        file.sync()?;
    }
    Ok(())
}

fn write_superblock(
    file: &mut impl BlockFile,
    place: Slot,
    superblock: &Superblock,
) -> Result<(), OpenError> {
    let mut page = Page::zeroed();
    superblock.encode(&mut page.0);
    Ok(file.write(place, &page)?)
}

/// Opens a leaf for use. `cache` has what an earlier process left, if it did; `key` is
/// random.
///
/// # Errors
/// See [`OpenError`].
pub fn open<M: Memory>(
    file: &mut impl BlockFile,
    cache: WriteCache<M>,
    settings: Settings,
    key: Key,
    now: u64,
) -> Result<Leaf<M>, OpenError> {
    let (mut superblock, mut durable_place) = newest(file)?;
    let blocks = superblock.blocks();
    let mut index = Index::load(blocks, superblock.depth, &superblock.table, &mut |slot| {
        let mut page = Page::zeroed();
        file.read(slot, &mut page).map(|()| page)
    })?;
    let chain = read_chain(file, &superblock)?;
    // The superblock names these until the next one does not, whatever the records say.
    let mut named = Vec::new();
    index.each_node(|slot| named.push(slot));
    let mut records = VecDeque::new();
    let mut next = (superblock.chain, superblock.record);
    for (header, entries) in chain {
        records.push_back((header.number, header.slot));
        next = (header.successor, header.number + 1);
        for entry in entries {
            match entry {
                Entry::Block { block, word, crc } => {
                    named.extend(word.slot());
                    index.apply(block, word, crc);
                }
                Entry::Zeros { first, count } => index.apply_zeros(first, count, &mut |_| {}),
            }
        }
    }
    let chain = records.iter().map(|(_, slot)| *slot).chain([next.0]).collect();
    let (slots, superseded) = find_free(&index, named, chain)?;

    // A record of an earlier opening that is left behind the chain has another key.
    superblock.openings.retain(|opening| opening.first < next.1);
    superblock.openings.push(Opening { key, first: next.1 });
    let mut found = Recovered {
        settings,
        superblock,
        durable_place,
        index,
        slots,
        cache,
        next,
        records,
        superseded,
    };
    if found.superblock.openings.len() > OPENINGS_MAX {
        shorten(file, &mut found)?;
    }
    found.superblock.number += 1;
    // What a killed process wrote last may not be durable, the newest superblock included:
    // it has to be before the other one is touched.
    file.sync()?;
    for place in [1 - durable_place, durable_place] {
        write_superblock(file, PLACES[place], &found.superblock)?;
        file.sync()?;
        durable_place = place;
    }
    found.durable_place = durable_place;
    Ok(Leaf::start(found, now))
}

/// The newest whole superblock, and which of the two places it is in.
fn newest(file: &mut impl BlockFile) -> Result<(Superblock, usize), OpenError> {
    let mut found: Option<(Superblock, usize)> = None;
    for (i, place) in PLACES.into_iter().enumerate() {
        let mut page = Page::zeroed();
        match file.read(place, &mut page) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(e) => return Err(e.into()),
        }
        if let Some(superblock) = Superblock::decode(&page.0)
            && found.as_ref().is_none_or(|(best, _)| best.number < superblock.number)
        {
            found = Some((superblock, i));
        }
    }
    found.ok_or(OpenError::NoSuperblock)
}

type Chain = Vec<(record::Header, Vec<Entry>)>;

/// The records behind a superblock, as far as they are whole.
fn read_chain(file: &mut impl BlockFile, superblock: &Superblock) -> Result<Chain, OpenError> {
    let mut chain = Chain::new();
    let (mut slot, mut number) = (superblock.chain, superblock.record);
    let mut synced = 0;
    let mut page = Page::zeroed();
    while read_if_there(file, slot, &mut page)? {
        let Some((header, entries)) = record::decode(&page.0, slot, superblock.blocks()) else {
            break;
        };
        if header.number != number || Some(header.key) != superblock.key_of(number) {
            break;
        }
        (slot, number) = (header.successor, number + 1);
        synced = synced.max(header.synced);
        chain.push((header, entries));
    }
    let mut whole = 0;
    'records: for (header, entries) in &chain {
        for entry in entries {
            if let Entry::Block { word, crc, .. } = entry
                && let Some(slot) = word.slot()
                && header.number > synced
                && !(read_if_there(file, slot, &mut page)? && crc32c::crc32c(&page.0) == *crc)
            {
                break 'records;
            }
        }
        whole += 1;
    }
    chain.truncate(whole);
    Ok(chain)
}

fn read_if_there(file: &mut impl BlockFile, slot: Slot, page: &mut Page) -> io::Result<bool> {
    match file.read(slot, page) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Which slots are free, and which ones are not yet, though the index doesn't name them:
/// the superblock or records since the checkpoint do. `chain` has the slots of these
/// records and of the next one.
fn find_free(
    index: &Index,
    mut named: Vec<Slot>,
    chain: Vec<Slot>,
) -> Result<(Slots, Vec<Slot>), OpenError> {
    let mut used = chain;
    used.extend(PLACES);
    index.each_slot(|slot| used.push(slot));
    sort_once_each(&mut used)?;
    named.sort_unstable();
    named.dedup();
    named.retain(|slot| used.binary_search(slot).is_err());
    let mut all = used;
    all.extend(&named);
    all.sort_unstable();
    let end = all.last().map_or(FIRST, |last| Slot(last.0 + 1));
    let mut slots = Slots::new(end);
    let mut from = Slot(0);
    for slot in all {
        slots.free_run(from, slot.0.saturating_sub(from.0));
        from = Slot(slot.0 + 1);
    }
    Ok((slots, named))
}

fn sort_once_each(slots: &mut [Slot]) -> Result<(), OpenError> {
    slots.sort_unstable();
    match slots.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(OpenError::SharedSlot(pair[0])),
        None => Ok(()),
    }
}

/// A checkpoint at once: there have been so many openings since the last one that the
/// superblock has no room for another.
fn shorten<M>(file: &mut impl BlockFile, found: &mut Recovered<M>) -> Result<(), OpenError> {
    found.index.begin_checkpoint();
    loop {
        let (slot, _) = found.slots.take_run(1);
        let Some(node) = found.index.write_next(slot) else {
            found.slots.free(slot);
            break;
        };
        found.superseded.extend(node.replaces);
        file.write(slot, &node.page)?;
    }
    file.sync()?;
    let superblock = &mut found.superblock;
    (superblock.chain, superblock.record) = found.next;
    superblock.table = found.index.table();
    superblock.openings.drain(..superblock.openings.len() - 1);
    // What was superseded is free once the caller has written the superblock; it stays
    // until the next checkpoint, and so do the records.
    found.superseded.extend(found.records.drain(..).map(|(_, slot)| slot));
    Ok(())
}
