//! One piece of the guest's memory: what is checked before it is mapped, and the
//! mapping.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs};
use rustix::param::page_size;

use super::account::Charge;
use super::{Account, GuestMemoryError, sigbus};

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

impl RegionSpec {
    /// Where the region ends in its file.
    fn end(&self) -> Result<u64, GuestMemoryError> {
        let end = self.mmap_offset.checked_add(self.size);
        let is_sound = self.size > 0
            && self.guest_addr.checked_add(self.size).is_some()
            && self.user_addr.checked_add(self.size).is_some();
        end.filter(|end| is_sound && *end <= i64::MAX.unsigned_abs())
            .ok_or(GuestMemoryError::BadRange)
    }
}

/// What of a file is mapped: whole pages, more than the region where it begins or ends
/// inside a hugepage.
struct Span {
    page_size: u64,
    /// Bytes of the mapping that are before the region.
    before: u64,
    length: u64,
}

impl Span {
    fn of(spec: &RegionSpec) -> Result<Self, GuestMemoryError> {
        let fs = fstatfs(&spec.file)?;
        let is_huge = fs.f_type == HUGETLBFS_MAGIC;
        let small_page = page_size() as u64;
        let page_size = if is_huge { fs.f_bsize.unsigned_abs() } else { small_page };
        // A region may begin inside a hugepage, which must be mapped whole.
        let before = spec.mmap_offset % page_size;
        if !before.is_multiple_of(small_page) {
            return Err(GuestMemoryError::BadRange);
        }
        let length = before.checked_add(spec.size).ok_or(GuestMemoryError::BadRange)?;
        let length = if is_huge { length.next_multiple_of(page_size) } else { length };
        Ok(Self { page_size, before, length })
    }
}

/// A region that is mapped.
#[derive(Debug)]
pub(super) struct Region {
    guest_addr: u64,
    user_addr: u64,
    size: u64,
    /// Bytes of the mapping that are before the region.
    before: usize,
    // Unregistered before the mapping goes, and given back after it is gone:
    // fields drop in this order.
    guard: sigbus::Guard,
    mapping: MmapRaw,
    _charge: Charge,
}

impl Region {
    /// Maps what `spec` says. Its file is closed: a mapping needs none, and hundreds
    /// of regions would use descriptors up.
    pub(super) fn map(spec: RegionSpec, account: &Arc<Account>) -> Result<Self, GuestMemoryError> {
        let end = spec.end()?;
        // Only files of tmpfs and hugetlbfs have seals, also those that can't be
        // sealed. Asking never waits, where fstat(2) might for FUSE or NFS.
        fcntl_get_seals(&spec.file).map_err(|_| GuestMemoryError::NotMemory)?;
        // With the seal the file can't be cut short at all; only then is its
        // length worth a look. Frontends that made it unsealable are left to
        // the guard.
        let _ = fcntl_add_seals(&spec.file, SealFlags::SHRINK);
        let have = fstat(&spec.file)?.st_size.unsigned_abs();
        if have < end {
            return Err(GuestMemoryError::FileTooShort { need: end, have });
        }
        let Span { page_size, before, length } = Span::of(&spec)?;
        let charge = account.charge(length)?;
        let RegionSpec { guest_addr, size, user_addr, mmap_offset, file } = spec;
        let as_usize = |n: u64| usize::try_from(n).map_err(|_| GuestMemoryError::BadRange);
        let (length, before) = (as_usize(length)?, as_usize(before)?);
        log::debug!("mapping {size:#x} bytes of fd {} at {mmap_offset:#x}", file.as_raw_fd());
        let mut options = MmapOptions::new();
        options.offset(mmap_offset - before as u64).len(length).no_reserve_swap();
        let mapping = options.map_raw(&file).map_err(GuestMemoryError::Map)?;
        let guard = sigbus::Guard::register(mapping.as_mut_ptr() as usize, length, page_size)
            .ok_or(GuestMemoryError::GuardFull(sigbus::RANGES_MAX))?;
        Ok(Self { guest_addr, user_addr, size, before, guard, mapping, _charge: charge })
    }

    /// First guest physical address.
    pub(super) fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// First address of the frontend's.
    pub(super) fn user_addr(&self) -> u64 {
        self.user_addr
    }

    /// Length in bytes; not 0.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// First address of ours. Good as long as the region.
    pub(super) fn host(&self) -> *mut u8 {
        self.mapping.as_mut_ptr().wrapping_add(self.before)
    }

    /// Whether some address of the guest's or of the frontend's is in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: u64, b: u64| a < b + other.size && b < a + self.size;
        meet(self.guest_addr, other.guest_addr) || meet(self.user_addr, other.user_addr)
    }

    /// Whether the frontend took some of it away that was then touched.
    pub(super) fn is_faulted(&self) -> bool {
        self.guard.is_faulted()
    }
}
