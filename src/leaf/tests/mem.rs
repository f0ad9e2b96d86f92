//! Storage in memory that fails at will, tells what was done in which order,
//! and can lose what was not synced, sector by sector.
#![expect(unsafe_code, reason = "copies buffers as the real storage's system calls do")]

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::super::header;
use crate::io::storage::Storage;
use crate::virtqueue::GuestBuf;

/// What was asked of the storage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Op {
    /// Offset and length.
    Write(u64, u64),
    Punch(u64, u64),
    SetLen(u64),
    Sync,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    len: u64,
    now: HashMap<u64, [u8; 512]>,
    durable: HashMap<u64, [u8; 512]>,
    /// Sectors whose sync failed: the kernel counts them as written.
    lost: HashSet<u64>,
    pub(super) ops: Vec<Op>,
    /// Most bytes that one write takes, if not all.
    pub(super) write_max: Option<usize>,
    /// Most bytes that one read gives, if not all.
    pub(super) read_max: Option<usize>,
    /// Errno of the writes from the offset on.
    pub(super) fail_writes: Option<(u64, i32)>,
    /// Errno of the writes after so many.
    pub(super) fail_writes_after: Option<(u32, i32)>,
    /// Syncs that succeed before `fail_sync` counts.
    pub(super) syncs_before_failure: u32,
    pub(super) fail_punch: Option<i32>,
    pub(super) fail_set_len: Option<i32>,
    pub(super) fail_sync: Option<i32>,
    /// A sync panics.
    pub(crate) panic_in_sync: bool,
    /// Punches wait for it.
    gate: Option<Gate>,
}

/// Where calls wait to be let go, one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<Calls>, Condvar)>);

#[derive(Debug, Default)]
struct Calls {
    come: u64,
    let_go: u64,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut Calls)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn wait_until(&self, is_so: impl Fn(&Calls) -> bool) {
        let calls = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(calls, |calls| !is_so(calls)).unwrap());
    }

    fn pass(&self) {
        let mut number = 0;
        self.change(|calls| (calls.come, number) = (calls.come + 1, calls.come));
        self.wait_until(|calls| calls.let_go > number);
    }

    /// Waits until a call is held.
    pub(crate) fn wait_for_one(&self) {
        self.wait_until(|calls| calls.come > calls.let_go);
    }

    /// Lets the next call go.
    pub(crate) fn let_one_go(&self) {
        self.change(|calls| calls.let_go += 1);
    }

    /// Lets all go from now on.
    pub(crate) fn open(&self) {
        self.change(|calls| calls.let_go = u64::MAX);
    }
}

/// A handle; clones share the storage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mem(Arc<Mutex<State>>);

impl Mem {
    /// Storage with the two headers of a leaf file, and its length.
    pub(super) fn of_file(path: &std::path::Path) -> Self {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(path).unwrap();
        let mut headers = [0; 2 * header::LEN];
        file.read_exact_at(&mut headers, 0).unwrap();
        let mem = Self::default();
        let mut state = mem.state();
        state.len = file.metadata().unwrap().len();
        state.put(0, &headers);
        state.durable = state.now.clone();
        drop(state);
        mem
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Has punches wait from now on.
    pub(crate) fn hold_punches(&self) -> Gate {
        self.state().gate.insert(Gate::default()).clone()
    }

    /// The byte at `offset` that would be there after a loss of power.
    pub(super) fn durable(&self, offset: u64) -> u8 {
        let sector = self.state().durable.get(&(offset / 512)).copied().unwrap_or([0; 512]);
        sector[usize::try_from(offset % 512).unwrap()]
    }

    /// The power fails: of each sector that was not synced, the old or the new
    /// content stays, as `keep_new` says.
    pub(super) fn lose_power(&self, mut keep_new: impl FnMut() -> bool) {
        let mut state = self.state();
        let State { now, durable, lost, .. } = &mut *state;
        lost.clear();
        let mut sectors: Vec<u64> = now.keys().chain(durable.keys()).copied().collect();
        sectors.sort_unstable();
        sectors.dedup();
        for sector in sectors {
            if now.get(&sector) != durable.get(&sector) && keep_new() {
                match now.get(&sector) {
                    Some(bytes) => durable.insert(sector, *bytes),
                    None => durable.remove(&sector),
                };
            }
        }
        *now = durable.clone();
    }
}

impl State {
    /// How many punches were made.
    pub(crate) fn punches(&self) -> usize {
        self.ops.iter().filter(|op| matches!(op, Op::Punch(..))).count()
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (sector, from, len) in sectors_of(offset, bytes.len()) {
            let (here, more) = rest.split_at(len);
            self.now.entry(sector).or_insert([0; 512])[from..from + len].copy_from_slice(here);
            self.lost.remove(&sector);
            rest = more;
        }
    }

