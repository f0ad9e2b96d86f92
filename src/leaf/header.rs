//! The leaf file's header: 4 KiB, twice (docs/leaf-format.md).
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `LEAFBLK\0` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | flags: bit 0, clean; bits 1 and 2, the guest's write cache is on, off |
//! | 16 | 8 | compatible feature bits: may be ignored |
//! | 24 | 8 | incompatible feature bits: one that is not known refuses the leaf; bit 0, the map is void; bit 1, packed |
//! | 32 | 16 | UUID |
//! | 48 | 8 | generation: the valid copy with the larger one counts |
//! | 56 | 8 | virtual size in bytes |
//! | 64 | 8 | map offset |
//! | 72 | 8 | data offset |
//! | 80 | 8 | creation time, seconds since 1970 |
//! | 88 | 8 | root: length in bytes |
//! | 96 | 32 | root: fingerprint |
//! | 128 | 2 | root: length of its name |
//! | 130 | 254 | root: name, UTF-8 |
//! | 384 | 8 | block table offset, if packed |
//! | 392 | 16 | UUID of the disk, if it is another than the leaf's; zeros |
//! | 408 | 3684 | zeros |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4091 |
//!
//! All numbers little-endian. Identity first, then what changes, then the
//! root's description, so that `hexdump -C | head` tells what a file is.

use super::WriteCache;
use crate::root::RootIdentity;

/// Length of one copy.
pub const LEN: usize = 4096;
/// The format that this code writes.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"LEAFBLK\0";
const FLAG_CLEAN: u32 = 1;
const FLAG_WRITE_CACHE_ON: u32 = 2;
const FLAG_WRITE_CACHE_OFF: u32 = 4;
/// Incompatible: the presence map in the file counts as empty.
const FEATURE_MAP_VOID: u64 = 1;
/// Incompatible: a block's data is where the block table says.
const FEATURE_PACKED: u64 = 2;
const FEATURES_KNOWN: u64 = FEATURE_MAP_VOID | FEATURE_PACKED;
const TABLE_OFFSET: usize = 384;
const DISK_OFFSET: usize = 392;
const NAME_OFFSET: usize = 130;
const NAME_MAX: usize = 254;
const CRC_OFFSET: usize = LEN - 4;
const _: () = assert!(NAME_OFFSET + NAME_MAX == TABLE_OFFSET && CRC_OFFSET == 4092);

/// What a header says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// Everything written was flushed when the leaf was last closed.
    pub clean: bool,
    /// What the guest had made of its write cache when the leaf was closed.
    pub write_cache: WriteCache,
    /// Bits that a reader may ignore.
    pub compatible: u64,
    /// A reset has begun and is to be completed: the map counts as empty.
    pub map_void: bool,
    /// The leaf's identity.
    pub uuid: [u8; 16],
    /// The UUID of the first leaf of this disk, where this is a later one that was put
    /// in its place ([`Self::disk_uuid`]).
    pub disk: Option<[u8; 16]>,
    /// Grows with each header, but for one that is written to both copies.
    pub generation: u64,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Where the presence map begins.
    pub map_offset: u64,
    /// Where the block table begins, if the leaf is packed.
    pub table_offset: Option<u64>,
    /// Where the data begins: sector 0, or the first slot of a packed leaf.
    pub data_offset: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The root that the leaf belongs to.
    pub root: RootIdentity,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeaderError {
    /// Another kind of file.
    Magic,
    /// A leaf's header whose checksum or fields are wrong.
    Damaged,
    /// A version that this code doesn't know.
    Version(u32),
    /// Incompatible features that this code doesn't know.
    Features(u64),
}

