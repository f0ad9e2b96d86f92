//! An arbitrary inflight region under a ring on arbitrary memory.
//!
//! Input: [`Shape`] of the region, records of its content, the ring's used
//! index, records of guest memory, then steps: pop, give back, publish, die.
//! After a death (the queue is made anew on the same memory) exactly the chains
//! that were not given back come again, once each.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use leafblk::guest_memory::Account;
use leafblk::virtqueue::{Chain, InflightRegion, RegionLayout, RingConfig, SplitQueue};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::Seeds;
use super::input::{Input, Output};
use super::ring::{AVAIL_AT, DESC_AT, Guest, USED_AT, USER, descriptor, record};

/// What a frontend says of a region.
struct Shape {
    file_len: u16,
    offset: u16,
    queues: u16,
    queue_size: u16,
    /// The queue that uses it.
    index: u16,
    size_log: u8,
}

fn region_file(input: &mut Input<'_>, shape: &Shape) -> File {
    let fd = memfd_create("inflight", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, u64::from(shape.file_len)).expect("64 KiB");
    let file = File::from(fd);
    for _ in 0..input.u8() {
        let (offset, len) = (input.u16(), input.u8());
        let bytes = input.bytes(usize::from(len));
        let room = u64::from(shape.file_len).saturating_sub(u64::from(offset));
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).expect("64 KiB"))];
        file.write_all_at(bytes, u64::from(offset)).expect("inside");
    }
    file
}

/// Runs one region's life.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = Shape {
        file_len: input.u16(),
        offset: input.u16(),
        queues: input.u16(),
        queue_size: input.u16(),
        index: input.u16(),
        size_log: input.u8() % 11,
    };
    let file = region_file(&mut input, &shape);
    let guest = Guest::new(false);
    for _ in 0..input.u8() {
        let (offset, len) = (input.u16(), input.u8());
        guest.write(offset, input.bytes(usize::from(len)));
    }
    let offset = u64::from(shape.offset);
    let (queues, size) = (shape.queues, shape.queue_size);
    // What there is of the file is what the frontend says that the region has.
    let len = u64::from(shape.file_len).saturating_sub(offset);
    let Some(layout) = RegionLayout::of_len(len, queues, size) else { return };
    let Ok(region) = InflightRegion::map(file, offset, layout, &Account::new()) else {
        return;
    };
    let life = Life { region: Arc::new(region), guest, shape };
    let mut expected: Option<Vec<u16>> = None;
    while !input.is_empty() {
        match life.until_death(&mut input, expected.take()) {
            Some(left) => expected = Some(left),
            None => return,
        }
    }
}

struct Life {
    region: Arc<InflightRegion>,
    guest: Guest,
    shape: Shape,
}

impl Life {
    /// One backend's life; what it leaves in flight, or `None` where it ended
    /// with an error. `expected`: what the one before has left.
    fn until_death(&self, input: &mut Input<'_>, expected: Option<Vec<u16>>) -> Option<Vec<u16>> {
        let config = RingConfig {
            size: 1 << self.shape.size_log,
            desc_user_addr: USER + u64::from(DESC_AT),
            avail_user_addr: USER + u64::from(AVAIL_AT),
            used_user_addr: USER + u64::from(USED_AT),
            event_idx: false,
            next_avail: 0,
        };
        let mut queue = SplitQueue::new(&config, &self.guest.memory).ok()?;
        let again = queue.track(Arc::clone(&self.region), self.shape.index).ok()?.unwrap_or(0);
        assert!(again <= config.size, "more in flight than there are chains");
        let mut chain = Chain::default();
        let mut held = Vec::new();
        for _ in 0..again {
            assert!(queue.has_available(), "a chain that is resubmitted is available");
            // A chain that is broken ends the device, whoever popped it.
            if !queue.pop(&self.guest.memory, &mut chain).ok()? {
                panic!("fewer chains come again than were said to");
            }
            self.guest.check(&chain);
            held.push(chain.head);
        }
        let unique: HashSet<u16> = held.iter().copied().collect();
        assert_eq!(unique.len(), held.len(), "a chain is resubmitted twice");
        if let Some(expected) = expected {
            // In order too, unless the region came with orders that overflow.
            let expected: HashSet<u16> = expected.into_iter().collect();
            assert_eq!(unique, expected, "what was in flight comes again");
        }
        self.steps(input, &mut queue, held)
    }

    /// Serves until it dies, with everything published.
    fn steps(
        &self,
        input: &mut Input<'_>,
        queue: &mut SplitQueue,
        mut held: Vec<u16>,
    ) -> Option<Vec<u16>> {
        let mut chain = Chain::default();
        let mut unpublished = Vec::new();
        for _ in 0..64 {
            match input.u8() % 8 {
                0..=3 => {
                    if !queue.pop(&self.guest.memory, &mut chain).ok()? {
                        continue;
                    }
                    self.guest.check(&chain);
                    if held.contains(&chain.head) || unpublished.contains(&chain.head) {
                        // A driver that offers a chain twice may lose one.
                        return None;
                    }
                    held.push(chain.head);
                }
                4 | 5 if !held.is_empty() => {
                    let at = usize::from(input.u8()) % held.len();
                    let head = held.remove(at);
                    queue.add_used(head, 1);
                    unpublished.push(head);
                }
                6 => {
                    queue.publish();
                    unpublished.clear();
                }
                _ => break,
            }
        }
        queue.publish();
        Some(held)
    }
}

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    // Eight chains of a status byte each, all of them available.
    let chains: Vec<u8> = (0..8).flat_map(|head| descriptor(0x4000 + head, 1, 2, 0)).collect();
    let mut avail = Output::default().u16(0).u16(8);
    for head in 0..8 {
        avail = avail.u16(head);
    }
    let memory = [record(DESC_AT, &chains), record(AVAIL_AT, &avail.0)];
    let begin_with = |file_len: u16, queue_size: u16, records: &[Vec<u8>]| {
        Output::default()
            .u16(file_len)
            .u16(0)
            .u16(1)
            .u16(queue_size)
            .u16(0)
            .u8(3)
            .u8(u8::try_from(records.len()).expect("few"))
            .bytes(&records.concat())
            .u8(2)
            .bytes(&memory.concat())
    };
    let begin = |records: &[Vec<u8>]| begin_with(0x1000, 8, records);
    let header_of = |states: u16, last: u16, used: u16| {
        record(0, &Output::default().u64(0).u16(1).u16(states).u16(last).u16(used).0)
    };
    let header = |last, used| header_of(8, last, used);
    let state = |head: u32, order: u64| {
        let bytes = Output::default().u64(1).u64(order).0;
        record(16 + 16 * head, &bytes)
    };
    let serve: &[u8] = &[0, 0, 0, 4, 1, 6, 0, 4, 0, 7, 0, 0, 4, 0, 6, 7, 0, 0, 0, 0, 7, 7];
    vec![
        ("new", begin(&[]).bytes(serve).0),
        ("left", begin(&[header(0, 0), state(2, 5), state(0, 4)]).bytes(serve).0),
        ("batch", begin(&[header(1, u16::MAX), state(1, 0), state(3, 1)]).bytes(serve).0),
        // Four states in the part, the others in the extension, which begins at 128.
        ("extended", begin_with(0x5000, 4, &[]).bytes(serve).0),
        (
            "extended-left",
            begin_with(0x5000, 4, &[header_of(4, 0, 0), state(2, 5), record(128, &[1])])
                .bytes(serve)
                .0,
        ),
        ("version", begin(&[record(8, &[9])]).bytes(serve).0),
    ]
}
