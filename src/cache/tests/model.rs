//! Random operations on the cache, with its inside checked after each.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::entry::{BlockState, SlotIndex};
use super::super::table::BlockKey;
use super::*;
use crate::cache::slots::SlotRole;

const ROOTS: usize = 3;
const BLOCKS: u64 = 60;
const READERS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Lookup { root: usize, reader: usize, block: u64 },
    Begin { root: usize, block: u64 },
    Finish { nth: usize, how: How },
    Quiesce { reader: usize },
    Offline { reader: usize },
    Online { reader: usize },
    MarkZero { root: usize, block: u64 },
    Replace { root: usize },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Data,
    Zeros,
    Failed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![8 => Just(How::Data), 1 => Just(How::Zeros), 1 => Just(How::Failed)];
    let step = prop_oneof![
        30 => (0..ROOTS, 0..READERS, 0..BLOCKS)
            .prop_map(|(root, reader, block)| Step::Lookup { root, reader, block }),
        40 => (0..ROOTS, 0..BLOCKS).prop_map(|(root, block)| Step::Begin { root, block }),
        40 => (0_usize..40, how).prop_map(|(nth, how)| Step::Finish { nth, how }),
        20 => (0..READERS).prop_map(|reader| Step::Quiesce { reader }),
        3 => (0..READERS).prop_map(|reader| Step::Offline { reader }),
        5 => (0..READERS).prop_map(|reader| Step::Online { reader }),
        1 => (0..ROOTS, 0..BLOCKS).prop_map(|(root, block)| Step::MarkZero { root, block }),
        1 => (0..ROOTS).prop_map(|root| Step::Replace { root }),
    ];
    prop::collection::vec(step, 1..600)
}

struct Fill {
    /// Which root, counted over replacements, and which block.
    name: (u64, u64),
    ticket: FillTicket,
    tag: u64,
}

