//! A guest's memory as the frontend shares it: mapped regions, and the
//! translation of guest and frontend addresses to ours.
//!
//! `vm-memory` owns the mappings. This module adds what a data path needs: a
//! translation that is one compare in the common case, a guard that keeps a
//! frontend that truncates its memory from killing the process ([`sigbus`]), and
//! limits to what a frontend may have mapped ([`account`]). It knows nothing of
//! rings or requests.
//!
//! Invariants: regions overlap neither in guest nor in frontend addresses; a
//! pointer handed out lies in a mapping that lives as long as the
//! [`GuestMemory`] (or any other that shares the region); all of it is memory,
//! tmpfs or hugetlbfs, so that touching it waits for no file system that the
//! frontend chose.

pub mod account;
pub mod sigbus;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs};
use rustix::param::page_size;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{FileOffset, VolatileMemory};

pub use account::Account;
use account::{Charge, MAPPINGS_MAX, table_bytes_max};

/// Regions that one frontend may share (what QEMU calls memory slots).
pub const REGIONS_MAX: usize = 32;

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// What a frontend says of one region (vhost-user, "Memory region description").
#[derive(Debug)]
pub struct RegionSpec {
    /// First guest physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// First address in the frontend's own address space.
    pub user_addr: u64,
    /// Where in the file the region begins, in bytes.
    pub mmap_offset: u64,
    /// The memory.
    pub file: File,
}

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
    #[error("no memory region at guest address {0:#x} to remove")]
    NoSuchRegion(u64),
    #[error("can't inspect the frontend's memory file: {0}")]
    Inspect(#[from] rustix::io::Errno),
    #[error("can't map the frontend's memory: {0}")]
    Map(#[from] MmapRegionError),
    #[error("all {0} places of the guard against truncated memory are taken")]
    GuardFull(usize),
}

#[derive(Debug)]
struct Region {
    guest_addr: u64,
    user_addr: u64,
    size: u64,
    host: *mut u8,
    // Unregistered before the mapping goes, and given back after it is gone:
    // fields drop in this order.
    guard: sigbus::Guard,
    _mapping: MmapRegion,
    _charge: Charge,
}

#[expect(unsafe_code, reason = "a mapping is memory, not a thread's property")]
// SAFETY: `host` points into the mapping that the region owns, which is no
// thread's property. Nobody makes a reference to what is behind it but to
// atomics, and nobody trusts that two reads give the same: see `GuestMemory`.
unsafe impl Send for Region {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    fn map(spec: RegionSpec, account: &Arc<Account>) -> Result<Self, GuestMemoryError> {
        let RegionSpec { guest_addr, size, user_addr, mmap_offset, file } = spec;
        let end = mmap_offset.checked_add(size).ok_or(GuestMemoryError::BadRange)?;
        if size == 0
            || guest_addr.checked_add(size).is_none()
            || user_addr.checked_add(size).is_none()
            || end > i64::MAX.unsigned_abs()
        {
            return Err(GuestMemoryError::BadRange);
        }
        // Only files of tmpfs and hugetlbfs have seals, also those that can't be
        // sealed. Asking never waits, where fstat(2) might for FUSE or NFS.
        fcntl_get_seals(&file).map_err(|_| GuestMemoryError::NotMemory)?;
        // With the seal the file can't be cut short at all; only then is its
        // length worth a look. Frontends that made it unsealable are left to
        // the guard.
        let _ = fcntl_add_seals(&file, SealFlags::SHRINK);
        let have = fstat(&file)?.st_size.unsigned_abs();
        if have < end {
            return Err(GuestMemoryError::FileTooShort { need: end, have });
        }
        let fs = fstatfs(&file)?;
        let is_huge = fs.f_type == HUGETLBFS_MAGIC;
        let small_page = page_size() as u64;
        let page_size = if is_huge { fs.f_bsize.unsigned_abs() } else { small_page };
        // A region may begin inside a hugepage, which must be mapped whole.
        let before = mmap_offset % page_size;
        if !before.is_multiple_of(small_page) {
            return Err(GuestMemoryError::BadRange);
        }
        let length = before.checked_add(size).ok_or(GuestMemoryError::BadRange)?;
        let length = if is_huge { length.next_multiple_of(page_size) } else { length };
        let charge = account.charge(length)?;
        let length = usize::try_from(length).map_err(|_| GuestMemoryError::BadRange)?;
        log::debug!("mapping {size:#x} bytes of fd {} at {mmap_offset:#x}", file.as_raw_fd());
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, mmap_offset - before)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )?;
        let start = mapping.as_volatile_slice().ptr_guard_mut().as_ptr();
        let guard = sigbus::Guard::register(start as usize, length, page_size)
            .ok_or(GuestMemoryError::GuardFull(sigbus::RANGES_MAX))?;
        let before = usize::try_from(before).map_err(|_| GuestMemoryError::BadRange)?;
        let host = start.wrapping_add(before);
        Ok(Self { guest_addr, user_addr, size, host, guard, _mapping: mapping, _charge: charge })
    }

    /// The host address of `offset`, if `len` bytes from there are inside.
    #[inline]
    fn at(&self, offset: u64, len: u64) -> Option<*mut u8> {
        if offset <= self.size && len <= self.size - offset {
            // wrapping_add: plain address arithmetic inside the mapping.
            #[expect(clippy::cast_possible_truncation, reason = "offset < size, a usize")]
            Some(self.host.wrapping_add(offset as usize))
        } else {
            None
        }
    }
}

