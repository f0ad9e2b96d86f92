//! What a leaf holds of each block of the disk, in memory: a tree with a fan-out of 256.
//!
//! A page has 256 blocks (1 MiB of disk), a directory 256 pages or directories. A child
//! that is all root or all zeros needs no node. Every entry has two sides: what durable
//! records say (word, checksum), which checkpoints write to the file, and the frame that
//! holds newer data, which only memory knows.
//!
//! Each node remembers what the file has of it, and whether it differs. A checkpoint
//! writes the nodes that had changed before it began, children first; nodes may change
//! meanwhile, since replaying the records after the checkpoint's beginning gives the same
//! end in any case.

use std::collections::HashSet;
use std::num::NonZeroU32;

use super::page::{Bytes, Page};
use super::word::{BLOCK_LEN, Slot, Word};

/// Children of a directory, and blocks of a page.
pub const FAN_OUT: usize = 256;
const FAN_BITS: u32 = 8;
const ENTRY_LEN: usize = 12;
const TABLE_AT: usize = 64;
const PAGE_MAGIC: [u8; 8] = *b"LEAFIDX1";
/// Levels of directories that the superblock's table may stand on: 4 PiB of disk.
pub const DEPTH_MAX: u32 = 3;

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// What is durable.
    pub word: Word,
    /// The checksum of the word's slot.
    pub crc: u32,
    frame: Option<NonZeroU32>,
}

impl Held {
    /// The frame with newer data, if there is one.
    pub fn frame(&self) -> Option<u32> {
        self.frame.map(|frame| frame.get() - 1)
    }
}

/// What the file has of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Nothing: all of it is the root's.
    Root,
    /// Nothing: all of it is zeros.
    Zeros,
    /// A page in this slot, with this checksum.
    At(Slot, u32),
}

/// Whether a node differs from what the file has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    None,
    /// Since the checkpoint of this number began.
    Since(u64),
}

#[derive(Debug)]
struct Node<T> {
    entries: [T; FAN_OUT],
    place: Place,
    change: Change,
    /// Entries of a page that have frames; not used in directories.
    frames: u16,
}

#[derive(Debug)]
enum Child {
    Root,
    Zeros,
    Page(Box<Node<Held>>),
    Directory(Box<Node<Child>>),
}

impl Child {
    fn place(&self) -> Place {
        match self {
            Self::Root => Place::Root,
            Self::Zeros => Place::Zeros,
            Self::Page(node) => node.place,
            Self::Directory(node) => node.place,
        }
    }

    fn is_changed_before(&self, checkpoint: u64) -> bool {
        let change = match self {
            Self::Root | Self::Zeros => Change::None,
            Self::Page(node) => node.change,
            Self::Directory(node) => node.change,
        };
        matches!(change, Change::Since(since) if since < checkpoint)
    }

    fn has_frames(&self) -> bool {
        match self {
            Self::Root | Self::Zeros => false,
            Self::Page(node) => node.frames > 0,
            Self::Directory(node) => node.entries.iter().any(Self::has_frames),
        }
    }

    /// A page, or a directory, that says the same.
    fn grow(&mut self, level: u32) {
        let (place, word) = match self {
            Self::Root => (Place::Root, Word::ROOT),
            Self::Zeros => (Place::Zeros, Word::ZEROS),
            Self::Page(_) | Self::Directory(_) => return,
        };
        *self = if level == 0 {
            let held = Held { word, ..Held::default() };
            Self::Page(Box::new(Node {
                entries: [held; FAN_OUT],
                place,
                change: Change::None,
                frames: 0,
            }))
        } else {
            let child = || if place == Place::Zeros { Self::Zeros } else { Self::Root };
            Self::Directory(Box::new(Node {
                entries: std::array::from_fn(|_| child()),
                place,
                change: Change::None,
                frames: 0,
            }))
        };
    }

    /// True if it changed.
    fn write_again(&mut self, lost: &HashSet<Slot>, change: Change) -> bool {
        let mut lost_here = matches!(self.place(), Place::At(slot, _) if lost.contains(&slot));
        let on = match self {
            Self::Root | Self::Zeros => return false,
            Self::Page(node) => &mut node.change,
            Self::Directory(node) => {
                for child in &mut node.entries {
                    lost_here |= child.write_again(lost, change);
                }
                &mut node.change
            }
        };
        if lost_here {
            note(on, change);
        }
        lost_here
    }

    fn each_node(&self, tell: &mut impl FnMut(Slot)) {
        if let Place::At(slot, _) = self.place() {
            tell(slot);
        }
        if let Self::Directory(node) = self {
            node.entries.iter().for_each(|child| child.each_node(tell));
        }
    }

