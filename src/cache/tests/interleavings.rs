//! A slot's life (fill, read, evict, reuse) in every interleaving
//! (feature `loom`): the whole cache, with two slots.
//!
//! loom sees no ordinary memory. So each slot has a cell beside it, which is
//! used where the slot's bytes are, and loom fails if two threads use it without
//! being ordered.

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use super::*;

const SMALL: u32 = BLOCK_BYTES_MIN;
const SLOTS: usize = 2;

/// Interleavings with up to three preemptions, and within that all of them.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(f);
}

struct Scene {
    cache: Arc<Cache>,
    root: Arc<RootCache>,
    /// Which block each slot holds.
    shadow: [UnsafeCell<u64>; SLOTS],
}

impl Scene {
    /// Two slots, in which blocks 0 and 1 are.
    fn new() -> Arc<Self> {
        let (arena, _) = Arena::map(2 << 20, Hugepages::Off).unwrap();
        let cache = Arc::new(Cache {
            arena,
            block_bytes: SMALL,
            block_shift: SMALL.trailing_zeros(),
            epochs: Epochs::new(2),
            core: Mutex::new(Core::new(2, None)),
            readers_max: 2,
            lifetime_fd: None,
            lookups: Lookups::default(),
            prefault: Prefault::new(),
        });
        let root = cache.add_root(4 * u64::from(SMALL) / 512).unwrap();
        let scene = Arc::new(Self { cache, root, shadow: [0, 0].map(UnsafeCell::new) });
        assert!(scene.fill(0) && scene.fill(1));
        scene
    }

    /// Fills the block if there is a slot for it.
    fn fill(&self, block: u64) -> bool {
        let FillStart::Fill(mut ticket) = self.root.begin_fill(block, waiter(0)) else {
            return false;
        };
        let slot = offset_of(&self.cache, ticket.as_mut_ptr()) / SMALL as usize;
        self.shadow[slot].with_mut(|cell| set(cell, block));
        // Content, or it would be taken for zeros and need no slot.
        ticket.buffer_mut()[0] = 1;
        ticket.finish(FillOutcome::Data, &mut Vec::new());
        true
    }

    /// Looks the block up; if it is there, its slot must hold it, and go on
    /// holding it for as long as the reader may look.
    fn read(&self, reader: &Reader, block: u64) {
        if let Lookup::Hit(bytes) = self.root.lookup(reader, block) {
            let slot = offset_of(&self.cache, bytes.bytes().as_ptr()) / SMALL as usize;
            for _ in 0..2 {
                assert_eq!(self.shadow[slot].with(get), block, "another block's bytes");
            }
        }
    }
}

/// Blocks are filled by one thread while another, whose reader is online or
/// not, does what it does.
fn while_blocks_are_filled(
    blocks: &'static [u64],
    online: bool,
    reads: impl Fn(&Scene, &mut Reader) + Send + Sync + 'static,
) {
    model(move || {
        let scene = Scene::new();
        let mut reader = scene.cache.reader().unwrap();
        if !online {
            reader.offline();
        }
        let filler = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || blocks.iter().for_each(|block| _ = scene.fill(*block)))
        };
        reads(&scene, &mut reader);
        filler.join().unwrap();
    });
}

#[test]
fn loom_a_slot_is_reused_only_when_its_readers_have_let_go() {
    while_blocks_are_filled(&[2, 3], true, |scene, reader| {
        scene.read(reader, 0);
        reader.quiesce();
        scene.read(reader, 0);
        reader.quiesce();
        scene.read(reader, 2);
    });
}

#[test]
fn loom_a_reader_that_wakes_up_finds_no_slot_that_is_being_refilled() {
    while_blocks_are_filled(&[2], false, |scene, reader| {
        reader.online();
        scene.read(reader, 0);
        reader.offline();
    });
}

#[test]
fn loom_a_reader_that_goes_to_sleep_has_done_with_its_slot() {
    while_blocks_are_filled(&[2], true, |scene, reader| {
        scene.read(reader, 0);
        reader.offline();
    });
}

#[test]
fn loom_a_published_block_is_complete() {
    while_blocks_are_filled(&[2], false, |scene, reader| {
        reader.online();
        scene.read(reader, 2);
        scene.read(reader, 2);
    });
}

#[test]
fn loom_a_block_stays_for_who_filled_it_however_soon_it_is_evicted() {
    while_blocks_are_filled(&[3, 0], true, |scene, reader| {
        let mut begun = scene.root.begin_fill(2, waiter(0));
        if let FillStart::NoSlot = begun {
            // What was evicted for it is free after this.
            reader.quiesce();
            begun = scene.root.begin_fill(2, waiter(0));
        }
        let FillStart::Fill(mut ticket) = begun else {
            return;
        };
        let slot = offset_of(&scene.cache, ticket.as_mut_ptr()) / SMALL as usize;
        scene.shadow[slot].with_mut(|cell| set(cell, 2));
        ticket.buffer_mut()[0] = 1;
        let Lookup::Hit(bytes) = ticket.finish_and_look(reader, &mut Vec::new()) else {
            panic!("who filled it finds it");
        };
        assert_eq!(offset_of(&scene.cache, bytes.bytes().as_ptr()) / SMALL as usize, slot);
        for _ in 0..2 {
            assert_eq!(scene.shadow[slot].with(get), 2, "another block's bytes");
        }
    });
}

#[test]
fn loom_a_block_that_two_miss_is_filled_once_and_its_waiter_comes_back_once() {
    model(|| {
        let scene = Scene::new();
        let miss = |scene: &Scene, token: u32| {
            let mut waiters = Vec::new();
            let joined = match scene.root.begin_fill(2, waiter(token)) {
                FillStart::Fill(mut ticket) => {
                    let slot = offset_of(&scene.cache, ticket.as_mut_ptr()) / SMALL as usize;
                    scene.shadow[slot].with_mut(|cell| set(cell, 2));
                    ticket.buffer_mut()[0] = 1;
                    ticket.finish(FillOutcome::Data, &mut waiters);
                    false
                }
                FillStart::Joined => true,
                FillStart::Ready => false,
                FillStart::NoSlot => panic!("nobody reads"),
            };
            (joined, waiters.len())
        };
        let other = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || miss(&scene, 1))
        };
        let (joined, returned) = miss(&scene, 2);
        let (other_joined, other_returned) = other.join().unwrap();
        let joined = usize::from(joined) + usize::from(other_joined);
        assert_eq!(returned + other_returned, joined);
        assert_eq!(scene.cache.stats().fills, 3);
    });
}

#[expect(unsafe_code, reason = "loom hands out pointers, and checks their use")]
fn set(cell: *mut u64, value: u64) {
    // SAFETY: loom fails the model if somebody else uses the cell.
    unsafe { *cell = value }
}

#[expect(unsafe_code, reason = "loom hands out pointers, and checks their use")]
fn get(cell: *const u64) -> u64 {
    // SAFETY: loom fails the model if somebody writes the cell.
    unsafe { *cell }
}