fn overlaps(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b + b_len && b < a + a_len
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
    regions: Vec<Arc<Region>>,
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
        let need = self.regions.iter().fold(spec.size, |sum, r| sum.saturating_add(r.size));
        let limit = table_bytes_max();
        if need > limit {
            return Err(GuestMemoryError::TooLarge { need, limit });
        }
        let region = Region::map(spec, account)?;
        for other in &self.regions {
            if overlaps(region.guest_addr, region.size, other.guest_addr, other.size)
                || overlaps(region.user_addr, region.size, other.user_addr, other.size)
            {
                return Err(GuestMemoryError::Overlap(region.guest_addr));
            }
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(region));
        // The largest first: most translations hit it at the first compare.
        regions.sort_by_key(|r| std::cmp::Reverse(r.size));
        Ok(Self { regions })
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
        let same =
            |r: &Arc<Region>| (r.guest_addr, r.user_addr, r.size) == (guest_addr, user_addr, size);
        let at = regions.iter().position(same).ok_or(GuestMemoryError::NoSuchRegion(guest_addr))?;
        regions.remove(at);
        Ok(Self { regions })
    }

    /// The host address of `len` bytes at a guest physical address, if one
    /// region holds them all.
    #[inline]
    pub fn translate(&self, guest_addr: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|r| r.at(guest_addr.wrapping_sub(r.guest_addr), len))
    }

    /// As [`Self::translate`], but for as many bytes of `len` as the region
    /// that holds the first one has: a buffer may span adjoining regions.
    pub fn translate_some(&self, guest_addr: u64, len: u64) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|r| {
            let offset = guest_addr.wrapping_sub(r.guest_addr);
            let here = len.min(r.size.checked_sub(offset).filter(|rest| *rest > 0)?);
            Some((r.at(offset, here)?, here))
        })
    }

    /// The host address of `len` bytes at an address of the frontend.
    pub fn translate_user(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|r| r.at(user_addr.wrapping_sub(r.user_addr), len))
    }

    /// Whether the frontend took memory away that was then touched. Such a
    /// device is over: what it read or wrote there was lost.
    pub fn is_faulted(&self) -> bool {
        self.regions.iter().any(|r| r.guard.is_faulted())
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

#[cfg(test)]
mod tests;
