//! The pure parts against models: words, slots, index, records and superblocks.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::index::{FAN_OUT, Index, Place, depth_for};
use super::page::Page;
use super::record::{ENTRIES_MAX, Entry, Header, Key, decode, encode};
use super::slots::Slots;
use super::superblock::{Opening, Superblock};
use super::word::{Mask, Slot, Word};

fn word() -> impl Strategy<Value = Word> {
    (2..Slot::COUNT_MAX, any::<[u8; 3]>()).prop_map(|(slot, [data, zeros, damaged])| {
        Word::new(Slot(slot), Mask(data), Mask(zeros), Mask(damaged))
    })
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Root),
        Just(Place::Zeros),
        (0..Slot::COUNT_MAX, any::<u32>()).prop_map(|(slot, crc)| Place::At(Slot(slot), crc)),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (0..1_u64 << 30, word(), any::<u32>()).prop_map(|(block, word, crc)| Entry::Block {
            block,
            word,
            crc
        }),
        (0..1_u64 << 29, 1..1_u64 << 29).prop_map(|(first, count)| Entry::Zeros { first, count }),
    ]
}

#[test]
fn a_sector_of_a_word_is_of_one_kind() {
    let word = Word::new(Slot(9), Mask(0b1100), Mask(0b0110), Mask(0b0011));
    assert_eq!((word.data(), word.zeros()), (Mask(0b1100), Mask(0b0010)));
    assert_eq!((word.damaged(), word.slot()), (Mask(0b0001), Some(Slot(9))));
    assert_eq!(Word::new(Slot(9), Mask::NONE, Mask::ALL, Mask::NONE), Word::ZEROS);
    assert_eq!(Word::ROOT.slot(), None);
    assert_eq!((Mask::of(0, 8), Mask::of(7, 1)), (Mask::ALL, Mask(0b1000_0000)));
}

#[test]
fn a_word_that_breaks_the_rules_is_none() {
    let (slot_without_data, two_kinds) = (9, 9 | 1 << 40 | 1 << 48);
    assert_eq!(Word::from_bits(slot_without_data), None);
    assert_eq!(Word::from_bits(two_kinds), None);
}

