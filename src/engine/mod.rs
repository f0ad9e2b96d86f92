//! Work that takes time: submitted now, completed later.
//!
//! A data path hands its reads, writes and syncs of one file to an [`Engine`] and hears of
//! each by its token. The trait has two implementations: io_uring, and the simulator's
//! disk (docs/second-leaf.md). It knows neither leaves nor requests.

pub mod file;

use crate::virtqueue::GuestBuf;

/// Names an operation in flight to the one who submitted it.
pub type Token = u32;

/// One operation on a file.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Reads at `offset` into a buffer; completes with the number of bytes.
    Read {
        /// Where the data goes.
        into: GuestBuf,
        /// Where it lies, in bytes.
        offset: u64,
    },
    /// Writes the buffers, one after the other; completes with the number of bytes.
    Write {
        /// The data.
        from: &'a [GuestBuf],
        /// Where it goes, in bytes.
        offset: u64,
        /// Whether the data is durable on completion (RWF_DSYNC, pwritev2(2)).
        durable: bool,
    },
    /// Makes durable what was completed before this was submitted (fdatasync(2)).
    Sync,
}

/// Takes operations and completes them in any order.
pub trait Engine {
    /// Submits an operation; false, and nothing is done, where there is no room.
    ///
    /// # Safety
    /// The buffers, and for a write the list of them, stay where they are until `token` is
    /// completed. A write's data may be read at any time until then, more than once.
    #[must_use]
    #[expect(unsafe_code, reason = "the buffers outlive the call")]
    unsafe fn submit(&mut self, op: Op<'_>, token: Token) -> bool;
}
