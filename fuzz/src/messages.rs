//! Arbitrary vhost-user streams, with descriptors, into a connection with a
//! running reactor and a disk behind it.
//!
//! Input: records of the guest's memory (their number, then offset u16, length
//! u8, bytes), then messages: tag, descriptors, and what the tag says. All of
//! the stream is in the socket before the backend reads it, and then its end,
//! so that nothing waits.

mod backend;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::Seeds;
use super::input::{Input, Output};
use backend::Backend;

/// The guest's memory, as in the seeds' SET_MEM_TABLE.
const RAM_LEN: u64 = 64 << 10;
/// More would not fit the socket's buffer together with the answers.
const MESSAGES_MAX: usize = 128;
const FDS_MAX: usize = 8;

/// Serves one connection.
pub fn run(data: &[u8]) {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    let backend = BACKEND.get_or_init(Backend::start);
    let mut input = Input::new(data);
    let files = Files::new(&mut input);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_nonblocking(true).expect("a socket");
    for _ in 0..MESSAGES_MAX {
        if input.is_empty() || !send(&ours, &mut input, &files) {
            break;
        }
    }
    ours.shutdown(std::net::Shutdown::Write).expect("a socket");
    // Whatever it ends with: the device is gone, and the reactor serves on.
    let _ = backend.serve(theirs);
    backend.answers();
}

/// Descriptors that a frontend may send.
struct Files {
    ram: File,
    region: File,
    kick: OwnedFd,
    call: OwnedFd,
    semaphore: OwnedFd,
    pipe: OwnedFd,
    empty: File,
    socket: UnixStream,
}

impl Files {
    fn new(input: &mut Input<'_>) -> Self {
        let memory = |len: u64| {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
            ftruncate(&fd, len).expect("a length");
            File::from(fd)
        };
        let ram = memory(RAM_LEN);
        for _ in 0..input.u8() {
            let (offset, len) = (input.u16(), input.u8());
            let room = usize::try_from(RAM_LEN - u64::from(offset)).expect("64 KiB");
            let bytes = input.bytes(usize::from(len).min(room));
            ram.write_all_at(bytes, u64::from(offset)).expect("inside");
        }
        let eventfd = |flags| rustix::event::eventfd(0, flags).expect("an eventfd");
        Self {
            ram,
            region: memory(4096),
            kick: eventfd(EventfdFlags::NONBLOCK),
            call: eventfd(EventfdFlags::empty()),
            semaphore: eventfd(EventfdFlags::SEMAPHORE),
            pipe: rustix::pipe::pipe().expect("a pipe").0,
            empty: memory(0),
            socket: UnixStream::pair().expect("a socket pair").0,
        }
    }

    fn number(&self, which: u8) -> RawFd {
        match which % 8 {
            0 => self.ram.as_raw_fd(),
            1 => self.kick.as_raw_fd(),
            2 => self.call.as_raw_fd(),
            3 => self.region.as_raw_fd(),
            4 => self.semaphore.as_raw_fd(),
            5 => self.pipe.as_raw_fd(),
            6 => self.empty.as_raw_fd(),
            _ => self.socket.as_raw_fd(),
        }
    }
}

/// A whole message with the size that its body has.
const FRAMED: u8 = 0;
/// A message that says a size of its own.
const SIZED: u8 = 1;
/// Bytes.
const RAW: u8 = 2;

/// Sends what one tag says; false where the socket is full.
fn send(socket: &UnixStream, input: &mut Input<'_>, files: &Files) -> bool {
    let tag = input.u8();
    let fds: Vec<RawFd> = input
        .bytes(usize::from(tag >> 4).min(FDS_MAX))
        .iter()
        .map(|which| files.number(*which))
        .collect();
    let mut bytes = Vec::new();
    match tag & 3 {
        RAW | 3 => {
            let len = usize::from(input.u8());
            bytes.extend_from_slice(input.bytes(len));
        }
        framed_or_sized => {
            let (code, flags, len) = (input.u8(), input.u8(), input.u8());
            let size = if framed_or_sized == SIZED { input.u32() } else { u32::from(len) };
            let mut body = input.bytes(usize::from(len)).to_vec();
            body.resize(usize::from(len), 0);
            bytes.extend_from_slice(&u32::from(code).to_le_bytes());
            bytes.extend_from_slice(&u32::from(flags).to_le_bytes());
            bytes.extend_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(&body);
        }
    }
    bytes.is_empty() || socket.send_with_fds(&[bytes.as_slice()], &fds).is_ok()
}

const VERSION: u8 = 1;
const NEED_REPLY: u8 = 8;

fn message(code: u8, fds: &[u8], body: &[u8]) -> Vec<u8> {
    let tag = FRAMED | u8::try_from(fds.len() << 4).expect("few");
    let len = u8::try_from(body.len()).expect("short");
    Output::default().u8(tag).bytes(fds).u8(code).u8(VERSION | NEED_REPLY).u8(len).bytes(body).0
}

