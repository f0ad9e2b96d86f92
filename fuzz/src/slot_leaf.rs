//! A leaf of the second design whose file and write cache have been changed at will.
//!
//! Input: changes of the file (their number; then slot u8, place u16, length u8, bytes, and
//! whether the slot's checksum is mended), changes of the frames' headers (number; then frame
//! u16, word u8, value u64, whether the header's checksum is mended), then steps: write,
//! discard, read, checkpoint, flush, open again. Whatever the input: no panic, a leaf that
//! opens has no slot in use twice, and what is written and flushed then is there at the next
//! open.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use leafblk::engine::{Engine, Op, Token};
use leafblk::slot_leaf::leaf::Settings;
use leafblk::slot_leaf::page::{Bytes, Page};
use leafblk::slot_leaf::record::Key;
use leafblk::slot_leaf::word::{BLOCK_LEN, Slot};
use leafblk::slot_leaf::{BlockFile, Event, Leaf, create, open};
use leafblk::write_cache::{Memory, SharedMemory, WriteCache};
use rustix::fs::{MemfdFlags, memfd_create};

use super::Seeds;
use super::input::{Input, Output};

const SECTORS: u64 = 8 * 2000;
const SETTINGS: Settings =
    Settings { write_back_at: 100, age_max: u64::MAX, window: 1 << 16, patience: 1 };
const STEPS_MAX: usize = 64;
/// Where the checksum is: of a superblock, of a record.
const CRC_PLACES: [(&[u8; 8], usize); 2] = [(b"LEAFBLK2", 68), (b"LEAFREC1", 60)];

/// A file in memory, whose operations are done at once.
#[derive(Default)]
struct Slots {
    content: HashMap<u64, Box<Page>>,
    done: Vec<(Token, u32)>,
}

impl Slots {
    fn page(&mut self, slot: u64) -> &mut Page {
        self.content.entry(slot).or_insert_with(Page::zeroed)
    }
}

impl BlockFile for Slots {
    fn read(&mut self, slot: Slot, into: &mut Page) -> io::Result<()> {
        into.0 = self.content.get(&slot.0).ok_or(io::ErrorKind::UnexpectedEof)?.0;
        Ok(())
    }

