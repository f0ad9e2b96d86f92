//! The real engine of one file: an io_uring, past the page cache where the file system lets
//! it (O_DIRECT, open(2)).
#![expect(unsafe_code, reason = "submission queue entries hold raw addresses")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::OFlags;

use super::{Engine, Op, Token};
use crate::slot_leaf::BlockFile;
use crate::slot_leaf::page::Page;
use crate::slot_leaf::word::Slot;

/// Operations in flight at most.
const IN_FLIGHT_MAX: u32 = 128;

/// A file with an io_uring of its own.
pub struct FileEngine {
    file: File,
    ring: IoUring,
    in_flight: u32,
    direct: bool,
}

impl std::fmt::Debug for FileEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileEngine").field("file", &self.file).finish_non_exhaustive()
    }
}

impl FileEngine {
    /// An engine of this file, which is open for reading and writing. It goes past the page
    /// cache from now on, where the file system has that (fcntl(2), F_SETFL).
    ///
    /// # Errors
    /// As io_uring_setup(2) and fcntl(2).
    pub fn new(file: File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        let direct = match rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT) {
            Ok(()) => true,
            Err(rustix::io::Errno::INVAL) => false,
            Err(e) => return Err(e.into()),
        };
        let ring = IoUring::builder().setup_coop_taskrun().build(IN_FLIGHT_MAX)?;
        Ok(Self { file, ring, in_flight: 0, direct })
    }

    /// Whether it goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Hands over what was submitted and takes what is complete: token and result. With
    /// `wait`, not before something is, if anything is in flight.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn reap(
        &mut self,
        wait: bool,
        mut take: impl FnMut(Token, io::Result<u32>),
    ) -> io::Result<()> {
        let wanted = usize::from(wait && self.in_flight > 0);
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => {}
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => return Err(e),
        }
        for entry in self.ring.completion() {
            self.in_flight -= 1;
            let result = u32::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            take(Token::try_from(entry.user_data()).unwrap_or(Token::MAX), result);
        }
        Ok(())
    }

    fn entry(&self, op: &Op<'_>) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        match *op {
            Op::Read { into, offset } => {
                let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
                opcode::Read::new(fd, into.ptr(), len).offset(offset).build()
            }
            Op::Write { from, offset, durable } => {
                let count = u32::try_from(from.len()).unwrap_or(u32::MAX);
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // GuestBuf is a transparent iovec.
                opcode::Writev::new(fd, from.as_ptr().cast(), count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            Op::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }
}

impl Engine for FileEngine {
    unsafe fn submit(&mut self, op: Op<'_>, token: Token) -> bool {
        if self.in_flight >= IN_FLIGHT_MAX {
            return false;
        }
        let entry = self.entry(&op).user_data(u64::from(token));
        // SAFETY: the caller keeps what the entry names until the token is completed, and
        // the file is this value's own.
        let pushed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        self.in_flight += u32::from(pushed);
        pushed
    }
}

impl Drop for FileEngine {
    fn drop(&mut self) {
        // The kernel may still write into buffers: they are let go after this.
        while self.in_flight > 0 {
            if self.reap(true, |_, _| {}).is_err() {
                return;
            }
        }
    }
}

impl BlockFile for FileEngine {
    fn read(&mut self, slot: Slot, into: &mut Page) -> io::Result<()> {
        self.file.read_exact_at(&mut into.0, slot.offset())
    }

    fn write(&mut self, slot: Slot, page: &Page) -> io::Result<()> {
        self.file.write_all_at(&page.0, slot.offset())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::slot_leaf::leaf::Settings;
    use crate::slot_leaf::record::Key;
    use crate::slot_leaf::{Event, Leaf, create, open};
    use crate::write_cache::{SharedMemory, WriteCache};

    const SETTINGS: Settings =
        Settings { write_back_at: 400, age_max: u64::MAX, window: 1 << 20, patience: u64::MAX };

    fn new_file(path: &Path) -> File {
        File::options().read(true).write(true).create_new(true).open(path).unwrap()
    }

    fn memory() -> File {
        rustix::fs::memfd_create("write-cache", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
    }

    fn opened(file: &mut FileEngine, memory: &File, key: u8) -> Leaf<SharedMemory> {
        let memory = SharedMemory::map(memory.try_clone().unwrap(), 2).unwrap();
        open(file, WriteCache::new(memory, 2), SETTINGS, Key([key; 16]), 0).unwrap()
    }

    /// Flushes, and comes to rest: a leaf that is dropped has nothing in flight.
    fn settle(leaf: &mut Leaf<SharedMemory>, file: &mut FileEngine) {
        leaf.flush(0, 1);
        let mut flushed = false;
        while !flushed || !leaf.is_idle() {
            leaf.advance(file, 0);
            file.reap(true, |token, result| leaf.complete(token, result, 0)).unwrap();
            if let Some(Event::Flushed { durable, .. }) = leaf.event() {
                flushed = durable;
            }
        }
    }

    fn block(number: u64) -> Vec<u8> {
        number.to_le_bytes().repeat(512)
    }

    fn keeps_what_was_flushed_in(directory: &Path) {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let path = directory.path().join("a.leaf");
        let mut file = FileEngine::new(new_file(&path)).unwrap();
        create(&mut file, [1; 16], 8 * 100_000, Key([1; 16])).unwrap();
        let frames = memory();
        let mut leaf = opened(&mut file, &frames, 2);
        for number in 0..600 {
            while leaf.write(0, number * 37, 0, &block(number)).is_err() {
                leaf.advance(&mut file, 0);
                file.reap(true, |token, result| leaf.complete(token, result, 0)).unwrap();
            }
        }
        settle(&mut leaf, &mut file);
        drop(leaf);
        // Another boot: what was in memory is gone.
        let mut leaf = opened(&mut file, &memory(), 3);
        for number in 0..600 {
            assert!(leaf.source(number * 37).frame.is_none());
            assert!(leaf.fetch(&mut file, number * 37, number));
            let (at, slot, frame) = loop {
                file.reap(true, |token, result| leaf.complete(token, result, 0)).unwrap();
                if let Some(Event::Fetched { block, slot, frame, .. }) = leaf.event() {
                    break (block, slot, frame);
                }
            };
            let frame = frame.unwrap();
            let mut bytes = vec![0; 4096];
            crate::write_cache::Memory::copy_out(leaf.cache().memory(), frame, 0, &mut bytes);
            assert_eq!(bytes, block(number));
            leaf.give_back(at, slot, frame);
        }
        leaf.audit().unwrap();
    }

    #[test]
    fn what_was_flushed_to_a_disk_past_the_page_cache_is_there_after_a_new_boot() {
        keeps_what_was_flushed_in(&std::env::temp_dir());
    }

    #[test]
    fn what_was_flushed_to_tmpfs_is_there_after_a_new_start() {
        keeps_what_was_flushed_in(Path::new("/dev/shm"));
    }
}
