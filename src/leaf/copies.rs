//! The header's two copies in the file: which one counts, and how it changes.
//!
//! A header is written over the copy that doesn't count, so that the one that does
//! stays whole while the new one may be torn. Generations alternate between the
//! copies; where one is damaged, it is the next to be written.

use std::io;
use std::path::Path;
use std::sync::PoisonError;

use super::header::{self, Header, HeaderError};
use super::{Leaf, LeafError};
use crate::io::storage::{Storage, read_exact, write_all};

/// The header that counts, where it is, and what the other copy says.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    pub(super) header: Header,
    /// 0 or 1.
    place: u64,
    /// `None`: damaged, or perhaps torn.
    twin: Option<Header>,
}

impl Copies {
    /// Whether the other copy is damaged. It may have been the newer one.
    pub(super) fn is_alone(&self) -> bool {
        self.twin.is_none()
    }

    /// Whether damage to the copy that counts would bring back a size or a map
    /// that is gone, or end the leaf.
    fn depend_on_one(&self) -> bool {
        self.twin.as_ref().is_none_or(|twin| {
            (twin.virtual_size, twin.map_void) != (self.header.virtual_size, self.header.map_void)
        })
    }
}

/// Reads both copies; the valid one of the larger generation counts.
pub(super) fn read_header(path: &Path, storage: &dyn Storage) -> Result<Copies, LeafError> {
    let path = || path.to_owned();
    let mut found = [None, None];
    let mut why = HeaderError::Magic;
    for (place, found) in (0..).zip(&mut found) {
        let mut bytes = [0; header::LEN];
        match read_exact(storage, &mut bytes, offset_of(place)) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(source) => {
                return Err(LeafError::Io { path: path(), operation: "read", source });
            }
            Ok(()) => {}
        }
        match Header::decode(&bytes) {
            Ok(header) => *found = Some(header),
            Err(HeaderError::Magic) => {}
            // A copy that is newer than this code counts more than its twin.
            Err(HeaderError::Version(version)) => {
                return Err(LeafError::Version { path: path(), version });
            }
            Err(HeaderError::Features(bits)) => {
                return Err(LeafError::Features { path: path(), bits });
            }
            Err(HeaderError::Damaged) => why = HeaderError::Damaged,
        }
    }
    let (header, place, twin) = match found {
        [Some(a), Some(b)] => match a.generation.cmp(&b.generation) {
            std::cmp::Ordering::Greater => (a, 0, Some(b)),
            std::cmp::Ordering::Less => (b, 1, Some(a)),
            // They are the same: generations go on alternating.
            std::cmp::Ordering::Equal if a.generation.is_multiple_of(2) => (a, 0, Some(b)),
            std::cmp::Ordering::Equal => (b, 1, Some(a)),
        },
        [Some(a), None] => (a, 0, None),
        [None, Some(b)] => (b, 1, None),
        [None, None] if why == HeaderError::Damaged => {
            return Err(LeafError::Damaged { path: path() });
        }
        [None, None] => return Err(LeafError::NotALeaf { path: path() }),
    };
    Ok(Copies { header, place, twin })
}

fn offset_of(place: u64) -> u64 {
    place * header::LEN as u64
}

impl Leaf {
    /// The header as it is in the file.
    pub(super) fn header(&self) -> Header {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).header.clone()
    }

    /// Writes the header as `change` leaves it over the copy that doesn't count,
    /// and syncs. The one that does is durable.
    pub(super) fn write_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), LeafError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = copies.header.clone();
        change(&mut changed);
        let place = 1 - copies.place;
        // It counts only once it is written: another try must not go to the copy
        // that is still good.
        copies.twin = None;
        self.write_copy(&changed, place)?;
        let twin = Some(std::mem::replace(&mut copies.header, changed));
        (copies.place, copies.twin) = (place, twin);
        Ok(())
    }

    /// Makes the other copy like the one that counts, which is durable, so that
    /// damage to one of them doesn't bring back a size or a map that is gone.
    ///
    /// Nobody depends on it: where there is no space for it, it's left out.
    ///
    /// # Errors
    /// A failed sync, which poisons the leaf.
    pub(super) fn mirror_header(&self) -> Result<(), LeafError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.twin = None;
        match self.write_copy(&copies.header, 1 - copies.place) {
            Err(error) if !self.is_poisoned() => {
                log::warn!("{error}; the leaf's second header stays as it was");
                Ok(())
            }
            Ok(()) => {
                copies.twin = Some(copies.header.clone());
                Ok(())
            }
            result => result,
        }
    }

    /// What a crash may have left undone between a header and its mirror; does
    /// nothing where both copies agree.
    pub(super) fn settle_copies(&self) -> Result<(), LeafError> {
        let depend = self.copies.lock().unwrap_or_else(PoisonError::into_inner).depend_on_one();
        if !depend {
            return Ok(());
        }
        // Whoever wrote the one that counts may have been killed before its sync.
        self.sync()?;
        self.mirror_header()
    }

    fn write_copy(&self, header: &Header, place: u64) -> Result<(), LeafError> {
        write_all(&*self.storage, &header.encode(), offset_of(place))
            .map_err(|source| self.io("write the header", source))?;
        self.sync()
    }
}
