//! A leaf that no VM uses, as the tools handle it: locked, looked at, read and
//! written in plain buffers.
//!
//! Knows files and headers. It decides nothing: what to do with a leaf that
//! was not closed cleanly, or that has a damaged copy of its header, is the
//! caller's.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::copies::read_header;
use super::header::{self, Header, HeaderError};
use super::live_map::place::{self, Wanted};
use super::{Leaf, LeafError};
use crate::io::lock as flock;
use crate::io::open::{self, Access, OpenError};
use crate::io::storage::{FileStorage, read_exact, write_all};
use crate::root::RootIdentity;
use crate::units::{Sector, SectorRange};

/// How often a path is opened again that was given to another file meanwhile.
const OPEN_TRIES: u32 = 8;

/// Opens the leaf file at `path` and locks it: for itself alone if `write`,
/// else together with other readers. The lock goes with the last descriptor of
/// this opening.
///
/// # Errors
/// [`LeafError::InUse`], [`LeafError::NotALeaf`] for what is no regular file,
/// [`LeafError::Open`].
pub fn lock(path: &Path, write: bool) -> Result<File, LeafError> {
    let open_error = |source| LeafError::Open { path: path.to_owned(), source };
    for _ in 0..OPEN_TRIES {
        let access = if write { Access::Write } else { Access::Read };
        let file = open::file(path, access).map_err(|error| match error {
            OpenError::Kind(_) => LeafError::NotALeaf { path: path.to_owned() },
            OpenError::Io(source) => open_error(source),
        })?;
        if !flock::take(&file, !write).map_err(open_error)? {
            let by = flock::holder(&file);
            return Err(LeafError::InUse { path: path.to_owned(), by });
        }
        // A tool may have put a new file here between opening and locking, and
        // what is written to the old one would be lost.
        let (ours, named) =
            (file.metadata().map_err(open_error)?, std::fs::metadata(path).map_err(open_error)?);
        if (ours.dev(), ours.ino()) == (named.dev(), named.ino()) {
            return Ok(file);
        }
    }
    Err(LeafError::InUse { path: path.to_owned(), by: None })
}

/// Opens the leaf file at `path` for a look at it beside whoever has it locked.
///
/// # Errors
/// As [`lock`], apart from [`LeafError::InUse`].
pub fn open_beside(path: &Path) -> Result<File, LeafError> {
    open::file(path, Access::Read).map_err(|error| match error {
        OpenError::Kind(_) => LeafError::NotALeaf { path: path.to_owned() },
        OpenError::Io(source) => LeafError::Open { path: path.to_owned(), source },
    })
}

/// The header that counts, and whether the other copy is damaged, which may have
/// been newer.
///
/// # Errors
/// As [`Leaf::open`].
pub fn header(path: &Path, file: &File) -> Result<(Header, bool), LeafError> {
    let storage = FileStorage::new(clone(path, file)?);
    let copies = read_header(path, &storage)?;
    let alone = copies.is_alone();
    Ok((copies.header, alone))
}

/// Both copies of the header, each by itself.
///
/// # Errors
/// As pread(2).
pub fn header_copies(file: &File) -> io::Result<[Result<Header, HeaderError>; 2]> {
    let mut copies = [Err(HeaderError::Damaged), Err(HeaderError::Damaged)];
    for (copy, offset) in copies.iter_mut().zip([0, header::LEN as u64]) {
        let mut bytes = [0; header::LEN];
        match file.read_exact_at(&mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
            Ok(()) => *copy = Header::decode(&bytes),
        }
    }
    Ok(copies)
}

/// Another descriptor of the same opening, with the same lock.
///
/// # Errors
/// [`LeafError::Open`].
pub fn clone(path: &Path, file: &File) -> Result<File, LeafError> {
    file.try_clone().map_err(|source| LeafError::Open { path: path.to_owned(), source })
}

/// Which leaf is at a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The leaf's UUID.
    pub uuid: [u8; 16],
    /// Its disk's ([`Header::disk_uuid`]).
    pub disk: [u8; 16],
    /// The root that it was made on.
    pub root: RootIdentity,
}

/// Which leaf is at `path`, whether it is in use or not; `None` where there is nothing.
///
/// # Errors
/// [`LeafError`], where what is there is no leaf that can be read.
pub fn identity(path: &Path) -> Result<Option<Identity>, LeafError> {
    let file = match open::file(path, Access::Read) {
        Ok(file) => file,
        Err(OpenError::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(OpenError::Io(source)) => {
            return Err(LeafError::Open { path: path.to_owned(), source });
        }
        Err(OpenError::Kind(_)) => return Err(LeafError::NotALeaf { path: path.to_owned() }),
    };
    // Of a leaf in use one copy may be half written; the other is whole then.
    let (header, _) = header(path, &file)?;
    Ok(Some(Identity { uuid: header.uuid, disk: header.disk_uuid(), root: header.root }))
}

/// The live map in `dir`, under whatever name, that a daemon which was killed
/// left for the leaf at `path` with this header, of which the other copy is damaged if
/// it is `alone`; `None` if there is none.
///
/// # Errors
/// As readdir(3); a directory that doesn't exist has no map.
pub fn find_live_map(
    dir: &Path,
    path: &Path,
    header: &Header,
    alone: bool,
) -> io::Result<Option<PathBuf>> {
    // Whoever opens the leaf with it finds out whether it can be joined.
    place::find(dir, &Wanted::of(path, header, alone))
}

/// Removes a live map that fits no leaf any more, unless another process has it.
///
/// # Errors
/// As open(2) and unlink(2).
pub fn remove_live_map(map: &Path) -> io::Result<()> {
    place::remove_unused(map)
}

impl Leaf {
    /// Reads held sectors into `into`, whole sectors; what isn't held reads as
    /// anything.
    ///
    /// # Errors
    /// [`LeafError::Io`].
    pub fn read_bytes(&self, start: Sector, into: &mut [u8]) -> Result<(), LeafError> {
        let (mut at, mut into) = (start, into);
        while !into.is_empty() {
            let sectors = (into.len() as u64).div_ceil(512);
            let (place, count) = self.place(SectorRange::new(at, sectors).unwrap_or_default());
            let len = usize::try_from(count * 512).unwrap_or(usize::MAX).min(into.len());
            let (here, rest) = into.split_at_mut(len);
            match place {
                Some(offset) => read_exact(&*self.storage, here, offset)
                    .map_err(|source| self.io("read", source))?,
                None => here.fill(0),
            }
            (at, into) = (Sector(at.0 + count), rest);
        }
        Ok(())
    }

    /// Writes `from`, which is the range's content, and marks it as held.
    ///
    /// # Errors
    /// As [`Leaf::write`]; InvalidInput if the lengths differ.
    pub fn write_bytes(&self, range: SectorRange, from: &[u8]) -> Result<(), LeafError> {
        self.check_writable("write", range)?;
        if from.len() as u64 != range.byte_len() {
            return Err(self.io("write", io::ErrorKind::InvalidInput.into()));
        }
        self.take_slots(range)?;
        let (mut rest, mut from) = (range, from);
        while !rest.is_empty() {
            let (place, count) = self.place(rest);
            let len = usize::try_from(count * 512).unwrap_or(usize::MAX).min(from.len());
            let (here, more) = from.split_at(len);
            write_all(&*self.storage, here, self.taken(place)?)
                .map_err(|source| self.unfinished("write", source))?;
            (rest, from) = (rest.split_at(count).1, more);
        }
        self.mark(range)
    }
}

#[cfg(test)]
mod tests;