/// What QEMU says until a queue of 16 entries runs.
fn set_up(features: u64) -> Vec<Vec<u8>> {
    let number = |value: u64| Output::default().u64(value).0;
    let state = |index: u32, value: u32| Output::default().u32(index).u32(value).0;
    let region = Output::default().u64(0).u64(RAM_LEN).u64(1 << 32).u64(0).0;
    let table = Output::default().u32(1).u32(0).bytes(&region).0;
    let address = |offset: u64| (1u64 << 32) + offset;
    let rings = Output::default()
        .u32(0)
        .u32(0)
        .u64(address(0))
        .u64(address(0x2000))
        .u64(address(0x1000))
        .u64(0)
        .0;
    vec![
        message(3, &[], &[]),
        message(1, &[], &[]),
        message(15, &[], &[]),
        message(16, &[], &number(u64::MAX >> 32 & 0x1_bfff)),
        message(17, &[], &[]),
        message(2, &[], &number(features)),
        message(5, &[0], &table),
        message(8, &[], &state(0, 16)),
        message(9, &[], &rings),
        message(10, &[], &state(0, 0)),
        message(13, &[2], &number(0)),
        message(12, &[1], &number(0)),
        message(18, &[], &state(0, 1)),
    ]
}

/// Memory with a read, a write, a flush and a discard in the ring.
fn memory() -> Vec<u8> {
    let record = |offset: u16, bytes: &[u8]| {
        Output::default().u16(offset).u8(u8::try_from(bytes.len()).expect("short")).bytes(bytes).0
    };
    let desc = |addr: u64, len: u32, flags: u16, next: u16| {
        Output::default().u64(addr).u32(len).u16(flags).u16(next).0
    };
    let requests = [(0u32, 3u16), (1, 1), (4, 0), (11, 1)];
    let mut descriptors = Vec::new();
    let mut headers = Vec::new();
    let mut avail = Output::default().u16(0).u16(4);
    for (i, (kind, flags)) in (0u16..).zip(requests) {
        let (first, at) = (3 * i, 0x4000 + 32 * u64::from(i));
        let len = if kind == 11 { 16 } else { 512 };
        descriptors.extend(desc(at, 16, 1, first + 1));
        descriptors.extend(if flags == 0 {
            desc(at + 17, 1, 2, 0)
        } else {
            desc(0x8000, len, flags | 1, first + 2)
        });
        descriptors.extend(desc(at + 16, 1, 2, 0));
        headers.extend(Output::default().u32(kind).u32(0).u64(8).u64(0).u64(0).0);
        avail = avail.u16(first);
    }
    let records = [
        record(0, &descriptors),
        record(0x1000, &avail.0),
        record(0x4000, &headers),
        record(0x8000, &Output::default().u64(16).u32(8).u32(0).0),
    ];
    Output::default().u8(4).bytes(&records.concat()).0
}

const VERSION_1: u64 = 1 << 32;
const PROTOCOL: u64 = 1 << 30;

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    let all = |parts: &[Vec<Vec<u8>>]| [memory(), parts.concat().concat()].concat();
    let started = set_up(VERSION_1 | PROTOCOL | 1 << 29 | 1 << 28 | 1 << 9);
    let stop = message(11, &[], &Output::default().u32(0).u32(0).0);
    let config = Output::default().u32(0).u32(60).u32(0).bytes(&[0; 60]).0;
    let cache_mode = Output::default().u32(32).u32(1).u32(0).u8(0).0;
    let region = Output::default().u64(0).u64(0x1_0000).u64(4096).u64(1 << 33).u64(0).0;
    let removed = Output::default().u64(0).u64(0x1_0000).u64(4096).u64(1 << 33).u64(0).0;
    let inflight = Output::default().u64(4096).u64(0).u16(1).u16(16).0;
    let mut with_inflight = started.clone();
    with_inflight.insert(6, message(31, &[], &inflight));
    with_inflight.insert(7, message(32, &[3], &inflight));
    let more = vec![
        message(24, &[], &config),
        message(25, &[], &cache_mode),
        message(36, &[], &[]),
        message(37, &[3], &region),
        message(38, &[], &removed),
        message(39, &[], &15u64.to_le_bytes()),
        message(40, &[], &[]),
        stop.clone(),
        message(34, &[], &[]),
    ];
    let split = vec![Output::default().u8(RAW).u8(3).bytes(&[1, 0, 0]).0];
    let sized = vec![Output::default().u8(SIZED).u8(8).u8(1).u8(8).u32(u32::MAX).u64(7).0];
    vec![
        ("serves", all(&[started.clone(), vec![stop.clone()]])),
        ("no-event-idx", all(&[set_up(VERSION_1 | PROTOCOL), vec![stop]])),
        ("everything", all(&[started.clone(), more])),
        ("inflight", all(&[with_inflight])),
        ("twice", all(&[started.clone(), started])),
        ("half", all(&[split])),
        ("too-long", all(&[sized])),
    ]
}