    fn get(&self, offset: u64, into: &mut [u8]) {
        let mut rest = &mut into[..];
        for (sector, from, len) in sectors_of(offset, rest.len()) {
            let (here, more) = rest.split_at_mut(len);
            let bytes = self.now.get(&sector).unwrap_or(&[0; 512]);
            here.copy_from_slice(&bytes[from..from + len]);
            rest = more;
        }
    }
}

/// The sectors that so many bytes at `offset` lie in: number, first byte in
/// it, bytes in it.
fn sectors_of(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, mut left) = (offset, len);
    std::iter::from_fn(move || {
        let from = usize::try_from(at % 512).ok()?;
        let here = left.min(512 - from);
        let sector = at / 512;
        (at, left) = (at + here as u64, left - here);
        (here > 0).then_some((sector, from, here))
    })
}

fn fail<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl Storage for Mem {
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, _nowait: bool) -> io::Result<usize> {
        let state = self.state();
        let mut done = 0;
        for buf in bufs {
            let at = offset + done as u64;
            let rest = usize::try_from(state.len.saturating_sub(at)).unwrap();
            let buf = buf.take(rest.min(state.read_max.unwrap_or(usize::MAX) - done));
            // SAFETY: valid for writes by the trait's contract.
            let into = unsafe { std::slice::from_raw_parts_mut(buf.ptr(), buf.len()) };
            state.get(at, into);
            done += buf.len();
        }
        Ok(done)
    }

    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        if let Some((from, errno)) = state.fail_writes
            && offset >= from
        {
            return fail(errno);
        }
        if let Some((left, errno)) = &mut state.fail_writes_after {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return fail(*errno),
            }
        }
        let mut left = state.write_max.unwrap_or(usize::MAX);
        let mut done = 0;
        for buf in bufs {
            let buf = buf.take(left);
            // SAFETY: valid for reads by the trait's contract.
            let from = unsafe { std::slice::from_raw_parts(buf.ptr().cast_const(), buf.len()) };
            state.put(offset + done as u64, from);
            (done, left) = (done + buf.len(), left - buf.len());
        }
        state.ops.push(Op::Write(offset, done as u64));
        state.len = state.len.max(offset + done as u64);
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        let panics = self.state().panic_in_sync;
        assert!(!panics, "a sync that panics, as the test wants it");
        let mut state = self.state();
        let State { now, durable, lost, fail_sync, syncs_before_failure, .. } = &mut *state;
        let dirty = now.keys().chain(durable.keys()).filter(|at| now.get(at) != durable.get(at));
        let dirty: Vec<u64> = dirty.filter(|at| !lost.contains(at)).copied().collect();
        if *syncs_before_failure > 0 {
            *syncs_before_failure -= 1;
        } else if let Some(errno) = *fail_sync {
            lost.extend(dirty);
            return fail(errno);
        }
        for sector in dirty {
            match now.get(&sector) {
                Some(bytes) => durable.insert(sector, *bytes),
                None => durable.remove(&sector),
            };
        }
        state.ops.push(Op::Sync);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let gate = self.state().gate.clone();
        if let Some(gate) = gate {
            gate.pass();
        }
        let mut state = self.state();
        if let Some(errno) = state.fail_punch {
            return fail(errno);
        }
        state.ops.push(Op::Punch(offset, len));
        assert!(
            offset.is_multiple_of(512) && len.is_multiple_of(512),
            "leaves punch whole sectors"
        );
        (offset / 512..(offset + len) / 512).for_each(|sector| {
            state.now.remove(&sector);
        });
        Ok(())
    }

    fn write_back(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn drop_cached(&self) {
        let mut state = self.state();
        let State { now, durable, lost, .. } = &mut *state;
        for sector in lost.drain() {
            match durable.get(&sector) {
                Some(bytes) => now.insert(sector, *bytes),
                None => now.remove(&sector),
            };
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if let Some(errno) = state.fail_set_len {
            return fail(errno);
        }
        state.ops.push(Op::SetLen(len));
        state.now.retain(|sector, _| *sector < len.div_ceil(512));
        state.len = len;
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64 * 512)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}