fn number<const N: usize>(bytes: &[u8; LEN], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

impl Header {
    /// The 4 KiB on disk. A root's name is cut to 254 bytes.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let mut name_len = self.root.name.len().min(NAME_MAX);
        while !self.root.name.is_char_boundary(name_len) {
            name_len -= 1;
        }
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.flags().to_le_bytes());
        put(16, &self.compatible.to_le_bytes());
        put(24, &self.incompatible().to_le_bytes());
        put(32, &self.uuid);
        put(48, &self.generation.to_le_bytes());
        put(56, &self.virtual_size.to_le_bytes());
        put(64, &self.map_offset.to_le_bytes());
        put(72, &self.data_offset.to_le_bytes());
        put(80, &self.created.to_le_bytes());
        put(88, &self.root.len_bytes.to_le_bytes());
        put(96, &self.root.fingerprint);
        put(128, &u16::try_from(name_len).unwrap_or(0).to_le_bytes());
        put(NAME_OFFSET, &self.root.name.as_bytes()[..name_len]);
        put(TABLE_OFFSET, &self.table_offset.unwrap_or(0).to_le_bytes());
        put(DISK_OFFSET, &self.disk.unwrap_or_default());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(bytes: &[u8; LEN]) -> Result<Self, HeaderError> {
        if number(bytes, 0) != MAGIC {
            return Err(HeaderError::Magic);
        }
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        if u32::from_le_bytes(number(bytes, CRC_OFFSET)) != crc {
            return Err(HeaderError::Damaged);
        }
        // The version before anything else that it might move.
        let version = u32::from_le_bytes(number(bytes, 8));
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let incompatible = u64::from_le_bytes(number(bytes, 24));
        if incompatible & !FEATURES_KNOWN != 0 {
            return Err(HeaderError::Features(incompatible & !FEATURES_KNOWN));
        }
        let name_len = usize::from(u16::from_le_bytes(number(bytes, 128)));
        let name = bytes.get(NAME_OFFSET..NAME_OFFSET + name_len.min(NAME_MAX));
        let flags = u32::from_le_bytes(number(bytes, 12));
        let header = Self {
            clean: flags & FLAG_CLEAN != 0,
            write_cache: match flags & (FLAG_WRITE_CACHE_ON | FLAG_WRITE_CACHE_OFF) {
                FLAG_WRITE_CACHE_ON => WriteCache::On,
                FLAG_WRITE_CACHE_OFF => WriteCache::Off,
                _ => WriteCache::Unknown,
            },
            compatible: u64::from_le_bytes(number(bytes, 16)),
            map_void: incompatible & FEATURE_MAP_VOID != 0,
            uuid: number(bytes, 32),
            disk: Some(number(bytes, DISK_OFFSET)).filter(|disk| *disk != [0; 16]),
            generation: u64::from_le_bytes(number(bytes, 48)),
            virtual_size: u64::from_le_bytes(number(bytes, 56)),
            map_offset: u64::from_le_bytes(number(bytes, 64)),
            table_offset: (incompatible & FEATURE_PACKED != 0)
                .then(|| u64::from_le_bytes(number(bytes, TABLE_OFFSET))),
            data_offset: u64::from_le_bytes(number(bytes, 72)),
            created: u64::from_le_bytes(number(bytes, 80)),
            root: RootIdentity {
                len_bytes: u64::from_le_bytes(number(bytes, 88)),
                fingerprint: number(bytes, 96),
                name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
            },
        };
        if header.is_sane() { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    /// Which disk the leaf holds the changes of: a tool that puts a new leaf in an old
    /// one's place, with the same content, hands that on.
    pub fn disk_uuid(&self) -> [u8; 16] {
        self.disk.unwrap_or(self.uuid)
    }

    fn flags(&self) -> u32 {
        let clean = if self.clean { FLAG_CLEAN } else { 0 };
        clean
            | match self.write_cache {
                WriteCache::Unknown => 0,
                WriteCache::On => FLAG_WRITE_CACHE_ON,
                WriteCache::Off => FLAG_WRITE_CACHE_OFF,
            }
    }

    fn incompatible(&self) -> u64 {
        let void = if self.map_void { FEATURE_MAP_VOID } else { 0 };
        void | if self.table_offset.is_some() { FEATURE_PACKED } else { 0 }
    }

    /// Where the room for the presence map ends.
    pub(super) fn map_room_end(&self) -> u64 {
        self.table_offset.unwrap_or(self.data_offset)
    }

    fn is_sane(&self) -> bool {
        let map_end = self.map_offset.checked_add(super::map_len_bytes(self.virtual_size));
        super::is_possible(self.virtual_size)
            && self.map_offset >= 2 * LEN as u64
            && self.map_offset.is_multiple_of(LEN as u64)
            && self.data_offset.is_multiple_of(LEN as u64)
            && map_end.is_some_and(|end| end <= self.map_room_end())
            && self.table_offset.is_none_or(|offset| {
                let end = offset.checked_add(super::table_len_bytes(self.virtual_size));
                offset.is_multiple_of(LEN as u64) && end.is_some_and(|end| end <= self.data_offset)
            })
            && self
                .data_offset
                .checked_add(self.virtual_size)
                .is_some_and(|end| i64::try_from(end).is_ok())
    }
}
