//! Hints to the CPU that memory is about to be used.
#![expect(unsafe_code, reason = "the intrinsic takes a bare address")]

/// Asks for the cache line at `address`, which need not be readable: a hint
/// never faults. Nothing on processors other than x86-64.
#[inline]
pub(crate) fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: PREFETCHT0 accesses nothing that a program could notice and
        // raises no exception, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
