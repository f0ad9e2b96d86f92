//! Positioned I/O on the one file that a leaf is.
//!
//! A trait, because the leaf runs on two kinds of it: the real file, and in
//! tests one that fails at will or loses what was not synced. It knows
//! offsets and bytes, nothing of sectors or maps.
#![expect(unsafe_code, reason = "vectored I/O on guest memory, by raw addresses")]

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fdatasync};
use rustix::io::Errno;

use super::open::{self, Access};
use crate::virtqueue::GuestBuf;

/// Buffers that one readv(2) or writev(2) takes (IOV_MAX).
pub const BUFS_MAX: usize = 1024;

/// One file, at positions. Calls that succeed may be short, as read(2) and
/// write(2) are. EINTR is retried inside, but for a sync: an error that an
/// interrupted one has met would not be told again.
pub trait Storage: Send + Sync + Debug {
    /// Reads into `bufs`; with `nowait` fails with EAGAIN rather than wait for
    /// a disk.
    ///
    /// # Errors
    /// As preadv2(2).
    ///
    /// # Safety
    /// The buffers are valid for writes during the call.
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, nowait: bool) -> io::Result<usize>;

    /// Writes from `bufs`.
    ///
    /// # Errors
    /// As pwritev(2).
    ///
    /// # Safety
    /// The buffers are valid for reads during the call.
    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize>;

    /// Makes the data, and what is needed to find it, durable.
    ///
    /// # Errors
    /// As fdatasync(2). After an error nothing is known of what was written.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// As fallocate(2): EOPNOTSUPP where the file system can't.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Writes back what is dirty of the range, and waits for that and for what
    /// was under way before. False where there is no such call: nothing is done.
    ///
    /// # Errors
    /// The disk's or the file system's, whichever they are. One that the kernel
    /// has noted for the file is [`Self::sync_data`]'s to tell as well: neither
    /// takes it from the other.
    fn write_back(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Drops what is cached and not dirty, so that reads ask the disk: pages whose
    /// write failed count as clean. A hint, where there is such a cache.
    fn drop_cached(&self) {}

    /// Makes the file so long: cut off, or with a hole at its end.
    ///
    /// # Errors
    /// As ftruncate(2).
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As fstat(2).
    fn len_bytes(&self) -> io::Result<u64>;

    /// Where from `offset` on there may be something else than zeros, as far as the
    /// storage knows without reading; `None` where zeros are all that is left
    /// (SEEK_DATA, lseek(2)).
    ///
    /// # Errors
    /// As the storage.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// Bytes that the file occupies on its disk.
    ///
    /// # Errors
    /// As fstat(2).
    fn allocated(&self) -> io::Result<u64>;

    /// The descriptor for reads by io_uring, if there is one.
    fn raw_fd(&self) -> Option<RawFd>;

    /// Gives up the lock that keeps others from opening the file, if there is
    /// one.
    fn unlock(&self) {}
}

/// Reads exactly `into.len()` bytes.
///
/// # Errors
/// As the storage; UnexpectedEof at its end.
pub fn read_exact(storage: &dyn Storage, into: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        let buf = GuestBuf::new(into[done..].as_mut_ptr(), into.len() - done);
        // SAFETY: the buffer is the rest of `into`, borrowed for the call.
        match unsafe { storage.read_into(&[buf], offset + done as u64, false) }? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// Writes all of `from`.
///
/// # Errors
/// As the storage; WriteZero where it takes nothing.
pub fn write_all(storage: &dyn Storage, from: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < from.len() {
        let buf = GuestBuf::new(from[done..].as_ptr().cast_mut(), from.len() - done);
        // SAFETY: the buffer is the rest of `from`, borrowed for the call and
        // only read.
        match unsafe { storage.write_from(&[buf], offset + done as u64) }? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// Makes a range read as zeros: a hole, or where the file system has none,
/// zeros written out. `len` is not 0.
///
/// # Errors
/// As the storage.
pub fn zero(storage: &dyn Storage, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 65536] = [0; 65536];
    match storage.punch_hole(offset, len) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        result => return result,
    }
    let mut done = 0;
    while done < len {
        let here = usize::try_from(len - done).unwrap_or(usize::MAX).min(ZEROES.len());
        write_all(storage, &ZEROES[..here], offset + done)?;
        done += here as u64;
    }
    Ok(())
}

/// The real file.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    /// The same file, opened once more: `None` where that, or write-back, can't
    /// be had. The kernel tells a write-back error once to each *opening* of a
    /// file; sync_file_range(2) on the one that fdatasync(2) uses would take it
    /// from there, and the sync would succeed without the data.
    back: OnceLock<Option<File>>,
}

impl FileStorage {
    /// Storage in `file`, which is open for what is to be done.
    pub fn new(file: File) -> Self {
        Self { file, back: OnceLock::new() }
    }

