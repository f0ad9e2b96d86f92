//! A disk that remembers what was not synced.
#![expect(unsafe_code, reason = "copies buffers as the real storage's system calls do")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::sparse::{self, Sparse};
use leafblk::io::storage::Storage;
use leafblk::leaf::header::{self, Header};
use leafblk::virtqueue::GuestBuf;

/// What a power cut leaves or takes as a whole.
pub(crate) const UNIT: u64 = 512;

/// The bytes of a unit; `None`: zeros.
pub(crate) type Content = Option<Arc<[u8; 512]>>;

/// One thing's contents: the durable one, and what came after it, each with the
/// number of the operation that brought it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions<T> {
    pub(crate) durable: T,
    pub(crate) newer: Vec<(u64, T)>,
}

impl<T: Clone + PartialEq> Versions<T> {
    pub(crate) fn now(&self) -> &T {
        self.newer.last().map_or(&self.durable, |(_, content)| content)
    }

    /// One operation brings one version, in however many pieces it comes.
    fn change(&mut self, operation: u64, content: T) {
        self.newer.pop_if(|(last, _)| *last == operation);
        if *self.now() != content {
            self.newer.push((operation, content));
        }
    }

    fn sync(&mut self) {
        if let Some((_, content)) = self.newer.pop() {
            (self.durable, self.newer) = (content, Vec::new());
        }
    }
}

/// All that is on a disk, and may be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) units: BTreeMap<u64, Versions<Content>>,
    pub(crate) len: Versions<u64>,
    /// Units whose write-back failed: the kernel counts them as written.
    lost: BTreeSet<u64>,
    operation: u64,
}

impl Image {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (unit, from, chunk) in pieces(offset, bytes.len()) {
            let versions = self.units.entry(unit).or_default();
            let mut content = versions.now().as_deref().copied().unwrap_or([0; 512]);
            content[from..from + chunk.len()].copy_from_slice(&bytes[chunk]);
            let zeros = content.iter().all(|byte| *byte == 0);
            versions.change(self.operation, (!zeros).then(|| Arc::new(content)));
            self.lost.remove(&unit);
        }
    }

    /// Damages a copy of the leaf's header; false where the other one is no
    /// header now.
    pub(crate) fn damage_header(&mut self, copy: u64) -> bool {
        let mut bytes = [0; header::LEN];
        self.get((1 - copy) * header::LEN as u64, &mut bytes);
        if Header::decode(&bytes).is_err() {
            return false;
        }
        let at = copy * header::LEN as u64 + 700;
        let mut byte = [0];
        self.get(at, &mut byte);
        self.put(at, &[byte[0] ^ 1]);
        true
    }

    pub(crate) fn get(&self, offset: u64, into: &mut [u8]) {
        for (unit, from, chunk) in pieces(offset, into.len()) {
            let content = self.units.get(&unit).and_then(|versions| versions.now().as_deref());
            let len = chunk.len();
            match content {
                Some(content) => into[chunk].copy_from_slice(&content[from..from + len]),
                None => into[chunk].fill(0),
            }
        }
    }

    fn clear(&mut self, units: impl std::ops::RangeBounds<u64>) {
        for (unit, versions) in self.units.range_mut(units) {
            versions.change(self.operation, None);
            self.lost.remove(unit);
        }
    }

    /// Makes durable what lies where `which` says.
    fn sync(&mut self, which: impl Fn(u64) -> bool) {
        self.len.sync();
        let lost = &self.lost;
        let synced = |unit: &u64| which(*unit) && !lost.contains(unit);
        self.units.iter_mut().filter(|(unit, _)| synced(unit)).for_each(|(_, v)| v.sync());
        self.units.retain(|_, v| v.durable.is_some() || !v.newer.is_empty());
    }

    /// Write-back from the unit on fails: no later sync makes durable what was
    /// dirty, or says so.
    fn lose(&mut self, from: u64) {
        let dirty = self.units.range(from..).filter(|(_, v)| !v.newer.is_empty());
        self.lost.extend(dirty.map(|(unit, _)| *unit));
    }
}

