//! The guard against memory that a frontend takes away under us.
//!
//! Touching a mapping past the end of its (truncated) file raises SIGBUS,
//! which ends the process and every VM with it. A handler maps anonymous
//! memory over the whole range instead and marks it; the owner of the range
//! then stops that one device. System calls on such memory give EFAULT and
//! need no guard.
//!
//! The table is a fixed array of atomics, because a signal handler can neither
//! lock nor allocate (signal-safety(7)).
#![expect(unsafe_code, reason = "a signal handler that remaps pages")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Ranges that can be guarded at once: 1024 VMs with a few regions each.
pub const RANGES_MAX: usize = 8192;

struct Range {
    /// 0: free; 1: being set up; otherwise the first address.
    start: AtomicUsize,
    len: AtomicUsize,
    page_size: AtomicUsize,
    faulted: AtomicBool,
}

static RANGES: [Range; RANGES_MAX] = [const {
    Range {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page_size: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; RANGES_MAX];

static INSTALL: Once = Once::new();

/// One guarded range; unregistered when dropped, which must come before the
/// range is unmapped.
#[derive(Debug)]
pub struct Guard {
    index: usize,
}

impl Guard {
    /// Guards `len` bytes at `start`, mapped in pages of `page_size` bytes;
    /// `None` if all places are taken.
    pub fn register(start: usize, len: usize, page_size: u64) -> Option<Self> {
        INSTALL.call_once(install);
        let page_size = usize::try_from(page_size).ok()?;
        let index = RANGES.iter().position(|range| {
            range.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let range = &RANGES[index];
        range.len.store(len, Ordering::Relaxed);
        range.page_size.store(page_size, Ordering::Relaxed);
        range.faulted.store(false, Ordering::Relaxed);
        range.start.store(start, Ordering::Release);
        Some(Self { index })
    }

    /// Whether memory of the range was gone when it was touched.
    pub fn is_faulted(&self) -> bool {
        RANGES[self.index].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RANGES[self.index].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: `action` is a plain C struct, zero is valid for all its fields,
    // and the handler has the signature that SA_SIGINFO asks for.
    let result = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
    };
    if result != 0 {
        log::error!(
            "can't install the guard against truncated guest memory: {}",
            io::Error::last_os_error()
        );
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    for range in &RANGES {
        // Codes above 0 come from the kernel, about an access; kill(2) has no
        // address.
        if code <= 0 {
            break;
        }
        let start = range.start.load(Ordering::Acquire);
        if start > 1 && address >= start && address - start < range.len.load(Ordering::Relaxed) {
            let page_size = range.page_size.load(Ordering::Relaxed).max(4096);
            // Before the zeros appear: who reads them can then know.
            range.faulted.store(true, Ordering::Release);
            // The whole range at once: page by page, each replacement would
            // split the mapping, up to the limit of mappings.
            let len = range.len.load(Ordering::Relaxed).next_multiple_of(page_size);
            // SAFETY: the range is a whole mapping that its owner keeps while
            // the range is registered; errno is saved and restored. mmap(2)
            // is a plain system call.
            let mapped = unsafe {
                let errno = *libc::__errno_location();
                let mapped = libc::mmap(
                    start as *mut libc::c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                );
                *libc::__errno_location() = errno;
                mapped
            };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not guest memory: die of it as without a handler. Returning runs the
    // instruction again, now with the default action.
    // SAFETY: signal(2) is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
