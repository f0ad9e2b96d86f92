//! The split virtqueue as a device sees it (virtio 1.3, 2.7).
//!
//! Owns one ring's indices and the checked host addresses of its three parts,
//! and walks descriptor chains into buffers; [`inflight`] notes what is popped
//! and not given back, so that a later process can go on. It knows nothing of
//! requests.
//!
//! Why not `virtio-queue`: it translates every access to guest memory anew,
//! 69 to 81 ns a request at best where this takes 18 to 24
//! (`cargo bench --bench ring`). It serves as the oracle in the tests.
//!
//! Invariants: whatever the guest writes, every buffer handed out lies in its
//! memory, each descriptor is read once, and a walk ends after at most
//! [`SEGMENTS_MAX`] descriptors.

mod chain;
mod inflight;
mod ring;

pub use chain::{Chain, GuestBuf, SEGMENTS_MAX};
pub use inflight::InflightRegion;
pub use ring::{QUEUE_SIZE_MAX, RingConfig, SplitQueue};

/// What is wrong with a ring. Every one ends the device until it is reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum QueueError {
    #[error("queue size {0} is not a power of two from 1 to {QUEUE_SIZE_MAX}")]
    BadSize(u32),
    #[error("a part of the ring (frontend address {0:#x}) is misaligned or outside memory")]
    RingOutside(u64),
    #[error("the driver's index {avail} is more than the queue's size ahead of {seen}")]
    BadAvailIndex { avail: u16, seen: u16 },
    #[error("the driver offers {ahead} more chains while {in_hand} of its queue are in hand")]
    TooManyInHand { in_hand: u16, ahead: u16 },
    #[error("descriptor {0} does not exist")]
    BadDescriptor(u16),
    #[error("a descriptor chain loops or has more than {SEGMENTS_MAX} segments")]
    ChainTooLong,
    #[error("an indirect table is empty, ragged, nested, or outside memory")]
    BadIndirect,
    #[error("a buffer at guest address {0:#x} is outside memory")]
    BufferOutside(u64),
    #[error("the inflight region that the frontend hands back {0}; restart the VM")]
    Inflight(&'static str),
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    #[error("its queues may start again in {0} s, since its frontend made a call wait")]
    Penalty(u64),
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
