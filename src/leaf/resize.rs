//! Changing the disk's size.
//!
//! The header is the switch: before it is written, everything is ready for the
//! new size and nothing of the old one is gone.
//!
//! - Growing: the file is made longer and the map's new part is cleared (a disk
//!   that shrank may have left bits there); sync; header.
//! - Shrinking: header; then what lies beyond is cut off.

use super::create::PACKED_MAX;
use super::live_map::table::TABLE_PAGES;
use super::live_map::{Owner, PAGE_LEN, PAGE_SECTORS};
use super::{Leaf, LeafError, SIZE_MAX, durable_map};
use crate::sync::atomic::Ordering;

impl Leaf {
    /// The largest size in bytes that the leaf can grow to.
    pub fn size_max(&self) -> u64 {
        let header = self.header();
        let mut pages = (header.map_room_end() - self.map_offset) / PAGE_LEN as u64;
        if let Some(table) = header.table_offset {
            pages = pages.min((self.data_offset - table) / PAGE_LEN as u64 / TABLE_PAGES as u64);
            pages = pages.min(PACKED_MAX / (PAGE_SECTORS * 512));
        }
        let offsets = (i64::MAX.unsigned_abs() - self.data_offset) / 512 * 512;
        pages.saturating_mul(PAGE_SECTORS * 512).min(SIZE_MAX).min(offsets)
    }

    /// Makes the disk `virtual_size` bytes large, durably, while it is in use.
    /// The new sectors are the root's, or zeros beyond its end.
    ///
    /// # Errors
    /// [`LeafError::BadSize`], [`LeafError::NoRoom`], [`LeafError::WouldShrink`],
    /// the disk's: the size is then what it was. [`LeafError::Poisoned`] if a
    /// sync failed: then it may be either when the leaf is opened again.
    pub fn grow(&self, virtual_size: u64) -> Result<(), LeafError> {
        self.check_changeable("resize")?;
        if !super::is_possible(virtual_size) {
            return Err(LeafError::BadSize { size: virtual_size });
        }
        // No flush writes the map meanwhile, and no other change of size begins.
        let _flushing = self.lock_whole(&self.flushing)?;
        let header = self.header();
        let path = || self.path.clone();
        let (have, most) = (header.virtual_size, self.size_max());
        if virtual_size <= have {
            return match virtual_size == have {
                true => Ok(()),
                false => Err(LeafError::WouldShrink { path: path(), have, asked: virtual_size }),
            };
        }
        if virtual_size > most {
            return Err(LeafError::NoRoom { path: path(), asked: virtual_size, most });
        }
        let io_error = |source| self.io("resize", source);
        let file_len = header.data_offset + virtual_size;
        {
            // Nor is the file made longer for slots: what was longer would be cut.
            let _slots = self.lock_whole(&self.slots)?;
            if self.storage.len_bytes().map_err(io_error)? < file_len {
                self.storage.set_len(file_len).map_err(io_error)?;
            }
        }
        durable_map::clear_beyond(&*self.storage, &header, virtual_size).map_err(io_error)?;
        self.sync()?;
        self.switch_size(header.generation + 1, virtual_size)?;
        self.mirror_header()
    }

    /// Writes the header with a new size, so that the live map fits it before
    /// and after: its file names both generations meanwhile.
    pub(super) fn switch_size(&self, generation: u64, virtual_size: u64) -> Result<(), LeafError> {
        let sectors = virtual_size / 512;
        let map_error = |source| self.io("extend the live map", source);
        let (before, before_sectors) = (Owner::of(&self.header()), self.sectors());
        let after = Owner { generation, ..before };
        self.map.grow(sectors).map_err(map_error)?;
        if !self.map.announce(&after, sectors).map_err(map_error)? {
            return Err(LeafError::Poisoned { path: self.path.clone() });
        }
        let written = self.write_header(|header| {
            (header.generation, header.virtual_size) = (generation, virtual_size);
        });
        if written.is_ok() {
            self.sectors.store(sectors, Ordering::Release);
        }
        // That of a leaf that was poisoned meanwhile stays nobody's.
        let owned = match written {
            Ok(()) => self.map.own(&after, sectors),
            Err(_) => self.map.own(&before, before_sectors),
        };
        owned.map_err(map_error)?;
        written
    }

    /// Makes the disk `virtual_size` bytes large; what lies beyond is lost. For
    /// a leaf that nobody uses.
    ///
    /// # Errors
    /// As [`Self::grow`]; `BadSize` if the root would not fit.
    pub fn shrink(&mut self, virtual_size: u64) -> Result<(), LeafError> {
        self.check_changeable("resize")?;
        let header = self.header();
        if !super::is_possible(virtual_size) || virtual_size < header.root.len_bytes {
            return Err(LeafError::BadSize { size: virtual_size });
        }
        if virtual_size >= header.virtual_size {
            return self.grow(virtual_size);
        }
        self.place_last_block(virtual_size / 512)?;
        // The live map of the old size ends here: the durable one must have all.
        self.flush()?;
        self.write_header(|header| {
            header.generation += 1;
            header.virtual_size = virtual_size;
        })?;
        let cut_off = self.cut_off(header.virtual_size);
        self.settled(cut_off)
    }

    /// Gives back what lies beyond the end of a disk that had `before` bytes.
    fn cut_off(&mut self, before: u64) -> Result<(), LeafError> {
        self.mirror_header()?;
        let header = self.header();
        let io_error = |source| self.io("resize", source);
        self.punch_slots_beyond(header.virtual_size / 512, before / 512).map_err(io_error)?;
        durable_map::clear_beyond(&*self.storage, &header, before).map_err(io_error)?;
        if !self.map.is_packed() {
            let file_len = header.data_offset + header.virtual_size;
            self.storage.set_len(file_len).map_err(io_error)?;
        }
        self.sync()?;
        self.reload_map()?;
        // Slots of blocks that are gone may be given out again.
        self.clear_unnamed()
    }

    /// After the switch, an error leaves a leaf whose memory and file disagree:
    /// it takes nothing more, and is what it should be when it is opened again.
    pub(super) fn settled(&self, result: Result<(), LeafError>) -> Result<(), LeafError> {
        if result.is_err() {
            self.poison();
        }
        result
    }
}
