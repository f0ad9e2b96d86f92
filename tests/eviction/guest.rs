//! A guest with many reads in flight, that looks at every byte of each; some of its
//! requests are writes, which later reads must find.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::common::frontend::PATIENCE;
use crate::common::{Client, Op};

pub(crate) const DISK_BYTES: u64 = 72 << 20;
const DEPTH: usize = 48;
/// The part of the disk that a guest writes to: it begins and ends within blocks.
const WRITTEN_START: u64 = (5 << 20) + 512 * 7;
const WRITTEN_LEN: u64 = 3 << 20;
const POISON: u8 = 0xa5;
/// Bytes before and after a request's data, which stay as they are.
const GUARD: usize = 64;

/// The longest request of each place, and where its memory begins.
fn places() -> impl Iterator<Item = (usize, usize)> {
    let longest = |place| match place {
        0..4 => 1 << 20,
        4..16 => 128 << 10,
        _ => 16 << 10,
    };
    (0..DEPTH).map(longest).scan(0, |at, len| {
        let begins = *at;
        // Room for an odd address, and the guards.
        *at += len + 4096;
        Some((len, begins))
    })
}

fn memory_len() -> usize {
    places().last().map_or(0, |(len, begins)| begins + len + 4096).next_multiple_of(2 << 20)
}

/// One request in flight.
struct Request {
    is_write: bool,
    start: u64,
    len: usize,
    /// In the client's memory.
    at: usize,
    /// Kept until it is complete.
    _pieces: Vec<libc::iovec>,
}

impl Request {
    fn overlaps(&self, start: u64, len: usize) -> bool {
        self.start < start + len as u64 && start < self.start + self.len as u64
    }
}

/// Whether a guest writes, too.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Does {
    Read,
    ReadAndWrite,
}

/// Whether the daemon that has this socket lives.
fn is_alive(socket: &Path) -> bool {
    UnixStream::connect(socket.with_file_name("control.sock")).is_ok()
}

/// A guest, whose disk's content is known.
pub(crate) struct Guest {
    name: String,
    socket: PathBuf,
    client: Client,
    does: Does,
    /// The root, and zeros to the disk's end.
    below: Arc<Vec<u8>>,
    /// What the part that is written to holds.
    written: Vec<u8>,
    places: Vec<(usize, usize, Option<Request>)>,
    rng: SmallRng,
}