    fn write(&mut self, slot: Slot, page: &Page) -> io::Result<()> {
        self.page(slot.0).0 = page.0;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Engine for Slots {
    unsafe fn submit(&mut self, op: Op<'_>, token: Token) -> bool {
        let len = match op {
            Op::Read { into, offset } => {
                let slot = offset / BLOCK_LEN as u64;
                let Some(page) = self.content.get(&slot) else {
                    self.done.push((token, 0));
                    return true;
                };
                // SAFETY: the leaf keeps the buffer until the token is completed.
                unsafe { std::ptr::copy_nonoverlapping(page.0.as_ptr(), into.ptr(), into.len()) };
                into.len()
            }
            Op::Write { from, offset, .. } => {
                for (i, buf) in from.iter().enumerate() {
                    let page = self.page(offset / BLOCK_LEN as u64 + i as u64);
                    // SAFETY: as above.
                    let data = unsafe { std::slice::from_raw_parts(buf.ptr(), buf.len()) };
                    page.0.copy_from_slice(data);
                }
                from.len() * BLOCK_LEN
            }
            Op::Sync => 0,
        };
        self.done.push((token, u32::try_from(len).expect("a few blocks")));
        true
    }
}

fn memory(file: &File) -> WriteCache<SharedMemory> {
    let memory = SharedMemory::map(file.try_clone().expect("a descriptor"), 1).expect("memory");
    WriteCache::new(memory, 1)
}

fn settle(leaf: &mut Leaf<SharedMemory>, file: &mut Slots) -> bool {
    leaf.flush(0, 0);
    for _ in 0..200 {
        leaf.advance(file, u64::MAX / 2);
        for (token, count) in std::mem::take(&mut file.done) {
            leaf.complete(token, Ok(count), u64::MAX / 2);
        }
        while let Some(event) = leaf.event() {
            if let Event::Flushed { durable, .. } = event {
                return durable;
            }
        }
    }
    panic!("a flush has no end");
}

/// Changes, opens, works, opens again.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let frames: File = memfd_create("frames", MemfdFlags::CLOEXEC).expect("a memfd").into();
    let mut file = Slots::default();
    create(&mut file, [1; 16], SECTORS, Key([1; 16])).expect("a new leaf");
    let mut leaf = open(&mut file, memory(&frames), SETTINGS, Key([2; 16]), 0).expect("a leaf");
    // Some blocks behind a checkpoint, some in records, some in frames alone.
    for (blocks, settled) in [(0..6, true), (3..9, true), (8..12, false)] {
        for block in blocks {
            leaf.write(0, block * 100, 1, &[7; 1024]).expect("room");
        }
        leaf.discard(0, 1000, 50).expect("room");
        if settled {
            assert!(settle(&mut leaf, &mut file), "nothing fails");
            leaf.want_checkpoint();
        }
    }
    drop(leaf);
    file.done.clear();

    for _ in 0..input.u8() {
        let (slot, at, len) = (u64::from(input.u8()), usize::from(input.u16()), input.u8());
        let bytes = input.bytes(usize::from(len));
        let is_mended = input.u8() & 1 == 1;
        let page = file.page(slot);
        let at = at % BLOCK_LEN;
        let count = bytes.len().min(BLOCK_LEN - at);
        page.0[at..at + count].copy_from_slice(&bytes[..count]);
        for (magic, crc_at) in CRC_PLACES.into_iter().filter(|_| is_mended) {
            if page.0[..8] == *magic {
                page.0.seal(crc_at);
            }
        }
    }
    change_headers(&mut input, &frames);
    let mut written: HashMap<u64, u8> = HashMap::new();
    let mut key = 3;
    while let Ok(mut leaf) = open(&mut file, memory(&frames), SETTINGS, Key([key; 16]), 0) {
        key = key.wrapping_add(1);
        leaf.audit().expect("a leaf that opens is whole");
        for (block, value) in &written {
            check(&leaf, &file, *block, *value);
        }
        if !work(&mut leaf, &mut file, &mut input, &mut written) || input.is_empty() {
            return;
        }
    }
    assert!(written.is_empty(), "a leaf that was open opens no more");
}

fn change_headers(input: &mut Input<'_>, frames: &File) {
    let count = input.u8();
    if count == 0 {
        return;
    }
    let memory = SharedMemory::map(frames.try_clone().expect("a descriptor"), 1).expect("memory");
    for _ in 0..count {
        let (frame, word) = (u32::from(input.u16()) % 508 + 4, usize::from(input.u8()) % 4);
        let value = u64::from(input.u32()) << 32 | u64::from(input.u32());
        memory.store(frame, word, value);
        if input.u8() & 1 == 1 {
            let words: [u64; 3] = std::array::from_fn(|i| memory.load(frame, i));
            memory.store(frame, 3, leafblk::write_cache::header::seal(frame, words));
        }
    }
}

fn check(leaf: &Leaf<SharedMemory>, file: &Slots, block: u64, value: u8) {
    let source = leaf.source(block);
    let mut bytes = [0; BLOCK_LEN];
    if let Some((frame, mask)) = source.frame {
        assert_eq!(mask.0, 0xff, "block {block} was written whole");
        leaf.cache().memory().copy_out(frame, 0, &mut bytes);
    } else {
        let (slot, crc, _) = source.slot.expect("it was written");
        bytes = file.content[&slot.0].0;
        assert_eq!(crc32c::crc32c(&bytes), crc);
    }
    assert!(bytes.iter().all(|byte| *byte == value), "block {block} has other data");
}

/// False at the end.
fn work(
    leaf: &mut Leaf<SharedMemory>,
    file: &mut Slots,
    input: &mut Input<'_>,
    written: &mut HashMap<u64, u8>,
) -> bool {
    let blocks = leaf.blocks();
    if blocks == 0 {
        return false;
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return false;
        }
        let (kind, block, value) = (input.u8() % 6, u64::from(input.u16()) % blocks, input.u8());
        match kind {
            0 | 1 => {
                if leaf.write(0, block, 0, &[value; BLOCK_LEN]).is_ok() {
                    written.insert(block, value);
                }
            }
            2 => {
                if leaf.discard(0, block, u64::from(value)).is_ok() {
                    written.retain(|at, _| *at < block || at - block >= u64::from(value));
                }
            }
            3 => {
                if leaf.fetch(file, block, 1) {
                    let (token, count) = file.done.pop().expect("it was submitted");
                    leaf.complete(token, Ok(count), 0);
                    if let Some(Event::Fetched { block, slot, frame: Ok(frame), .. }) = leaf.event()
                    {
                        leaf.give_back(block, slot, frame);
                    }
                }
            }
            4 => {
                leaf.want_checkpoint();
                settle(leaf, file);
            }
            _ => return true,
        }
    }
    true
}

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    let steps = |output: Output| {
        let kinds = [0, 3, 4, 5, 0, 2, 4, 5, 1, 3, 5];
        kinds.into_iter().fold(output, |output, kind| output.u8(kind).u16(300).u8(kind + 9))
    };
    let change = |slot: u8, at: u16, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).expect("a few bytes");
        Output::default().u8(1).u8(slot).u16(at).u8(len).bytes(bytes).u8(1).u8(0)
    };
    let header = |word: u8, value: u64| {
        Output::default()
            .u8(0)
            .u8(1)
            .u16(500)
            .u8(word)
            .u32((value >> 32) as u32)
            .u32(value as u32)
            .u8(1)
    };
    vec![
        ("plain", steps(Output::default().u8(0).u8(0)).0),
        ("sectors", steps(change(0, 32, &u64::MAX.to_le_bytes())).0),
        ("number", steps(change(1, 40, &u64::MAX.to_le_bytes())).0),
        ("record", steps(change(0, 56, &0_u64.to_le_bytes())).0),
        ("chain", steps(change(0, 48, &0_u64.to_le_bytes())).0),
        ("successor", steps(change(2, 40, &0_u64.to_le_bytes())).0),
        ("slot", steps(change(2, 72, &0_u64.to_le_bytes())).0),
        ("torn", steps(change(3, 0, &[1; 200])).0),
        ("sequence", steps(header(1, u64::MAX)).0),
        ("run", steps(header(2, u64::MAX)).0),
        ("block", steps(header(0, u64::MAX)).0),
    ]
}
