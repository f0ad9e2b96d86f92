//! A leaf file in memory, which never fails and grows only when told to.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leafblk::io::storage::Storage;
use leafblk::virtqueue::GuestBuf;

#[derive(Debug)]
struct State {
    len: u64,
    sectors: HashMap<u64, [u8; 512]>,
}

/// A handle; clones share the file.
#[derive(Clone, Debug)]
pub(super) struct Sparse(Arc<Mutex<State>>);

impl Sparse {
    pub(super) fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new(State { len, sectors: HashMap::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what lies inside the file.
    pub(super) fn put(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let room = usize::try_from(state.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut rest = &bytes[..bytes.len().min(room)];
        let mut at = offset;
        while !rest.is_empty() {
            let (start, here) = in_sector(at, rest.len());
            let (now, later) = rest.split_at(here);
            let sector = state.sectors.entry(at / 512).or_insert([0; 512]);
            sector[start..start + here].copy_from_slice(now);
            (at, rest) = (at + here as u64, later);
        }
    }

    /// Reads what lies inside the file, and zeros behind its end.
    pub(super) fn get(&self, offset: u64, into: &mut [u8]) -> usize {
        let state = self.state();
        let room = usize::try_from(state.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = into.len().min(room);
        into.fill(0);
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let (start, here) = in_sector(at, count - done);
            if let Some(sector) = state.sectors.get(&(at / 512)) {
                into[done..done + here].copy_from_slice(&sector[start..start + here]);
            }
            done += here;
        }
        count
    }
}

/// Where `at` is in its sector, and how many of `count` bytes are in there too.
fn in_sector(at: u64, count: usize) -> (usize, usize) {
    let start = (at % 512) as usize;
    (start, count.min(512 - start))
}

impl Storage for Sparse {
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, _nowait: bool) -> io::Result<usize> {
        let mut done = 0;
        for buf in bufs {
            // SAFETY: valid for writes by the trait's contract.
            let into = unsafe { std::slice::from_raw_parts_mut(buf.ptr(), buf.len()) };
            done += self.get(offset + done as u64, into);
        }
        Ok(done)
    }

    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        for buf in bufs {
            // SAFETY: valid for reads by the trait's contract.
            let from = unsafe { std::slice::from_raw_parts(buf.ptr().cast_const(), buf.len()) };
            self.put(offset + done as u64, from);
            done += from.len();
        }
        // A packed leaf whose table names the file's last slots has new ones behind
        // them.
        let (mut state, end) = (self.state(), offset + done as u64);
        assert!(end <= 2 * state.len, "a leaf's file has no more than a slot for each block");
        state.len = state.len.max(end);
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state();
        assert!(offset + len <= 2 * state.len, "a hole far behind the file's end");
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512), "whole sectors");
        for sector in offset / 512..(offset + len) / 512 {
            state.sectors.remove(&sector);
        }
        Ok(())
    }

    fn write_back(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.len = len;
        state.sectors.retain(|sector, _| sector * 512 < len);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state().sectors.len() as u64 * 512)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}
