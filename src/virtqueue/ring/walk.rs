//! Descriptor chains: from a head to the buffers that its descriptors name, each
//! read once and each buffer checked to lie in guest memory.
#![expect(unsafe_code, reason = "reads descriptors in guest memory by raw addresses")]

use super::SplitQueue;
use crate::guest_memory::GuestMemory;
use crate::virtqueue::{Chain, GuestBuf, QueueError, SEGMENTS_MAX};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(super) const DESC_LEN: u64 = 16;

/// A descriptor as it stood when it was read, once.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl SplitQueue {
    /// Reads entry `index` of the table at `table`, exactly once.
    #[inline]
    fn read(table: *const Descriptor, index: u16) -> Descriptor {
        // SAFETY: the caller checked `index` against the table's length, and
        // the table lies in guest memory. Unaligned, since an indirect table
        // may stand at any address; volatile, since the guest may change it.
        let raw =
            unsafe { table.wrapping_add(usize::from(index)).cast::<[u8; 16]>().read_volatile() };
        let word = u128::from_le_bytes(raw);
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        Descriptor {
            addr: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }

    /// Puts the chain that begins with descriptor `head` into `chain`; the table
    /// that its buffers stand in. Ends after at most [`SEGMENTS_MAX`] buffers,
    /// whatever the guest writes.
    #[inline]
    pub(super) fn walk(
        &self,
        head: u16,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<*const Descriptor, QueueError> {
        chain.clear(head);
        let mut table = self.desc;
        let mut table_len = u32::from(self.config.size);
        let mut indirect = false;
        let mut index = head;
        let mut steps = 0;
        loop {
            if u32::from(index) >= table_len {
                return Err(QueueError::BadDescriptor(index));
            }
            let desc = Self::read(table, index);
            steps += 1;
            if steps > table_len || chain.segments() >= SEGMENTS_MAX {
                return Err(QueueError::ChainTooLong);
            }
            if desc.flags & DESC_INDIRECT != 0 {
                if indirect || !self.config.indirect || desc.flags & DESC_NEXT != 0 {
                    return Err(QueueError::BadIndirect);
                }
                (table, table_len) = Self::indirect_table(&desc, memory)?;
                (indirect, index, steps) = (true, 0, 0);
                continue;
            }
            Self::add_buffer(&desc, memory, chain)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(table);
            }
            index = desc.next;
        }
    }

    fn indirect_table(
        desc: &Descriptor,
        memory: &GuestMemory,
    ) -> Result<(*const Descriptor, u32), QueueError> {
        let len = u64::from(desc.len);
        if len == 0 || len % DESC_LEN != 0 {
            return Err(QueueError::BadIndirect);
        }
        let table = memory.translate(desc.addr, len).ok_or(QueueError::BadIndirect)?;
        // `next` is 16 bits wide: entries beyond can't be reached.
        let entries = (desc.len / 16).min(u32::from(u16::MAX) + 1);
        Ok((table.cast_const().cast(), entries))
    }

    #[inline]
    fn add_buffer(
        desc: &Descriptor,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let list = if desc.flags & DESC_WRITE != 0 {
            &mut chain.writable
        } else if chain.writable.is_empty() {
            &mut chain.readable
        } else {
            return Err(QueueError::ReadableAfterWritable);
        };
        if let Some(ptr) = memory.translate(desc.addr, u64::from(desc.len)) {
            list.push(GuestBuf::new(ptr, desc.len as usize));
            return Ok(());
        }
        // A buffer may span regions that adjoin in guest addresses only.
        let (mut addr, mut left) = (desc.addr, u64::from(desc.len));
        while left > 0 {
            let (ptr, here) =
                memory.translate_some(addr, left).ok_or(QueueError::BufferOutside(desc.addr))?;
            if list.len() >= SEGMENTS_MAX {
                return Err(QueueError::ChainTooLong);
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most a u32")]
            list.push(GuestBuf::new(ptr, here as usize));
            left -= here;
            addr = addr.checked_add(here).ok_or(QueueError::BufferOutside(desc.addr))?;
        }
        Ok(())
    }
}
