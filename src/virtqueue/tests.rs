//! The walk against `virtio-queue` as oracle, against garbage, and each rule
//! of notification.
#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::sync::mpsc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::rig::*;
use super::*;
use crate::guest_memory::GuestMemory;

mod chains;
pub(super) mod inflight;

/// The buffer as our walk gives it: cut at the seam.
fn cut(addr: u64, len: u64) -> Vec<Segment> {
    if addr < SEAM && addr + len > SEAM {
        vec![(addr, SEAM - addr), (SEAM, addr + len - SEAM)]
    } else {
        vec![(addr, len)]
    }
}

/// A chain: buffers in the ring's table, then buffers in an indirect one, and
/// how many of all are readable.
#[derive(Clone, Debug)]
struct Layout {
    direct: Vec<(u64, u32)>,
    indirect: Vec<(u64, u32)>,
    readable: usize,
}

fn layouts() -> impl Strategy<Value = Layout> {
    let buffers = |most| vec((DATA..END - 0x1000, 1u32..0x1000), 0..most);
    (buffers(8), buffers(20), any::<prop::sample::Index>())
        .prop_filter("a chain has a buffer", |(d, i, _)| !d.is_empty() || !i.is_empty())
        .prop_map(|(direct, indirect, readable)| Layout {
            readable: readable.index(direct.len() + indirect.len() + 1),
            direct,
            indirect,
        })
}

/// Puts the layout into the tables with the given free descriptors; its head.
fn lay(rig: &Rig, layout: &Layout, table: u64, free: &mut Vec<u16>) -> u16 {
    let flag = |number: usize| if number < layout.readable { 0 } else { WRITE };
    let has_table = !layout.indirect.is_empty();
    let count = layout.direct.len() + usize::from(has_table);
    let own = free.split_off(free.len() - count);
    for (i, buffer) in layout.direct.iter().enumerate() {
        let next = own.get(i + 1).copied();
        let flags = flag(i) | if next.is_some() { NEXT } else { 0 };
        rig.desc(DESC, own[i], *buffer, flags, next.unwrap_or(0));
    }
    if has_table {
        let len = layout.indirect.len() as u16;
        rig.desc(DESC, own[count - 1], (table, u32::from(len) * 16), INDIRECT, 0);
        for (i, buffer) in (0..len).zip(&layout.indirect) {
            let more = if i + 1 < len { NEXT } else { 0 };
            let flags = flag(layout.direct.len() + usize::from(i)) | more;
            rig.desc(table, i, *buffer, flags, i + 1);
        }
    }
    own[0]
}

fn oracle(rig: &Rig) -> Vec<(u16, Vec<Segment>, Vec<Segment>)> {
    let file = FileOffset::new(rig.file.try_clone().unwrap(), 0);
    let ranges = [(GuestAddress(0), END as usize, Some(file))];
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
    let mut queue = Queue::new(rig.config.size).unwrap();
    queue.try_set_desc_table_address(GuestAddress(DESC)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_next_avail(rig.config.next_avail);
    queue.set_ready(true);
    let mut chains = Vec::new();
    while let Some(chain) = queue.pop_descriptor_chain(&memory) {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for desc in chain {
            let list = if desc.is_write_only() { &mut writable } else { &mut readable };
            list.extend(cut(desc.addr().0, u64::from(desc.len())));
        }
        chains.push((head, readable, writable));
    }
    chains
}

/// Descriptors between sense and nonsense.
fn wild_descriptors(most: usize) -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr = prop_oneof![
        4 => DATA..END,
        2 => select(vec![TABLE, TABLE + 16, SEAM - 1, SEAM, END - 1, END, 0]),
        1 => any::<u64>(),
        1 => u64::MAX - 0x100..=u64::MAX,
    ];
    let len = prop_oneof![
        3 => 1u32..0x200,
        2 => select(vec![0, 16, 32, 256, u32::MAX, 1 << 31]),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => 0u16..8, 3 => select(vec![NEXT, NEXT | WRITE]), 1 => any::<u16>()];
    let next = prop_oneof![9 => 0u16..20, 1 => any::<u16>()];
    vec((addr, len, flags, next), most)
}

