//! Hints to the CPU that memory is about to be used.
#![expect(unsafe_code, reason = "the intrinsic takes a bare address")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Asks for the cache line at `address`, which need not be readable: a hint
/// never faults. Nothing on processors other than x86-64.
#[inline]
pub(crate) fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 accesses nothing that a program could notice and
    // raises no exception, whatever the address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`line`], into the second-level cache only: for much that is needed a little
/// later. The first level can wait for few lines at a time, and whoever needs
/// another one stands still (docs/BENCHMARKS.md).
#[inline]
pub(crate) fn line_for_later(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `line`.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
