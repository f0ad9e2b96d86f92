//! Chains that break a rule: which are taken all the same, which fail as one
//! request, and which end the device (docs/guests.md has the table); and that what
//! a walk reads is counted and bounded.

use super::*;

/// Takes the one chain that the ring offers.
fn taken(rig: &Rig) -> Chain {
    let mut chain = Chain::default();
    assert_eq!(rig.queue().pop(&rig.memory, &mut chain), Ok(true));
    chain
}

/// A ring that offers descriptor 0.
fn offering() -> Rig {
    let rig = Rig::new(16);
    rig.offer(0, &[0]);
    rig
}

/// Lets descriptor 0 refer to a table of these entries, each followed by the next.
fn lay_table(rig: &Rig, entries: impl ExactSizeIterator<Item = (u64, u32, u16)>) {
    let count = entries.len() as u16;
    rig.desc(DESC, 0, (TABLE, u32::from(count) * 16), INDIRECT, 0);
    for (i, (addr, len, flags)) in (0..).zip(entries) {
        let next = if i + 1 < count { NEXT } else { 0 };
        rig.desc(TABLE, i, (addr, len), flags | next, i + 1);
    }
}

#[test]
fn a_descriptor_beyond_its_table_is_refused() {
    let rig = Rig::new(16);
    rig.offer(0, &[16]);
    assert_eq!(rig.refusal(), QueueError::BadDescriptor(16));
    rig.offer(0, &[0]);
    rig.desc(DESC, 0, (DATA, 1), NEXT, 20);
    assert_eq!(rig.refusal(), QueueError::BadDescriptor(20));
    rig.desc(DESC, 0, (TABLE, 32), INDIRECT, 0);
    rig.desc(TABLE, 0, (DATA, 1), NEXT, 2);
    assert_eq!(rig.refusal(), QueueError::BadDescriptor(2));
}

#[test]
fn a_chain_that_loops_is_refused() {
    let rig = Rig::new(16);
    rig.offer(0, &[3]);
    for len in [0, 1] {
        rig.desc(DESC, 3, (DATA, len), NEXT, 4);
        rig.desc(DESC, 4, (DATA, len), NEXT, 3);
        assert_eq!(rig.refusal(), QueueError::ChainTooLong);
        rig.desc(DESC, 4, (TABLE, 32), INDIRECT, 0);
        rig.desc(TABLE, 0, (DATA, len), NEXT, 1);
        rig.desc(TABLE, 1, (DATA, len), NEXT, 1);
        assert_eq!(rig.refusal(), QueueError::ChainTooLong, "in a table");
    }
}

#[test]
fn descriptors_of_any_length_and_any_place_are_counted_and_bounded() {
    let rig = offering();
    // Of a length of zero, in memory or not; of one byte; outside memory.
    for (addr, len) in [(DATA, 0), (u64::MAX, 0), (END + 1, 0), (DATA, 1), (END + 1, 1)] {
        let table = |count| (0..count).map(move |_| (addr, len, 0u16));
        lay_table(&rig, table(SEGMENTS_MAX));
        let chain = taken(&rig);
        assert_eq!(chain.descriptors() as usize, SEGMENTS_MAX + 1, "with the table's own");
        let kept = if (addr, len) == (DATA, 1) { SEGMENTS_MAX } else { 0 };
        assert_eq!(chain.segments(), kept, "{len} bytes at {addr:#x}");
        lay_table(&rig, table(SEGMENTS_MAX + 1));
        assert_eq!(rig.refusal(), QueueError::ChainTooLong, "{len} bytes at {addr:#x}");
    }
}

#[test]
fn those_before_an_indirect_table_and_those_in_it_are_bounded_together() {
    let rig = offering();
    lay_table(&rig, (0..SEGMENTS_MAX - 3).map(|_| (DATA, 0, 0)));
    let len = (SEGMENTS_MAX as u32 - 3) * 16;
    for direct in [3, 4] {
        for i in 0..direct {
            rig.desc(DESC, i, (DATA, 0), NEXT, i + 1);
        }
        rig.desc(DESC, direct, (TABLE, len), INDIRECT, 0);
        let mut chain = Chain::default();
        let popped = rig.queue().pop(&rig.memory, &mut chain);
        match direct {
            3 => assert_eq!(popped.map(|_| chain.descriptors() as usize), Ok(SEGMENTS_MAX + 1)),
            _ => assert_eq!(popped, Err(QueueError::ChainTooLong)),
        }
    }
}

