//! Where a queue's ring is: in memory that is shared, or in memory that was taken away
//! for a moment, when nothing of it may be touched.

use super::SplitQueue;
use crate::guest_memory::GuestMemory;
use crate::virtqueue::{QueueError, RingConfig};

/// A queue whose ring may be away.
#[derive(Debug)]
pub struct Ring {
    queue: SplitQueue,
    /// Why nobody gets at it.
    away: Option<QueueError>,
}

impl Ring {
    /// As [`SplitQueue::new`].
    ///
    /// # Errors
    /// The same: a ring has to be in memory when it starts.
    pub fn new(config: &RingConfig, memory: &GuestMemory) -> Result<Self, QueueError> {
        Ok(Self { queue: SplitQueue::new(config, memory)?, away: None })
    }

    /// Looks for the ring anew, in another memory table. What was given back has been
    /// published, or is published when the ring is there again.
    pub fn move_to(&mut self, memory: &GuestMemory) {
        self.away = self.queue.find(memory).err();
    }

    /// The queue, if its ring is there.
    #[inline]
    pub fn here(&mut self) -> Option<&mut SplitQueue> {
        self.away.is_none().then_some(&mut self.queue)
    }

    /// Whether the driver has put something there that was not yet taken.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.away.is_none() && self.queue.has_available()
    }

    /// Whether chains wait for buffers that are outside memory (see
    /// [`QueueError::is_about_memory`]), whichever it is; otherwise those wait whose
    /// answer has no place.
    pub fn set_patient(&mut self, patient: bool) {
        self.queue.set_patient(patient);
    }

    /// Why the ring is not there.
    pub fn away(&self) -> Option<QueueError> {
        self.away
    }

    /// The index of the next entry to take: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }
}
