//! The cache as a whole, on one thread: what a caller sees.

#[cfg(feature = "loom")]
mod interleavings;
mod kept;
mod model;
mod stress;

use super::*;

const BLOCK: u32 = 64 << 10;
const ME: Waiter = waiter(0);

const fn waiter(token: u32) -> Waiter {
    Waiter { reactor: 1, token }
}

/// 2 MiB of blocks of `block_bytes`.
fn cache(block_bytes: u32) -> Arc<Cache> {
    Cache::new(&CacheConfig {
        size_bytes: 2 << 20,
        block_bytes,
        hugepages: Hugepages::Off,
        readers_max: 4,
    })
    .unwrap()
    .0
}

/// A root of so many blocks of [`BLOCK`].
fn root(cache: &Arc<Cache>, blocks: u64) -> Arc<RootCache> {
    cache.add_root(blocks * u64::from(BLOCK) / 512).unwrap()
}

fn begin(root: &RootCache, block: u64) -> FillTicket {
    match root.begin_fill(block, ME) {
        FillStart::Fill(ticket) => ticket,
        other => panic!("block {block}: {other:?}"),
    }
}

/// How far into the arena some bytes of it are.
fn offset_of(cache: &Cache, bytes: *const u8) -> usize {
    bytes.addr() - cache.arena.as_ptr().addr()
}

/// Fills the block with bytes of its own.
fn fill(root: &RootCache, block: u64) {
    let mut ticket = begin(root, block);
    let pattern = u8::try_from(block % 251).unwrap() + 1;
    ticket.buffer_mut().fill(pattern);
    ticket.finish(FillOutcome::Data, &mut Vec::new());
}

/// Whether a lookup hits; if so, that the bytes are those of [`fill`].
fn hits(root: &RootCache, reader: &Reader, block: u64) -> bool {
    match root.lookup(reader, block) {
        Lookup::Hit(bytes) => {
            let pattern = u8::try_from(block % 251).unwrap() + 1;
            assert!(bytes.iter().all(|byte| *byte == pattern), "block {block}");
            true
        }
        Lookup::Zero | Lookup::Miss => false,
    }
}

#[test]
fn a_filled_block_is_hit_with_its_bytes() {
    let cache = cache(BLOCK);
    let (root, reader) = (root(&cache, 8), cache.reader().unwrap());
    assert!(matches!(root.lookup(&reader, 3), Lookup::Miss));
    fill(&root, 3);
    assert!(hits(&root, &reader, 3));
    assert!(matches!(root.lookup(&reader, 2), Lookup::Miss));
    assert!(matches!(root.begin_fill(3, ME), FillStart::Ready));
    let stats = cache.stats();
    assert_eq!((stats.ready, stats.fills, stats.filling), (1, 1, 0));
    assert_eq!(stats.ready_bytes, u64::from(BLOCK));
}

#[test]
fn all_waiters_of_a_fill_come_back_with_it_and_only_once() {
    let cache = cache(BLOCK);
    let root = root(&cache, 8);
    let ticket = begin(&root, 1);
    for token in 1..=3 {
        assert!(matches!(root.begin_fill(1, waiter(token)), FillStart::Joined));
    }
    let other = begin(&root, 2);
    let mut waiters = vec![waiter(9)];
    ticket.finish(FillOutcome::Data, &mut waiters);
    assert_eq!(waiters, [9, 1, 2, 3].map(waiter), "appended, in order");
    waiters.clear();
    other.finish(FillOutcome::Data, &mut waiters);
    assert_eq!(waiters, []);
    assert_eq!(cache.stats().joined_waits, 3);
}

#[test]
fn a_failed_fill_returns_its_waiters_and_can_be_tried_again() {
    let cache = cache(BLOCK);
    let (root, reader) = (root(&cache, 8), cache.reader().unwrap());
    let mut ticket = begin(&root, 1);
    ticket.buffer_mut().fill(7);
    assert!(matches!(root.begin_fill(1, waiter(5)), FillStart::Joined));
    let mut waiters = Vec::new();
    ticket.finish(FillOutcome::Failed, &mut waiters);
    assert_eq!(waiters, [waiter(5)]);
    assert!(matches!(root.lookup(&reader, 1), Lookup::Miss));
    assert_eq!(cache.stats().failed_fills, 1);
    fill(&root, 1);
    assert!(hits(&root, &reader, 1));
}

