//! What the guest has made of its write cache (virtio 1.3, 5.2.5.2:
//! `writeback`), as the leaf remembers it for the next process.
//!
//! A guest that has switched it off sends no flushes, and neither it nor its
//! VMM says so again to a process that comes later: QEMU keeps the field for
//! itself, through resets of the device too. So it is in the live map's first
//! page while the leaf is open, and in the header of one that was closed.

use std::io;

use super::Leaf;
use crate::sync::atomic::Ordering;

/// A guest's write cache.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum WriteCache {
    /// No guest has been told, or it isn't known.
    #[default]
    Unknown = 0,
    /// Write-back: a guest flushes what is to be durable.
    On = 1,
    /// Write-through: what is acknowledged is durable.
    Off = 2,
}

impl WriteCache {
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::On,
            2 => Self::Off,
            _ => Self::Unknown,
        }
    }
}

impl Leaf {
    /// What a guest last made of its write cache, as far as that is known.
    pub fn write_cache(&self) -> WriteCache {
        WriteCache::from_byte(self.write_cache.load(Ordering::Acquire))
    }

    /// Remembers it, also for a process that comes after a kill of this one.
    ///
    /// # Errors
    /// As pwrite(2) on the live map; it is then what it was.
    pub fn set_write_cache(&self, write_cache: WriteCache) -> io::Result<()> {
        self.map.note_write_cache(write_cache)?;
        self.write_cache.store(write_cache as u8, Ordering::Release);
        Ok(())
    }
}
