//! The answer that a popped chain is owed.
//!
//! A chain that is never given back hangs its guest, and one that is given back
//! twice corrupts it. So whoever has popped one holds a value that can be used up
//! once, and must be.
#![expect(unsafe_code, reason = "status bytes in guest memory")]

use std::mem::ManuallyDrop;

use super::device::Device;
use crate::logging::internal;
use crate::metrics::Operation;
use crate::request::{ParsedRequest, Status};

/// A popped chain that has not been given back.
#[must_use = "the chain must be given back"]
#[derive(Debug)]
pub(super) struct Completion {
    queue: u16,
    head: u16,
    /// Bytes of data that an answer of OK has written.
    data_len: u64,
    operation: Operation,
    /// The status byte, or null.
    status: *mut u8,
}

impl Completion {
    /// The one of a chain of queue `queue` that was parsed.
    #[inline]
    pub(super) fn new(queue: u16, head: u16, parsed: &ParsedRequest) -> Self {
        let &ParsedRequest { data_len, status, operation, .. } = parsed;
        Self { queue, head, data_len, operation, status }
    }

    /// Whose chain it is.
    #[inline]
    pub(super) fn queue(&self) -> u16 {
        self.queue
    }

    /// What was asked for.
    #[inline]
    pub(super) fn operation(&self) -> Operation {
        self.operation
    }

    /// Bytes that this answer has written: the status, and data only where all of
    /// it was. "That's preferable to the driver believing that uninitialized memory
    /// has been overwritten" (virtio 1.3, 2.7.8.2).
    #[inline]
    fn used_len(&self, status: Status) -> u32 {
        if self.status.is_null() {
            return 0;
        }
        let data_len = if status == Status::Ok { self.data_len } else { 0 };
        u32::try_from(data_len + 1).unwrap_or(u32::MAX)
    }

    /// Gives the chain back to `device`, whose it is. The driver sees it when
    /// the queue is published.
    #[inline]
    pub(super) fn complete(self, device: &mut Device, status: Status) {
        let this = ManuallyDrop::new(self);
        if status != Status::Ok {
            device.disk.counters().failed(this.operation);
        }
        if !this.status.is_null() {
            // SAFETY: the byte is the chain's last writable one, in the device's
            // memory, which is mapped while a request is in flight.
            unsafe { this.status.write_volatile(status as u8) };
        }
        if let Some(queue) = device.queues[usize::from(this.queue)].as_mut() {
            // Its ring is there: it is not moved while a chain of it is in hand.
            let Some(ring) = queue.ring.here() else {
                let (queue, head) = (this.queue, this.head);
                return internal::note(format_args!("chain {head} of queue {queue} has no ring"));
            };
            ring.add_used(this.head, this.used_len(status));
            queue.unpublished = true;
        }
    }
}

impl Drop for Completion {
    /// A bug: the guest waits for this one until its device is reset.
    #[cold]
    fn drop(&mut self) {
        let Self { queue, head, operation, .. } = self;
        internal::note(format_args!("chain {head} of queue {queue} ({operation:?}) was lost"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestError;

    fn completion(data_len: u64, status: &mut u8) -> Completion {
        let operation = Operation::Read;
        Completion { queue: 3, head: 7, data_len, operation, status: std::ptr::from_mut(status) }
    }

    #[test]
    fn an_answer_counts_its_status_and_the_data_that_the_driver_has() {
        let mut byte = 0;
        for (data_len, whole) in [(0, 1), (4096, 4097), (u64::from(u32::MAX), u32::MAX)] {
            let owed = ManuallyDrop::new(completion(data_len, &mut byte));
            assert_eq!(owed.used_len(Status::Ok), whole);
            assert_eq!(owed.used_len(Status::IoError), 1, "what of the data was written?");
            assert_eq!(owed.used_len(Status::Unsupported), 1);
        }
        let mut owed = ManuallyDrop::new(completion(4096, &mut byte));
        owed.status = std::ptr::null_mut();
        assert_eq!(owed.used_len(Status::IoError), 0);
    }

    #[test]
    #[should_panic(expected = "chain 7 of queue 3 (Read) was lost")]
    fn a_chain_that_is_not_given_back_is_noticed() {
        let parsed = ParsedRequest {
            operation: Operation::Read,
            command: Err(RequestError::PastEnd),
            status: std::ptr::null_mut(),
            data_len: 0,
        };
        drop(Completion::new(3, 7, &parsed));
    }
}
