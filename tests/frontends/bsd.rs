//! Disks as the drivers of FreeBSD, NetBSD and OpenBSD use them, by their sources: the
//! features that they take, a ring in one piece as legacy devices have it, chains from a
//! list of free descriptors, requests by the dozen, and polling where they poll.

use std::collections::VecDeque;
use std::time::Instant;

use crate::common::frontend::*;
use crate::common::scene::{ROOT_SECTORS, root_content};
use crate::serve;

const SEG_MAX: u64 = 1 << 2;
const BLK_SIZE: u64 = 1 << 6;
const TOPOLOGY: u64 = 1 << 10;
const NO_INTERRUPT: u16 = 1;

const PAGE: usize = 4096;
/// Requests in flight at a time, each of up to 9 segments of a page.
const REQUESTS: usize = 24;
/// Where indirect tables are.
const TABLES: u64 = RAM_START + 0xa0000;
const TABLE_ROOM: u64 = 0x200;

struct Kind {
    name: &'static str,
    features: u64,
    size: u16,
    /// Whether a descriptor that comes back is the next one taken; else it is the last.
    lifo: bool,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "FreeBSD, a modern device",
        features: VERSION_1
            | SEG_MAX
            | BLK_SIZE
            | F_FLUSH
            | TOPOLOGY
            | F_CONFIG_WCE
            | F_DISCARD
            | INDIRECT,
        size: 256,
        lifo: true,
    },
    Kind {
        name: "FreeBSD, a legacy device",
        features: SEG_MAX | BLK_SIZE | F_FLUSH | TOPOLOGY | F_CONFIG_WCE | F_DISCARD | INDIRECT,
        size: 128,
        lifo: true,
    },
    Kind {
        name: "NetBSD",
        features: SEG_MAX | BLK_SIZE | F_FLUSH | TOPOLOGY | F_CONFIG_WCE | F_DISCARD | INDIRECT,
        size: 1024,
        lifo: false,
    },
    Kind {
        name: "NetBSD without indirect descriptors",
        features: SEG_MAX | BLK_SIZE | F_FLUSH | TOPOLOGY | F_CONFIG_WCE | F_DISCARD,
        size: 512,
        lifo: false,
    },
    Kind {
        name: "OpenBSD",
        features: VERSION_1 | SEG_MAX | F_FLUSH | INDIRECT,
        size: 128,
        lifo: false,
    },
];

/// The driver's side of queue 0.
struct Driver<'a> {
    kind: &'a Kind,
    vmm: Vmm,
    free: VecDeque<u16>,
    /// The descriptors of each head's chain.
    chains: Vec<Vec<u16>>,
}

impl<'a> Driver<'a> {
    fn new(socket: &std::path::Path, kind: &'a Kind) -> Self {
        let mut vmm = Vmm::negotiated(socket, kind.features);
        vmm.share_ram();
        let mut ring = Ring::new(0, kind.size);
        // One piece: the available ring right behind the table, the used ring on a page.
        ring.avail = ring.desc + 16 * u64::from(kind.size);
        ring.used = (ring.avail + 4 + 2 * u64::from(kind.size)).next_multiple_of(PAGE as u64);
        vmm.start_ring(ring);
        let chains = vec![Vec::new(); usize::from(kind.size)];
        Self { kind, vmm, free: (0..kind.size).collect(), chains }
    }