    fn each_slot(&self, tell: &mut impl FnMut(Slot)) {
        if let Place::At(slot, _) = self.place() {
            tell(slot);
        }
        match self {
            Self::Root | Self::Zeros => {}
            Self::Page(node) => node.entries.iter().filter_map(|h| h.word.slot()).for_each(tell),
            Self::Directory(node) => node.entries.iter().for_each(|child| child.each_slot(tell)),
        }
    }
}

/// A node that a checkpoint is to write.
#[derive(Debug)]
pub struct Serialized {
    /// Its bytes.
    pub page: Box<Page>,
    /// Where the file had it before, to be freed when the checkpoint is durable.
    pub replaces: Option<Slot>,
}

/// The tree.
#[derive(Debug)]
pub struct Index {
    blocks: u64,
    depth: u32,
    table: Box<[Child; FAN_OUT]>,
    checkpoint: u64,
}

/// The depth that a disk of so many blocks needs; `None` where it is too large.
pub fn depth_for(blocks: u64) -> Option<u32> {
    (0..=DEPTH_MAX).find(|depth| blocks <= 1 << (FAN_BITS * (depth + 2)))
}

fn at(block: u64, level: u32) -> usize {
    usize::try_from(block >> (FAN_BITS * level) & (FAN_OUT as u64 - 1)).unwrap_or(0)
}