proptest! {
    #[test]
    fn valid_chains_have_the_segments_that_virtio_queue_finds(
        chains in vec(layouts(), 1..5),
        free in Just((0..64).collect::<Vec<u16>>()).prop_shuffle(),
        start: u16,
    ) {
        let mut rig = Rig::new(64);
        rig.config.next_avail = start;
        let mut free = free;
        let tables = (0..).map(|i| TABLE + i * 0x1000 + 16 * (i % 3));
        let heads: Vec<u16> =
            chains.iter().zip(tables).map(|(c, table)| lay(&rig, c, table, &mut free)).collect();
        rig.offer(start, &heads);
        let mut queue = rig.queue();
        let mut chain = Chain::default();
        let mut found = Vec::new();
        while queue.pop(&rig.memory, &mut chain).unwrap() {
            found.push((chain.head, rig.segments(&chain.readable), rig.segments(&chain.writable)));
        }
        prop_assert_eq!(found.len(), chains.len());
        prop_assert_eq!(found, oracle(&rig));
        prop_assert_eq!(queue.next_avail(), start.wrapping_add(chains.len() as u16));
    }

    #[test]
    fn garbage_in_a_ring_ends_and_stays_inside_guest_memory(
        table in wild_descriptors(16),
        indirect in wild_descriptors(16),
        heads in vec(prop_oneof![9 => 0u16..16, 1 => any::<u16>()], 16),
        start in 0u16..16,
        avail in prop_oneof![9 => 0u16..32, 1 => any::<u16>()],
    ) {
        let mut rig = Rig::new(16);
        rig.config.next_avail = start;
        for (base, list) in [(DESC, &table), (TABLE, &indirect)] {
            for (i, (addr, len, flags, next)) in (0..).zip(list) {
                rig.desc(base, i, (*addr, *len), *flags, *next);
            }
        }
        rig.offer(0, &heads);
        rig.put16(AVAIL + 2, avail);
        let mut queue = rig.queue();
        let mut chain = Chain::default();
        let mut taken = 0;
        while let Ok(true) = queue.pop(&rig.memory, &mut chain) {
            taken += 1;
            prop_assert!(taken <= 16, "no more than the ring has");
            prop_assert!(chain.segments() <= SEGMENTS_MAX);
            prop_assert!(chain.descriptors() as usize <= SEGMENTS_MAX + 1);
            for buf in chain.readable.iter().chain(&chain.writable) {
                prop_assert!(rig.guest_addr(*buf).is_some(), "{buf:?} lies outside");
            }
        }
    }

    #[test]
    fn random_bytes_as_ring_end_too(bytes in vec(any::<u8>(), 256), avail in vec(any::<u8>(), 40)) {
        let rig = Rig::new(16);
        rig.put(DESC, &bytes);
        rig.put(AVAIL, &avail);
        let mut queue = rig.queue();
        let mut chain = Chain::default();
        for _ in 0..=16 {
            if !matches!(queue.pop(&rig.memory, &mut chain), Ok(true)) {
                return Ok(());
            }
            for buf in chain.readable.iter().chain(&chain.writable) {
                prop_assert!(rig.guest_addr(*buf).is_some());
            }
        }
        prop_assert!(false, "popped more than the ring has");
    }

    #[test]
    fn with_event_idx_a_call_comes_exactly_when_the_event_index_is_passed(
        start: u16,
        count in 1u16..=16,
        ahead in prop_oneof![0u16..20, any::<u16>()],
        behind in 0u16..20,
    ) {
        let mut rig = Rig::new(16);
        rig.config.event_idx = true;
        rig.put16(USED + 2, start);
        let event = start.wrapping_add(ahead).wrapping_sub(behind);
        rig.put16(AVAIL + 4 + 2 * 16, event);
        let mut queue = rig.queue();
        for _ in 0..count {
            queue.add_used(0, 0);
        }
        let passed = (0..count).any(|i| start.wrapping_add(i) == event);
        prop_assert_eq!(queue.publish(), passed);
        prop_assert_eq!(rig.get16(USED + 2), start.wrapping_add(count));
        prop_assert!(!queue.publish(), "nothing new, no call");
    }
}

#[test]
fn a_queue_size_that_is_no_power_of_two_is_refused() {
    for size in [0, 3, 40_000, u16::MAX] {
        let mut rig = Rig::new(16);
        rig.config.size = size;
        let error = SplitQueue::new(&rig.config, &rig.memory).unwrap_err();
        assert_eq!(error, QueueError::BadSize(u32::from(size)));
    }
}

