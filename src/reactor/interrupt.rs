//! Getting another thread out of a system call that waits.
#![expect(unsafe_code, reason = "tgkill(2), and sigaction(2) without SA_RESTART")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// By default this signal does nothing, and nothing here uses out-of-band data.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_: libc::c_int) {}

/// Sees to it that the signal interrupts: system calls that wait end with EINTR.
///
/// # Errors
/// As sigaction(2).
pub(super) fn install() -> io::Result<()> {
    // SAFETY: `action` is a plain C struct for which zero is valid (no flags,
    // so no SA_RESTART); the handler does nothing, which is signal-safe.
    let result = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(SIGNAL, &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Interrupts the system call that a thread of this process waits in, if any.
/// A thread that has ended is left in peace.
pub(super) fn thread(id: i32) {
    if id > 0 {
        // SAFETY: a plain system call; the signal's handler does nothing.
        let _ = unsafe { libc::tgkill(libc::getpid(), id, SIGNAL) };
    }
}
