//! The device's configuration space, `struct virtio_blk_config`
//! (virtio 1.3, 5.2.4), little-endian.

use super::RANGES_MAX;
use crate::units::BlockSize;

/// Length of the space that a vhost-user frontend can ask for.
pub const LEN: usize = 256;
/// Offset of the `writeback` byte, the only one that a driver may write.
pub const WRITEBACK_OFFSET: usize = 32;

/// Most segments of data in one request: with header and status it fills a
/// ring of 128 and stays well below what readv(2) takes.
const SEG_MAX: u32 = 126;
/// Sectors that the page cache under a leaf works in.
const PHYSICAL_BLOCK_SECTORS: u64 = 8;
/// Sectors one segment of a discard or write-zeroes request may have (2 GiB):
/// bounds one request's work.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Sectors of the alignment that makes a discard free whole blocks.
const DISCARD_ALIGNMENT: u32 = 8;

/// The configuration space of a disk.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace {
    /// Size in sectors.
    pub capacity_sectors: u64,
    /// What the guest addresses the disk by.
    pub block_size: BlockSize,
    /// Request queues.
    pub queues: u16,
    /// Writes stay in the cache until a flush.
    pub write_back: bool,
}

impl ConfigSpace {
    /// All of it.
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let ranges = u32::try_from(RANGES_MAX).unwrap_or(1).to_le_bytes();
        put(0, &self.capacity_sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.block_size.to_bytes().to_le_bytes()); // blk_size
        put(24, &[self.physical_block_exp()]); // alignment_offset stays 0
        put(26, &1u16.to_le_bytes()); // min_io_size, in logical blocks
        put(WRITEBACK_OFFSET, &[u8::from(self.write_back)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &ranges);
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &DISCARD_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &ranges);
        put(56, &[1]); // write_zeroes_may_unmap
        bytes
    }

    /// How many logical blocks are a physical one, as a power of two.
    fn physical_block_exp(self) -> u8 {
        let blocks = PHYSICAL_BLOCK_SECTORS / self.block_size.sectors();
        u8::try_from(blocks.trailing_zeros()).unwrap_or(0)
    }

    /// `size` bytes from `offset` on; `None` outside the space.
    pub fn read(self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        self.to_bytes().get(start..end).map(<[u8]>::to_vec)
    }

    /// A driver's write: the new `writeback` if that is what it wrote. Bytes
    /// that are read-only may be written as they are, since some frontends
    /// send the whole space back.
    pub fn write(self, offset: u32, bytes: &[u8]) -> Option<bool> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(bytes.len())?;
        let current = self.to_bytes();
        let current = current.get(start..end)?;
        let at = WRITEBACK_OFFSET.checked_sub(start).filter(|at| *at < bytes.len())?;
        let others_equal =
            current.iter().zip(bytes).enumerate().all(|(i, (a, b))| i == at || a == b);
        match bytes[at] {
            value @ (0 | 1) if others_equal => Some(value == 1),
            _ => None,
        }
    }
}