#[test]
fn the_segments_that_buffers_come_to_are_bounded_as_well() {
    let rig = offering();
    // Each is two, since it spans two regions.
    lay_table(&rig, (0..SEGMENTS_MAX / 2).map(|_| (SEAM - 1, 2, 0)));
    assert_eq!(taken(&rig).segments(), SEGMENTS_MAX);
    for last in [(SEAM - 1, 2, WRITE), (DATA, 1, WRITE)] {
        const FULL: usize = SEGMENTS_MAX / 2;
        let buffers = (0..FULL + 1).map(|i| if i < FULL { (SEAM - 1, 2, 0) } else { last });
        lay_table(&rig, buffers);
        assert_eq!(rig.refusal(), QueueError::ChainTooLong);
    }
}

#[test]
fn an_indirect_table_that_can_be_meant_in_two_ways_or_is_none_is_refused() {
    let rig = offering();
    rig.desc(TABLE, 0, (DATA, 1), 0, 0);
    let cases = [
        ("empty", (TABLE, 0), INDIRECT),
        ("ragged", (TABLE, 24), INDIRECT),
        ("with a next one", (TABLE, 16), INDIRECT | NEXT),
    ];
    for (what, table, flags) in cases {
        rig.desc(DESC, 0, table, flags, 1);
        assert_eq!(rig.refusal(), QueueError::BadIndirect, "{what}");
    }
    rig.desc(DESC, 0, (TABLE, 16), INDIRECT, 0);
    rig.desc(TABLE, 0, (TABLE, 16), INDIRECT, 0);
    assert_eq!(rig.refusal(), QueueError::BadIndirect, "nested");
}

#[test]
fn a_chain_whose_table_or_status_is_outside_memory_is_not_taken() {
    let rig = offering();
    rig.desc(END - 16, 0, (DATA, 1), NEXT, 1);
    let half_outside = END - 16;
    for table in [half_outside, END, u64::MAX - 7] {
        rig.desc(DESC, 0, (table, 32), INDIRECT, 0);
        assert_eq!(rig.refusal(), QueueError::TableOutside(table));
    }
    rig.desc(DESC, 0, (END, 1), WRITE, 0);
    let mut queue = rig.queue();
    let mut chain = Chain::default();
    let before = queue.next_avail();
    for _ in 0..2 {
        assert_eq!(queue.pop(&rig.memory, &mut chain), Err(QueueError::BufferOutside(END)));
        assert!(queue.has_available() && queue.next_avail() == before);
    }
    rig.desc(DESC, 0, (DATA, 1), WRITE, 0);
    assert_eq!(queue.pop(&rig.memory, &mut chain), Ok(true));
}

#[test]
fn the_write_flag_of_an_indirect_table_means_nothing() {
    let rig = offering();
    rig.desc(TABLE, 0, (DATA, 1), 0, 0);
    rig.desc(DESC, 0, (TABLE, 16), INDIRECT | WRITE, 0);
    let chain = taken(&rig);
    assert_eq!((rig.segments(&chain.readable), chain.writable.len()), (vec![(DATA, 1)], 0));
}

#[test]
fn an_indirect_table_may_span_adjoining_regions() {
    let rig = offering();
    // Its entries end at the seam, or lie across it.
    for start in [SEAM - 32, SEAM - 24, SEAM - 17, SEAM - 1] {
        rig.desc(DESC, 0, (start, 4 * 16), INDIRECT, 0);
        for i in 0..4 {
            let more = if i < 3 { NEXT } else { WRITE };
            rig.desc(start, i, (DATA + 0x100 * u64::from(i), 8), more, i + 1);
        }
        let chain = taken(&rig);
        let readable = [(DATA, 8), (DATA + 0x100, 8), (DATA + 0x200, 8)];
        assert_eq!(rig.segments(&chain.readable), readable);
        assert_eq!(rig.segments(&chain.writable), [(DATA + 0x300, 8)]);
        assert_eq!(chain.descriptors(), 5);
    }
}

