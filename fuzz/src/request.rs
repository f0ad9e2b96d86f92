//! Arbitrary chains into the virtio-blk request parser.
//!
//! Input: flags (bit 0: a read-only disk, bit 1: blocks of 4 KiB), capacity in sectors (u32), then
//! buffers: length (u16; its top bit: device-writable) and, for readable ones,
//! their content. Each buffer is an allocation of its own, so that
//! AddressSanitizer sees a byte too much.

use leafblk::disk::BufCursor;
use leafblk::request::{Command, Limits, RANGES_MAX, Status, parse};
use leafblk::units::{BlockSize, SectorRange};
use leafblk::virtqueue::{Chain, GuestBuf};

use super::Seeds;
use super::input::{Input, Output};

const BUFS_MAX: usize = 64;
const WRITABLE: u16 = 1 << 15;

/// Parses one chain, and does with its buffers what the data path does.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let limits = Limits {
        read_only: flags & 1 != 0,
        unit: if flags & 2 == 0 { BlockSize::Sector } else { BlockSize::FourKib },
        capacity_sectors: u64::from(input.u32()),
    };
    let mut chain = Chain::default();
    let mut memory: Vec<Vec<u8>> = Vec::new();
    while !input.is_empty() && memory.len() < BUFS_MAX {
        let word = input.u16();
        let len = usize::from(word & !WRITABLE);
        let mut buffer = vec![0; len];
        if word & WRITABLE == 0 {
            let content = input.bytes(len);
            buffer[..content.len()].copy_from_slice(content);
        }
        let list = if word & WRITABLE == 0 { &mut chain.readable } else { &mut chain.writable };
        list.push(GuestBuf::new(buffer.as_mut_ptr(), len));
        memory.push(buffer);
    }
    let (readable, writable) = (total(&chain.readable), total(&chain.writable));
    let last = chain.writable.iter().rev().find(|buf| buf.len() > 0).copied();
    let parsed = parse(&mut chain, &limits);

    let Some(last) = last else {
        assert!(parsed.status.is_null(), "a status byte out of nowhere");
        assert!(parsed.command.is_err());
        return;
    };
    assert_eq!(parsed.status, last.ptr().wrapping_add(last.len() - 1), "the last writable byte");
    // SAFETY: it is a byte of a buffer of ours.
    unsafe { parsed.status.write_volatile(Status::Ok as u8) };
    match &parsed.command {
        Ok(Command::Read(_)) => assert_eq!(parsed.data_len, writable - 1, "what the driver gets"),
        Ok(Command::GetId) => assert_eq!(parsed.data_len, (writable - 1).min(20)),
        _ => assert_eq!(parsed.data_len, 0),
    }
    let inside = |range: &SectorRange| range.end().0 <= limits.capacity_sectors;
    match &parsed.command {
        Ok(Command::Read(range)) => {
            assert!(inside(range));
            assert_eq!(range.byte_len(), total(&chain.writable));
            let bytes = vec![0x5a; usize::try_from(range.byte_len()).expect("buffers of 32 KiB")];
            // SAFETY: the buffers are ours.
            unsafe { BufCursor::default().write(&chain.writable, &bytes) };
        }
        Ok(Command::Write(range)) => {
            assert!(!limits.read_only && inside(range));
            assert_eq!(range.byte_len(), total(&chain.readable));
            assert_eq!(range.byte_len() + 16, readable, "all but the header");
        }
        Ok(Command::Discard(ranges) | Command::WriteZeroes(ranges)) => {
            assert!(!limits.read_only && ranges.as_slice().len() <= RANGES_MAX);
            assert!(ranges.as_slice().iter().all(|range| inside(range) && !range.is_empty()));
        }
        Ok(Command::GetId) => {
            // SAFETY: the buffers are ours.
            unsafe { BufCursor::default().write(&chain.writable, &[b'x'; 20]) };
        }
        Ok(Command::Flush) => {}
        Err(error) => assert!(error.status().is_some(), "there is a place for the status"),
    }
    for buf in chain.readable.iter().chain(&chain.writable) {
        // SAFETY: a buffer that `parse` leaves is part of one of ours.
        let bytes = unsafe { std::slice::from_raw_parts(buf.ptr().cast_const(), buf.len()) };
        std::hint::black_box(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    }
}

fn total(bufs: &[GuestBuf]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    Output::default().u32(kind).u32(0).u64(sector).0
}

/// A request whose header, data and status have a buffer each.
fn plain(kind: u32, sector: u64, data: &[u8], to_driver: u16) -> Vec<u8> {
    let mut out = Output::default().u8(0).u32(4096).u16(16).bytes(&header(kind, sector));
    if !data.is_empty() {
        out = out.u16(u16::try_from(data.len()).expect("a small seed")).bytes(data);
    }
    if to_driver > 0 {
        out = out.u16(to_driver | WRITABLE);
    }
    out.u16(1 | WRITABLE).0
}

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    let segment = Output::default().u64(8).u32(8).u32(0).0;
    let unmap = Output::default().u64(4088).u32(8).u32(1).0;
    let split = Output::default()
        .u8(0)
        .u32(64)
        .u16(3)
        .bytes(&header(0, 1)[..3])
        .u16(13)
        .bytes(&header(0, 1)[3..])
        .u16(100 | WRITABLE)
        .u16(WRITABLE)
        .u16(413 | WRITABLE);
    vec![
        ("read", plain(0, 8, &[], 4096)),
        ("write", plain(1, 8, &[7; 512], 0)),
        ("flush", plain(4, 0, &[], 0)),
        ("get-id", plain(8, 0, &[], 20)),
        ("discard", plain(11, 0, &segment.repeat(16), 0)),
        ("write-zeroes", plain(13, 0, &[segment, unmap].concat(), 0)),
        ("split-header", split.0),
        ("no-status", Output::default().u8(1).u32(1).u16(16).bytes(&header(1, 0)).0),
    ]
}
