//! The split ring on arbitrary memory at arbitrary addresses, while the memory
//! changes.
//!
//! Input: see [`Plan`], then steps until it ends. A step changes memory, pops,
//! gives back, publishes, switches notifications, or sets another memory table.
//! With bit 4 of the flags another thread scribbles over the memory all the
//! while, so that what is read twice differs.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use leafblk::guest_memory::{Account, GuestMemory, RegionSpec};
use leafblk::virtqueue::{
    Chain, QUEUE_SIZE_MAX, QueueError, Ring, RingConfig, SEGMENTS_MAX, SplitQueue,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::Seeds;
use super::input::{Input, Output};

/// Guest memory: this much at [`GUEST`], in one region or in two that adjoin in
/// guest addresses only.
pub(crate) const LEN: u64 = 64 << 10;
pub(crate) const GUEST: u64 = 0x1_0000;
/// The same in the frontend's addresses.
pub(crate) const USER: u64 = 0x7f00_0000_0000;
/// Where the second region is in the frontend's addresses.
const USER_SECOND: u64 = USER + (1 << 30);

const EVENT_IDX: u8 = 1;
const TWO_REGIONS: u8 = 4;
const ANY_SIZE: u8 = 8;
const SCRIBBLED: u8 = 16;

/// Guest memory and the file behind it.
pub(crate) struct Guest {
    pub(crate) file: File,
    pub(crate) memory: GuestMemory,
    two: bool,
}

impl Guest {
    pub(crate) fn new(two: bool) -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, LEN).expect("64 KiB");
        let file = File::from(fd);
        let memory = Self::map(&file, two);
        Self { file, memory, two }
    }

    fn map(file: &File, two: bool) -> GuestMemory {
        let half = if two { LEN / 2 } else { LEN };
        let region = |start: u64, user_addr: u64| RegionSpec {
            guest_addr: GUEST + start,
            size: half,
            user_addr,
            mmap_offset: start,
            file: file.try_clone().expect("a descriptor"),
        };
        let mut regions = vec![region(0, USER)];
        if two {
            regions.push(region(half, USER_SECOND));
        }
        GuestMemory::map(regions, &Account::new()).expect("regions that are right")
    }

    /// A frontend address: below [`LEN`] in the first region, or in the second.
    fn user(&self, offset: u32) -> u64 {
        let offset = u64::from(offset);
        if self.two && (LEN / 2..LEN).contains(&offset) {
            USER_SECOND + offset - LEN / 2
        } else {
            USER.wrapping_add(offset)
        }
    }

    pub(crate) fn write(&self, offset: u16, bytes: &[u8]) {
        let room = usize::try_from(LEN - u64::from(offset)).expect("64 KiB");
        let bytes = &bytes[..bytes.len().min(room)];
        self.file.write_all_at(bytes, u64::from(offset)).expect("inside");
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(LEN).expect("64 KiB")];
        self.file.read_exact_at(&mut bytes, 0).expect("inside");
        bytes
    }

    /// Panics unless every buffer lies in the memory, and asks for each byte.
    pub(crate) fn check(&self, chain: &Chain) {
        let half = if self.two { LEN / 2 } else { LEN };
        let starts = [GUEST, GUEST + half].map(|at| self.memory.translate(at, half));
        for list in [&chain.readable, &chain.writable] {
            assert!(list.len() <= SEGMENTS_MAX);
            for buf in list {
                let inside = starts.iter().flatten().any(|start| {
                    let offset = (buf.ptr() as usize).wrapping_sub(*start as usize) as u64;
                    offset <= half && buf.len() as u64 <= half - offset
                });
                assert!(inside || buf.len() == 0, "a buffer outside memory: {buf:?}");
            }
        }
    }
}

/// The queue under test and what is known of it.
struct Plan {
    guest: Guest,
    ring: Ring,
    config: RingConfig,
    /// Heads of chains that were popped and not given back.
    held: VecDeque<u16>,
    /// The used index at the start, and what was given back since.
    used_start: u16,
    given_back: Vec<(u16, u32)>,
    /// The used ring was changed from outside: its content proves nothing.
    used_changed: bool,
    scribbled: bool,
    /// Mappings that were replaced.
    old: Vec<GuestMemory>,
}