#[test]
fn a_block_of_zeros_takes_no_slot() {
    let cache = cache(BLOCK);
    let (root, reader) = (root(&cache, 100), cache.reader().unwrap());
    // More than there are slots: each gives its slot back.
    for block in 0..100 {
        let mut ticket = begin(&root, block);
        ticket.buffer_mut().fill(0);
        ticket.finish(FillOutcome::Data, &mut Vec::new());
        assert!(matches!(root.lookup(&reader, block), Lookup::Zero));
    }
    let stats = cache.stats();
    assert_eq!((stats.ready, stats.zero_blocks, stats.evictions), (0, 100, 0));
    drop(root);
    assert_eq!(cache.stats().zero_blocks, 0);
}

#[test]
fn marked_holes_and_what_lies_beyond_the_end_read_as_zeros() {
    let cache = cache(BLOCK_BYTES_MIN);
    let reader = cache.reader().unwrap();
    let root = cache.add_root(20_000 * 8).unwrap();
    let ticket = begin(&root, 7);
    root.mark_zero(5..u64::MAX);
    assert!(matches!(root.lookup(&reader, 4), Lookup::Miss));
    assert!(matches!(root.lookup(&reader, 5), Lookup::Zero));
    assert!(matches!(root.lookup(&reader, 7), Lookup::Miss), "filling");
    assert!(matches!(root.lookup(&reader, 19_999), Lookup::Zero));
    for beyond in [20_000, u64::MAX] {
        assert!(matches!(root.lookup(&reader, beyond), Lookup::Zero));
        assert!(matches!(root.begin_fill(beyond, ME), FillStart::Ready));
    }
    assert_eq!(cache.stats().zero_blocks, 19_994);
    root.mark_zero(5..20_000);
    assert_eq!(cache.stats().zero_blocks, 19_994, "counted once");
    ticket.finish(FillOutcome::Failed, &mut Vec::new());
}

#[test]
fn the_last_block_of_a_root_is_padded_with_zeros() {
    let cache = cache(BLOCK);
    let reader = cache.reader().unwrap();
    let root = cache.add_root(128 + 3).unwrap();
    let mut ticket = begin(&root, 1);
    assert_eq!((ticket.sectors().start().0, ticket.sectors().count()), (128, 3));
    ticket.buffer_mut().fill(0xee);
    ticket.finish(FillOutcome::Data, &mut Vec::new());
    let Lookup::Hit(bytes) = root.lookup(&reader, 1) else {
        panic!("not cached");
    };
    assert_eq!(bytes.len(), BLOCK as usize);
    assert!(bytes[..3 * 512].iter().all(|byte| *byte == 0xee));
    assert!(bytes[3 * 512..].iter().all(|byte| *byte == 0));
}

#[test]
fn tickets_own_disjoint_aligned_slots_of_the_arena() {
    let cache = cache(BLOCK);
    let root = root(&cache, 64);
    let tickets: Vec<_> = (0..32).map(|block| begin(&root, block)).collect();
    let mut offsets: Vec<_> =
        tickets.iter().map(|ticket| offset_of(&cache, ticket.as_mut_ptr())).collect();
    offsets.sort_unstable();
    let expected: Vec<_> = (0..32).map(|slot| slot * BLOCK as usize).collect();
    assert_eq!(offsets, expected);
    for ticket in tickets {
        ticket.finish(FillOutcome::Failed, &mut Vec::new());
    }
}

#[test]
fn a_cache_full_of_fills_refuses_and_recovers() {
    let cache = cache(BLOCK);
    let root = root(&cache, 64);
    let mut tickets: Vec<_> = (0..32).map(|block| begin(&root, block)).collect();
    assert!(matches!(root.begin_fill(40, ME), FillStart::NoSlot));
    assert_eq!(cache.stats().refused_fills, 1);
    tickets.pop().unwrap().finish(FillOutcome::Failed, &mut Vec::new());
    fill(&root, 40);
    for ticket in tickets {
        ticket.finish(FillOutcome::Failed, &mut Vec::new());
    }
}

#[test]
fn an_evicted_slot_waits_for_every_online_reader() {
    let cache = cache(BLOCK);
    let root = root(&cache, 256);
    let (mut a, mut b) = (cache.reader().unwrap(), cache.reader().unwrap());
    for block in 0..32 {
        fill(&root, block);
    }
    // One slot is evicted, and can't be had while either reader may look at it.
    assert!(matches!(root.begin_fill(100, ME), FillStart::NoSlot));
    a.quiesce();
    assert!(matches!(root.begin_fill(100, ME), FillStart::NoSlot));
    b.quiesce();
    fill(&root, 100);
    assert!(matches!(root.begin_fill(101, ME), FillStart::NoSlot));
    a.quiesce();
    b.offline();
    fill(&root, 101);
    b.online();
    assert!(matches!(root.begin_fill(102, ME), FillStart::NoSlot));
    drop(a);
    assert!(matches!(root.begin_fill(102, ME), FillStart::NoSlot));
    drop(b);
    fill(&root, 102);
}

