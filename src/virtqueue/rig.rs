//! A guest's memory with a ring in it, as tests lay it out.
#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Chain, GuestBuf, QueueError, RingConfig, SEGMENTS_MAX, SplitQueue};
use crate::guest_memory::{Account, GuestMemory, RegionSpec};

pub(crate) const DESC: u64 = 0;
pub(crate) const AVAIL: u64 = 0x8000;
pub(crate) const USED: u64 = 0xa000;
pub(crate) const TABLE: u64 = 0x1_0000;
pub(crate) const DATA: u64 = 0x2_8000;
/// Two regions adjoin here in guest addresses, and nowhere else.
pub(crate) const SEAM: u64 = 0x3_0000;
pub(crate) const END: u64 = 0x4_0000;
pub(crate) const USER: [u64; 2] = [0x7000_0000_0000, 0x6000_0000_0000];

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A guest's memory (file offsets are guest addresses) with a ring in it.
pub(crate) struct Rig {
    pub(crate) file: File,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) config: RingConfig,
}

/// Memory that no guest has yet: 4 KiB beyond all of a rig's.
pub(crate) fn spare() -> RegionSpec {
    let file = File::from(memfd_create("spare", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(0x1000).unwrap();
    RegionSpec { guest_addr: END, size: 0x1000, user_addr: 1 << 40, mmap_offset: 0, file }
}

pub(crate) type Segment = (u64, u64);

impl Rig {
    pub(crate) fn new(size: u16) -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, END).unwrap();
        let file = File::from(fd);
        let region = |start: u64, end: u64, user_addr| RegionSpec {
            guest_addr: start,
            size: end - start,
            user_addr,
            mmap_offset: start,
            file: file.try_clone().unwrap(),
        };
        let regions = vec![region(0, SEAM, USER[0]), region(SEAM, END, USER[1])];
        let memory = Arc::new(GuestMemory::map(regions, &Account::new()).unwrap());
        let config = RingConfig {
            size,
            desc_user_addr: USER[0] + DESC,
            avail_user_addr: USER[0] + AVAIL,
            used_user_addr: USER[0] + USED,
            event_idx: false,
            next_avail: 0,
        };
        Self { file, memory, config }
    }

    pub(crate) fn queue(&self) -> SplitQueue {
        SplitQueue::new(&self.config, &self.memory).unwrap()
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, addr).unwrap();
    }

    pub(crate) fn put16(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }

    pub(crate) fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, addr).unwrap();
        bytes
    }

    pub(crate) fn get16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.get(addr))
    }

    pub(crate) fn get32(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.get(addr))
    }

    /// Entry `index` of the table at `table`.
    pub(crate) fn desc(
        &self,
        table: u64,
        index: u16,
        (addr, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Makes `heads` available from index `start` on.
    pub(crate) fn offer(&self, start: u16, heads: &[u16]) {
        for (i, head) in heads.iter().enumerate() {
            let entry = start.wrapping_add(i as u16) % self.config.size;
            self.put16(AVAIL + 4 + 2 * u64::from(entry), *head);
        }
        self.put16(AVAIL + 2, start.wrapping_add(heads.len() as u16));
    }

    /// The region and offset of a host buffer, as a guest address; `None` if
    /// any of it lies outside.
    pub(crate) fn guest_addr(&self, buf: GuestBuf) -> Option<u64> {
        [(0, SEAM), (SEAM, END)].into_iter().find_map(|(start, end)| {
            let base = self.memory.translate(start, end - start).unwrap() as usize;
            let offset = (buf.ptr() as usize).checked_sub(base)? as u64;
            (offset + buf.len() as u64 <= end - start).then_some(start + offset)
        })
    }

    pub(crate) fn segments(&self, bufs: &[GuestBuf]) -> Vec<Segment> {
        bufs.iter().map(|buf| (self.guest_addr(*buf).unwrap(), buf.len() as u64)).collect()
    }

    /// The longest chain that is taken, of descriptors of length zero outside memory.
    pub(crate) fn chain_of_empty_descriptors() -> Chain {
        let rig = Self::new(1);
        rig.offer(0, &[0]);
        let count = SEGMENTS_MAX as u16;
        rig.desc(DESC, 0, (TABLE, u32::from(count) * 16), INDIRECT, 0);
        for i in 0..count {
            rig.desc(TABLE, i, (u64::MAX, 0), if i + 1 < count { NEXT } else { 0 }, i + 1);
        }
        let mut chain = Chain::default();
        assert_eq!(rig.queue().pop(&rig.memory, &mut chain), Ok(true));
        assert_eq!(chain.segments(), 0);
        chain
    }

    /// What the one chain at the head of the ring is refused with.
    pub(crate) fn refusal(&self) -> QueueError {
        self.queue().pop(&self.memory, &mut Chain::default()).unwrap_err()
    }
}
