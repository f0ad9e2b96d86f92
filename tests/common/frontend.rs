//! A frontend that follows a script: the `vhost` crate's, with a guest's memory
//! in a memfd and a split ring written by hand, so that a test can put there
//! what no driver would.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "each test file uses some of it"
)]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Longer than anything takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// First guest address: not 0, and not the frontend's own.
pub(crate) const RAM_START: u64 = 1 << 30;
pub(crate) const RAM_LEN: u64 = 8 << 20;
/// Room of one queue's rings.
const RING_ROOM: u64 = 0x10000;
/// Where requests' headers and statuses are.
pub(crate) const HEADERS: u64 = RAM_START + 0x80000;
/// Where data is; 6 MiB.
pub(crate) const DATA: u64 = RAM_START + 0x20_0000;
pub(crate) const DATA_LEN: u64 = 6 << 20;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const PROTOCOL: u64 = 1 << 30;
pub(crate) const F_RO: u64 = 1 << 5;
pub(crate) const F_BLK_SIZE: u64 = 1 << 6;
pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_MQ: u64 = 1 << 12;
pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const TABLE: u16 = 4;

pub(crate) const T_IN: u32 = 0;
pub(crate) const T_OUT: u32 = 1;
pub(crate) const T_FLUSH: u32 = 4;
pub(crate) const T_GET_ID: u32 = 8;
pub(crate) const T_DISCARD: u32 = 11;
pub(crate) const T_WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;
/// What a status byte holds before the device writes it.
pub(crate) const NO_STATUS: u8 = 0xee;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// A chain's buffers, as (address, length, device-writable).
pub(crate) type Buffers<'a> = &'a [(u64, u32, bool)];

/// A virtqueue, the driver's side.
pub(crate) struct Ring {
    pub(crate) index: usize,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    /// Index of the next avail entry.
    pub(crate) avail_index: u16,
    /// Index of the next used entry.
    pub(crate) used_index: u16,
}

impl Ring {
    pub(crate) fn new(index: usize, size: u16) -> Self {
        let start = RAM_START + index as u64 * RING_ROOM;
        Self {
            index,
            size,
            desc: start,
            avail: start + 0x8000,
            used: start + 0xc000,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail_index: 0,
            used_index: 0,
        }
    }
}

/// A guest's memory in a memfd that nobody can seal.
pub(crate) fn guest_ram() -> (GuestMemoryMmap, File) {
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(RAM_LEN).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let range = (GuestAddress(RAM_START), RAM_LEN as usize, Some(offset));
    (GuestMemoryMmap::from_ranges_with_files([range]).unwrap(), file)
}

/// A VMM with its guest.
pub(crate) struct Vmm {
    pub(crate) frontend: Frontend,
    /// A second handle on the connection, for what the crate does not send.
    pub(crate) stream: UnixStream,
    pub(crate) ram: GuestMemoryMmap,
    pub(crate) ram_file: File,
    pub(crate) features: u64,
    pub(crate) rings: Vec<Ring>,
    /// The inflight region, if the VMM keeps one.
    pub(crate) inflight: Option<(VhostUserInflight, File)>,
}

