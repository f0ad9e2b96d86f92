//! QEMU's byte locks on an image, as a reader takes them.
//!
//! QEMU holds a read lock on byte 100+n for each permission n that it uses
//! and on 200+n for each that it lets nobody else have, and looks for the
//! others' locks on the opposite bytes (its `raw_check_lock_bytes`). A root is
//! used with "consistent read" (0), and must be neither written (1) nor
//! resized (3) by anybody else.
#![expect(unsafe_code, reason = "OFD locks by fcntl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const USED: i64 = 100;
const UNSHARED: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

fn byte(kind: libc::c_int, at: i64) -> libc::flock {
    // SAFETY: a plain C struct of numbers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap_or(0);
    lock.l_whence = 0;
    lock.l_start = at;
    lock.l_len = 1;
    lock
}

/// Locks an image that is only read, until `file` is closed.
///
/// # Errors
/// `WouldBlock` where somebody writes to it or forbids reading.
pub(crate) fn lock_image(file: &File) -> io::Result<()> {
    for at in [USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE] {
        let lock = byte(libc::F_RDLCK, at);
        // SAFETY: the lock outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => io::ErrorKind::WouldBlock.into(),
                _ => error,
            });
        }
    }
    for at in [UNSHARED + CONSISTENT_READ, USED + WRITE, USED + RESIZE] {
        let mut lock = byte(libc::F_WRLCK, at);
        // SAFETY: the lock outlives the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}