#[test]
fn a_block_held_by_a_reader_keeps_its_bytes_after_eviction() {
    let cache = cache(BLOCK);
    let root = root(&cache, 256);
    let mut reader = cache.reader().unwrap();
    for block in 0..32 {
        fill(&root, block);
    }
    let Lookup::Hit(held) = root.lookup(&reader, 0) else {
        panic!("not cached");
    };
    for block in 100..140 {
        assert!(matches!(root.begin_fill(block, ME), FillStart::NoSlot));
    }
    assert!(cache.stats().evictions > 0);
    assert!(held.iter().all(|byte| *byte == 1));
    reader.quiesce();
    fill(&root, 100);
}

#[test]
fn removing_a_root_evicts_its_blocks_and_no_others() {
    let cache = cache(BLOCK);
    let (kept, gone) = (root(&cache, 64), root(&cache, 64));
    let reader = cache.reader().unwrap();
    for block in 0..8 {
        fill(&kept, block);
        fill(&gone, block);
    }
    drop(gone);
    assert_eq!((cache.stats().ready, cache.stats().limbo), (8, 8));
    assert!((0..8).all(|block| hits(&kept, &reader, block)));
    // The next root gets the id, and nothing of the old one's content.
    let next = root(&cache, 64);
    assert!((0..8).all(|block| matches!(next.lookup(&reader, block), Lookup::Miss)));
}

#[test]
fn a_fill_that_outlives_its_root_ends_nowhere() {
    let cache = cache(BLOCK);
    let gone = root(&cache, 64);
    let mut ticket = begin(&gone, 3);
    assert!(matches!(gone.begin_fill(3, waiter(4)), FillStart::Joined));
    drop(gone);
    let next = root(&cache, 64);
    let reader = cache.reader().unwrap();
    ticket.buffer_mut().fill(1);
    let mut waiters = Vec::new();
    ticket.finish(FillOutcome::Data, &mut waiters);
    assert_eq!(waiters, [waiter(4)]);
    assert!(matches!(next.lookup(&reader, 3), Lookup::Miss));
    assert_eq!((cache.stats().ready, cache.stats().filling), (0, 0));
}

#[test]
fn a_fill_that_ends_while_its_root_is_being_removed_ends_nowhere() {
    let cache = cache(BLOCK);
    let root = root(&cache, 64);
    fill(&root, 1);
    let mut ticket = begin(&root, 3);
    ticket.buffer_mut().fill(1);
    // What dropping the root does first, before it lets go of the lock.
    cache.lock().roots.close(root.table.id());
    ticket.finish(FillOutcome::Data, &mut Vec::new());
    assert_eq!((cache.stats().ready, cache.stats().filling), (1, 0));
}

#[test]
fn who_fills_a_block_has_it_until_it_quiesces_whoever_evicts_it() {
    let cache = cache(BLOCK);
    let (root, mut reader) = (root(&cache, 200), cache.reader().unwrap());
    let mut ticket = begin(&root, 100);
    ticket.buffer_mut().fill(7);
    let Lookup::Hit(held) = ticket.finish_and_look(&reader, &mut Vec::new()) else {
        panic!("who filled it finds it");
    };
    // Others fill what they can: all slots that nobody may look at.
    let mut block = 0;
    while let FillStart::Fill(mut ticket) = root.begin_fill(block, ME) {
        ticket.buffer_mut().fill(9);
        ticket.finish(FillOutcome::Data, &mut Vec::new());
        block += 1;
    }
    assert!(matches!(root.lookup(&reader, 100), Lookup::Miss), "it is gone for a second look");
    assert!(held.iter().all(|byte| *byte == 7));
    reader.quiesce();
    fill(&root, block);
}

#[test]
fn who_fills_a_block_of_zeros_finds_zeros_and_of_a_removed_root_nothing() {
    let cache = cache(BLOCK);
    let (kept, reader) = (root(&cache, 8), cache.reader().unwrap());
    let mut ticket = begin(&kept, 1);
    ticket.buffer_mut().fill(0);
    assert!(matches!(ticket.finish_and_look(&reader, &mut Vec::new()), Lookup::Zero));
    let removed = root(&cache, 8);
    let mut ticket = begin(&removed, 1);
    ticket.buffer_mut().fill(1);
    drop(removed);
    assert!(matches!(ticket.finish_and_look(&reader, &mut Vec::new()), Lookup::Miss));
}