#[test]
fn buffers_of_no_bytes_are_left_out_wherever_they_are() {
    let rig = offering();
    rig.desc(DESC, 0, (u64::MAX, 0), NEXT, 1);
    rig.desc(DESC, 1, (DATA, 16), NEXT, 2);
    rig.desc(DESC, 2, (END, 0), NEXT | WRITE, 3);
    rig.desc(DESC, 3, (DATA + 16, 1), WRITE | NEXT, 4);
    rig.desc(DESC, 4, (0, 0), WRITE, 0);
    let chain = taken(&rig);
    assert_eq!(rig.segments(&chain.readable), [(DATA, 16)]);
    assert_eq!(rig.segments(&chain.writable), [(DATA + 16, 1)]);
    assert_eq!((chain.outside(), chain.descriptors()), (None, 5));
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_one_of_the_readable() {
    let rig = offering();
    rig.desc(DESC, 0, (DATA, 16), NEXT, 1);
    rig.desc(DESC, 1, (DATA + 16, 1), WRITE | NEXT, 2);
    rig.desc(DESC, 2, (DATA + 32, 512), 0, 0);
    let chain = taken(&rig);
    assert_eq!(rig.segments(&chain.readable), [(DATA, 16), (DATA + 32, 512)]);
    assert_eq!(rig.segments(&chain.writable), [(DATA + 16, 1)]);
}

const NOWHERE: [(u64, u32); 5] =
    [(END, 1), (END - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8), (0, u32::MAX)];

#[test]
fn a_buffer_outside_memory_is_noted_and_left_out() {
    let rig = offering();
    for (addr, len) in NOWHERE {
        for flags in [0, WRITE] {
            rig.desc(DESC, 0, (DATA, 16), NEXT, 1);
            rig.desc(DESC, 1, (addr, len), NEXT | flags, 2);
            rig.desc(DESC, 2, (END + 77, 1), NEXT, 3);
            rig.desc(DESC, 3, (DATA + 16, 1), WRITE, 0);
            let chain = taken(&rig);
            assert_eq!(chain.outside(), Some(addr), "{len} bytes");
            assert_eq!(rig.segments(&chain.readable), [(DATA, 16)]);
            assert_eq!(rig.segments(&chain.writable), [(DATA + 16, 1)]);
        }
    }
    rig.desc(DESC, 0, (DATA, 16), 0, 0);
    assert_eq!(taken(&rig).outside(), None, "the next chain has nothing of it");
}

#[test]
fn a_status_outside_memory_is_refused() {
    let rig = offering();
    for (addr, len) in NOWHERE {
        rig.desc(DESC, 0, (addr, len), WRITE, 0);
        assert_eq!(rig.refusal(), QueueError::BufferOutside(addr), "{len} bytes");
        rig.desc(DESC, 0, (DATA, 8), WRITE | NEXT, 1);
        rig.desc(DESC, 1, (addr, len), WRITE | NEXT, 2);
        rig.desc(DESC, 2, (DATA, 0), WRITE, 0);
        assert_eq!(rig.refusal(), QueueError::BufferOutside(addr), "{len} bytes, the last");
    }
    // Whose place nobody has named is not outside.
    rig.desc(DESC, 0, (END, 1), 0, 0);
    assert_eq!(taken(&rig).outside(), Some(END));
}

#[test]
fn a_buffer_that_spans_adjoining_regions_is_split() {
    let rig = Rig::new(16);
    rig.offer(0, &[0]);
    rig.desc(DESC, 0, (SEAM - 100, 300), WRITE, 0);
    let mut chain = Chain::default();
    assert!(rig.queue().pop(&rig.memory, &mut chain).unwrap());
    assert_eq!(rig.segments(&chain.writable), [(SEAM - 100, 100), (SEAM, 200)]);
    assert!(chain.readable.is_empty());
}
