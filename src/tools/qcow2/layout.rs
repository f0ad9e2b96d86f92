//! Whether a file has all that its tables point to.
//!
//! qcow2 says nothing of the file's length, and QEMU reads what lies past the end as
//! zeros; a download that broke off would come in as a disk of zeros. An image that is
//! whole can still end early: within the L1 table's last cluster, within the cluster of
//! the disk's end, and within the last sector of a compressed cluster. So what counts is
//! each byte that somebody reads: all of the tables, and the part of a cluster that is
//! the disk's.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::header::{Header, Region, u64_at};
use crate::units::SECTOR_SIZE;

/// The bits of a table's entry that are a place in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The same of a refcount table's.
const REFCOUNT_OFFSET: u64 = !0x1ff;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeros (version 3).
const ZERO: u64 = 1;

/// A part of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    L1Table,
    RefcountTable,
    RefcountBlock(u64),
    /// For the disk from this offset on.
    L2Table(u64),
    /// Of the cluster at this offset of the disk.
    Data(u64),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L1Table => f.write_str("its L1 table"),
            Self::RefcountTable => f.write_str("its refcount table"),
            Self::RefcountBlock(number) => write!(f, "its refcount block {number}"),
            Self::L2Table(guest) => write!(f, "the L2 table for guest offset {guest:#x}"),
            Self::Data(guest) => write!(f, "the data of guest offset {guest:#x}"),
        }
    }
}

/// What is wrong with a layout.
#[derive(Debug)]
pub(super) enum LayoutError {
    /// A part ends here, past the file's end.
    Cut(Part, u64),
    Io(io::Error),
}

impl From<io::Error> for LayoutError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Looks through the tables of the image in a file of `len` bytes, which has no external
/// data file and no extended L2 entries.
pub(super) fn check(file: &File, len: u64, header: &Header) -> Result<(), LayoutError> {
    let layout = Layout { file, len, header };
    layout.check_refcounts()?;
    layout.check_l1()
}

struct Layout<'a> {
    file: &'a File,
    len: u64,
    header: &'a Header,
}

impl Layout<'_> {
    fn need(&self, part: Part, region: Region) -> Result<(), LayoutError> {
        if region.end() > self.len { Err(LayoutError::Cut(part, region.end())) } else { Ok(()) }
    }

    fn cluster_at(&self, offset: u64) -> Region {
        Region { offset, len: self.header.cluster_len() }
    }

    /// Each entry of a table that the file has, and its number.
    fn each_entry(
        &self,
        table: Region,
        mut look: impl FnMut(u64, u64) -> Result<(), LayoutError>,
    ) -> Result<(), LayoutError> {
        let mut chunk = [0; 64 << 10];
        let mut done = 0;
        while done < table.len {
            let here = (table.len - done).min(chunk.len() as u64);
            let bytes = &mut chunk[..usize::try_from(here).unwrap_or(0)];
            self.file.read_exact_at(bytes, table.offset + done)?;
            for (entry, number) in bytes.chunks_exact(8).zip(done / 8..) {
                look(number, u64_at(entry, 0).unwrap_or(0))?;
            }
            done += here;
        }
        Ok(())
    }

    /// Nothing is read by them here. A file that has lost some has lost more.
    fn check_refcounts(&self) -> Result<(), LayoutError> {
        let table = self.header.refcount_table();
        self.need(Part::RefcountTable, table)?;
        self.each_entry(table, |number, entry| match entry & REFCOUNT_OFFSET {
            0 => Ok(()),
            offset => self.need(Part::RefcountBlock(number), self.cluster_at(offset)),
        })
    }

    fn check_l1(&self) -> Result<(), LayoutError> {
        let table = self.header.l1();
        self.need(Part::L1Table, table)?;
        let step = self.header.bytes_of_l2_table();
        self.each_entry(table, |number, entry| {
            // Entries past the disk's end are nobody's.
            let guest = number.saturating_mul(step);
            let offset = entry & OFFSET;
            if offset == 0 || guest >= self.header.size() {
                return Ok(());
            }
            self.need(Part::L2Table(guest), self.cluster_at(offset))?;
            self.check_l2(guest, self.cluster_at(offset))
        })
    }

    fn check_l2(&self, from: u64, table: Region) -> Result<(), LayoutError> {
        let cluster_len = self.header.cluster_len();
        self.each_entry(table, |number, entry| {
            let guest = from.saturating_add(number * cluster_len);
            let left = self.header.size().saturating_sub(guest);
            if left == 0 {
                Ok(())
            } else if entry & COMPRESSED != 0 {
                self.check_compressed(guest, entry)
            } else if entry & OFFSET == 0 || (self.header.has_zero_flag() && entry & ZERO != 0) {
                Ok(())
            } else {
                let data = Region { offset: entry & OFFSET, len: left.min(cluster_len) };
                self.need(Part::Data(guest), data)
            }
        })
    }

    /// How long a compressed cluster is, the table has in sectors. Where the file ends in
    /// the last of them, what is there says whether it is whole.
    fn check_compressed(&self, guest: u64, entry: u64) -> Result<(), LayoutError> {
        let offset_bits = 62 - (self.header.cluster_bits() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
        let end = (offset / SECTOR_SIZE).saturating_add(sectors).saturating_mul(SECTOR_SIZE);
        if end <= self.len {
            return Ok(());
        }
        let cut = LayoutError::Cut(Part::Data(guest), end);
        if end - self.len >= SECTOR_SIZE || offset >= self.len {
            return Err(cut);
        }
        let mut packed = vec![0; usize::try_from(self.len - offset).unwrap_or(0)];
        self.file.read_exact_at(&mut packed, offset)?;
        let mut cluster = vec![0; usize::try_from(self.header.cluster_len()).unwrap_or(0)];
        if is_whole(&packed, &mut cluster) { Ok(()) } else { Err(cut) }
    }
}

/// Whether the bytes unpack to a whole cluster, without any that would follow.
fn is_whole(packed: &[u8], cluster: &mut [u8]) -> bool {
    let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut DecompressorOxide::new(), packed, cluster, 0, flags);
    matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == cluster.len()
}