#[test]
fn a_ring_part_outside_memory_or_misaligned_is_refused() {
    let change: [fn(&mut RingConfig) -> &mut u64; 3] =
        [|c| &mut c.desc_user_addr, |c| &mut c.avail_user_addr, |c| &mut c.used_user_addr];
    for part in change {
        for addr in [0, USER[0] + 1, USER[0] + SEAM - 32, u64::MAX - 15] {
            let mut rig = Rig::new(16);
            *part(&mut rig.config) = addr;
            let error = SplitQueue::new(&rig.config, &rig.memory).unwrap_err();
            assert_eq!(error, QueueError::RingOutside(addr));
        }
    }
}

#[test]
fn an_available_index_too_far_ahead_is_refused() {
    let rig = Rig::new(16);
    rig.put16(AVAIL + 2, 17);
    assert_eq!(rig.refusal(), QueueError::BadAvailIndex { avail: 17, seen: 0 });
    rig.put16(AVAIL + 2, u16::MAX);
    assert_eq!(rig.refusal(), QueueError::BadAvailIndex { avail: u16::MAX, seen: 0 });
}

#[test]
fn more_chains_than_the_queue_has_entries_are_never_in_hand() {
    let rig = Rig::new(4);
    (0..4).for_each(|i| rig.desc(DESC, i, (DATA, 16), 0, 0));
    let (mut queue, mut chain) = (rig.queue(), Chain::default());
    rig.offer(0, &[0, 1, 2, 3]);
    for _ in 0..4 {
        assert_eq!(queue.pop(&rig.memory, &mut chain), Ok(true));
    }
    queue.add_used(2, 0);
    // One came back, and two more are offered.
    rig.offer(4, &[2]);
    assert_eq!(queue.pop(&rig.memory, &mut chain), Ok(true));
    rig.offer(5, &[2]);
    let error = queue.pop(&rig.memory, &mut chain).unwrap_err();
    assert_eq!(error, QueueError::TooManyInHand { in_hand: 4, ahead: 1 });
}

#[test]
fn used_elements_go_where_the_driver_looks_also_past_the_wrap() {
    let rig = Rig::new(4);
    rig.put16(USED + 2, 0xfffe);
    let mut queue = rig.queue();
    for i in 0..4u16 {
        queue.add_used(i, 100 + u32::from(i));
    }
    assert_eq!(rig.get16(USED + 2), 0xfffe, "not shown before it is published");
    assert!(queue.publish());
    assert_eq!(rig.get16(USED + 2), 2);
    for i in 0..4u64 {
        let element = USED + 4 + 8 * ((0xfffe + i) % 4);
        assert_eq!((rig.get32(element), rig.get32(element + 4)), (i as u32, 100 + i as u32));
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let rig = Rig::new(16);
    let mut queue = rig.queue();
    assert!(!queue.publish(), "nothing was given back");
    rig.put16(AVAIL, 1);
    queue.add_used(0, 0);
    assert!(!queue.publish());
    assert_eq!(rig.get16(USED + 2), 1, "shown all the same");
    rig.put16(AVAIL, 0);
    queue.add_used(0, 0);
    assert!(queue.publish());
}

#[test]
fn fields_that_belong_to_what_was_not_negotiated_are_not_looked_at() {
    // With EVENT_IDX the flags mean nothing, without it the event index does.
    let mut rig = Rig::new(16);
    rig.put16(AVAIL, 0xfffe);
    rig.put16(AVAIL + 4 + 2 * 16, 0x7777);
    let mut queue = rig.queue();
    queue.add_used(0, 0);
    assert!(queue.publish(), "flags that are not defined change nothing");
    rig.config.event_idx = true;
    rig.put16(AVAIL, 1);
    rig.put16(AVAIL + 4 + 2 * 16, 1);
    let mut queue = rig.queue();
    queue.add_used(0, 0);
    assert!(queue.publish(), "the flag that asks for no call is another device's");
}

#[test]
fn flags_of_a_descriptor_that_are_not_defined_mean_nothing() {
    let rig = Rig::new(16);
    rig.offer(0, &[0]);
    rig.desc(DESC, 0, (DATA, 16), 0xfff8 | NEXT, 1);
    rig.desc(DESC, 1, (DATA + 16, 1), 0xfff8 | WRITE, 7);
    let mut chain = Chain::default();
    assert_eq!(rig.queue().pop(&rig.memory, &mut chain), Ok(true));
    assert_eq!(rig.segments(&chain.readable), [(DATA, 16)]);
    assert_eq!(rig.segments(&chain.writable), [(DATA + 16, 1)]);
}

#[test]
fn a_buffer_that_comes_before_notifications_are_on_is_reported() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(16);
        rig.config.event_idx = event_idx;
        rig.config.next_avail = 0xffff;
        rig.put16(AVAIL + 2, 0xffff);
        rig.desc(DESC, 5, (DATA, 1), 0, 0);
        let mut queue = rig.queue();
        queue.disable_notifications();
        assert_eq!(rig.get16(USED), u16::from(!event_idx), "the flag is without EVENT_IDX only");
        assert!(!queue.has_available() && !queue.enable_notifications());
        assert_eq!(rig.get16(USED), 0);
        if event_idx {
            assert_eq!(rig.get16(USED + 4 + 8 * 16), 0xffff, "a kick at the next buffer");
        }
        queue.disable_notifications();
        rig.offer(0xffff, &[5]);
        assert!(queue.enable_notifications(), "its kick may not have been sent");
        let mut chain = Chain::default();
        assert!(queue.pop(&rig.memory, &mut chain).unwrap());
        assert_eq!(chain.head, 5);
        assert!(!queue.pop(&rig.memory, &mut chain).unwrap());
        assert_eq!(queue.next_avail(), 0);
    }
}

