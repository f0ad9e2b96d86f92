//! From a descriptor chain to a command.
#![expect(unsafe_code, reason = "reads request headers from guest memory")]

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::config_space::DISCARD_SECTORS_MAX;
use super::{Command, ID_LEN, RANGES_MAX, RequestError};
use crate::metrics::Operation;
use crate::units::{BlockSize, Ranges, SECTOR_SIZE, Sector, SectorRange};
use crate::virtqueue::{Chain, GuestBuf};

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
/// VIRTIO_BLK_T_FLUSH_OUT, which the legacy interface had for a flush too (virtio
/// 1.3, 5.2.6.3).
const FLUSH_OUT: u32 = 5;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const RANGE_UNMAP: u32 = 1;

/// What a request is checked against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The disk's size.
    pub capacity_sectors: u64,
    /// What reads and writes are whole numbers of, as discards are.
    pub unit: BlockSize,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A request whose command was understood, or not; whichever, its status byte
/// if it has one.
#[derive(Debug)]
pub struct ParsedRequest {
    /// What it is about, also where the command can't be carried out.
    pub operation: Operation,
    /// The command, or why there is none.
    pub command: Result<Command, RequestError>,
    /// Where the status goes; null if there is no place.
    pub status: *mut u8,
    /// Bytes of data that the driver has got once the command is carried out, the
    /// status not counted.
    pub data_len: u64,
}

/// Takes `chain` apart. Afterwards the chain's `readable` (for a write) or
/// `writable` (for a read) holds the data buffers and nothing else.
#[inline]
pub fn parse(chain: &mut Chain, limits: &Limits) -> ParsedRequest {
    let status = take_status(&mut chain.writable);
    if status.is_null() {
        return ParsedRequest::without_header(RequestError::NoStatus, status);
    }
    if let Some(addr) = chain.outside() {
        return ParsedRequest::without_header(RequestError::BufferOutside(addr), status);
    }
    let mut header = [0u8; HEADER_LEN];
    if !take_bytes(&mut chain.readable, &mut header) {
        return ParsedRequest::without_header(RequestError::ShortHeader, status);
    }
    let word = u128::from_le_bytes(header);
    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    let (kind, sector) = (word as u32, (word >> 64) as u64);
    let room = total(&chain.writable);
    let command = match kind {
        VIRTIO_BLK_T_IN => range_of(sector, room, limits).map(Command::Read),
        VIRTIO_BLK_T_OUT if limits.read_only => Err(RequestError::ReadOnly),
        VIRTIO_BLK_T_OUT => range_of(sector, total(&chain.readable), limits).map(Command::Write),
        // Whatever its sector and its data: the driver's to leave out.
        VIRTIO_BLK_T_FLUSH | FLUSH_OUT => Ok(Command::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Command::GetId),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => {
            Err(RequestError::ReadOnly)
        }
        VIRTIO_BLK_T_DISCARD => ranges(chain, limits, 0).map(Command::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => ranges(chain, limits, RANGE_UNMAP).map(Command::WriteZeroes),
        other => Err(RequestError::UnknownType(other)),
    };
    let data_len = match &command {
        Ok(Command::Read(_)) => room,
        Ok(Command::GetId) => room.min(ID_LEN as u64),
        _ => 0,
    };
    ParsedRequest { operation: operation_of(kind), command, status, data_len }
}

impl ParsedRequest {
    #[cold]
    fn without_header(error: RequestError, status: *mut u8) -> Self {
        Self { operation: Operation::Other, command: Err(error), status, data_len: 0 }
    }
}

#[inline]
fn operation_of(kind: u32) -> Operation {
    match kind {
        VIRTIO_BLK_T_IN => Operation::Read,
        VIRTIO_BLK_T_OUT => Operation::Write,
        VIRTIO_BLK_T_FLUSH | FLUSH_OUT => Operation::Flush,
        VIRTIO_BLK_T_DISCARD => Operation::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes,
        _ => Operation::Other,
    }
}

fn range_of(sector: u64, bytes: u64, limits: &Limits) -> Result<SectorRange, RequestError> {
    if !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(RequestError::RaggedData);
    }
    if !limits.unit.divides(sector | (bytes / SECTOR_SIZE)) {
        return Err(RequestError::Misaligned);
    }
    SectorRange::new(Sector(sector), bytes / SECTOR_SIZE)
        .filter(|range| range.end().0 <= limits.capacity_sectors)
        .ok_or(RequestError::PastEnd)
}

/// The segments of a discard or write-zeroes request (virtio 1.3, 5.2.6.2).
fn ranges(chain: &mut Chain, limits: &Limits, allowed: u32) -> Result<Box<Ranges>, RequestError> {
    let bytes = total(&chain.readable);
    let whole = bytes.is_multiple_of(RANGE_LEN as u64);
    if bytes == 0 || !whole || bytes > (RANGES_MAX * RANGE_LEN) as u64 {
        return Err(RequestError::BadRanges);
    }
    let mut ranges = Box::<Ranges>::default();
    let mut raw = [0u8; RANGE_LEN];
    let mut refused = None;
    while take_bytes(&mut chain.readable, &mut raw) {
        let word = u128::from_le_bytes(raw);
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (sector, count, flags) = (word as u64, (word >> 64) as u32, (word >> 96) as u32);
        // "if any unknown flag is set": whatever else is wrong.
        if flags & !allowed != 0 {
            return Err(RequestError::BadRangeFlags);
        }
        let range = range_of(sector, u64::from(count) * SECTOR_SIZE, limits).and_then(|range| {
            let is_short = count <= DISCARD_SECTORS_MAX;
            is_short.then_some(range).ok_or(RequestError::RangeTooLong)
        });
        match range {
            Ok(range) if ranges.push(range) => {}
            Ok(_) => refused = refused.or(Some(RequestError::BadRanges)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(ranges), Err)
}

fn total(bufs: &[GuestBuf]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

/// Takes the last writable byte off, wherever it is; null if there is none.
#[inline]
fn take_status(writable: &mut Vec<GuestBuf>) -> *mut u8 {
    while let Some(last) = writable.pop() {
        if let Some(rest) = last.len().checked_sub(1) {
            if rest > 0 {
                writable.push(last.take(rest));
            }
            return last.ptr().wrapping_add(rest);
        }
    }
    std::ptr::null_mut()
}

/// Takes `into.len()` bytes off the front; false (and nothing of value in
/// `into`) if there are fewer.
#[inline]
fn take_bytes(bufs: &mut Vec<GuestBuf>, into: &mut [u8]) -> bool {
    let (mut done, mut used) = (0, 0);
    while done < into.len() {
        let Some(buf) = bufs.get_mut(used) else {
            return false;
        };
        let here = buf.len().min(into.len() - done);
        // SAFETY: the buffer lies in guest memory that stays mapped while its
        // chain is in hand; guest memory and `into` don't overlap. The guest may
        // write meanwhile: the bytes are whatever came of it (see
        // `GuestMemory`), and only this copy is looked at.
        unsafe { std::ptr::copy_nonoverlapping(buf.ptr(), into[done..].as_mut_ptr(), here) };
        *buf = buf.skip(here);
        done += here;
        if buf.len() == 0 {
            used += 1;
        }
    }
    bufs.drain(..used);
    true
}
