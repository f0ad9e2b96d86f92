//! `leafblk leaf rm`: a leaf that nobody needs any more.

use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::opened::{Locked, LockedAgainst, Unclosed};
use super::{LeafPlace, ToolError};
use crate::config::size::{format_amount, format_size};
use crate::io::open;

/// A leaf that is locked, to be removed.
#[derive(Debug)]
pub struct Doomed(Locked);

impl Doomed {
    /// Locks the leaf. One that was not closed cleanly is no obstacle, since nothing of
    /// it is kept.
    ///
    /// # Errors
    /// The leaf's, above all that it is in use.
    pub fn look(place: &LeafPlace) -> Result<Self, ToolError> {
        Ok(Self(Locked::new(place, LockedAgainst::All, Unclosed::Tell)?))
    }

    /// Where it is; links are followed.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Its disk's UUID.
    pub fn disk(&self) -> Uuid {
        Uuid::from_bytes(self.0.header.disk_uuid())
    }

    /// What would be lost, in words.
    ///
    /// # Errors
    /// The leaf's.
    pub fn content(&self) -> Result<String, ToolError> {
        let held = self.0.read()?.present_sectors();
        Ok(format!(
            "{}: a disk of {} on root {}, of which {} are changed",
            self.0.path.display(),
            format_size(self.0.header.virtual_size),
            self.0.header.root.name,
            format_amount(held * 512)
        ))
    }

    /// Removes it, durably, and its live map.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(self) -> Result<(), ToolError> {
        let path = &self.0.path;
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::remove_file(path)
            .and_then(|()| open::directory(directory)?.sync_all())
            .map_err(|source| ToolError::Write { path: path.clone(), source })?;
        self.0.forget_live_map();
        Ok(())
    }
}