/// The units that so many bytes at `offset` lie in: number, first byte in the
/// unit, and which of the bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let from = usize::try_from(at % UNIT).unwrap();
        let here = (len - done).min(512 - from);
        done += here;
        (here > 0).then(|| (at / UNIT, from, done - here..done))
    })
}

/// Ways for a disk to break its word, for showing that this is noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lie {
    /// None: an honest disk.
    Honest,
    /// Syncs do nothing.
    SyncsNothing,
    /// Every second sync does nothing, beginning with this one (0 or 1).
    SkipsSyncs(u64),
    /// A sync makes headers and map durable, the data only with the next sync
    /// but one.
    MapBeforeData(u64),
    /// Of a unit, a power cut leaves half.
    TearsUnits,
}

/// The state of things when the leaf called its storage.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    pub(crate) image: Image,
    /// The live map's file, if there is one and kills are looked at.
    pub(crate) live_map: Option<Sparse>,
    /// The call is a sync: all that came since the last one may be lost.
    pub(crate) before_sync: bool,
    /// How many writes beside the operation had begun, and had ended.
    pub(crate) beside: (usize, usize),
}

/// Something that is done within a sync.
pub(crate) type Beside = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    image: Image,
    lie: Option<Lie>,
    syncs: u64,
    moments: Option<Vec<Moment>>,
    live_map: Option<PathBuf>,
    /// Run at the beginning (even) and the end (odd) of syncs, by number.
    beside: BTreeMap<u64, Beside>,
    places: u64,
    begun_and_ended: (usize, usize),
    fails: Option<Fails>,
    /// Asks for write-back, at a place.
    write_back: Option<(u64, Beside)>,
}

/// What fails, and how, until it is taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fails {
    /// Syncs with EIO, after so many that succeed.
    Syncs(u64),
    /// Writes with ENOSPC, after so many bytes: whole units, as a file system
    /// runs out of whole blocks.
    Writes(u64),
    /// Write-back, with EIO; it comes at this place within the syncs, as for
    /// [`SimDisk::beside`].
    WriteBack(u64),
}