struct Model {
    cache: Arc<Cache>,
    roots: Vec<(u64, Arc<RootCache>)>,
    readers: Vec<Reader>,
    online: Vec<bool>,
    fills: Vec<Fill>,
    /// What each block is filled with: `None` for zeros.
    content: HashMap<(u64, u64), Option<u64>>,
    waiting: HashMap<u32, (u64, u64)>,
    /// Slots that a reader has hit since it was quiescent last.
    held: Vec<HashSet<usize>>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        let cache = cache(BLOCK);
        let roots = (0..ROOTS as u64).map(|id| (id, root(&cache, BLOCKS)));
        Self {
            roots: roots.collect(),
            readers: (0..READERS).map(|_| cache.reader().unwrap()).collect(),
            online: vec![true; READERS],
            fills: Vec::new(),
            content: HashMap::new(),
            waiting: HashMap::new(),
            held: vec![HashSet::new(); READERS],
            next: ROOTS as u64,
            cache,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Lookup { root, reader, block } if self.online[reader] => {
                self.lookup(root, reader, block);
            }
            Step::Lookup { .. } => {}
            Step::Begin { root, block } => self.begin(root, block),
            Step::Finish { nth, how } => self.finish(nth, how),
            Step::Quiesce { reader } => {
                self.readers[reader].quiesce();
                self.held[reader].clear();
            }
            Step::Offline { reader } => {
                self.readers[reader].offline();
                self.online[reader] = false;
                self.held[reader].clear();
            }
            Step::Online { reader } if !self.online[reader] => {
                self.readers[reader].online();
                self.online[reader] = true;
            }
            Step::Online { .. } => {}
            Step::MarkZero { root, block } => {
                let (id, root) = &self.roots[root];
                let reader = self.cache.reader().unwrap();
                let filling = self.fills.iter().any(|fill| fill.name == (*id, block));
                let empty = matches!(root.lookup(&reader, block), Lookup::Miss) && !filling;
                root.mark_zero(block..block + 1);
                if empty {
                    self.content.insert((*id, block), None);
                }
            }
            Step::Replace { root: index } => {
                self.next += 1;
                self.roots[index] = (self.next, root(&self.cache, BLOCKS));
            }
        }
    }

    fn lookup(&mut self, root: usize, reader: usize, block: u64) {
        let (id, root) = &self.roots[root];
        let known = self.content.get(&(*id, block));
        match root.lookup(&self.readers[reader], block) {
            Lookup::Hit(bytes) => {
                let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert_eq!(known, Some(&Some(tag)));
                let offset = offset_of(&self.cache, bytes.as_ptr());
                self.held[reader].insert(offset);
            }
            Lookup::Zero => assert_eq!(known, Some(&None)),
            Lookup::Miss => {}
        }
    }

    fn begin(&mut self, root: usize, block: u64) {
        self.next += 1;
        let token = u32::try_from(self.next).unwrap();
        let (id, root) = &self.roots[root];
        let name = (*id, block);
        let filling = self.fills.iter().any(|fill| fill.name == name);
        match root.begin_fill(block, waiter(token)) {
            FillStart::Fill(ticket) => {
                assert!(!filling, "two fills of one block");
                let offset = offset_of(&self.cache, ticket.as_mut_ptr());
                let held = self.held.iter().any(|held| held.contains(&offset));
                assert!(!held, "a slot is filled that a reader may look at");
                self.fills.push(Fill { name, ticket, tag: self.next });
            }
            FillStart::Joined => {
                assert!(filling);
                self.waiting.insert(token, name);
            }
            FillStart::Ready => assert!(!filling && self.content.contains_key(&name)),
            FillStart::NoSlot => {}
        }
    }

    fn finish(&mut self, nth: usize, how: How) {
        if self.fills.is_empty() {
            return;
        }
        let fill = self.fills.swap_remove(nth % self.fills.len());
        let Fill { name, mut ticket, tag } = fill;
        let buffer = ticket.buffer_mut();
        let outcome = match how {
            How::Data => {
                buffer.fill(0x55);
                buffer[..8].copy_from_slice(&tag.to_le_bytes());
                self.content.insert(name, Some(tag));
                FillOutcome::Data
            }
            How::Zeros => {
                buffer.fill(0);
                self.content.insert(name, None);
                FillOutcome::Data
            }
            How::Failed => {
                self.content.remove(&name);
                FillOutcome::Failed
            }
        };
        let mut waiters = Vec::new();
        ticket.finish(outcome, &mut waiters);
        for waiter in waiters {
            assert_eq!(self.waiting.remove(&waiter.token), Some(name));
        }
        let left = self.waiting.values().any(|waits_for| *waits_for == name);
        assert!(!left, "a waiter was left behind");
    }

    /// Entries and slots agree in both directions, and every slot has one role.
    fn check_inside(&self) {
        let mut named = HashMap::new();
        for (_, root) in &self.roots {
            for block in 0..BLOCKS {
                let state = root.table.entry(block).unwrap().load().state();
                let key = BlockKey { root: root.table.id(), block: u32::try_from(block).unwrap() };
                if let BlockState::Ready(slot) | BlockState::Filling(slot) = state {
                    let earlier = named.insert(slot, (key, state));
                    assert!(earlier.is_none(), "two blocks share {slot:?}");
                }
            }
        }
        let core = self.cache.lock();
        let mut ready = 0;
        for slot in (0..core.slots.count()).map(SlotIndex) {
            let role = core.slots.role(slot);
            match named.get(&slot) {
                Some((key, BlockState::Ready(_))) => {
                    assert!(role.is_ready(), "{slot:?} is {role:?}");
                    assert_eq!(core.slots.get(slot).key, *key);
                    ready += 1;
                }
                Some((key, _)) => {
                    assert_eq!(role, SlotRole::Filling);
                    assert_eq!(core.slots.get(slot).key, *key);
                }
                // A fill whose root is gone is filling, but named by nobody.
                None => assert!(!role.is_ready(), "{slot:?} is {role:?}, unnamed"),
            }
        }
        drop(core);
        let stats = self.cache.stats();
        assert_eq!(stats.ready, ready);
        assert_eq!(stats.filling, self.fills.len() as u64);
        assert_eq!(stats.lost_fills, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn entries_slots_readers_and_waiters_agree_after_any_sequence(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
            model.check_inside();
        }
        while !model.fills.is_empty() {
            model.finish(0, How::Failed);
        }
        prop_assert!(model.waiting.is_empty());
        model.check_inside();
    }
}