proptest! {
    #[test]
    fn words_are_read_as_they_were_written(word in word()) {
        prop_assert_eq!(Word::from_bits(word.bits()), Some(word));
    }

    #[test]
    fn records_are_read_as_they_were_written_and_in_no_other_place(
        entries in proptest::collection::vec(entry(), 0..=ENTRIES_MAX),
        key in any::<[u8; 16]>(),
        [number, synced] in any::<[u64; 2]>(),
        (slot, successor) in (0..Slot::COUNT_MAX, 0..Slot::COUNT_MAX),
        (at, bit) in (0..4096_usize, 0..8_u32),
    ) {
        let (slot, successor) = (Slot(slot), Slot(successor));
        let header = Header { key: Key(key), number, slot, successor, synced };
        let mut page = Page::zeroed();
        encode(&header, &entries, &mut page.0);
        prop_assert_eq!(decode(&page.0, slot, 1 << 30), Some((header, entries.clone())));
        prop_assert_eq!(decode(&page.0, Slot(slot.0 + 1), 1 << 30), None);
        page.0[at] ^= 1_u8 << bit;
        prop_assert_eq!(decode(&page.0, slot, 1 << 30), None);
    }

    #[test]
    fn a_record_of_blocks_beyond_the_disk_is_none(entry in entry()) {
        let header = Header { key: Key::default(), number: 1, slot: Slot(2), successor: Slot(3), synced: 0 };
        let mut page = Page::zeroed();
        encode(&header, &[entry], &mut page.0);
        let end = match entry {
            Entry::Block { block, .. } => block + 1,
            Entry::Zeros { first, count } => first + count,
        };
        prop_assert!(decode(&page.0, Slot(2), end).is_some());
        prop_assert!(decode(&page.0, Slot(2), end - 1).is_none());
    }

    #[test]
    fn superblocks_are_read_as_they_were_written(
        uuid in any::<[u8; 16]>(),
        (number, record) in (1..1_u64 << 62, 1..1_u64 << 62),
        sectors in 0..1_u64 << 24,
        chain in 2..Slot::COUNT_MAX,
        openings in proptest::collection::vec((any::<[u8; 16]>(), any::<u64>()), 1..=8),
        places in proptest::collection::vec(place(), FAN_OUT),
        (at, bit) in (0..4096_usize, 0..8_u32),
    ) {
        let opening = |(key, first)| Opening { key: Key(key), first };
        let superblock = Superblock {
            uuid,
            sectors,
            depth: 1,
            number,
            chain: Slot(chain),
            record,
            openings: openings.into_iter().map(opening).collect(),
            table: places.try_into().unwrap(),
        };
        let mut page = Page::zeroed();
        superblock.encode(&mut page.0);
        prop_assert_eq!(Superblock::decode(&page.0), Some(superblock));
        page.0[at] ^= 1_u8 << bit;
        prop_assert_eq!(Superblock::decode(&page.0), None);
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 4096),
        is_record in any::<bool>(),
    ) {
        use super::page::Bytes;
        let (magic, crc_at) = if is_record { (b"LEAFREC1", 60) } else { (b"LEAFBLK2", 68) };
        bytes[..8].copy_from_slice(magic);
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        let mut bytes: [u8; 4096] = bytes.try_into().unwrap();
        bytes.seal(crc_at);
        decode(&bytes, Slot(bytes.u64_at(32)), 1 << 20);
        Superblock::decode(&bytes);
    }

    #[test]
    fn slots_are_free_or_used_as_a_set_says(
        steps in proptest::collection::vec((0..4, 0..300_u64, 1..40_u64), 1..200),
    ) {
        let mut slots = Slots::new(Slot(2));
        let mut used: HashSet<u64> = HashSet::from([0, 1]);
        for (kind, at, count) in steps {
            match kind {
                0 => {
                    let (first, taken) = slots.take_run(count);
                    prop_assert!(taken >= 1 && taken <= count);
                    for slot in first.0..first.0 + taken {
                        prop_assert!(used.insert(slot), "slot {} was in use", slot);
                    }
                }
                1 => {
                    let taken = slots.take_run_at(Slot(at), count);
                    for slot in at..at + taken {
                        prop_assert!(used.insert(slot), "slot {} was in use", slot);
                    }
                    prop_assert!(taken == count || !slots.is_free(Slot(at + taken)));
                }
                _ => {
                    if at > 1 && used.remove(&at) {
                        slots.free(Slot(at));
                    }
                }
            }
            prop_assert_eq!(slots.end().0, used.len() as u64 + slots.free_count());
            for slot in 0..slots.end().0 {
                prop_assert_eq!(slots.is_free(Slot(slot)), !used.contains(&slot));
            }
        }
    }

    #[test]
    fn an_index_says_what_a_map_says_and_comes_back_from_its_pages(
        steps in proptest::collection::vec(step(), 1..60),
        blocks in prop_oneof![Just(70_000_u64), Just(20_000_000_u64)],
    ) {
        let mut file: HashMap<Slot, Box<Page>> = HashMap::new();
        let mut index = Index::new(blocks, depth_for(blocks).unwrap());
        let mut model = Model { blocks, words: BTreeMap::new(), frames: BTreeMap::new() };
        let mut next = 1_000_000_000;
        for step in steps {
            model.apply(&mut index, step)?;
            if let Step::Checkpoint = step {
                index.begin_checkpoint();
                loop {
                    next += 1;
                    let Some(node) = index.write_next(Slot(next)) else { break };
                    file.insert(Slot(next), node.page);
                }
                let read = &mut |slot| file.get(&slot).cloned().ok_or(());
                let loaded = Index::load(blocks, depth_for(blocks).unwrap(), &index.table(), read);
                let loaded = loaded.map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
                model.check(&loaded, false)?;
            }
        }
        model.check(&index, true)?;
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Block(u64, Word),
    Zeros(u64, u64),
    Frame(u64, Option<u32>),
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    // Close together, so that they meet.
    let block = || prop_oneof![0..700_u64, 65_000..66_000_u64, Just(69_999_u64)];
    prop_oneof![
        (block(), word()).prop_map(|(block, word)| Step::Block(block, word)),
        (block(), 1..2000_u64).prop_map(|(first, count)| Step::Zeros(first, count)),
        (block(), proptest::option::of(0..1000_u32)).prop_map(|(b, frame)| Step::Frame(b, frame)),
        Just(Step::Checkpoint),
    ]
}

struct Model {
    blocks: u64,
    /// What isn't the root's.
    words: BTreeMap<u64, Word>,
    frames: BTreeMap<u64, u32>,
}

impl Model {
    fn apply(&mut self, index: &mut Index, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Block(block, word) => {
                let old = self.words.insert(block, word).and_then(Word::slot);
                let freed = index.apply(block, word, 7);
                prop_assert_eq!(freed, old.filter(|old| Some(*old) != word.slot()));
            }
            Step::Zeros(first, count) => {
                let mut freed = Vec::new();
                index.apply_zeros(first, count, &mut |slot| freed.push(slot));
                for block in first..(first + count).min(self.blocks) {
                    let old = self.words.insert(block, Word::ZEROS);
                    if let Some(slot) = old.and_then(Word::slot) {
                        prop_assert!(freed.contains(&slot), "slot {:?} is lost", slot);
                    }
                }
            }
            Step::Frame(block, frame) => {
                index.set_frame(block, frame);
                match frame {
                    Some(frame) => self.frames.insert(block, frame),
                    None => self.frames.remove(&block),
                };
            }
            Step::Checkpoint => {}
        }
        Ok(())
    }

    fn check(&self, index: &Index, with_frames: bool) -> Result<(), TestCaseError> {
        for block in (0..3000).chain(64_900..69_000).chain([69_999]) {
            let held = index.get(block);
            prop_assert_eq!(held.word, self.words.get(&block).copied().unwrap_or(Word::ROOT));
            let frame = self.frames.get(&block).copied().filter(|_| with_frames);
            prop_assert_eq!(held.frame(), frame);
        }
        if with_frames {
            let mut found = BTreeMap::new();
            index.frames_in(100, 65_400, &mut |block, frame| {
                found.insert(block, frame);
            });
            let expected = self.frames.range(100..65_500).map(|(b, f)| (*b, *f)).collect();
            prop_assert_eq!(found, expected);
        }
        Ok(())
    }
}
