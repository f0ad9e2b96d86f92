//! A qcow2 image's header, by its specification (QEMU's docs/interop/qcow2.rst).
//!
//! imago reads it too and keeps it to itself; it does not look at the encryption, nor
//! at the backing format of version 2.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::units::SECTOR_SIZE;

const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of the header of version 2, and of version 3 at least.
const LEN_V2: usize = 72;
const LEN_V3: usize = 104;
/// As QEMU: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// As QEMU: more than 32 MiB of L1 table, or 8 MiB of refcount table, is damage.
const L1_LEN_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;
/// The header extension with the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// A part of the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Region {
    /// Where it ends; at the last possible byte where that is beyond a u64.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// How an image is encrypted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encryption {
    Aes,
    Luks,
    /// A method that the specification doesn't have.
    Unknown,
}

/// Something in which an image differs from what can be imported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unsupported {
    Dirty,
    Corrupt,
    ExternalData,
    /// Another compression than zlib.
    Compression,
    ExtendedL2,
    /// Bits that nobody had given a meaning.
    Unknown(u64),
}

/// A backing file, as the image names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

/// A header that makes sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Header {
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    incompatible: u64,
    has_zero_flag: bool,
    l1: Region,
    refcount_table: Region,
    backing: Option<Named>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// It is no qcow2 image of version 2 or 3.
    NotQcow2,
    /// The file ends in it.
    Cut,
    /// It contradicts itself or the specification.
    Damaged(&'static str),
    Io(io::Error),
}

impl Header {
    /// Reads the header of an image in a file of `len` bytes.
    pub(super) fn read(file: &File, len: u64) -> Result<Self, HeaderError> {
        let mut head = [0; LEN_V3];
        let there = usize::try_from(len).unwrap_or(LEN_V3).min(LEN_V3);
        file.read_exact_at(&mut head[..there], 0).map_err(HeaderError::Io)?;
        let version = u32_at(&head, 4);
        if head[..4] != *MAGIC || !matches!(version, Some(2 | 3)) {
            return Err(HeaderError::NotQcow2);
        }
        let least = if version == Some(2) { LEN_V2 } else { LEN_V3 };
        if there < least {
            return Err(HeaderError::Cut);
        }
        let bits = u32_at(&head, 20).filter(|bits| CLUSTER_BITS.contains(bits));
        let bits = bits.ok_or(HeaderError::Damaged("its cluster size is none"))?;
        // All of it, extensions and names too, is in the first cluster.
        let first = usize::try_from(len.min(1 << bits)).unwrap_or(0);
        let mut cluster = vec![0; first];
        file.read_exact_at(&mut cluster, 0).map_err(HeaderError::Io)?;
        let header = Self::parse(&cluster, version == Some(3)).ok_or(HeaderError::Cut)?;
        header.check().map_err(HeaderError::Damaged)?;
        Ok(header)
    }

    /// `None` where the bytes end in it.
    fn parse(bytes: &[u8], is_v3: bool) -> Option<Self> {
        let cluster_bits = u32_at(bytes, 20)?;
        let (incompatible, len) = match is_v3 {
            true => (u64_at(bytes, 72)?, usize::try_from(u32_at(bytes, 100)?).ok()?),
            false => (0, LEN_V2),
        };
        let l1_len = u64::from(u32_at(bytes, 36)?) * 8;
        let refcount_len = u64::from(u32_at(bytes, 56)?) << cluster_bits;
        Some(Self {
            cluster_bits,
            size: u64_at(bytes, 24)?,
            crypt_method: u32_at(bytes, 32)?,
            incompatible,
            has_zero_flag: is_v3,
            l1: Region { offset: u64_at(bytes, 40)?, len: l1_len },
            refcount_table: Region { offset: u64_at(bytes, 48)?, len: refcount_len },
            backing: backing(bytes, len)?,
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let l1_needed = self.size.div_ceil(self.bytes_of_l2_table()).saturating_mul(8);
        if self.l1.len > L1_LEN_MAX {
            Err("its L1 table is larger than any")
        } else if self.l1.len < l1_needed {
            Err("its L1 table is too small for its disk")
        } else if self.refcount_table.len > REFCOUNT_TABLE_LEN_MAX {
            Err("its refcount table is larger than any")
        } else if !self.size.is_multiple_of(SECTOR_SIZE) {
            Err("its disk is no multiple of 512 bytes")
        } else {
            Ok(())
        }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bits of a cluster's number of bytes.
    pub(super) fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of the disk that one L2 table is about.
    pub(super) fn bytes_of_l2_table(&self) -> u64 {
        self.cluster_len() / 8 * self.cluster_len()
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether a cluster can be noted as zeros, whatever is at its place.
    pub(super) fn has_zero_flag(&self) -> bool {
        self.has_zero_flag
    }

    pub(super) fn l1(&self) -> Region {
        self.l1
    }

    pub(super) fn refcount_table(&self) -> Region {
        self.refcount_table
    }

    pub(super) fn backing(&self) -> Option<&Named> {
        self.backing.as_ref()
    }

    pub(super) fn encryption(&self) -> Option<Encryption> {
        match self.crypt_method {
            0 => None,
            1 => Some(Encryption::Aes),
            2 => Some(Encryption::Luks),
            _ => Some(Encryption::Unknown),
        }
    }

    /// The first of its features, beside encryption, with which it can't be imported.
    pub(super) fn unsupported(&self) -> Option<Unsupported> {
        let bit = |bit: u32| self.incompatible & (1 << bit) != 0;
        if bit(1) {
            Some(Unsupported::Corrupt)
        } else if bit(0) {
            Some(Unsupported::Dirty)
        } else if bit(2) {
            Some(Unsupported::ExternalData)
        } else if bit(3) {
            Some(Unsupported::Compression)
        } else if bit(4) {
            Some(Unsupported::ExtendedL2)
        } else {
            Some(self.incompatible).filter(|bits| *bits != 0).map(Unsupported::Unknown)
        }
    }
}

/// What the header says of a backing file: `Some(None)` where there is none.
fn backing(bytes: &[u8], header_len: usize) -> Option<Option<Named>> {
    let offset = usize::try_from(u64_at(bytes, 8)?).ok()?;
    if offset == 0 {
        return Some(None);
    }
    let len = usize::try_from(u32_at(bytes, 16)?).ok()?;
    let name = bytes.get(offset..offset.checked_add(len)?)?;
    let name = String::from_utf8_lossy(name).into_owned();
    Some(Some(Named { name, format: backing_format(bytes, header_len, offset) }))
}

/// From the extensions, which end where the name begins or an empty one says so.
fn backing_format(bytes: &[u8], from: usize, to: usize) -> Option<String> {
    let mut rest = bytes.get(from..to.min(bytes.len()))?;
    loop {
        let (kind, len) = (u32_at(rest, 0)?, usize::try_from(u32_at(rest, 4)?).ok()?);
        let data = rest.get(8..8_usize.checked_add(len)?)?;
        match kind {
            0 => return None,
            BACKING_FORMAT => return Some(String::from_utf8_lossy(data).into_owned()),
            _ => rest = rest.get(8 + len.checked_next_multiple_of(8)?..)?,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
