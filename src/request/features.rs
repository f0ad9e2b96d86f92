//! The virtio feature bits that leafblk offers (virtio 1.3, 5.2.3 and 6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::units::BlockSize;

const fn bits(numbers: &[u32]) -> u64 {
    let (mut all, mut i) = (0, 0);
    while i < numbers.len() {
        all |= 1 << numbers[i];
        i += 1;
    }
    all
}

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// VIRTIO_BLK_F_BLK_SIZE: the driver knows the size of the disk's logical blocks.
pub const BLK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
/// VIRTIO_BLK_F_FLUSH: the driver knows of a write-back cache.
pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
/// VIRTIO_BLK_F_CONFIG_WCE: the driver may switch it off.
pub const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

/// What is offered for a disk.
pub fn offered(read_only: bool) -> u64 {
    let common = bits(&[VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_MQ])
        | BLK_SIZE
        | VERSION_1
        | EVENT_IDX
        | INDIRECT_DESC
        | FLUSH
        | CONFIG_WCE;
    let special = if read_only {
        bits(&[VIRTIO_BLK_F_RO])
    } else {
        bits(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES])
    };
    common | special
}

/// What requests are whole numbers of. A driver that did not acknowledge BLK_SIZE
/// doesn't know of blocks that are larger than a sector.
pub fn request_unit(acked: u64, block_size: BlockSize) -> BlockSize {
    if acked & BLK_SIZE == 0 { BlockSize::Sector } else { block_size }
}

/// Whether writes stay in the cache until a flush, by what was negotiated and
/// by the `writeback` field (virtio 1.3, 5.2.5 and 5.2.6.2): a driver that
/// doesn't know FLUSH expects write-through, whatever else it knows.
pub fn is_write_back(acked: u64, writeback_field: bool) -> bool {
    acked & FLUSH != 0 && (acked & CONFIG_WCE == 0 || writeback_field)
}
