//! What the system says about huge pages, and the sentence made of it.
//!
//! Owns the reading of /sys/kernel/mm and the words; maps nothing.

use std::fmt;
use std::io;

/// Bytes in the huge pages that the cache uses.
pub(super) const HUGEPAGE_BYTES: usize = 2 << 20;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Why there is no arena of hugetlb pages, and what to do about it.
#[derive(Debug)]
pub struct Shortage {
    needed: u64,
    pool: Option<Pool>,
    source: io::Error,
}

/// The system's pool of 2 MiB hugetlb pages, in pages.
#[derive(Clone, Copy, Debug)]
struct Pool {
    total: u64,
    /// Free and not promised to somebody else already.
    available: u64,
}

impl Shortage {
    /// Looks up why `len` bytes could not be had.
    pub(super) fn describe(len: usize, source: io::Error) -> Self {
        Self { needed: (len as u64).div_ceil(HUGEPAGE_BYTES as u64), pool: Pool::read(), source }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.needed;
        match self.pool {
            Some(Pool { total, available }) if available < needed => write!(
                f,
                "only {available} of {needed} hugepages are free; run sysctl vm.nr_hugepages={}",
                total + (needed - available)
            ),
            // Enough of them, yet refused: a cgroup's or a mount's limit.
            Some(_) => write!(
                f,
                "{needed} hugepages of 2 MiB are refused though free ({}); \
                 see whether a cgroup limits them (hugetlb.2MB.max)",
                self.source
            ),
            None => write!(f, "no hugepages of 2 MiB on this system ({})", self.source),
        }
    }
}

impl Pool {
    fn read() -> Option<Self> {
        let number = |name| -> Option<u64> {
            let text = crate::io::open::kernel_text(format!("{POOL}/{name}")).ok()?;
            text.trim().parse().ok()
        };
        Some(Self {
            total: number("nr_hugepages")?,
            available: number("free_hugepages")?.saturating_sub(number("resv_hugepages")?),
        })
    }
}

/// Whether the administrator has switched transparent huge pages off.
pub(super) fn transparent_are_off() -> bool {
    crate::io::open::kernel_text("/sys/kernel/mm/transparent_hugepage/enabled")
        .map_or(true, |text| text.contains("[never]"))
}

/// Whether shared memory may get transparent huge pages when it asks for them.
pub(super) fn shared_may_be_transparent() -> bool {
    let setting = crate::io::open::kernel_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let setting = setting.unwrap_or_default();
    ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|on| setting.contains(on))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortage(pool: Option<Pool>) -> String {
        Shortage { needed: 512, pool, source: io::ErrorKind::OutOfMemory.into() }.to_string()
    }

    #[test]
    fn the_sentence_counts_what_others_use_into_the_sysctl() {
        let pool = Pool { total: 300, available: 100 };
        assert_eq!(
            shortage(Some(pool)),
            "only 100 of 512 hugepages are free; run sysctl vm.nr_hugepages=712"
        );
    }

    #[test]
    fn a_refusal_in_spite_of_free_pages_does_not_blame_the_pool() {
        let pool = Pool { total: 600, available: 600 };
        assert!(shortage(Some(pool)).contains("cgroup"));
        assert!(shortage(None).contains("no hugepages of 2 MiB"));
    }
}
