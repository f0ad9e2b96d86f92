//! Huge pages are made before they are filled.
//!
//! The kernel clears a page when it is first touched: 2 MiB in 0.4 to 0.7 ms, for
//! which a fill would hold its reactor, and with it all VMs there. So a thread
//! touches the arena's pages ahead of the slots that are given out. Only hugetlb
//! pages: those are the arena's from the start, others would be taken from the rest
//! of the machine before there is a use for them.
//!
//! A hint only. What fails or comes late costs the fill what it would have cost.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{Builder, JoinHandle, Thread};

use super::arena::ArenaPages;
use super::hugepages::HUGEPAGE_BYTES;
use super::{Cache, SlotIndex};

/// So far ahead of the last slot that was given out: a disk of 2 GB/s takes 30 ms
/// to fill it, the thread as long to make it.
const AHEAD_BYTES: usize = 64 << 20;

const NOT_AHEAD: &str = "the cache's pages are not made ahead";

/// How far the arena is used, and who is to know of it.
#[derive(Debug)]
pub(super) struct Prefault {
    /// The end of the highest slot that was given out.
    used: AtomicUsize,
    /// From here on the thread has something to do.
    wake_at: AtomicUsize,
    thread: OnceLock<Thread>,
}

impl Prefault {
    pub(super) fn new() -> Self {
        let never = AtomicUsize::new(usize::MAX);
        Self { used: AtomicUsize::new(0), wake_at: never, thread: OnceLock::new() }
    }

    /// The arena is used up to `end`. For one caller at a time.
    #[inline]
    pub(super) fn note_use(&self, end: usize) {
        if end > self.used.load(Ordering::Relaxed) {
            self.used.store(end, Ordering::SeqCst);
            if end >= self.wake_at.load(Ordering::SeqCst) {
                self.wake();
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Prefault {
    /// The thread finds its cache gone.
    fn drop(&mut self) {
        self.wake();
    }
}

impl Cache {
    /// Has the arena's hugetlb pages made ahead of their use from now on, by a thread
    /// that ends with the cache or with the arena's last page. Does nothing where the
    /// arena has other pages. To be called once. What can't be made ahead is made when
    /// it is used.
    pub fn prefault(self: &Arc<Self>) {
        if self.arena.pages() == ArenaPages::Hugetlb
            && let Err(error) = self.start_prefault()
        {
            log::debug!("{NOT_AHEAD}: can't start a thread: {error}");
        }
    }

    fn start_prefault(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let cache = Arc::downgrade(self);
        let handle = Builder::new().name("cache-prefault".into()).spawn(move || run(&cache))?;
        // A use before this wakes nobody; the next one does.
        self.prefault.thread.get_or_init(|| handle.thread().clone());
        Ok(handle)
    }

    /// A slot was given out. Under the cache's lock.
    pub(super) fn note_use(&self, slot: SlotIndex) {
        self.prefault.note_use(self.slot_offset(slot) + self.block_len());
    }
}

fn run(cache: &Weak<Cache>) {
    let mut done: usize = 0;
    while let Some(cache) = cache.upgrade() {
        let (arena, prefault) = (&cache.arena, &cache.prefault);
        // Set before `used` is looked at, as whoever changes that looks at this after.
        let wake_at = (done + 1).saturating_sub(AHEAD_BYTES);
        prefault.wake_at.store(wake_at, Ordering::SeqCst);
        let target = prefault.used.load(Ordering::SeqCst).saturating_add(AHEAD_BYTES);
        if done < target.min(arena.len()) {
            if let Err(error) = arena.populate(done..done + HUGEPAGE_BYTES) {
                log::debug!("{NOT_AHEAD}: {error}");
                return;
            }
            done += HUGEPAGE_BYTES;
            continue;
        }
        if done == arena.len() {
            prefault.wake_at.store(usize::MAX, Ordering::SeqCst);
            return;
        }
        drop(cache);
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::cache::arena::tests::is_present;
    use crate::cache::{CacheConfig, FillOutcome, FillStart, Hugepages, Waiter};

    /// Waits until the thread has made what is wanted: then it is to be woken there.
    fn wait_for(cache: &Cache, wake_at: usize) {
        let begun = Instant::now();
        while cache.prefault.wake_at.load(Ordering::SeqCst) != wake_at {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", cache.prefault);
            std::thread::yield_now();
        }
    }

    fn page_is_present(cache: &Cache, page: usize) -> bool {
        is_present(cache.arena.as_ptr().wrapping_add(page * HUGEPAGE_BYTES))
    }

    #[test]
    fn pages_are_made_ahead_of_use_and_no_further_and_the_thread_ends_with_the_cache() {
        let pages = AHEAD_BYTES / HUGEPAGE_BYTES;
        let config = CacheConfig {
            size_bytes: (AHEAD_BYTES + 3 * HUGEPAGE_BYTES) as u64,
            block_bytes: 1 << 20,
            hugepages: Hugepages::Off,
            readers_max: 1,
        };
        let (cache, _) = Cache::new(&config).unwrap();
        cache.prefault();
        assert!(cache.prefault.thread.get().is_none(), "ordinary pages are made when used");
        let thread = cache.start_prefault().unwrap();
        wait_for(&cache, 1);
        assert!(page_is_present(&cache, pages - 1) && !page_is_present(&cache, pages));

        let root = cache.add_root(1 << 20).unwrap();
        let fill = |block| match root.begin_fill(block, Waiter { reactor: 0, token: 0 }) {
            FillStart::Fill(ticket) => ticket.finish(FillOutcome::Failed, &mut Vec::new()),
            other => panic!("{other:?}"),
        };
        fill(0);
        wait_for(&cache, HUGEPAGE_BYTES + 1);
        assert!(page_is_present(&cache, pages) && !page_is_present(&cache, pages + 1));
        fill(1);
        assert!(!page_is_present(&cache, pages + 1), "the slot is used again");

        drop((root, cache));
        let begun = Instant::now();
        while !thread.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the thread stays");
            std::thread::yield_now();
        }
    }
}