/// Runs one queue's life.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let guest = Guest::new(flags & TWO_REGIONS != 0);
    let size = input.u16();
    let size = if flags & ANY_SIZE != 0 { size } else { 1 << (size % 11) };
    let config = RingConfig {
        size,
        desc_user_addr: guest.user(input.u32()),
        avail_user_addr: guest.user(input.u32()),
        used_user_addr: guest.user(input.u32()),
        event_idx: flags & EVENT_IDX != 0,
        next_avail: input.u16(),
    };
    for _ in 0..input.u8() {
        let (offset, len) = (input.u16(), input.u8());
        guest.write(offset, input.bytes(usize::from(len)));
    }
    let ring = match Ring::new(&config, &guest.memory) {
        Ok(ring) => ring,
        Err(QueueError::BadSize(_)) => {
            assert!(size == 0 || size > QUEUE_SIZE_MAX || !size.is_power_of_two());
            return;
        }
        Err(error) => {
            assert!(matches!(error, QueueError::RingOutside(_)), "{error}");
            return;
        }
    };
    let scribbled = flags & SCRIBBLED != 0;
    let mut plan = Plan {
        used_start: 0,
        guest,
        ring,
        config,
        held: VecDeque::new(),
        given_back: Vec::new(),
        used_changed: scribbled,
        scribbled,
        old: Vec::new(),
    };
    plan.used_start = plan.used_index();
    let before = plan.guest.content();
    if scribbled {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let memory = &plan.guest.memory;
            // Not in `plan`, which the steps borrow.
            let (start, words) = (memory.translate(GUEST, 8).map(|p| p as usize), LEN / 16);
            let stopped = &stop;
            let scribbler = scope.spawn(move || scribble(start, words, stopped));
            plan.steps(&mut input);
            stop.store(true, Ordering::Relaxed);
            // The scope waits for its end, this for its memory too: a thread that
            // is still going looks like a leak.
            scribbler.join().expect("it only writes");
        });
    } else {
        let expected = plan.steps_on(&mut input, before);
        plan.check_memory(&expected);
    }
}

/// Changes words of the memory until it is told to stop.
fn scribble(start: Option<usize>, words: u64, stop: &AtomicBool) {
    let Some(start) = start else { return };
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    while !stop.load(Ordering::Relaxed) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let at = start + usize::try_from(seed % words).expect("small") * 8;
        // SAFETY: an aligned word of a mapping that outlives the thread; all
        // sides use atomics or volatile accesses.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }
            .fetch_xor(seed & seed >> 9, Ordering::Relaxed);
    }
}

impl Plan {
    fn steps(&mut self, input: &mut Input<'_>) {
        let nothing = Vec::new();
        self.steps_on(input, nothing);
    }

    /// Runs all steps; `expected` follows what they change from outside.
    fn steps_on(&mut self, input: &mut Input<'_>, mut expected: Vec<u8>) -> Vec<u8> {
        let mut chain = Chain::default();
        let mut steps = 0;
        while !input.is_empty() && steps < 256 {
            steps += 1;
            match input.u8() % 8 {
                0 | 1 => {
                    let (offset, len) = (input.u16(), input.u8());
                    let bytes = input.bytes(usize::from(len));
                    self.change(offset, bytes, &mut expected);
                }
                2 | 3 => {
                    if !self.pop(&mut chain) {
                        return expected;
                    }
                }
                4 => self.give_back(input.u8(), input.u32()),
                5 => self.publish(),
                6 => {
                    self.queue().disable_notifications();
                    if input.u8() & 1 == 0 {
                        self.queue().enable_notifications();
                    }
                }
                _ => {
                    // The same memory, mapped anew after it was away.
                    let memory = Guest::map(&self.guest.file, self.guest.two);
                    self.ring.move_to(&GuestMemory::default());
                    assert!(self.ring.here().is_none() && !self.ring.has_available());
                    self.ring.move_to(&memory);
                    // The scribbler still has the old one.
                    self.old.push(std::mem::replace(&mut self.guest.memory, memory));
                }
            }
        }
        expected
    }

    fn change(&mut self, offset: u16, bytes: &[u8], expected: &mut [u8]) {
        self.guest.write(offset, bytes);
        let at = usize::from(offset);
        let end = (at + bytes.len()).min(expected.len());
        if at < end {
            expected[at..end].copy_from_slice(&bytes[..end - at]);
        }
        let (used, len) = self.used_area();
        self.used_changed |= at < used + len && used < at + bytes.len();
    }

    /// The used ring, as offset into the file and length.
    fn used_area(&self) -> (usize, usize) {
        let address = self.config.used_user_addr;
        let offset = if address >= USER_SECOND && self.guest.two {
            address - USER_SECOND + LEN / 2
        } else {
            address - USER
        };
        (usize::try_from(offset).expect("inside"), 6 + 8 * usize::from(self.config.size))
    }

    fn used_index(&self) -> u16 {
        let (used, _) = self.used_area();
        let mut bytes = [0; 2];
        self.guest.file.read_exact_at(&mut bytes, used as u64 + 2).expect("inside");
        u16::from_le_bytes(bytes)
    }

    fn queue(&mut self) -> &mut SplitQueue {
        self.ring.here().expect("the ring is where it was")
    }

    /// False where the queue is broken.
    fn pop(&mut self, chain: &mut Chain) -> bool {
        let before = self.ring.next_avail();
        let has = self.ring.has_available();
        let queue = self.ring.here().expect("the ring is where it was");
        match queue.pop(&self.guest.memory, chain) {
            Ok(true) => {
                assert!(has || self.scribbled);
                assert_eq!(self.ring.next_avail(), before.wrapping_add(1));
                assert!(chain.head < self.config.size);
                self.guest.check(chain);
                self.held.push_back(chain.head);
                true
            }
            Ok(false) => {
                assert!(!has || self.scribbled);
                assert_eq!(self.ring.next_avail(), before);
                true
            }
            Err(_) => false,
        }
    }

