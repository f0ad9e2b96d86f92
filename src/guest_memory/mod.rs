//! A guest's memory as the frontend shares it: mapped regions, and the
//! translation of guest and frontend addresses to ours.
//!
//! This module owns the table of [`region`]s. It adds what a data path needs: a
//! translation that is quick however many regions there are ([`places`]), a guard that keeps a frontend that truncates its memory from killing the
//! process ([`sigbus`]), and limits to what a frontend may have mapped ([`account`]).
//! It knows nothing of rings or requests.
//!
//! Invariants: regions overlap neither in guest nor in frontend addresses; a
//! pointer handed out lies in a mapping that lives as long as the
//! [`GuestMemory`] (or any other that shares the region); all of it is memory,
//! tmpfs or hugetlbfs, so that touching it waits for no file system that the
//! frontend chose.

pub mod account;
mod places;
mod region;
pub mod sigbus;

use std::sync::Arc;

pub use account::Account;
use account::{MAPPINGS_MAX, MAPPINGS_SHARE, table_bytes_max};
use places::{Place, Places};
use region::Region;
pub use region::RegionSpec;

/// Regions that one frontend may share (memory slots): all that QEMU ever uses, which
/// takes the smaller number of this and 512, and reckons with 509 for DIMMs and
/// virtio-mem.
pub const REGIONS_MAX: usize = 512;

/// Why memory could not be taken.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum GuestMemoryError {
    #[error("a memory region of the frontend is empty or wraps around the address space")]
    BadRange,
    #[error("memory regions of the frontend overlap at guest address {0:#x}")]
    Overlap(u64),
    #[error("the frontend shares more than {REGIONS_MAX} memory regions")]
    TooMany,
    #[error(
        "a memory region of the frontend needs {need} bytes of a file that has {have}; \
         start the VM with a shared memory backend (QEMU: share=on)"
    )]
    FileTooShort { need: u64, have: u64 },
    #[error(
        "the frontend's memory is no file on tmpfs or hugetlbfs, and touching it could wait for \
         a disk; give the VM a memory-backend-memfd, or a memory-backend-file whose mem-path is \
         in /dev/shm or on a hugetlbfs mount (Cloud Hypervisor: --memory shared=on)"
    )]
    NotMemory,
    #[error(
        "the frontend shares {need} bytes of memory, and a VM may have {limit} here (twice the \
         host's memory, and its swap); start the VM with less"
    )]
    TooLarge { need: u64, limit: u64 },
    #[error(
        "the VMs that are connected share so much memory that leafblk has no addresses left for \
         more; stop some that have more than 32 GiB, or spread them over several leafblk"
    )]
    PoolEmpty,
    #[error("the frontend has more than {MAPPINGS_MAX} pieces of memory mapped at a time")]
    TooManyMappings,
    #[error(
        "the VMs that are connected share so many pieces of memory that leafblk has no room for \
         more; give VMs fewer and larger ones (DIMMs, virtio-mem), or spread those that have more \
         than {MAPPINGS_SHARE} over several leafblk"
    )]
    NoMappingsLeft,
    #[error("no memory region at guest address {0:#x} to remove")]
    NoSuchRegion(u64),
    #[error("can't inspect the frontend's memory file: {0}")]
    Inspect(#[from] rustix::io::Errno),
    #[error("can't map the frontend's memory: {0}")]
    Map(#[source] std::io::Error),
    #[error("all {0} places of the guard against truncated memory are taken")]
    GuardFull(usize),
}

/// All regions of one frontend. Cheap to rebuild: regions are shared.
///
/// # What is behind its addresses
///
/// The guest and its frontend write there at any time, also while it is read,
/// and one page may be mapped at several addresses: a data buffer may be the
/// ring, or the inflight region. Rust has no rules for memory that another
/// process writes; what is relied on here is what the CPU and LLVM do. No
/// reference is made to it but to atomics. What decides something is read once,
/// by an atomic or a volatile read, and checked afterwards. Data is copied in
/// and out by raw copies, whose result is whatever the guest made of it, and by
/// system calls.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// By guest address.
    regions: Vec<Arc<Region>>,
    by_guest_addr: Places,
    by_user_addr: Places,
    faults: sigbus::Look,
}

