//! Copies of cached data into guest memory.
//!
//! An ordinary store to a line that is in no cache first reads it from memory,
//! to write it back later: three transfers a byte, where a store past the caches
//! takes two. So a large copy into a buffer that was not used lately goes past
//! them, as a real disk's DMA does (16 KiB: 8.4 against 10.8 GB/s, 128 KiB: 11.2
//! against 14.6); one into a buffer that comes back soon, such as a benchmark's,
//! does not, as its lines are still there.
#![expect(unsafe_code, reason = "copies to guest memory")]

use std::cell::Cell;
use std::ptr;

/// Copies from this length on are worth a look at the buffer.
const LARGE: usize = 16 << 10;
/// After so many copied bytes a buffer is taken to have left the caches.
const WARM_BYTES: u64 = 8 << 20;
/// Buffers that are remembered.
const PLACES: usize = 256;

thread_local! {
    // Of the thread, as caches are: a reactor serves many disks.
    static RECENT: Recent = const { Recent::new() };
}

/// Which buffers were copied to lately.
struct Recent {
    /// A buffer's address, and what had been copied in all by then.
    places: [Cell<(usize, u64)>; PLACES],
    copied: Cell<u64>,
}

impl Recent {
    const fn new() -> Self {
        Self { places: [const { Cell::new((0, 0)) }; PLACES], copied: Cell::new(0) }
    }

    /// Whether the buffer at `address` may still be in a cache; from now on it is.
    fn note(&self, address: usize, len: usize) -> bool {
        let now = self.copied.get();
        self.copied.set(now.wrapping_add(len as u64));
        let hash = (address as u64 >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = &self.places[(hash >> 32) as usize % PLACES];
        let (known, when) = place.replace((address, now));
        known == address && now.wrapping_sub(when) < WARM_BYTES
    }
}

/// Copies `from` to `to`.
///
/// # Safety
/// `from.len()` bytes at `to` are mapped, and no part of `from`.
#[inline]
pub(super) unsafe fn copy(from: &[u8], to: *mut u8) {
    if from.len() >= LARGE && !RECENT.with(|recent| recent.note(to.addr(), from.len())) {
        // SAFETY: by this function's contract.
        unsafe { stream(from, to) };
    } else {
        // SAFETY: by this function's contract.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }
}

/// As [`copy`], past the caches where the CPU can.
///
/// # Safety
/// As for [`copy`].
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: &[u8], to: *mut u8) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    // Up to a line's start: streaming stores are aligned, and whole lines best.
    let (head, body) = from.split_at(to.align_offset(LINE).min(from.len()));
    // SAFETY: both parts lie in `from`, and in what is mapped at `to`.
    unsafe { ptr::copy_nonoverlapping(head.as_ptr(), to, head.len()) };
    let to = to.wrapping_add(head.len());
    let (lines, tail) = body.as_chunks::<LINE>();
    for (i, line) in lines.iter().enumerate() {
        let (source, target) = (line.as_ptr(), to.wrapping_add(i * LINE));
        for at in [0, 16, 32, 48] {
            // SAFETY: within the line, and within what is mapped at `to`,
            // which is a line's start.
            unsafe {
                let word = _mm_loadu_si128(source.wrapping_add(at).cast::<__m128i>());
                _mm_stream_si128(target.wrapping_add(at).cast::<__m128i>(), word);
            }
        }
    }
    let to = to.wrapping_add(lines.len() * LINE);
    // SAFETY: as for the head.
    unsafe { ptr::copy_nonoverlapping(tail.as_ptr(), to, tail.len()) };
    // Streaming stores follow no order: they must be seen before the used
    // index, whose release store orders the ordinary ones only.
    // SAFETY: every x86-64 has it.
    unsafe { _mm_sfence() };
}

/// As [`copy`].
///
/// # Safety
/// As for [`copy`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: &[u8], to: *mut u8) {
    // SAFETY: by this function's contract.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_copy_is_whole_at_every_alignment_and_touches_nothing_beside() {
        let from: Vec<u8> =
            (0..20_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for skip in [0, 1, 15, 16, 63, 64] {
            for len in [0, 1, 63, 64, 65, 4096, 19_000] {
                let mut to = vec![0xa5; 20_200];
                // SAFETY: both ranges lie in their vectors.
                unsafe { stream(&from[skip / 2..][..len], to[skip..].as_mut_ptr()) };
                assert_eq!(to[skip..skip + len], from[skip / 2..][..len], "{skip} {len}");
                assert!(to[..skip].iter().chain(&to[skip + len..]).all(|byte| *byte == 0xa5));
            }
        }
    }

    #[test]
    fn a_buffer_is_warm_until_much_else_was_copied() {
        let recent = Recent::new();
        assert!(!recent.note(0x10_0000, LARGE));
        assert!(recent.note(0x10_0000, LARGE));
        let mut address = 0x4000_0000;
        for _ in 0..WARM_BYTES / LARGE as u64 {
            recent.note(address, LARGE);
            address += LARGE;
        }
        assert!(!recent.note(0x10_0000, LARGE));
    }
}
