//! The io_uring of one reactor: reads that a reactor must not wait for.
//!
//! Owns the ring and bounds what is in flight. It knows neither requests nor
//! devices: an operation is a token, and the token comes back with the result.
//! Buffers belong to the caller, who keeps them (and the mapping that they lie
//! in) until the token is reaped.
#![expect(unsafe_code, reason = "submission queue entries hold raw addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, types};

/// Operations that may be in flight on one ring; who finds no [`Vacancy`] waits in a
/// queue of its own, a bounded one.
pub(crate) const IN_FLIGHT_MAX: u32 = 256;

/// One reactor's ring.
pub(crate) struct Engine {
    ring: IoUring,
    in_flight: u32,
    unsubmitted: u32,
}

impl Engine {
    /// A ring with room for [`IN_FLIGHT_MAX`] operations.
    ///
    /// # Errors
    /// What io_uring_setup(2) says: ENOSYS or EPERM where it is switched off.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            // One thread submits and reaps; completions then need no interrupt
            // of that thread while it is busy (io_uring_setup(2)).
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(IN_FLIGHT_MAX)?;
        Ok(Self { ring, in_flight: 0, unsubmitted: 0 })
    }

    /// Keeps `file` open as long as the kernel has anything of this ring to do,
    /// also after the process was killed: a registered file is let go when the
    /// ring's last request is done (io_uring_register(2)). A lock on it then
    /// says that nothing is read into this process's memory any more.
    pub(crate) fn keep_open(&self, file: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files(&[file])
    }

    /// The descriptor that polls readable when there are completions.
    pub(crate) fn poll_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// How many more operations fit.
    pub(crate) fn room(&self) -> u32 {
        IN_FLIGHT_MAX - self.in_flight
    }

    /// Room for another operation, if there is any.
    pub(crate) fn vacancy(&mut self) -> Option<Vacancy<'_>> {
        (self.in_flight < IN_FLIGHT_MAX).then_some(Vacancy(self))
    }

    /// Hands what is queued to the kernel; costs nothing where nothing is.
    ///
    /// EBUSY and EAGAIN leave entries queued for the next call.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        if self.unsubmitted == 0 {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(count) => {
                self.unsubmitted =
                    self.unsubmitted.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                Ok(())
            }
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the kernel has not taken all that is queued: then nothing of it wakes
    /// the caller.
    pub(crate) fn must_submit(&self) -> bool {
        self.unsubmitted > 0
    }

    /// The next completion: token and result (bytes read, or an error).
    pub(crate) fn reap(&mut self) -> Option<(u32, io::Result<u32>)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        let result = u32::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        #[expect(clippy::cast_possible_truncation, reason = "as it was given")]
        let token = entry.user_data() as u32;
        Some((token, result))
    }
}

/// Room for one operation. Only who has it can queue one.
#[must_use]
pub(crate) struct Vacancy<'a>(&'a mut Engine);

impl Vacancy<'_> {
    /// Queues a read of `len` bytes at `offset` into `ptr`.
    ///
    /// # Safety
    /// `ptr` stays valid for writes of `len` bytes until `token` is reaped,
    /// and `fd` stays open until then.
    pub(crate) unsafe fn read(self, fd: RawFd, ptr: *mut u8, len: u32, offset: u64, token: u32) {
        let entry = opcode::Read::new(types::Fd(fd), ptr, len).offset(offset).build();
        // SAFETY: the caller keeps the buffer and the descriptor.
        unsafe { self.push(entry, token) }
    }

    /// Queues a vectored read.
    ///
    /// # Safety
    /// As for [`Self::read`], for every buffer of `iov` and for the `count`
    /// entries at `iov` themselves.
    pub(crate) unsafe fn readv(
        self,
        fd: RawFd,
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
        token: u32,
    ) {
        let entry = opcode::Readv::new(types::Fd(fd), iov, count).offset(offset).build();
        // SAFETY: the caller keeps the buffers and the descriptor.
        unsafe { self.push(entry, token) }
    }

    /// # Safety
    /// As for [`Self::read`].
    unsafe fn push(self, entry: io_uring::squeue::Entry, token: u32) {
        let Self(engine) = self;
        let entry = entry.user_data(u64::from(token));
        // SAFETY: the entry's addresses stay valid by this function's contract.
        let pushed = unsafe { engine.ring.submission().push(&entry) };
        // The queue is as long as what may be in flight, of which this is less.
        assert!(pushed.is_ok(), "the io_uring has less room than it was made with");
        engine.in_flight += 1;
        engine.unsubmitted += 1;
    }
}
