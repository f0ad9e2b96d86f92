//! Back to the root: the leaf forgets every change.
//!
//! A map of many pages can't be cleared at one instant, and half a reset would
//! be a disk that no guest ever had. So the header says first that the map is
//! void; that is the switch. Whoever opens the leaf from then on completes what
//! is left: clear the map, sync, write a header without that flag. The data is
//! punched last, when no map, durable or live, names it any more: a sector that
//! is named and punched would read as zeros instead of the root.

use super::{Leaf, LeafError, durable_map};

impl Leaf {
    /// Discards every change, durably. For a leaf that nobody uses.
    ///
    /// # Errors
    /// The disk's: every change is then there still, or none, whatever happens
    /// to the machine. [`LeafError::Poisoned`] if a sync failed.
    pub fn reset(&mut self) -> Result<(), LeafError> {
        self.check_changeable("reset")?;
        // Until the switch all that was acknowledged is there, also without the
        // live map, which doesn't fit the new generation.
        self.flush()?;
        self.write_header(|header| {
            header.generation += 1;
            header.map_void = true;
        })?;
        let completed = self.complete_reset();
        self.settled(completed)?;
        if self.map.is_packed() {
            return self.settled(self.clear_unnamed());
        }
        let header = self.header();
        match self.storage.punch_hole(header.data_offset, header.virtual_size) {
            // Where there are no holes, the space stays taken.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result.map_err(|source| self.io("punch", source)),
        }
    }

    fn complete_reset(&mut self) -> Result<(), LeafError> {
        let header = self.header();
        durable_map::clear(&*self.storage, &header).map_err(|e| self.io("clear the map", e))?;
        self.sync()?;
        self.write_header(|header| {
            header.generation += 1;
            header.map_void = false;
        })?;
        self.mirror_header()?;
        self.reload_map()
    }
}