#[test]
fn a_dropped_ticket_costs_its_slot_but_loses_no_waiter() {
    let cache = cache(BLOCK);
    let root = root(&cache, 64);
    let ticket = begin(&root, 1);
    assert!(matches!(root.begin_fill(1, waiter(2)), FillStart::Joined));
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ticket)));
    assert_eq!(dropped.is_err(), cfg!(debug_assertions));
    assert_eq!(cache.stats().lost_fills, 1);
    let other = begin(&root, 1);
    let mut waiters = Vec::new();
    other.finish(FillOutcome::Failed, &mut waiters);
    assert_eq!(waiters, [waiter(2)]);
    // 31 slots are left.
    let tickets: Vec<_> = (0..31).map(|block| begin(&root, block)).collect();
    assert!(matches!(root.begin_fill(40, ME), FillStart::NoSlot));
    for ticket in tickets {
        ticket.finish(FillOutcome::Failed, &mut Vec::new());
    }
}

#[test]
#[should_panic(expected = "online reader of the same cache")]
fn an_offline_reader_may_not_look_up() {
    let cache = cache(BLOCK);
    let root = root(&cache, 8);
    let mut reader = cache.reader().unwrap();
    reader.offline();
    let _ = root.lookup(&reader, 0);
}

#[test]
#[should_panic(expected = "online reader of the same cache")]
fn another_caches_reader_may_not_look_up() {
    let (cache_a, cache_b) = (cache(BLOCK), cache(BLOCK));
    let _ = root(&cache_a, 8).lookup(&cache_b.reader().unwrap(), 0);
}

#[test]
fn a_scan_does_not_displace_what_is_read_again_and_again() {
    let cache = cache(BLOCK_BYTES_MIN);
    let root = cache.add_root(100_000 * 8).unwrap();
    let mut reader = cache.reader().unwrap();
    let hot = 0..200;
    let mut scan = 1_000_u64..;
    let visit = |block: u64, reader: &mut Reader| {
        reader.quiesce();
        let missed = !hits(&root, reader, block);
        if missed {
            reader.offline();
            fill(&root, block);
            reader.online();
        }
        missed
    };
    for block in hot.clone().chain(hot.clone()) {
        visit(block, &mut reader);
    }
    // A scan of 100 times the cache's size, with the hot set read now and then.
    let mut missed = 0;
    for _ in 0..256 {
        for block in scan.by_ref().take(200) {
            visit(block, &mut reader);
        }
        missed += hot.clone().filter(|block| visit(*block, &mut reader)).count();
    }
    assert!(missed < 256 * 200 / 100, "{missed} of 51200 missed");
}

#[test]
fn a_storm_within_the_correlation_window_makes_nothing_hot() {
    // 512 slots: a window of 25, and reserve for 16.
    let cache = cache(BLOCK_BYTES_MIN);
    let root = cache.add_root(100_000 * 8).unwrap();
    let mut reader = cache.reader().unwrap();
    let visit = |block: u64, reader: &mut Reader| {
        if !hits(&root, reader, block) {
            reader.offline();
            fill(&root, block);
            reader.online();
        }
    };
    // The hot set earns its place in the main queue: read, and again when 30
    // more fills have moved it out of the window.
    for block in (0..330).chain(0..300) {
        visit(block, &mut reader);
    }
    // 64 guests read 5000 other blocks in step.
    for block in 1_000..6_000 {
        for _ in 0..64 {
            visit(block, &mut reader);
        }
    }
    let kept = (0..300).filter(|block| hits(&root, &reader, *block)).count();
    assert!(kept >= 290, "{kept} of 300 kept");
}

#[test]
fn impossible_sizes_are_refused_with_a_sentence() {
    let refuse = |size_bytes, block_bytes| {
        let config =
            CacheConfig { size_bytes, block_bytes, hugepages: Hugepages::Off, readers_max: 1 };
        Cache::new(&config).unwrap_err().to_string()
    };
    for block_bytes in [0, 512, 2048, 4097, 3 << 12, 4 << 20] {
        assert!(refuse(1 << 30, block_bytes).contains("power of two from 4KiB to 2MiB"));
    }
    for size_bytes in [0, (1 << 20) - 1, u64::MAX] {
        assert!(refuse(size_bytes, BLOCK).contains("from 1048576 to"));
    }
}

#[test]
fn readers_are_bounded() {
    let cache = cache(BLOCK);
    let mut readers: Vec<_> = (0..4).map(|_| cache.reader().unwrap()).collect();
    assert!(cache.reader().is_err());
    readers.pop();
    assert!(cache.reader().is_ok());
}