    /// A request whose header and status lie side by side; `data` in segments.
    fn submit(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u16 {
        let head = self.free[0];
        let header = HEADERS + 32 * u64::from(head);
        let mut bytes = [0; 17];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        // FreeBSD's priority.
        bytes[4] = 1;
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        bytes[16] = NO_STATUS;
        self.vmm.write(header, &bytes);
        let to_guest = matches!(kind, T_IN | T_GET_ID);
        let mut buffers = vec![(header, 16, false)];
        buffers.extend(data.iter().map(|&(addr, len)| (addr, len, to_guest)));
        buffers.push((header + 16, 1, true));
        let table = self.vmm.rings[0].desc;
        if self.kind.features & INDIRECT != 0 {
            let at = TABLES + TABLE_ROOM * u64::from(head);
            assert!(buffers.len() as u64 * 16 <= TABLE_ROOM);
            self.vmm.describe_chain(at, 0, &buffers);
            self.vmm.describe(table, head, desc(at, buffers.len() as u32 * 16, TABLE, 0));
            self.chains[usize::from(head)] = vec![head];
        } else {
            let chain: Vec<u16> = self.free.iter().copied().take(buffers.len()).collect();
            for (i, &(addr, len, writable)) in buffers.iter().enumerate() {
                let next = chain.get(i + 1).copied();
                let flags = next.map_or(0, |_| NEXT) | if writable { WRITE } else { 0 };
                self.vmm.describe(table, chain[i], desc(addr, len, flags, next.unwrap_or(0)));
            }
            self.chains[usize::from(head)] = chain;
        }
        self.free.drain(..self.chains[usize::from(head)].len());
        self.vmm.offer(0, head);
        head
    }

    /// One request is done: its head, its status, and how many bytes were written.
    fn complete(&mut self, (head, len): (u32, u32)) -> (u16, u8, u32) {
        let head = head as u16;
        for free in std::mem::take(&mut self.chains[usize::from(head)]).into_iter().rev() {
            match self.kind.lifo {
                true => self.free.push_front(free),
                false => self.free.push_back(free),
            }
        }
        (head, self.vmm.read(HEADERS + 32 * u64::from(head) + 16, 1)[0], len)
    }

    /// Whether the device may call.
    fn calls(&self, wanted: bool) {
        let flags = if wanted { 0 } else { NO_INTERRUPT };
        self.vmm.write(self.vmm.rings[0].avail, &flags.to_le_bytes());
    }

    /// A request that is polled for, as at the start and in a panic.
    fn poll(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        self.calls(false);
        let submitted = self.submit(kind, sector, data);
        self.vmm.kick(0);
        let begun = Instant::now();
        let entry = loop {
            if let Some(entry) = self.vmm.try_used(0) {
                break entry;
            }
            assert!(begun.elapsed() < PATIENCE, "the device answers");
            std::thread::yield_now();
        };
        let (head, status, len) = self.complete(entry);
        assert_eq!(head, submitted);
        self.calls(true);
        (status, len)
    }

    /// Reads or writes that are all in flight before the first is looked at: each is
    /// (sector, bytes), its bytes at the place of its number in the data.
    fn run(&mut self, kind: u32, requests: &[(u64, usize)]) {
        let mut waiting = std::collections::HashMap::new();
        for (i, &(sector, len)) in requests.iter().enumerate() {
            waiting.insert(self.submit(kind, sector, &pages(i, len)), len as u32);
        }
        self.vmm.kick(0);
        while !waiting.is_empty() {
            let entry = self.vmm.used(0);
            let (head, status, written) = self.complete(entry);
            let len = waiting.remove(&head).expect("each comes once");
            assert_eq!((status, written), (OK, if kind == T_IN { len + 1 } else { 1 }));
        }
    }
}

/// Where request `i` has its data: a buffer that begins within a page.
fn place(i: usize) -> u64 {
    DATA + (i * 16 * PAGE) as u64 + 512
}

/// That buffer, cut where its pages end.
fn pages(i: usize, len: usize) -> Vec<(u64, u32)> {
    let (mut at, end) = (place(i), place(i) + len as u64);
    let mut segments = Vec::new();
    while at < end {
        let next = end.min((at + 1).next_multiple_of(PAGE as u64));
        segments.push((at, (next - at) as u32));
        at = next;
    }
    segments
}

#[test]
fn the_drivers_of_the_bsds_find_what_they_wrote() {
    for kind in &KINDS {
        let served = serve("web1");
        let mut driver = Driver::new(&served.socket, kind);
        let mut disk = root_content(0, ROOT_SECTORS);
        if kind.name != "OpenBSD" {
            assert_eq!(driver.poll(T_GET_ID, 0, &[(DATA, 20)]), (OK, 21), "{}", kind.name);
            assert_eq!(driver.vmm.read(DATA, 20), *b"web1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        }
        // A fixed sequence of any old numbers.
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for round in 0..12 {
            // Apart from each other, as nobody says which of two is first.
            let region = ROOT_SECTORS / REQUESTS as u64;
            let requests: Vec<(u64, usize)> = (0..REQUESTS as u64)
                .map(|i| (i * region + next(region - 64), 512 * (1 + next(64) as usize)))
                .collect();
            let range =
                |(sector, len): (u64, usize)| sector as usize * 512..sector as usize * 512 + len;
            if round % 2 == 0 {
                for (i, &request) in requests.iter().enumerate() {
                    let bytes: Vec<u8> = (0..request.1).map(|_| next(256) as u8).collect();
                    driver.vmm.write(place(i), &bytes);
                    disk[range(request)].copy_from_slice(&bytes);
                }
                driver.run(T_OUT, &requests);
                assert_eq!(driver.poll(T_FLUSH, 0, &[]), (OK, 1), "{}", kind.name);
            } else {
                driver.run(T_IN, &requests);
                for (i, &request) in requests.iter().enumerate() {
                    let found = driver.vmm.read(place(i), request.1);
                    assert!(found == disk[range(request)], "{}: {request:?}", kind.name);
                }
            }
            if kind.features & F_DISCARD != 0 {
                // The header says where, too.
                let (sector, count) = (next(ROOT_SECTORS - 40), 1 + next(40) as u32);
                let mut segment = sector.to_le_bytes().to_vec();
                segment.extend(u64::from(count).to_le_bytes());
                driver.vmm.write(DATA, &segment);
                assert_eq!(driver.poll(T_DISCARD, sector, &[(DATA, 16)]), (OK, 1), "{}", kind.name);
                disk[range((sector, count as usize * 512))].fill(0);
            }
        }
        for sector in (0..ROOT_SECTORS).step_by(64) {
            assert_eq!(driver.poll(T_IN, sector, &pages(0, 64 * 512)), (OK, 64 * 512 + 1));
            let found = driver.vmm.read(place(0), 64 * 512);
            assert!(found == disk[sector as usize * 512..][..64 * 512], "{}: {sector}", kind.name);
        }
        drop(driver);
        served.daemon.stop();
    }
}
