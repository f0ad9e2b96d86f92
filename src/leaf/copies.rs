//! The header's two copies in the file: which one counts, and how it changes.
//!
//! A header of generation *g* goes to copy *g* mod 2, so that the one before it
//! stays whole while the new one may be torn.

use std::io;
use std::path::Path;
use std::sync::PoisonError;

use super::header::{self, Header, HeaderError};
use super::{Leaf, LeafError};
use crate::io::storage::{Storage, read_exact, write_all};

/// The newer of two valid copies.
pub(super) fn read_header(path: &Path, storage: &dyn Storage) -> Result<Header, LeafError> {
    let path = || path.to_owned();
    let mut best: Option<Header> = None;
    let mut why = HeaderError::Magic;
    for copy in 0..2 {
        let mut bytes = [0; header::LEN];
        let offset = copy * header::LEN as u64;
        match read_exact(storage, &mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(source) => {
                return Err(LeafError::Io { path: path(), operation: "read", source });
            }
            Ok(()) => {}
        }
        match Header::decode(&bytes) {
            Ok(found) if best.as_ref().is_none_or(|b| b.generation < found.generation) => {
                best = Some(found);
            }
            Ok(_) | Err(HeaderError::Magic) => {}
            // A copy that is newer than this code counts more than its twin.
            Err(e @ (HeaderError::Version(_) | HeaderError::Features(_))) => {
                (best, why) = (None, e);
                break;
            }
            Err(HeaderError::Damaged) => why = HeaderError::Damaged,
        }
    }
    best.ok_or_else(|| match why {
        HeaderError::Magic => LeafError::NotALeaf { path: path() },
        HeaderError::Damaged => LeafError::Damaged { path: path() },
        HeaderError::Version(version) => LeafError::Version { path: path(), version },
        HeaderError::Features(bits) => LeafError::Features { path: path(), bits },
    })
}

fn offset_of_copy(generation: u64) -> u64 {
    (generation % 2) * header::LEN as u64
}

impl Leaf {
    /// The header as it is in the file.
    pub(super) fn header(&self) -> Header {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the header as `change` leaves it, to the copy that its
    /// generation names, and syncs. Unless the generation is new, nothing but
    /// what a torn copy may lose has changed.
    pub(super) fn write_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), LeafError> {
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        // Counts only once it is written: another try must not go to the copy
        // that is still good.
        let mut changed = header.clone();
        change(&mut changed);
        self.write_copy(&changed, offset_of_copy(changed.generation))?;
        *header = changed;
        Ok(())
    }

    /// Makes the older copy the newer one's like, so that damage to one of them
    /// doesn't bring back a size or a map that is gone.
    ///
    /// Nobody depends on it: where there is no space for it, it's left out.
    ///
    /// # Errors
    /// A failed sync, which poisons the leaf.
    pub(super) fn mirror_header(&self) -> Result<(), LeafError> {
        let header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        match self.write_copy(&header, offset_of_copy(header.generation + 1)) {
            Err(error) if !self.is_poisoned() => {
                log::warn!("{error}; the leaf's second header stays as it was");
                Ok(())
            }
            result => result,
        }
    }

    fn write_copy(&self, header: &Header, offset: u64) -> Result<(), LeafError> {
        write_all(&*self.storage, &header.encode(), offset)
            .map_err(|source| self.io("write the header", source))?;
        self.sync()
    }
}
