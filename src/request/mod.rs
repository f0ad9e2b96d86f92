//! virtio-blk requests (virtio 1.3, 5.2.6): the only code that knows their
//! bytes.
//!
//! Takes a descriptor chain apart into a command, its data buffers and its
//! status byte, wherever the driver put them: "the device MUST NOT make
//! assumptions about the framing" (2.7.4). Knows neither rings nor disks.

pub mod config_space;
pub mod features;
mod parse;

pub use parse::{Limits, ParsedRequest, parse};

use crate::units::{Ranges, SectorRange};

/// Segments that one discard or write-zeroes request may have, as advertised.
pub const RANGES_MAX: usize = Ranges::MAX;

/// Bytes of the answer to GET_ID (virtio 1.3, 5.2.6).
pub const ID_LEN: usize = 20;

/// What the driver asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Read the range into the data buffers.
    Read(SectorRange),
    /// Write the data buffers to the range.
    Write(SectorRange),
    /// Make every completed write durable.
    Flush,
    /// Write the device's name into the data buffers.
    GetId,
    /// Forget these ranges; they read as zeros afterwards. Boxed, to keep the
    /// common commands small.
    Discard(Box<Ranges>),
    /// These ranges read as zeros afterwards. May the blocks be unmapped?
    /// They are in any case, which the device may do (5.2.6.2).
    WriteZeroes(Box<Ranges>),
}

/// The last byte of every request (virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// Why a request can't be carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum RequestError {
    #[error("a request has no 16-byte header")]
    ShortHeader,
    #[error("a request has no room for its status")]
    NoStatus,
    #[error(
        "a request's buffer at guest address {0:#x} is in no memory that the frontend shares; the \
         request fails"
    )]
    BufferOutside(u64),
    #[error("a request's data is no whole number of sectors")]
    RaggedData,
    #[error("a request is no whole number of the disk's logical blocks")]
    Misaligned,
    #[error("a request reaches past the end of the disk")]
    PastEnd,
    #[error("a request writes to a read-only disk")]
    ReadOnly,
    #[error("request type {0} is not supported")]
    UnknownType(u32),
    #[error("a discard or write-zeroes request has no or too many segments")]
    BadRanges,
    #[error("a discard or write-zeroes segment has more sectors than are advertised")]
    RangeTooLong,
    #[error("a discard or write-zeroes segment has flags that are not defined")]
    BadRangeFlags,
}

impl RequestError {
    /// What the guest is told; `None` where there is no place to say it.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::NoStatus => None,
            Self::ShortHeader
            | Self::BufferOutside(_)
            | Self::RaggedData
            | Self::Misaligned
            | Self::PastEnd
            | Self::ReadOnly
            | Self::BadRanges
            | Self::RangeTooLong => Some(Status::IoError),
            Self::UnknownType(_) | Self::BadRangeFlags => Some(Status::Unsupported),
        }
    }
}

#[cfg(test)]
mod tests;