    /// A chain is given back once: it leaves `held`.
    fn give_back(&mut self, which: u8, len: u32) {
        if self.held.is_empty() {
            return;
        }
        let at = usize::from(which) % self.held.len();
        let Some(head) = self.held.remove(at) else { return };
        self.queue().add_used(head, len);
        self.given_back.push((head, len));
        if !self.used_changed {
            let entry = usize::from(self.config.size - 1)
                & (usize::from(self.used_start) + self.given_back.len() - 1);
            let (used, _) = self.used_area();
            let mut bytes = [0; 8];
            self.guest.file.read_exact_at(&mut bytes, (used + 4 + 8 * entry) as u64).expect("in");
            let element = Output::default().u32(u32::from(head)).u32(len).0;
            assert_eq!(bytes[..], element[..], "used element {entry}");
        }
    }

    fn publish(&mut self) {
        self.queue().publish();
        let count = u16::try_from(self.given_back.len()).expect("256 steps");
        if !self.used_changed {
            assert_eq!(self.used_index(), self.used_start.wrapping_add(count));
        }
        assert!(!self.queue().publish(), "nothing is new");
    }

    /// Nothing but the used ring was written.
    fn check_memory(&self, expected: &[u8]) {
        let (used, len) = self.used_area();
        let now = self.guest.content();
        assert!(now[..used] == expected[..used], "written before the used ring");
        assert!(now[used + len..] == expected[used + len..], "written behind the used ring");
    }
}

/// Where the seeds' rings are.
pub(crate) const DESC_AT: u32 = 0;
pub(crate) const AVAIL_AT: u32 = 0x1000;
pub(crate) const USED_AT: u32 = 0x2000;

pub(crate) fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    Output::default().u64(GUEST + addr).u32(len).u16(flags).u16(next).0
}

pub(crate) fn record(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let offset = u16::try_from(offset).expect("64 KiB");
    Output::default().u16(offset).u8(u8::try_from(bytes.len()).expect("short")).bytes(bytes).0
}

fn begin(flags: u8, size_log: u16, records: &[Vec<u8>]) -> Output {
    let count = u8::try_from(records.len()).expect("few");
    Output::default()
        .u8(flags)
        .u16(size_log)
        .u32(DESC_AT)
        .u32(AVAIL_AT)
        .u32(USED_AT)
        .u16(0)
        .u8(count)
        .bytes(&records.concat())
}

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    let avail = |index: u16, heads: &[u16]| {
        let mut out = Output::default().u16(0).u16(index);
        for head in heads {
            out = out.u16(*head);
        }
        record(AVAIL_AT, &out.0)
    };
    let chain =
        [descriptor(0x4000, 16, 1, 1), descriptor(0x5000, 4096, 3, 2), descriptor(0x6000, 1, 2, 0)]
            .concat();
    let table = record(0x7000, &chain);
    let direct = [record(DESC_AT, &chain), avail(2, &[0, 0])];
    let indirect = [record(DESC_AT, &descriptor(0x7000, 48, 4, 0)), table, avail(1, &[0])];
    let two = [record(DESC_AT, &descriptor(LEN / 2 - 100, 200, 2, 0)), avail(1, &[0])];
    let looped = [record(DESC_AT, &descriptor(0x4000, 16, 1, 0)), avail(1, &[0])];
    let outside = [
        descriptor(0x4000, 16, 1, 1),
        descriptor(u64::MAX - GUEST, 9, 3, 2),
        descriptor(LEN, 0, 1, 3),
        descriptor(0x6000, 1, 2, 0),
    ];
    let outside = [record(DESC_AT, &outside.concat()), avail(1, &[0])];
    let serve: &[u8] = &[2, 2, 4, 0, 1, 0, 0, 0, 4, 0, 1, 16, 0, 0, 5, 6, 0, 7, 2, 6, 1];
    let more = [record(AVAIL_AT + 2, &3u16.to_le_bytes())].concat();
    vec![
        ("direct", begin(0, 4, &direct).bytes(serve).u8(0).bytes(&more).u8(2).0),
        ("event-idx", begin(EVENT_IDX, 4, &direct).bytes(serve).0),
        ("indirect", begin(EVENT_IDX, 7, &indirect).bytes(serve).0),
        ("two-regions", begin(TWO_REGIONS, 3, &two).bytes(serve).0),
        ("outside", begin(0, 4, &outside).bytes(serve).0),
        ("loop", begin(0, 3, &looped).bytes(serve).0),
        ("any-size", begin(ANY_SIZE, 256, &direct).bytes(serve).0),
        ("scribbled", begin(SCRIBBLED, 4, &indirect).bytes(&serve.repeat(4)).0),
    ]
}
