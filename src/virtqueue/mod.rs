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
//! [`SEGMENTS_MAX`] descriptors of buffers and one of a table. A chain says how
//! many were read, so that its device's turn can be charged for them.

mod chain;
mod inflight;
mod ring;

pub use chain::{Chain, GuestBuf, SEGMENTS_MAX};
pub use inflight::{InflightRegion, RegionLayout, STATES_MAX};
pub use ring::{QUEUE_SIZE_MAX, Ring, RingConfig, SplitQueue};

/// What is wrong with a ring. Every one ends the device until it is reset, but for
/// those that the VMM's memory makes: see [`QueueError::is_about_memory`].
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
    #[error("a descriptor chain loops or has more than {SEGMENTS_MAX} buffers")]
    ChainTooLong,
    #[error("an indirect table is empty, ragged, nested, or not the last")]
    BadIndirect,
    #[error("the indirect table of a request, at guest address {0:#x}, is outside memory")]
    TableOutside(u64),
    #[error("a request's status, in a buffer at guest address {0:#x}, is outside memory")]
    BufferOutside(u64),
    #[error("the inflight region that the frontend hands back {0}; restart the VM")]
    Inflight(&'static str),
    #[error(
        "the inflight region that the frontend hands back has {states} states for a queue of \
         {size} entries; reset the guest, or start the VM with queue-size={size} (QEMU: -device \
         vhost-user-blk-…,queue-size={size})"
    )]
    InflightTooShort { states: u16, size: u16 },
    #[error("queue {0} runs already; it must be stopped before it starts again")]
    Running(u16),
    #[error("its queues may start again in {0} s, since its frontend made a call wait")]
    Penalty(u64),
}

impl QueueError {
    /// Whether a request can't be answered, or even read, since it lies in memory that
    /// the frontend doesn't share now. It is not taken: it may be once that memory is
    /// shared.
    pub fn is_about_memory(self) -> bool {
        match self {
            Self::TableOutside(_) | Self::BufferOutside(_) => true,
            Self::BadSize(_)
            | Self::RingOutside(_)
            | Self::BadAvailIndex { .. }
            | Self::TooManyInHand { .. }
            | Self::BadDescriptor(_)
            | Self::ChainTooLong
            | Self::BadIndirect
            | Self::Inflight(_)
            | Self::InflightTooShort { .. }
            | Self::Running(_)
            | Self::Penalty(_) => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
