//! A leaf's file whose disk fails at will, and that calls back within a sync or
//! a write-back. Everything else goes to the file.
//!
//! The library's own tests use it too (`src/lib.rs`). Storage in memory that
//! can lose what was not synced is another thing: `src/leaf/tests/mem.rs` for
//! those, `tests/crashsim/disk.rs` for every state after a power cut.
#![allow(
    dead_code,
    unsafe_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "passes buffers on; each test file uses some of it"
)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use leafblk::io::storage::{FileStorage, Storage, read_exact};
use leafblk::virtqueue::GuestBuf;

/// Where a leaf's header says where its data begins (docs/leaf-format.md).
const DATA_OFFSET_AT: u64 = 72;

/// What the disk does wrong, to be changed at any time. Errnos, or 0.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) sync: AtomicI32,
    pub(crate) write_back: AtomicI32,
    /// Writes of the headers and the map.
    pub(crate) map: AtomicI32,
    /// Writes and zeroing of data.
    pub(crate) data: AtomicI32,
    /// Reads; those by io_uring fail with EBADF, whatever the errno.
    pub(crate) read: AtomicI32,
    /// Most bytes that a write or a read does, or 0.
    pub(crate) most: AtomicUsize,
    /// Write-back is not to be had, and that is no error.
    pub(crate) no_write_back: AtomicBool,
    /// Called in each sync, before it, with its number from 0.
    pub(crate) during_sync: OnceLock<Box<dyn Fn(usize) + Send + Sync>>,
    /// Called in each write-back, before it.
    pub(crate) during_write_back: OnceLock<Box<dyn Fn() + Send + Sync>>,
    begun: AtomicUsize,
    ended: AtomicUsize,
    calls: Mutex<Vec<&'static str>>,
}

impl Faults {
    /// Sets one of the errnos.
    pub(crate) fn set(&self, errno: &AtomicI32, value: i32) {
        errno.store(value, Ordering::SeqCst);
        self.calls.lock().unwrap().clear();
    }

    /// That the fault was met: a test without one would show nothing.
    pub(crate) fn was_met(&self, call: &str) {
        assert!(self.calls.lock().unwrap().contains(&call), "{call} was never called");
    }

    /// How many syncs have begun.
    pub(crate) fn syncs(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many syncs have ended, those that were made to fail apart.
    pub(crate) fn synced(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    fn check(&self, errno: &AtomicI32, call: &'static str) -> io::Result<()> {
        match errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => {
                self.calls.lock().unwrap().push(call);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn cut(&self, bufs: &[GuestBuf]) -> Option<GuestBuf> {
        let most = self.most.load(Ordering::SeqCst);
        bufs.iter().find(|buf| most > 0 && buf.len() > 0).map(|buf| buf.take(most))
    }
}

/// The file of a leaf.
pub(crate) struct FaultyFile {
    file: FileStorage,
    /// Open for writing only: not to be read by anyone.
    unreadable: File,
    faults: Arc<Faults>,
    data_offset: u64,
}

impl FaultyFile {
    /// Opens the leaf at `path`, without a lock.
    pub(crate) fn open(path: &Path, faults: &Arc<Faults>) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let file = FileStorage::new(file);
        let mut data_offset = [0; 8];
        read_exact(&file, &mut data_offset, DATA_OFFSET_AT).unwrap();
        let unreadable = File::options().write(true).open(path).unwrap();
        let data_offset = u64::from_le_bytes(data_offset);
        Self { file, unreadable, faults: Arc::clone(faults), data_offset }
    }
}

impl fmt::Debug for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for FaultyFile {
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, nowait: bool) -> io::Result<usize> {
        self.faults.check(&self.faults.read, "read")?;
        let cut = self.faults.cut(bufs);
        let bufs = cut.as_ref().map_or(bufs, std::slice::from_ref);
        // SAFETY: by this method's contract.
        unsafe { self.file.read_into(bufs, offset, nowait) }
    }

    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize> {
        match offset < self.data_offset {
            true => self.faults.check(&self.faults.map, "map")?,
            false => self.faults.check(&self.faults.data, "data")?,
        }
        let cut = self.faults.cut(bufs);
        let bufs = cut.as_ref().map_or(bufs, std::slice::from_ref);
        // SAFETY: by this method's contract.
        unsafe { self.file.write_from(bufs, offset) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let number = self.faults.begun.fetch_add(1, Ordering::SeqCst);
        if let Some(hook) = self.faults.during_sync.get() {
            hook(number);
        }
        self.faults.check(&self.faults.sync, "sync")?;
        let result = self.file.sync_data();
        self.faults.ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.faults.check(&self.faults.data, "data")?;
        self.file.punch_hole(offset, len)
    }

    fn write_back(&self, offset: u64, len: u64) -> io::Result<bool> {
        if let Some(hook) = self.faults.during_write_back.get() {
            hook();
        }
        if self.faults.no_write_back.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.faults.check(&self.faults.write_back, "write back")?;
        self.file.write_back(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn raw_fd(&self) -> Option<RawFd> {
        match self.faults.read.load(Ordering::SeqCst) {
            0 => self.file.raw_fd(),
            _ => Some(self.unreadable.as_raw_fd()),
        }
    }
}