impl Index {
    /// An index of a disk of so many blocks, all of the root; `depth` is what
    /// [`depth_for`] says.
    pub fn new(blocks: u64, depth: u32) -> Self {
        let table = Box::new(std::array::from_fn(|_| Child::Root));
        Self { blocks, depth, table, checkpoint: 1 }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// What is known of a block.
    #[inline]
    pub fn get(&self, block: u64) -> Held {
        let mut level = self.depth + 1;
        let mut child = &self.table[at(block, level)];
        loop {
            match child {
                Child::Root => return Held::default(),
                Child::Zeros => return Held { word: Word::ZEROS, ..Held::default() },
                Child::Page(node) => return node.entries[at(block, 0)],
                Child::Directory(node) => {
                    level -= 1;
                    child = &node.entries[at(block, level)];
                }
            }
        }
    }

    /// The page of a block, with `change` noted on the way to it, if any.
    fn page(&mut self, block: u64, change: Change) -> &mut Node<Held> {
        let mut level = self.depth + 1;
        let mut child = &mut self.table[at(block, level)];
        loop {
            level -= 1;
            child.grow(level);
            match child {
                Child::Page(node) => {
                    note(&mut node.change, change);
                    return node;
                }
                Child::Directory(node) => {
                    note(&mut node.change, change);
                    child = &mut node.entries[at(block, level)];
                }
                Child::Root | Child::Zeros => unreachable!("it was grown"),
            }
        }
    }

    /// Says which frame has newer data of a block.
    pub fn set_frame(&mut self, block: u64, frame: Option<u32>) {
        let page = self.page(block, Change::None);
        let held = &mut page.entries[at(block, 0)];
        page.frames -= u16::from(held.frame.is_some());
        held.frame = frame.and_then(|frame| NonZeroU32::new(frame + 1));
        page.frames += u16::from(held.frame.is_some());
    }

    /// Takes what a durable record says of a block; the slot that is named no more.
    pub fn apply(&mut self, block: u64, word: Word, crc: u32) -> Option<Slot> {
        let change = Change::Since(self.checkpoint);
        let held = &mut self.page(block, change).entries[at(block, 0)];
        let old = held.word.slot().filter(|slot| Some(*slot) != word.slot());
        (held.word, held.crc) = (word, crc);
        old
    }

    /// Takes what a durable record says of a run of zeros; `freed` hears of the slots that
    /// are named no more.
    pub fn apply_zeros(&mut self, first: u64, count: u64, freed: &mut impl FnMut(Slot)) {
        let end = first.saturating_add(count).min(self.blocks);
        let change = Change::Since(self.checkpoint);
        zero(&mut self.table[..], self.depth + 1, 0, first..end, change, freed);
    }

    /// The blocks in a range that have frames.
    pub fn frames_in(&self, first: u64, count: u64, tell: &mut impl FnMut(u64, u32)) {
        let end = first.saturating_add(count).min(self.blocks);
        frames(&self.table[..], self.depth + 1, 0, first..end, tell);
    }

    /// Tells of every slot that the index names or lies in.
    pub fn each_slot(&self, mut tell: impl FnMut(Slot)) {
        self.table.iter().for_each(|child| child.each_slot(&mut tell));
    }

    /// Tells of every slot that a node of the index lies in.
    pub fn each_node(&self, mut tell: impl FnMut(Slot)) {
        self.table.iter().for_each(|child| child.each_node(&mut tell));
    }

    /// Begins a checkpoint: what changes from now on is for the next one.
    pub fn begin_checkpoint(&mut self) {
        self.checkpoint += 1;
    }

    /// The next node that the checkpoint has to write, which goes to `slot` then.
    pub fn write_next(&mut self, slot: Slot) -> Option<Serialized> {
        let checkpoint = self.checkpoint;
        next(&mut self.table[..], self.depth + 1, 0, checkpoint, slot)
    }

    /// Nodes in these slots were not written after all: they differ from what the file has.
    pub fn write_again(&mut self, lost: &HashSet<Slot>) {
        let change = Change::Since(self.checkpoint);
        self.table.iter_mut().for_each(|child| {
            child.write_again(lost, change);
        });
    }

    /// The superblock's table.
    pub fn table(&self) -> [Place; FAN_OUT] {
        std::array::from_fn(|i| self.table[i].place())
    }

    /// The index that a superblock's table stands for; `read` fetches a page.
    ///
    /// # Errors
    /// As `read`; the slot of a page that isn't what its parent says.
    pub fn load<E>(
        blocks: u64,
        depth: u32,
        table: &[Place; FAN_OUT],
        read: &mut impl FnMut(Slot) -> Result<Box<Page>, E>,
    ) -> Result<Self, LoadError<E>> {
        let mut index = Self::new(blocks, depth);
        for (i, place) in table.iter().enumerate() {
            index.table[i] = load(*place, depth, (i as u64) << (FAN_BITS * (depth + 1)), read)?;
        }
        Ok(index)
    }
}

/// Why an index can't be loaded.
#[derive(Debug)]
pub enum LoadError<E> {
    /// A page can't be read.
    Read(E),
    /// The page in this slot is damaged.
    Damaged(Slot),
}

fn note(on: &mut Change, change: Change) {
    if *on == Change::None {
        *on = change;
    }
}

/// Blocks of a child of a directory at `level`.
fn span(level: u32) -> u64 {
    1 << (FAN_BITS * level)
}

fn children(level: u32, base: u64, range: &std::ops::Range<u64>) -> std::ops::Range<usize> {
    let span = span(level);
    let first = range.start.saturating_sub(base) / span;
    let end = range.end.saturating_sub(base).div_ceil(span);
    let place = |i: u64| usize::try_from(i).unwrap_or(FAN_OUT).min(FAN_OUT);
    place(first)..place(end)
}

fn zero(
    entries: &mut [Child],
    level: u32,
    base: u64,
    range: std::ops::Range<u64>,
    change: Change,
    freed: &mut impl FnMut(Slot),
) {
    for i in children(level, base, &range) {
        let (child, start) = (&mut entries[i], base + i as u64 * span(level));
        let end = start + span(level);
        if matches!(child, Child::Zeros) {
            continue;
        }
        if range.start <= start && end <= range.end && !child.has_frames() {
            child.each_slot(freed);
            *child = Child::Zeros;
            continue;
        }
        child.grow(level - 1);
        match child {
            Child::Directory(node) => {
                note(&mut node.change, change);
                zero(&mut node.entries, level - 1, start, range.clone(), change, freed);
            }
            Child::Page(node) => {
                note(&mut node.change, change);
                for i in children(0, start, &range) {
                    let held = &mut node.entries[i];
                    held.word.slot().into_iter().for_each(&mut *freed);
                    (held.word, held.crc) = (Word::ZEROS, 0);
                }
            }
            Child::Root | Child::Zeros => {}
        }
    }
}

fn frames(
    entries: &[Child],
    level: u32,
    base: u64,
    range: std::ops::Range<u64>,
    tell: &mut impl FnMut(u64, u32),
) {
    for i in children(level, base, &range) {
        let start = base + i as u64 * span(level);
        match &entries[i] {
            Child::Root | Child::Zeros => {}
            Child::Directory(node) => frames(&node.entries, level - 1, start, range.clone(), tell),
            Child::Page(node) if node.frames == 0 => {}
            Child::Page(node) => {
                for i in children(0, start, &range) {
                    if let Some(frame) = node.entries[i].frame() {
                        tell(start + i as u64, frame);
                    }
                }
            }
        }
    }
}

fn next(
    entries: &mut [Child],
    level: u32,
    base: u64,
    checkpoint: u64,
    slot: Slot,
) -> Option<Serialized> {
    let i = entries.iter().position(|child| child.is_changed_before(checkpoint))?;
    let start = base + i as u64 * span(level);
    let replaces = match entries[i].place() {
        Place::At(old, _) => Some(old),
        Place::Root | Place::Zeros => None,
    };
    let mut page = Page::zeroed();
    let header = |page: &mut Page, level: u32| {
        page.0.put(0, &PAGE_MAGIC);
        page.0.put_u32(8, level);
        page.0.put_u64(16, start);
    };
    match &mut entries[i] {
        Child::Root | Child::Zeros => return None,
        Child::Page(node) => {
            header(&mut page, 0);
            for (i, held) in node.entries.iter().enumerate() {
                page.0.put_u64(TABLE_AT + i * ENTRY_LEN, held.word.bits());
                page.0.put_u32(TABLE_AT + i * ENTRY_LEN + 8, held.crc);
            }
            node.place = Place::At(slot, crc32c::crc32c(&page.0));
            node.change = Change::None;
        }
        Child::Directory(node) => {
            if let Some(below) = next(&mut node.entries, level - 1, start, checkpoint, slot) {
                return Some(below);
            }
            header(&mut page, level - 1);
            encode_table(&std::array::from_fn(|i| node.entries[i].place()), &mut page.0);
            node.place = Place::At(slot, crc32c::crc32c(&page.0));
            // Below it, others may have changed meanwhile.
            let changed = node.entries.iter().any(|child| child.is_changed_before(checkpoint + 1));
            node.change = if changed { Change::Since(checkpoint) } else { Change::None };
        }
    }
    Some(Serialized { page, replaces })
}

const KIND_ZEROS: u64 = 1;
const KIND_AT: u64 = 2;

/// A directory's table as bytes, from [`TABLE_AT`] on: slot and kind, then a checksum.
fn encode_table(table: &[Place; FAN_OUT], into: &mut [u8; BLOCK_LEN]) {
    encode_table_at(table, into, TABLE_AT);
}

/// As in a directory, at another place: the superblock's.
pub(super) fn encode_table_at(
    table: &[Place; FAN_OUT],
    into: &mut [u8; BLOCK_LEN],
    table_at: usize,
) {
    for (i, place) in table.iter().enumerate() {
        let (bits, crc) = match *place {
            Place::Root => (0, 0),
            Place::Zeros => (KIND_ZEROS << 40, 0),
            Place::At(slot, crc) => (KIND_AT << 40 | slot.0, crc),
        };
        into.put_u64(table_at + i * ENTRY_LEN, bits);
        into.put_u32(table_at + i * ENTRY_LEN + 8, crc);
    }
}

/// The table at that place, if it is one.
pub(super) fn decode_table_at(
    bytes: &[u8; BLOCK_LEN],
    table_at: usize,
) -> Option<[Place; FAN_OUT]> {
    let mut table = [Place::Root; FAN_OUT];
    for (i, place) in table.iter_mut().enumerate() {
        let bits = bytes.u64_at(table_at + i * ENTRY_LEN);
        let slot = Slot(bits & (Slot::COUNT_MAX - 1));
        *place = match bits >> 40 {
            0 if slot.0 == 0 => Place::Root,
            KIND_ZEROS if slot.0 == 0 => Place::Zeros,
            KIND_AT => Place::At(slot, bytes.u32_at(table_at + i * ENTRY_LEN + 8)),
            _ => return None,
        };
    }
    Some(table)
}

fn load<E>(
    place: Place,
    level: u32,
    start: u64,
    read: &mut impl FnMut(Slot) -> Result<Box<Page>, E>,
) -> Result<Child, LoadError<E>> {
    let (slot, crc) = match place {
        Place::Root => return Ok(Child::Root),
        Place::Zeros => return Ok(Child::Zeros),
        Place::At(slot, crc) => (slot, crc),
    };
    let page = read(slot).map_err(LoadError::Read)?;
    let bytes = &page.0;
    let is_whole = crc32c::crc32c(bytes) == crc
        && bytes[..8] == PAGE_MAGIC
        && bytes.u32_at(8) == level
        && bytes.u64_at(16) == start;
    if !is_whole {
        return Err(LoadError::Damaged(slot));
    }
    let change = Change::None;
    if level == 0 {
        let mut entries = [Held::default(); FAN_OUT];
        for (i, held) in entries.iter_mut().enumerate() {
            let word = Word::from_bits(bytes.u64_at(TABLE_AT + i * ENTRY_LEN));
            held.word = word.ok_or(LoadError::Damaged(slot))?;
            held.crc = bytes.u32_at(TABLE_AT + i * ENTRY_LEN + 8);
        }
        return Ok(Child::Page(Box::new(Node { entries, place, change, frames: 0 })));
    }
    let table = decode_table_at(bytes, TABLE_AT).ok_or(LoadError::Damaged(slot))?;
    let mut entries = std::array::from_fn(|_| Child::Root);
    for (i, place) in table.iter().enumerate() {
        entries[i] = load(*place, level - 1, start + i as u64 * span(level), read)?;
    }
    Ok(Child::Directory(Box::new(Node { entries, place, change, frames: 0 })))
}