impl Vmm {
    /// Connects, and says nothing.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let (ram, ram_file) = guest_ram();
        let frontend = Frontend::from_stream(stream.try_clone().unwrap(), 8);
        Self { frontend, stream, ram, ram_file, features: 0, rings: Vec::new(), inflight: None }
    }

    /// A VMM whose guest runs with queues of `size`, and that keeps an inflight
    /// region, as QEMU does.
    pub(crate) fn tracked(socket: &Path, queues: u16, size: u16) -> Self {
        let features = VERSION_1 | EVENT_IDX | INDIRECT | F_FLUSH | F_MQ;
        Self::tracked_with(socket, features | F_DISCARD | F_WRITE_ZEROES, queues, size)
    }

    /// The same with these features.
    pub(crate) fn tracked_with(socket: &Path, features: u64, queues: u16, size: u16) -> Self {
        let mut vmm = Self::negotiated(socket, features);
        let asked = VhostUserInflight::new(0, 0, queues, size);
        vmm.inflight = Some(vmm.frontend.get_inflight_fd(&asked).unwrap());
        vmm.hand_over_inflight().unwrap();
        vmm.share_ram();
        for queue in 0..usize::from(queues) {
            vmm.start_ring(Ring::new(queue, size));
        }
        vmm
    }

    pub(crate) fn hand_over_inflight(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let (layout, file) = self.inflight.as_ref().unwrap();
        Ok(self.frontend.set_inflight_fd(layout, file.as_raw_fd())?)
    }

    /// The backend went away: connects to the next one and tells it everything
    /// anew, the guest's memory and rings being as they are. As QEMU does, it
    /// gives the used index for where the ring stands. An error where that
    /// backend goes away as well.
    pub(crate) fn reconnect(&mut self, socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
        hang_up(&self.stream);
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        self.frontend = Frontend::from_stream(stream.try_clone()?, 8);
        self.stream = stream;
        self.frontend.set_owner()?;
        self.frontend.get_features()?;
        let known = self.frontend.get_protocol_features()?;
        self.frontend.set_protocol_features(known)?;
        self.frontend.set_features(self.features)?;
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if self.inflight.is_some() {
            self.hand_over_inflight()?;
        }
        self.frontend.set_mem_table(&[self.region()])?;
        for ring in &self.rings {
            let at = ring.index;
            self.frontend.set_vring_num(at, ring.size)?;
            self.frontend.set_vring_base(at, self.load(ring.used + 2))?;
            self.frontend.set_vring_addr(at, &self.ring_addresses(ring))?;
            self.frontend.set_vring_kick(at, &ring.kick)?;
            self.frontend.set_vring_call(at, &ring.call)?;
            self.frontend.set_vring_enable(at, true)?;
        }
        Ok(())
    }

    /// A VMM whose guest runs with one queue of 256.
    pub(crate) fn running(socket: &Path) -> Self {
        Self::running_with(socket, VERSION_1 | EVENT_IDX | INDIRECT | F_FLUSH, 256)
    }

    pub(crate) fn running_with(socket: &Path, features: u64, size: u16) -> Self {
        let mut vmm = Self::negotiated(socket, features);
        vmm.share_ram();
        vmm.start_ring(Ring::new(0, size));
        vmm
    }

    /// Features are agreed on and every message is acknowledged; no more.
    pub(crate) fn negotiated(socket: &Path, features: u64) -> Self {
        let mut vmm = Self::connect(socket);
        vmm.negotiate(features, VhostUserProtocolFeatures::all());
        vmm
    }

    pub(crate) fn negotiate(&mut self, features: u64, protocol: VhostUserProtocolFeatures) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        assert!(features & !offered == 0, "{offered:#x} lacks {:#x}", features & !offered);
        let known = self.frontend.get_protocol_features().unwrap();
        self.frontend.set_protocol_features(known & protocol).unwrap();
        self.features = features | PROTOCOL;
        self.frontend.set_features(self.features).unwrap();
        if (known & protocol).contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }

    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        let region = self.ram.find_region(GuestAddress(RAM_START)).unwrap();
        VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
    }

    pub(crate) fn share_ram(&self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
    }

    /// The frontend's own address for a guest's.
    pub(crate) fn user_addr(&self, addr: u64) -> u64 {
        addr - RAM_START + self.region().userspace_addr
    }

    pub(crate) fn ring_addresses(&self, ring: &Ring) -> VringConfigData {
        VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: self.user_addr(ring.desc),
            used_ring_addr: self.user_addr(ring.used),
            avail_ring_addr: self.user_addr(ring.avail),
            log_addr: None,
        }
    }

    /// Sends all about a ring and enables it.
    pub(crate) fn start_ring(&mut self, ring: Ring) {
        self.try_start_ring(ring).unwrap();
    }

    pub(crate) fn try_start_ring(&mut self, ring: Ring) -> vhost::Result<()> {
        let at = ring.index;
        self.frontend.set_vring_num(at, ring.size)?;
        self.frontend.set_vring_addr(at, &self.ring_addresses(&ring))?;
        self.frontend.set_vring_base(at, ring.avail_index)?;
        self.frontend.set_vring_call(at, &ring.call)?;
        self.frontend.set_vring_kick(at, &ring.kick)?;
        self.frontend.set_vring_enable(at, true)?;
        self.rings.push(ring);
        Ok(())
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn store(&self, addr: u64, value: u16) {
        self.ram.store(value.to_le(), GuestAddress(addr), Ordering::Release).unwrap();
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(self.ram.load(GuestAddress(addr), Ordering::Acquire).unwrap())
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(&self, table: u64, index: u16, desc: Desc) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&desc.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&desc.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&desc.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&desc.next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Writes `buffers` as a chain from descriptor `first` on.
    pub(crate) fn describe_chain(&self, table: u64, first: u16, buffers: Buffers<'_>) {
        for (i, &(addr, len, writable)) in buffers.iter().enumerate() {
            let index = first + i as u16;
            let next = if i + 1 < buffers.len() { NEXT } else { 0 };
            let flags = next | if writable { WRITE } else { 0 };
            self.describe(table, index, desc(addr, len, flags, index + 1));
        }
    }

    /// Puts `head` into the avail ring; [`Self::kick`] shows it.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &self.rings[queue];
        let entry = ring.avail + 4 + 2 * u64::from(ring.avail_index % ring.size);
        self.store(entry, head);
        let ring = &mut self.rings[queue];
        ring.avail_index = ring.avail_index.wrapping_add(1);
    }

    /// Shows everything offered.
    pub(crate) fn kick(&self, queue: usize) {
        let ring = &self.rings[queue];
        self.show(queue, ring.avail_index);
    }

    /// Shows an avail index of any value.
    pub(crate) fn show(&self, queue: usize, avail_index: u16) {
        let ring = &self.rings[queue];
        // A call for the very next used entry.
        self.store(ring.avail + 4 + 2 * u64::from(ring.size), ring.used_index);
        self.store(ring.avail + 2, avail_index);
        fence(Ordering::SeqCst);
        ring.kick.write(1).unwrap();
    }

    /// The next used entry, (head, length), waited for by the call.
    pub(crate) fn used(&mut self, queue: usize) -> (u32, u32) {
        let begun = Instant::now();
        let entry = self.used_within(queue, PATIENCE).expect("the device answers");
        assert!(begun.elapsed() < PATIENCE, "the entry is there, and no call came");
        entry
    }

    pub(crate) fn used_within(&mut self, queue: usize, patience: Duration) -> Option<(u32, u32)> {
        let deadline = Instant::now() + patience;
        let (size, used, seen) = {
            let ring = &self.rings[queue];
            (ring.size, ring.used, ring.used_index)
        };
        self.store(self.rings[queue].avail + 4 + 2 * u64::from(size), seen);
        fence(Ordering::SeqCst);
        while self.load(used + 2) == seen {
            let left = deadline.checked_duration_since(Instant::now())?;
            readable(&self.rings[queue].call, left);
            let _ = self.rings[queue].call.read();
        }
        let entry = used + 4 + 8 * u64::from(seen % size);
        let bytes = self.read(entry, 8);
        self.rings[queue].used_index = seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// The next used entry, if there is one already.
    pub(crate) fn try_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &self.rings[queue];
        if self.load(ring.used + 2) == ring.used_index {
            return None;
        }
        self.used_within(queue, Duration::ZERO)
    }

    /// Asks for a call at the next used entry and waits for that, or for the
    /// backend to go away; whether it is still there.
    pub(crate) fn wait_for_used(&self, queue: usize) -> bool {
        let ring = &self.rings[queue];
        self.store(ring.avail + 4 + 2 * u64::from(ring.size), ring.used_index);
        fence(Ordering::SeqCst);
        if self.load(ring.used + 2) != ring.used_index {
            return true;
        }
        #[expect(unsafe_code, reason = "EventFd does not lend its descriptor")]
        // SAFETY: the eventfd is open as long as the ring is borrowed.
        let call = unsafe { std::os::fd::BorrowedFd::borrow_raw(ring.call.as_raw_fd()) };
        let mut fds = [
            PollFd::from_borrowed_fd(call, PollFlags::IN),
            PollFd::new(&self.stream, PollFlags::RDHUP),
        ];
        let ready = poll(&mut fds, Some(&PATIENCE.try_into().unwrap())).unwrap();
        assert!(ready > 0, "the device neither answers nor goes away");
        let _ = ring.call.read();
        fds[1].revents().is_empty()
    }

    /// Reads a sector; false if the backend goes away instead of answering (or
    /// just after): [`Self::used`] has the answer of the next one.
    pub(crate) fn answers_a_read(&mut self) -> bool {
        let header = self.header(T_IN, 0);
        let chain = [(header, 16, false), (DATA, 512, true), (Self::STATUS, 1, true)];
        self.describe_chain(self.rings[0].desc, 0, &chain);
        self.offer(0, 0);
        self.kick(0);
        // A call may come for nothing.
        while self.wait_for_used(0) {
            if self.try_used(0).is_some() {
                return true;
            }
        }
        false
    }

    /// Writes a request's header; its address.
    pub(crate) fn header(&self, kind: u32, sector: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(HEADERS, &bytes);
        HEADERS
    }

    /// Where [`Self::run_chain`] expects the status.
    pub(crate) const STATUS: u64 = HEADERS + 64;

    /// One chain, waited for; the status byte at [`Self::STATUS`] and the used
    /// length.
    pub(crate) fn run_chain(&mut self, queue: usize, buffers: Buffers<'_>) -> (u8, u32) {
        self.write(Self::STATUS, &[NO_STATUS]);
        self.describe_chain(self.rings[queue].desc, 0, buffers);
        self.offer(queue, 0);
        self.kick(queue);
        let (head, len) = self.used(queue);
        assert_eq!(head, 0);
        (self.read(Self::STATUS, 1)[0], len)
    }

    /// A request with its data in one buffer at [`DATA`].
    pub(crate) fn request(&mut self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
        let header = self.header(kind, sector);
        let to_guest = matches!(kind, T_IN | T_GET_ID);
        let all = [(header, 16, false), (DATA, len, to_guest), (Self::STATUS, 1, true)];
        match len {
            0 => self.run_chain(0, &[all[0], all[2]]),
            _ => self.run_chain(0, &all),
        }
    }

    pub(crate) fn read_sectors(&mut self, sector: u64, count: u32) -> Vec<u8> {
        let len = count * 512;
        self.write(DATA, &vec![0xa5; len as usize]);
        assert_eq!(self.request(T_IN, sector, len), (OK, len + 1), "read at sector {sector}");
        self.read(DATA, len as usize)
    }

    pub(crate) fn write_sectors(&mut self, sector: u64, bytes: &[u8]) {
        self.write(DATA, bytes);
        let answer = self.request(T_OUT, sector, bytes.len() as u32);
        assert_eq!(answer, (OK, 1), "write at sector {sector}");
    }

    /// Waits until the backend has closed the connection.
    pub(crate) fn wait_closed(&self) {
        assert!(is_closed(&self.stream), "the backend keeps the connection open");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        hang_up(&self.stream);
    }
}

/// Hangs up at once. Closing alone may come later: a process that another test
/// is just starting has the connection open too, until its exec.
pub(crate) fn hang_up(stream: &UnixStream) {
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// Waits for a descriptor to have something; false if nothing came in time.
pub(crate) fn readable(fd: &impl std::os::fd::AsRawFd, patience: Duration) -> bool {
    #[expect(unsafe_code, reason = "not all that has a descriptor lends it")]
    // SAFETY: `fd` is open as long as it is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let timeout = patience.try_into().unwrap();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

/// Reads what is left until the peer has closed; false if it stays open.
pub(crate) fn is_closed(stream: &UnixStream) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 256];
    loop {
        match (&mut &*stream).read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) if Instant::now() < deadline => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return true,
            _ => return false,
        }
    }
}

/// A message's bytes, header included.
pub(crate) fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&code.to_le_bytes());
    // Version 1.
    bytes.extend_from_slice(&(flags | 1).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}