#[test]
#[expect(unsafe_code, reason = "a driver on another thread needs atomics on the ring")]
fn no_kick_is_lost_between_a_driver_and_a_device_that_go_to_sleep() {
    const ROUNDS: u16 = 40_000;
    let mut rig = Rig::new(16);
    rig.config.event_idx = true;
    rig.desc(DESC, 0, (DATA, 1), 0, 0);
    let mut queue = rig.queue();
    let memory = &rig.memory;
    let word = |addr: u64| {
        let ptr = memory.translate(addr, 2).unwrap().cast::<u16>();
        // SAFETY: in the mapping, which outlives the scope; aligned; all
        // access is atomic.
        unsafe { AtomicU16::from_ptr(ptr) }
    };
    let (avail, used) = (word(AVAIL + 2), word(USED + 2));
    let avail_event = word(USED + 4 + 8 * 16);
    let (kick, kicked) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                // All 16 entries name descriptor 0; the ring must have room.
                while round.wrapping_sub(used.load(Ordering::Acquire)) >= 16 {
                    std::thread::yield_now();
                }
                avail.store(round + 1, Ordering::Release);
                fence(Ordering::SeqCst);
                if avail_event.load(Ordering::Relaxed) == round {
                    kick.send(()).unwrap();
                }
            }
        });
        let mut chain = Chain::default();
        let mut taken = 0;
        while taken < ROUNDS {
            while queue.pop(memory, &mut chain).unwrap() {
                taken += 1;
                queue.add_used(chain.head, 0);
                queue.publish();
            }
            if taken < ROUNDS && !queue.enable_notifications() {
                let result = kicked.recv_timeout(Duration::from_secs(20));
                assert!(result.is_ok(), "the kick after buffer {taken} was lost");
            }
        }
    });
}

#[test]
fn a_ring_is_found_again_in_a_new_memory_table() {
    let rig = Rig::new(16);
    rig.desc(DESC, 2, (DATA, 8), 0, 0);
    rig.offer(0, &[2]);
    let mut ring = Ring::new(&rig.config, &rig.memory).unwrap();
    let other = Rig::new(16);
    ring.move_to(&other.memory);
    assert!(!ring.has_available(), "the other memory's ring is empty");
    ring.move_to(&GuestMemory::default());
    assert_eq!(ring.away(), Some(QueueError::RingOutside(USER[0])));
    assert!(!ring.has_available() && ring.here().is_none());
    ring.move_to(&rig.memory);
    assert!(ring.has_available());
    let mut chain = Chain::default();
    assert_eq!(ring.here().unwrap().pop(&rig.memory, &mut chain), Ok(true));
}