/// A handle; clones share the disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    pub(crate) fn new(image: Image, lie: Lie) -> Self {
        Self(Arc::new(Mutex::new(State { image, lie: Some(lie), ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn image(&self) -> Image {
        self.state().image.clone()
    }

    /// From now on every call of the leaf is a moment; with `live_map`, the file
    /// is kept too.
    pub(crate) fn record(&self, live_map: Option<PathBuf>) {
        let mut state = self.state();
        (state.moments, state.live_map) = (Some(Vec::new()), live_map);
        (state.places, state.begun_and_ended) = (0, (0, 0));
    }

    /// The moments since [`Self::record`].
    pub(crate) fn moments(&self) -> Vec<Moment> {
        let mut state = self.state();
        state.beside.clear();
        state.write_back = None;
        state.moments.take().unwrap_or_default()
    }

    /// Has `action` done at the beginning of the sync number `place / 2` from
    /// now, or for an odd place at its end.
    pub(crate) fn beside(&self, place: u64, action: Beside) {
        self.state().beside.insert(place, action);
    }

    /// Has write-back asked for at such a place.
    pub(crate) fn write_back_beside(&self, place: u64, action: Beside) {
        self.state().write_back = Some((place, action));
    }

    /// How many of those actions have ended.
    pub(crate) fn beside_ended(&self) -> usize {
        self.state().begun_and_ended.1
    }

    pub(crate) fn fail(&self, fails: Option<Fails>) {
        self.state().fails = fails;
    }

    fn note(&self, before_sync: bool) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.moments.is_some() {
            let live_map = state.live_map.as_ref().and_then(|path| sparse::read(path));
            let (image, beside) = (state.image.clone(), state.begun_and_ended);
            let moment = Moment { image, live_map, before_sync, beside };
            if let Some(moments) = &mut state.moments {
                moments.push(moment);
            }
        }
        state.image.operation += 1;
        state
    }

    fn run_beside(&self) {
        let mut state = self.state();
        let place = state.places;
        state.places += 1;
        if let Some((_, mut action)) = state.write_back.take_if(|(at, _)| *at == place) {
            drop(state);
            action();
            state = self.state();
        }
        if let Some(mut action) = state.beside.remove(&place) {
            state.begun_and_ended.0 += 1;
            drop(state);
            action();
            self.state().begun_and_ended.1 += 1;
        }
    }
}

/// Past it lies a leaf's data: its header says so.
fn data_unit(image: &Image) -> u64 {
    let mut bytes = [0; 8];
    image.get(72, &mut bytes);
    u64::from_le_bytes(bytes) / UNIT
}

fn errno<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl Storage for SimDisk {
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, _nowait: bool) -> io::Result<usize> {
        let state = self.state();
        let mut done = 0;
        for buf in bufs {
            let at = offset + done as u64;
            let rest = usize::try_from(state.image.len.now().saturating_sub(at)).unwrap();
            let buf = buf.take(rest);
            // SAFETY: valid for writes by the trait's contract.
            let into = unsafe { std::slice::from_raw_parts_mut(buf.ptr(), buf.len()) };
            state.image.get(at, into);
            done += buf.len();
        }
        Ok(done)
    }

    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize> {
        let mut state = self.note(false);
        let mut done = 0;
        for buf in bufs {
            let mut buf = *buf;
            if let Some(Fails::Writes(left)) = &mut state.fails {
                buf = buf.take(usize::try_from(*left).unwrap());
                *left -= buf.len() as u64;
            }
            // SAFETY: valid for reads by the trait's contract.
            let from = unsafe { std::slice::from_raw_parts(buf.ptr().cast_const(), buf.len()) };
            state.image.put(offset + done as u64, from);
            done += buf.len();
        }
        if done == 0 && bufs.iter().any(|buf| buf.len() > 0) {
            return errno(libc::ENOSPC);
        }
        let (operation, end) = (state.image.operation, offset + done as u64);
        let len = end.max(*state.image.len.now());
        state.image.len.change(operation, len);
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run_beside();
        let mut state = self.note(true);
        if let Some(Fails::Syncs(left)) = &mut state.fails {
            if *left == 0 {
                return errno(libc::EIO);
            }
            *left -= 1;
        }
        let count = state.syncs;
        state.syncs += 1;
        let data = data_unit(&state.image);
        match state.lie {
            None | Some(Lie::Honest | Lie::TearsUnits) => state.image.sync(|_| true),
            Some(Lie::SyncsNothing) => {}
            Some(Lie::SkipsSyncs(first)) if count % 2 == first => {}
            Some(Lie::SkipsSyncs(_)) => state.image.sync(|_| true),
            Some(Lie::MapBeforeData(first)) if count % 2 == first => {
                state.image.sync(|unit| unit < data);
            }
            Some(Lie::MapBeforeData(_)) => state.image.sync(|_| true),
        }
        drop(state);
        self.run_beside();
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.note(false);
        assert!(offset.is_multiple_of(UNIT) && len.is_multiple_of(UNIT), "whole units");
        state.image.clear(offset / UNIT..(offset + len) / UNIT);
        Ok(())
    }

    fn write_back(&self, offset: u64, _len: u64) -> io::Result<bool> {
        let mut state = self.state();
        if let Some(Fails::WriteBack(_)) = state.fails {
            state.image.lose(offset / UNIT);
            return errno(libc::EIO);
        }
        Ok(true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.note(false);
        state.image.clear(len.div_ceil(UNIT)..);
        let operation = state.image.operation;
        state.image.len.change(operation, len);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(*self.state().image.len.now())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state().image.units.len() as u64 * UNIT)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}
