//! The answer that a popped chain is owed.
//!
//! A chain that is never given back hangs its guest, and one that is given back
//! twice corrupts it. So whoever has popped one holds a value that can be used up
//! once, and must be.
#![expect(unsafe_code, reason = "status bytes in guest memory")]

use std::mem::ManuallyDrop;

use super::device::Device;
use crate::logging::limit::Seldom;
use crate::metrics::Operation;
use crate::request::{ParsedRequest, Status};

/// A popped chain that has not been given back.
#[must_use = "the chain must be given back"]
#[derive(Debug)]
pub(super) struct Completion {
    queue: u16,
    head: u16,
    /// Bytes that the answer writes, status included.
    used_len: u32,
    operation: Operation,
    /// The status byte, or null.
    status: *mut u8,
}

impl Completion {
    /// The one of a chain of queue `queue` that was parsed.
    #[inline]
    pub(super) fn new(queue: u16, head: u16, parsed: &ParsedRequest) -> Self {
        let used_len = u32::try_from(parsed.data_len + 1).unwrap_or(u32::MAX);
        let used_len = if parsed.status.is_null() { 0 } else { used_len };
        let (status, operation) = (parsed.status, parsed.operation);
        Self { queue, head, used_len, operation, status }
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
            queue.ring.add_used(this.head, this.used_len);
            queue.unpublished = true;
        }
    }
}

impl Drop for Completion {
    /// A bug: the guest waits for this one until its device is reset.
    #[cold]
    fn drop(&mut self) {
        static LOST: Seldom = Seldom::new();
        let Self { queue, head, operation, .. } = self;
        LOST.error(format_args!(
            "chain {head} of queue {queue} ({operation:?}) was lost; please report this"
        ));
        debug_assert!(std::thread::panicking(), "chain {head} of queue {queue} was lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestError;

    #[test]
    #[should_panic(expected = "chain 7 of queue 3 was lost")]
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
