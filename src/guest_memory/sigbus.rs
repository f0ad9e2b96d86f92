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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use super::account::ALL_MAPPINGS_MAX;

/// Ranges that can be guarded at once: all that frontends may have mapped.
pub const RANGES_MAX: usize = ALL_MAPPINGS_MAX;

/// A place for a range. Its owner changes it while signal handlers of other
/// threads read it, so a reader takes what it read only if `generation` is the
/// same before and after: see [`Range::read`].
struct Range {
    /// The first address; 0 while nobody has the place, or it is being set up.
    start: AtomicUsize,
    /// Counts the owners.
    generation: AtomicUsize,
    len: AtomicUsize,
    page_size: AtomicUsize,
    faulted: AtomicBool,
}

static RANGES: [Range; RANGES_MAX] = [const { Range::empty() }; RANGES_MAX];

/// Places up to here have been used; the others need no look.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Those of them that are free now. Not for the signal handler.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Ranges of which some memory was found gone, ever.
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// A place that nobody has, of the first ones: the handler looks at all that were ever
/// used.
fn claim() -> Option<usize> {
    let mut free = free_places();
    free.pop().or_else(|| {
        let index = USED.load(Ordering::Relaxed);
        (index < RANGES_MAX).then(|| {
            USED.store(index + 1, Ordering::Release);
            index
        })
    })
}

fn free_places() -> MutexGuard<'static, Vec<usize>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Range {
    /// Nobody's.
    const fn empty() -> Self {
        Self {
            start: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page_size: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
        }
    }

    /// Sets a claimed place up.
    fn set(&self, start: usize, len: usize, page_size: usize) {
        // Release: who reads this generation sees no start of an earlier owner.
        self.generation.fetch_add(1, Ordering::Release);
        // Who reads one of the values below sees the generation.
        fence(Ordering::Release);
        self.len.store(len, Ordering::Relaxed);
        self.page_size.store(page_size, Ordering::Relaxed);
        self.faulted.store(false, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }

    /// Its owner leaves it.
    fn clear(&self) {
        self.start.store(0, Ordering::Release);
    }

    /// The first address, length and page size of one and the same owner.
    fn read(&self) -> Option<(usize, usize, usize)> {
        self.read_with(|| ())
    }

    /// [`Self::read`], with something that happens in the middle of it.
    fn read_with(&self, meanwhile: impl FnOnce()) -> Option<(usize, usize, usize)> {
        let generation = self.generation.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        meanwhile();
        let len = self.len.load(Ordering::Relaxed);
        let page_size = self.page_size.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let same = self.generation.load(Ordering::Relaxed) == generation;
        (start != 0 && same).then_some((start, len, page_size))
    }
}

/// The place of the range that holds an address; its first address and its
/// length in whole pages.
fn holder(address: usize) -> Option<(&'static Range, usize, usize)> {
    // One that changes at this moment is not the one that was touched: its owner
    // keeps that as it is.
    RANGES[..USED.load(Ordering::Acquire)].iter().find_map(|range| {
        let (start, len, page_size) = range.read()?;
        let holds = address >= start && address - start < len;
        holds.then(|| (range, start, len.next_multiple_of(page_size.max(1))))
    })
}

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
        let index = claim()?;
        RANGES[index].set(start, len, page_size);
        Some(Self { index })
    }

    /// Whether memory of the range was gone when it was touched.
    pub fn is_faulted(&self) -> bool {
        RANGES[self.index].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RANGES[self.index].clear();
        free_places().push(self.index);
    }
}

/// Somebody's last look at his ranges. A look is only needed after a fault, of anybody's
/// range, so that the many ranges of one table cost nothing.
#[derive(Debug)]
pub(super) struct Look {
    /// How many faults there had been at the last one that found nothing.
    faults: AtomicUsize,
}

impl Default for Look {
    /// None yet: the ranges may be older.
    fn default() -> Self {
        Self { faults: AtomicUsize::new(usize::MAX) }
    }
}

impl Look {
    #[inline]
    pub(super) fn is_needed(&self) -> bool {
        // Acquire: who sees the count sees whose range it was.
        FAULTS.load(Ordering::Acquire) != self.faults.load(Ordering::Relaxed)
    }

    /// Looks by `is_faulted`; its answer.
    pub(super) fn look(&self, is_faulted: impl FnOnce() -> bool) -> bool {
        let faults = FAULTS.load(Ordering::Acquire);
        let found = is_faulted();
        if !found {
            self.faults.store(faults, Ordering::Relaxed);
        }
        found
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
    // Codes above 0 come from the kernel, about an access; kill(2) has no
    // address.
    if code > 0
        && let Some((range, start, len)) = holder(address)
    {
        // Before the zeros appear: who reads them can then know.
        range.faulted.store(true, Ordering::Release);
        FAULTS.fetch_add(1, Ordering::AcqRel);
        // The whole range at once: page by page, each replacement would split
        // the mapping, up to the limit of mappings.
        // SAFETY: `start` and `len` are one owner's, and that owner is the one
        // whose memory this thread touches: ranges of owners at the same time
        // don't overlap. Owners keep what others may touch mapped, and
        // unregister before they unmap, so the whole range is that mapping and
        // stays it until this handler returns. mmap(2) is a plain system call;
        // errno is saved and restored.
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
    // Not guest memory: die of it as without a handler. Returning runs the
    // instruction again, now with the default action.
    // SAFETY: signal(2) is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that nothing is mapped at: nobody touches them here.
    const LOW: usize = 1 << 60;
    const HIGH: usize = LOW + (1 << 30);

    #[test]
    fn an_address_is_found_in_its_range_only() {
        let range = Guard::register(HIGH + 0x10_0000, 0x1800, 0x1000).unwrap();
        for (address, inside) in [(0, true), (0x17ff, true), (0x1800, false), (usize::MAX, false)] {
            let found = holder((HIGH + 0x10_0000).wrapping_add(address));
            assert_eq!(found.is_some(), inside, "{address:#x}");
            assert!(found.is_none_or(|(_, start, len)| (start, len) == (HIGH + 0x10_0000, 0x2000)));
        }
        drop(range);
        assert!(holder(HIGH + 0x10_0000).is_none());
    }

    #[test]
    fn a_place_that_changes_hands_never_shows_one_owners_start_with_anothers_length() {
        let place = Range::empty();
        place.set(LOW, 0x1000, 0x1000);
        assert_eq!(place.read(), Some((LOW, 0x1000, 0x1000)));
        // Another address, or the same one once more: mmap(2) gives it again.
        for start in [HIGH, LOW] {
            let seen = place.read_with(|| {
                place.clear();
                place.set(start, 0x10_0000, 0x1000);
            });
            assert_eq!(seen, None);
            assert_eq!(place.read(), Some((start, 0x10_0000, 0x1000)));
        }
        place.clear();
        assert_eq!(place.read(), None);
    }

    #[test]
    fn places_are_used_again_and_none_has_two_owners() {
        let guard =
            |i: usize| Guard::register(HIGH + (1 << 29) + (i << 12), 0x1000, 0x1000).unwrap();
        let mut guards: Vec<_> = (0..600).map(guard).collect();
        // Others use places meanwhile, but not hundreds.
        let used = USED.load(Ordering::Relaxed) + 300;
        for _ in 0..10 {
            guards.retain(|guard| guard.index % 2 == 0);
            let missing = 600 - guards.len();
            guards.extend((0..missing).map(guard));
            let mut places: Vec<_> = guards.iter().map(|guard| guard.index).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 600);
        }
        assert!(USED.load(Ordering::Relaxed) < used);
    }
}