impl GuestMemory {
    /// Maps `specs`, which count in `account`.
    ///
    /// # Errors
    /// Ranges that are empty, wrap, overlap or reach past their file; files that
    /// are no memory; more than a frontend may have.
    pub fn map(specs: Vec<RegionSpec>, account: &Arc<Account>) -> Result<Self, GuestMemoryError> {
        let add = |memory: Self, spec| memory.with_region(spec, account);
        specs.into_iter().try_fold(Self::default(), add)
    }

    fn of(regions: Vec<Arc<Region>>) -> Self {
        let places = |start: fn(&Region) -> u64| {
            regions.iter().map(|r| Place::new(start(r), r.size(), r.host())).collect()
        };
        Self {
            by_guest_addr: places(Region::guest_addr),
            by_user_addr: places(Region::user_addr),
            faults: sigbus::Look::default(),
            regions,
        }
    }

    /// These regions and one more (vhost-user ADD_MEM_REG).
    ///
    /// # Errors
    /// As for [`Self::map`].
    pub fn with_region(
        &self,
        spec: RegionSpec,
        account: &Arc<Account>,
    ) -> Result<Self, GuestMemoryError> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(GuestMemoryError::TooMany);
        }
        let need = self.regions.iter().fold(spec.size, |sum, r| sum.saturating_add(r.size()));
        let limit = table_bytes_max();
        if need > limit {
            return Err(GuestMemoryError::TooLarge { need, limit });
        }
        let guest_addr = spec.guest_addr;
        let region = Region::map(spec, account)?;
        if self.regions.iter().any(|other| other.overlaps(&region)) {
            return Err(GuestMemoryError::Overlap(guest_addr));
        }
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|other| other.guest_addr() < guest_addr);
        regions.insert(at, Arc::new(region));
        Ok(Self::of(regions))
    }

    /// These regions without one (vhost-user REM_MEM_REG).
    ///
    /// # Errors
    /// [`GuestMemoryError::NoSuchRegion`].
    pub fn without_region(
        &self,
        guest_addr: u64,
        user_addr: u64,
        size: u64,
    ) -> Result<Self, GuestMemoryError> {
        let mut regions = self.regions.clone();
        let same = |r: &Arc<Region>| {
            (r.guest_addr(), r.user_addr(), r.size()) == (guest_addr, user_addr, size)
        };
        let at = regions.iter().position(same).ok_or(GuestMemoryError::NoSuchRegion(guest_addr))?;
        regions.remove(at);
        Ok(Self::of(regions))
    }

    /// Whether all that `other` has is here as well: its pointers stay good.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let mut here = self.regions.iter();
        other.regions.iter().all(|wanted| here.any(|region| Arc::ptr_eq(region, wanted)))
    }

    /// The host address of `len` bytes at a guest physical address, if one
    /// region holds them all.
    #[inline]
    pub fn translate(&self, guest_addr: u64, len: u64) -> Option<*mut u8> {
        let (host, here) = self.by_guest_addr.find(guest_addr)?;
        (len <= here).then_some(host)
    }

    /// As [`Self::translate`], but for as many bytes of `len` as the region
    /// that holds the first one has: a buffer may span adjoining regions.
    pub fn translate_some(&self, guest_addr: u64, len: u64) -> Option<(*mut u8, u64)> {
        let (host, here) = self.by_guest_addr.find(guest_addr)?;
        Some((host, len.min(here)))
    }

    /// The host address of `len` bytes at an address of the frontend.
    pub fn translate_user(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let (host, here) = self.by_user_addr.find(user_addr)?;
        (len <= here).then_some(host)
    }

    /// Whether the frontend took memory away that was then touched. Such a
    /// device is over: what it read or wrote there was lost.
    #[inline]
    pub fn is_faulted(&self) -> bool {
        self.faults.is_needed() && self.look_for_faults()
    }

    #[cold]
    fn look_for_faults(&self) -> bool {
        self.faults.look(|| self.regions.iter().any(|region| region.is_faulted()))
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

#[cfg(test)]
mod tests;
