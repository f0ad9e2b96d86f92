//! Bytes of one slot: numbers in them, a checksum over them, and memory that O_DIRECT
//! takes.

use super::word::BLOCK_LEN;

/// A slot's bytes, aligned as O_DIRECT wants them (open(2)).
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; BLOCK_LEN]);

impl Page {
    /// One of zeros, on the heap.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_LEN]))
    }
}

/// Numbers in a slot, little-endian. Places are constants of this crate, within the slot.
pub trait Bytes {
    /// Puts bytes at a place.
    fn put(&mut self, at: usize, bytes: &[u8]);
    /// Puts a number at a place.
    fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
    /// Puts a number at a place.
    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
    /// The number at a place.
    fn u64_at(&self, at: usize) -> u64;
    /// The number at a place.
    fn u32_at(&self, at: usize) -> u32;
    /// Puts the checksum of all bytes, its own as zeros, at a place.
    fn seal(&mut self, at: usize);
    /// Whether the checksum at a place is right.
    fn is_sealed(&self, at: usize) -> bool;
}

impl Bytes for [u8; BLOCK_LEN] {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn seal(&mut self, at: usize) {
        let crc = sum_without(self, at);
        self.put_u32(at, crc);
    }

    fn is_sealed(&self, at: usize) -> bool {
        self.u32_at(at) == sum_without(self, at)
    }
}

fn sum_without(bytes: &[u8; BLOCK_LEN], at: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[at + 4..])
}