impl Guest {
    pub(crate) fn connect(socket: &Path, does: Does, below: &Arc<Vec<u8>>, seed: u64) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            // A socket whose last client has just gone turns the next one away.
            match Client::open_with_memory(socket, false, memory_len()) {
                Ok(client) => break client,
                Err(error) => {
                    let goes_on = Instant::now() < deadline && is_alive(socket);
                    assert!(goes_on, "{}: {error}", socket.display());
                }
            }
            std::thread::yield_now();
        };
        assert_eq!(client.capacity, DISK_BYTES);
        Self {
            name: socket.file_stem().unwrap().to_str().unwrap().to_owned(),
            socket: socket.to_owned(),
            client,
            does,
            below: Arc::clone(below),
            written: below[WRITTEN_START as usize..][..WRITTEN_LEN as usize].to_vec(),
            places: places().map(|(len, begins)| (len, begins, None)).collect(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Has [`DEPTH`] requests in flight until `enough` of them are done; how many were.
    pub(crate) fn run(&mut self, mut enough: impl FnMut(u64) -> bool) -> u64 {
        let mut done = 0;
        while !enough(done) {
            self.submit_all();
            done += self.complete(1);
        }
        done
    }

    pub(crate) fn finish(&mut self) {
        while self.in_flight() > 0 {
            self.complete(1);
        }
    }

    fn in_flight(&self) -> usize {
        self.places.iter().filter(|(.., request)| request.is_some()).count()
    }

    pub(crate) fn submit_all(&mut self) {
        for place in 0..DEPTH {
            if self.places[place].2.is_none() {
                self.submit(place);
            }
        }
    }

    fn submit(&mut self, place: usize) {
        let (longest, begins, _) = self.places[place];
        let mut len = 512 * self.rng.random_range(1..=longest / 512);
        let is_write = self.does == Does::ReadAndWrite && self.rng.random_ratio(1, 8);
        let (from, room) =
            if is_write { (WRITTEN_START, WRITTEN_LEN) } else { (0, self.below.len() as u64) };
        if is_write {
            len = len.min(32 << 10);
        }
        let mut start = from + 512 * self.rng.random_range(0..=(room - len as u64) / 512);
        if !is_write && self.rng.random_bool(0.3) {
            start = start / 4096 * 4096;
        }
        // What overlaps a write in flight would find the one or the other.
        let in_flight = self.places.iter().filter_map(|(.., request)| request.as_ref());
        if in_flight.filter(|r| r.is_write || is_write).any(|r| r.overlaps(start, len)) {
            return;
        }
        let at = begins + GUARD + self.rng.random_range(0..512);
        self.client.memory(at - GUARD, len + 2 * GUARD).fill(POISON);
        let mut pieces = Vec::new();
        if is_write {
            let bytes = self.client.memory(at, len);
            self.rng.fill(bytes);
            let held = (start - WRITTEN_START) as usize;
            self.written[held..held + len].copy_from_slice(bytes);
            self.client.submit(Op::Write, start, len, at, place);
        } else {
            let mut offset = at;
            while offset < at + len {
                let left = at + len - offset;
                let is_last = pieces.len() == 4 || self.rng.random_bool(0.7);
                let here = if is_last { left } else { self.rng.random_range(1..=left) };
                let iov_base = (self.client.region.addr + offset) as *mut libc::c_void;
                pieces.push(libc::iovec { iov_base, iov_len: here });
                offset += here;
            }
            self.client.submit_read_into(start, &pieces, place);
        }
        self.places[place].2 = Some(Request { is_write, start, len, at, _pieces: pieces });
    }

    /// Waits for `least` requests, and looks at all that are done.
    fn complete(&mut self, least: usize) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        let done = loop {
            match self.client.complete_some(least, DEPTH, Duration::from_millis(500)) {
                Ok(done) => break done,
                // libblkio doesn't say that the daemon is gone.
                Err(e) => {
                    let goes_on = Instant::now() < deadline && is_alive(&self.socket);
                    assert!(goes_on, "{}: no answer: {e}", self.name);
                }
            }
        };
        for &(place, result) in &done {
            let request = self.places[place].2.take().expect("a request in flight");
            self.check(&request, result);
        }
        done.len() as u64
    }

    fn check(&mut self, request: &Request, result: i32) {
        let Request { is_write, start, len, at, .. } = *request;
        let name = &self.name;
        let what = if is_write { "write" } else { "read" };
        assert_eq!(result, 0, "{name}: {what} of {len} at {start}");
        if is_write {
            return;
        }
        let memory = self.client.memory(at - GUARD, len + 2 * GUARD);
        let (before, rest) = memory.split_at(GUARD);
        let (data, after) = rest.split_at(len);
        assert!(before.iter().chain(after).all(|byte| *byte == POISON), "{name}: bytes beside it");
        let end = start + len as u64;
        let (held_from, held_to) = (WRITTEN_START, WRITTEN_START + WRITTEN_LEN);
        let cut = |at: u64| (at.clamp(start, end) - start) as usize;
        let (head, rest) = data.split_at(cut(held_from));
        let (held, tail) = rest.split_at(cut(held_to) - cut(held_from));
        let below = &self.below[start as usize..end as usize];
        let mine = (start.max(held_from).min(held_to) - held_from) as usize;
        let is_right = *head == below[..head.len()]
            && *held == self.written[mine..mine + held.len()]
            && *tail == below[len - tail.len()..];
        if !is_right {
            let poisoned = data.chunks(512).filter(|s| s.iter().all(|b| *b == POISON)).count();
            panic!(
                "{name}: read of {len} bytes at {start} is answered OK with wrong data; {poisoned} \
                 of its {} sectors were never written",
                len / 512
            );
        }
    }
}