    /// Reads leave the file's access time alone from now on, which makes those of
    /// the page cache quicker (docs/BENCHMARKS.md). Not on another user's file
    /// (open(2), O_NOATIME): no matter.
    pub fn keep_no_access_times(&self) {
        if let Ok(flags) = rustix::fs::fcntl_getfl(&self.file) {
            let _ = rustix::fs::fcntl_setfl(&self.file, flags | rustix::fs::OFlags::NOATIME);
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, given back.
    pub fn into_file(self) -> File {
        self.file
    }

    fn opened_for_write_back(&self) -> Option<&File> {
        let open = || -> io::Result<File> {
            let file = open::again(&self.file, Access::Read, OFlags::empty())?;
            // Without flags it does nothing: an error is about the call.
            sync_file_range(&file, 0, 0, 0)?;
            Ok(file)
        };
        let opened = self.back.get_or_init(|| {
            let warn = |e: &io::Error| log::warn!("no write-back ahead of flushes: {e}");
            open().inspect_err(warn).ok()
        });
        opened.as_ref()
    }
}

fn sync_file_range(file: &File, offset: u64, len: u64, flags: u32) -> io::Result<()> {
    let (offset, len) = (offset_of(offset)?, offset_of(len)?);
    // SAFETY: a plain system call on an open descriptor.
    let call = || unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) as isize };
    retrying(call).map(drop)
}

/// Runs a system call until it isn't interrupted.
fn retrying(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn offset_of(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The list as iovecs, cut to what one call takes.
fn iovecs(bufs: &[GuestBuf]) -> (*const libc::iovec, i32) {
    let count = bufs.len().min(BUFS_MAX);
    // GuestBuf is a transparent iovec.
    (bufs.as_ptr().cast(), i32::try_from(count).unwrap_or(i32::MAX))
}

impl Storage for FileStorage {
    #[inline]
    unsafe fn read_into(&self, bufs: &[GuestBuf], offset: u64, nowait: bool) -> io::Result<usize> {
        let (iov, count) = iovecs(bufs);
        let offset = offset_of(offset)?;
        let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
        // SAFETY: `count` entries stand at `iov`; their buffers are valid by
        // this method's contract.
        retrying(|| unsafe { libc::preadv2(self.file.as_raw_fd(), iov, count, offset, flags) })
    }

    #[inline]
    unsafe fn write_from(&self, bufs: &[GuestBuf], offset: u64) -> io::Result<usize> {
        let (iov, count) = iovecs(bufs);
        let offset = offset_of(offset)?;
        // SAFETY: as in `read_into`.
        retrying(|| unsafe { libc::pwritev(self.file.as_raw_fd(), iov, count, offset) })
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::io::retry_on_intr(|| fallocate(&self.file, flags, offset, len))?)
    }

    fn write_back(&self, offset: u64, len: u64) -> io::Result<bool> {
        const FLAGS: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let Some(file) = self.opened_for_write_back() else {
            return Ok(false);
        };
        sync_file_range(file, offset, len, FLAGS)?;
        Ok(true)
    }

    fn drop_cached(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.file, len))?)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        // All I/O says where: nobody else uses the file's own position.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // Not known on this file system, or for this kind of file.
            Err(_) => Ok(Some(offset)),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(std::os::unix::fs::MetadataExt::blocks(&self.file.metadata()?) * 512)
    }

    fn unlock(&self) {
        // Closing the file gives it up in any case.
        let _ = self.file.unlock();
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_passed_over() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 40).unwrap();
        let storage = FileStorage::new(file);
        assert_eq!(storage.next_data(0).unwrap(), None);
        write_all(&storage, &[1; 10], 1 << 30).unwrap();
        assert_eq!(storage.next_data(0).unwrap(), Some(1 << 30));
        assert_eq!(storage.next_data((1 << 30) + 5).unwrap(), Some((1 << 30) + 5));
        assert_eq!(storage.next_data(1 << 31).unwrap(), None);
    }

    /// A write-back error is told once to each opening of a file; what shows
    /// that there are two is flock(2), which keeps openings apart likewise.
    #[test]
    fn write_back_has_an_opening_of_its_own_and_holds_no_lock() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let storage = FileStorage::new(named.reopen().unwrap());
        storage.file.lock().unwrap();
        write_all(&storage, &[7; 8192], 0).unwrap();
        // The leaf may have been replaced: it is this file that counts.
        named.close().unwrap();
        assert!(storage.write_back(0, 8192).unwrap());
        let back = storage.opened_for_write_back().unwrap();
        assert!(back.try_lock_shared().is_err(), "the same opening would share the lock");
        assert_eq!(back.metadata().unwrap().len(), 8192);
        storage.unlock();
        assert!(back.try_lock_shared().is_ok());
    }

    #[test]
    fn reads_of_ones_own_file_keep_no_access_times_when_told_to() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let storage = FileStorage::new(named.reopen().unwrap());
        let keeps = || {
            !rustix::fs::fcntl_getfl(storage.file()).unwrap().contains(rustix::fs::OFlags::NOATIME)
        };
        assert!(keeps());
        storage.keep_no_access_times();
        assert!(!keeps());
    }

    #[test]
    fn what_has_no_write_back_says_so_and_fails_nothing() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = FileStorage::new(File::from(std::os::fd::OwnedFd::from(reader)));
        assert!(!pipe.write_back(0, 4096).unwrap());
    }
}
