//! Descriptor chains: from a head to the buffers that its descriptors name, each
//! read once and each buffer checked to lie in guest memory.
//!
//! A chain that can only be meant in one way is taken, whatever the driver
//! acknowledged; docs/guests.md has the list of rules and of what becomes of a
//! driver that breaks one.
#![expect(unsafe_code, reason = "reads descriptors in guest memory by raw addresses")]

use crate::guest_memory::GuestMemory;
use crate::virtqueue::{Chain, GuestBuf, QueueError, SEGMENTS_MAX};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(super) const DESC_LEN: u64 = 16;
/// Entries that an indirect table can have: `next` is 16 bits wide.
const TABLE_MAX: u32 = 1 << 16;

/// A descriptor as it stood when it was read, once.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    fn from_bytes(raw: [u8; 16]) -> Self {
        let word = u128::from_le_bytes(raw);
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        Self {
            addr: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }
}

/// A table of descriptors: the ring's, or an indirect one.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// In one region of memory; null where it spans some that adjoin.
    start: *const Descriptor,
    guest_addr: u64,
    len: u32,
}

impl Table {
    /// The ring's own, of `len` entries, all of them in guest memory.
    #[inline]
    pub(super) fn of_ring(start: *const Descriptor, len: u16) -> Self {
        Self { start, guest_addr: 0, len: u32::from(len) }
    }

    /// The one that `desc` refers to. Its write-only flag means nothing
    /// (virtio 1.3, 2.7.5.3.2).
    #[inline]
    fn indirect(desc: &Descriptor, memory: &GuestMemory) -> Result<Self, QueueError> {
        let len = u64::from(desc.len);
        if len == 0 || !len.is_multiple_of(DESC_LEN) {
            return Err(QueueError::BadIndirect);
        }
        let start = memory.translate(desc.addr, len).unwrap_or(std::ptr::null_mut());
        let entries = (desc.len / 16).min(TABLE_MAX);
        Ok(Self { start: start.cast_const().cast(), guest_addr: desc.addr, len: entries })
    }

    /// Reads entry `index`, exactly once.
    #[inline]
    fn read(self, index: u16, memory: &GuestMemory) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.len {
            return Err(QueueError::BadDescriptor(index));
        }
        if self.start.is_null() {
            return self.read_across(index, memory);
        }
        let entry = self.start.wrapping_add(usize::from(index));
        // SAFETY: the index is inside the table, and the table in guest memory.
        // Unaligned, since an indirect table may stand at any address; volatile,
        // since the guest may change it.
        Ok(Descriptor::from_bytes(unsafe { entry.cast::<[u8; 16]>().read_volatile() }))
    }

    /// Reads an entry of a table that spans regions, each part where it is.
    #[cold]
    fn read_across(self, index: u16, memory: &GuestMemory) -> Result<Descriptor, QueueError> {
        let addr = self.guest_addr.checked_add(u64::from(index) * DESC_LEN);
        let outside = QueueError::TableOutside(self.guest_addr);
        let mut addr = addr.ok_or(outside)?;
        let mut raw = [0u8; 16];
        let mut rest = &mut raw[..];
        while !rest.is_empty() {
            let part = memory.translate_some(addr, rest.len() as u64);
            let (ptr, here) = part.ok_or(outside)?;
            #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
            let (now, later) = rest.split_at_mut(here as usize);
            for (offset, byte) in now.iter_mut().enumerate() {
                // SAFETY: `here` bytes from there on lie in guest memory.
                *byte = unsafe { ptr.wrapping_add(offset).cast_const().read_volatile() };
            }
            addr = addr.wrapping_add(here);
            rest = later;
        }
        Ok(Descriptor::from_bytes(raw))
    }
}

/// Puts the chain that begins with descriptor `head` of the ring's table into
/// `chain`; the start of the table that its buffers stand in, as a hint. Ends
/// after at most [`SEGMENTS_MAX`] descriptors and the one that refers to an
/// indirect table, whatever the guest writes.
///
/// # Errors
/// Where it can't be told what the driver means, or where its answer could not
/// be given.
#[inline]
pub(super) fn walk(
    ring: Table,
    head: u16,
    memory: &GuestMemory,
    chain: &mut Chain,
) -> Result<*const Descriptor, QueueError> {
    chain.clear(head);
    let mut table = ring;
    let mut index = head;
    let mut is_indirect = false;
    loop {
        let desc = table.read(index, memory)?;
        if desc.flags & DESC_INDIRECT != 0 {
            if is_indirect || desc.flags & DESC_NEXT != 0 {
                return Err(QueueError::BadIndirect);
            }
            chain.count_table();
            table = Table::indirect(&desc, memory)?;
            (is_indirect, index) = (true, 0);
            continue;
        }
        if !chain.count_buffer() {
            return Err(QueueError::ChainTooLong);
        }
        // Of a buffer of no bytes the address doesn't matter.
        if desc.len > 0 {
            add_buffer(&desc, memory, chain)?;
        }
        if desc.flags & DESC_NEXT == 0 {
            break;
        }
        index = desc.next;
    }
    match chain.lost_status() {
        None => Ok(table.start),
        Some(addr) => Err(QueueError::BufferOutside(addr)),
    }
}

/// Adds a buffer to those of its kind. A driver must put the device-readable ones
/// first (virtio 1.3, 2.7.4.2); where they stand changes nothing.
#[inline]
fn add_buffer(
    desc: &Descriptor,
    memory: &GuestMemory,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let is_writable = desc.flags & DESC_WRITE != 0;
    if let Some(ptr) = memory.translate(desc.addr, u64::from(desc.len)) {
        let list = if is_writable { &mut chain.writable } else { &mut chain.readable };
        list.push(GuestBuf::new(ptr, desc.len as usize));
        return Ok(());
    }
    add_pieces(desc, is_writable, memory, chain)
}

/// Adds a buffer that spans regions which adjoin in guest addresses only, or
/// notes that it lies outside memory.
#[cold]
fn add_pieces(
    desc: &Descriptor,
    is_writable: bool,
    memory: &GuestMemory,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let mut room = SEGMENTS_MAX.saturating_sub(chain.segments());
    let list = if is_writable { &mut chain.writable } else { &mut chain.readable };
    let before = list.len();
    let (mut addr, mut left) = (desc.addr, u64::from(desc.len));
    while left > 0 {
        let Some((ptr, here)) = memory.translate_some(addr, left) else {
            list.truncate(before);
            chain.note_outside(desc.addr, is_writable);
            return Ok(());
        };
        room = room.checked_sub(1).ok_or(QueueError::ChainTooLong)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most a u32")]
        list.push(GuestBuf::new(ptr, here as usize));
        left -= here;
        // Past the last address there is no memory.
        addr = addr.saturating_add(here);
    }
    Ok(())
}
