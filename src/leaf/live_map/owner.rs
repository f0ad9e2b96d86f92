//! To whom a live map belongs: the records in its file's first page.
//!
//! The first says whose map it is: that of a header that was durable in the leaf.
//! The second is there while the leaf's header is being replaced: it names the
//! generation and the size that are about to be. A new map, too, is that of the
//! header that is about to be, and says so when it is whole. So at every instant one
//! of the two fits the header, and a daemon that is killed in between loses nothing
//! that it acknowledged. The second has the size, as another run may come to the same
//! generation, but not with that size: whoever changes the size raises the generation
//! once more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 8] = *b"LEAFMAP\x01";
const NEXT_MAGIC: [u8; 8] = *b"LEAFNXT\x01";
const OWNER_LEN: usize = 52;
/// Where the guest's write cache is: beside the owner's record, no part of it.
pub(super) const WRITE_CACHE_OFFSET: u64 = 52;
/// Where the disk's size in sectors is, which the owner's header says.
const SECTORS_OFFSET: u64 = 56;
const NEXT_LEN: usize = 60;
/// Where the second record is.
const NEXT_OFFSET: usize = 64;
pub(super) const RECORDS_LEN: usize = NEXT_OFFSET + NEXT_LEN;

/// To whom a live map belongs: all of it must agree for a take-over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::leaf) struct Owner {
    /// The kernel's boot id: another boot means the data may not be there.
    pub(in crate::leaf) boot_id: [u8; 16],
    /// The leaf.
    pub(in crate::leaf) uuid: [u8; 16],
    /// The leaf's generation while it is open.
    pub(in crate::leaf) generation: u64,
}

impl Owner {
    fn encode(&self) -> [u8; OWNER_LEN] {
        let mut bytes = [0; OWNER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(&self.boot_id);
        bytes[24..40].copy_from_slice(&self.uuid);
        bytes[40..48].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..48]);
        bytes[48..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn encode_next(&self, sectors: u64) -> [u8; NEXT_LEN] {
        let mut bytes = [0; NEXT_LEN];
        bytes[..48].copy_from_slice(&self.encode()[..48]);
        bytes[..8].copy_from_slice(&NEXT_MAGIC);
        bytes[48..56].copy_from_slice(&sectors.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..56]);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The owner that the file's first record names, if it is whole.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut found = [0; OWNER_LEN];
        file.read_exact_at(&mut found, 0).ok()?;
        let id = |at: usize| found[at..at + 16].try_into().ok();
        let generation = u64::from_le_bytes(found[40..48].try_into().ok()?);
        let owner = Self { boot_id: id(8)?, uuid: id(24)?, generation };
        (found == owner.encode()).then_some(owner)
    }

    /// The owner that the second record names, if it is whole.
    pub(super) fn read_next(file: &File) -> Option<Self> {
        let mut found = [0; NEXT_LEN];
        file.read_exact_at(&mut found, NEXT_OFFSET as u64).ok()?;
        let id = |at: usize| found[at..at + 16].try_into().ok();
        let number = |at: usize| found[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let owner = Self { boot_id: id(8)?, uuid: id(24)?, generation: number(40)? };
        (found == owner.encode_next(number(48)?)).then_some(owner)
    }

    /// Whether both are of this boot, and of one leaf.
    pub(super) fn is_of_leaf_of(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id && self.uuid == other.uuid
    }

    /// Whether both are of this boot, and of two leaves.
    pub(super) fn is_of_another_leaf(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id && self.uuid != other.uuid
    }

    /// Whether one of the records in the file is this owner's, for a disk of so
    /// many sectors.
    pub(super) fn is_in(&self, file: &File, sectors: u64) -> bool {
        let mut found = [0; RECORDS_LEN];
        file.read_exact_at(&mut found, 0).is_ok()
            && (found[..OWNER_LEN] == self.encode()
                || found[NEXT_OFFSET..] == self.encode_next(sectors))
    }

    /// Whether the file's second record says anything: a header was being
    /// replaced, and may not be durable.
    pub(super) fn is_being_replaced(file: &File) -> io::Result<bool> {
        let mut next = [0; NEXT_LEN];
        file.read_exact_at(&mut next, NEXT_OFFSET as u64)?;
        Ok(next != [0; NEXT_LEN])
    }

    /// Makes the file this owner's, whose disk has so many sectors, and nobody
    /// else's.
    pub(super) fn write_to(&self, file: &File, sectors: u64) -> io::Result<()> {
        file.write_all_at(&sectors.to_le_bytes(), SECTORS_OFFSET)?;
        file.write_all_at(&self.encode(), 0)?;
        file.write_all_at(&[0; NEXT_LEN], NEXT_OFFSET as u64)
    }

    /// The size in sectors of the disk of the file's owner.
    pub(super) fn sectors(file: &File) -> io::Result<u64> {
        let mut found = [0; 8];
        file.read_exact_at(&mut found, SECTORS_OFFSET)?;
        Ok(u64::from_le_bytes(found))
    }

    /// Makes the file this owner's too.
    pub(super) fn announce_in(&self, file: &File, sectors: u64) -> io::Result<()> {
        file.write_all_at(&self.encode_next(sectors), NEXT_OFFSET as u64)
    }
}

/// Makes the file nobody's.
pub(super) fn disown(file: &File) -> io::Result<()> {
    file.write_all_at(&[0; RECORDS_LEN], 0)
}
