//! Where live maps lie: found by what they say, whatever their names.
//!
//! A VM can be renamed and a name given to another leaf while the maps of killed
//! daemons are still needed. So a map that is not where its leaf's VM would have
//! it is looked for in the same directory, and one that is in the way of another
//! leaf's is given a name of its own there, UUID.map; it is never removed within
//! its boot. The directory is locked (flock(2)) meanwhile: leaves are opened side
//! by side, and a map that is just being renamed could be missed.
//!
//! Leaves are copied, and a copy has the UUID and generation of its original. So
//! two rules keep a map with the file that it was made for. A map that another
//! process has locked is not taken, renamed or removed. And a map says where its
//! leaf was: as long as a leaf with that UUID is there, it is no other file's.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::aside::{free_name, make_way, named_by_uuid};
use super::{LiveMap, Owner, Shape};
use crate::io::lock as flock;
use crate::io::open::{self, Access};
use crate::leaf::offline;

/// Whose map is looked for, and what its leaf's header says.
#[derive(Clone, Copy, Debug)]
pub(in crate::leaf) struct Wanted<'a> {
    /// The leaf's file.
    pub(in crate::leaf) leaf: &'a Path,
    /// As the header that counts has it.
    pub(in crate::leaf) owner: Owner,
    /// By that header.
    pub(in crate::leaf) shape: Shape,
    /// The leaf was not closed, nor is it being reset: it may have a map.
    pub(in crate::leaf) unclosed: bool,
    /// The header's other copy is damaged. It may have been the newer one.
    pub(in crate::leaf) alone: bool,
    /// A reset is to be completed: the map in the file counts as empty.
    pub(in crate::leaf) void: bool,
}

/// What was found, and where it is now.
pub(super) enum Found {
    Nothing,
    /// The header's.
    Fits(File, PathBuf),
    /// Of the header that was newer, and is damaged; of this generation.
    Ahead(File, PathBuf, u64),
}

/// Opens the map that is wanted, if it is in the directory of `path`, and locks it: for
/// this process alone, or (`read_only`) together with other readers. It is at
/// `path` then, unless it is only to be read or another process has what lies there.
///
/// # Errors
/// [`OpenError::Ahead`] for one that is newer than the header and can't be joined
/// to it; [`OpenError::InUse`] for one that another process has locked.
pub(super) fn open(path: &Path, wanted: &Wanted<'_>, read_only: bool) -> Result<Found, OpenError> {
    let directory = match lock_directory(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        directory => directory?,
    };
    let Wanted { owner, unclosed, alone, .. } = *wanted;
    if unclosed
        && !alone
        && let Some(file) = take(path, wanted, read_only)?
    {
        return Ok(Found::Fits(file, path.to_owned()));
    }
    // With both copies whole and the leaf closed, only what lies where this
    // leaf's map would be: many leaves are opened side by side.
    let others = match unclosed || alone {
        true => maps_in(&directory.path)?,
        false => vec![named_by_uuid(path, &owner, 0)],
    };
    let candidates = look_through(&[&[path.to_owned()], &others[..]].concat(), wanted)?;
    if let Some((found, generation)) = candidates.ahead {
        let file = locked(&found, own_map(&found)?, read_only)?;
        if let Some(why) = cannot_be_joined(&file, wanted)? {
            return Err(OpenError::Ahead { map: found, why });
        }
        let place = take_place(found, path, wanted, read_only)?;
        return Ok(Found::Ahead(file, place, generation));
    }
    let Some(found) = candidates.fits else {
        return Ok(Found::Nothing);
    };
    let Some(file) = take(&found, wanted, read_only)? else {
        return Ok(Found::Nothing);
    };
    let place = take_place(found, path, wanted, read_only)?;
    Ok(Found::Fits(file, place))
}

/// Opens and locks the map at `path`, if it is the one that is wanted.
fn take(path: &Path, wanted: &Wanted<'_>, read_only: bool) -> Result<Option<File>, OpenError> {
    let file = match own_map(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if !is_the_headers(&file, wanted)? {
        return Ok(None);
    }
    let file = locked(path, file, read_only)?;
    // Whoever had it may have given it up meanwhile.
    Ok(LiveMap::is_owned(&file, &wanted.owner, &wanted.shape)?.then_some(file))
}

/// The map, locked as [`open`] has it.
fn locked(path: &Path, file: File, read_only: bool) -> Result<File, OpenError> {
    match flock::take(&file, read_only)? {
        true => Ok(file),
        false => Err(OpenError::InUse(path.to_owned())),
    }
}

/// Whether the map is that of the leaf's header, and of this file of it.
fn is_the_headers(file: &File, wanted: &Wanted<'_>) -> io::Result<bool> {
    Ok(LiveMap::is_owned(file, &wanted.owner, &wanted.shape)?
        && !is_of_another_file(file, &wanted.owner, wanted.leaf))
}

/// Whether the map, of a leaf with `owner`'s UUID, was made for another file than
/// `leaf`: one that has this UUID too and still is where it was. One of the two is
/// a copy.
pub(super) fn is_of_another_file(map: &File, owner: &Owner, leaf: &Path) -> bool {
    let Some(noted) = super::leaf_path(map) else {
        return false;
    };
    let place = |path: &Path| {
        let found = std::fs::metadata(path).ok().filter(|found| found.is_file())?;
        Some((found.dev(), found.ino()))
    };
    let (Some(there), Some(here)) = (place(&noted), place(leaf)) else {
        return false;
    };
    // Another leaf may have come to that place.
    let uuid = offline::identity(&noted).ok().flatten().map(|found| found.uuid);
    there != here && uuid == Some(owner.uuid)
}

/// Why a map can't be opened.
pub(in crate::leaf) enum OpenError {
    Io(io::Error),
    /// It is newer than the header that counts.
    Ahead {
        map: PathBuf,
        why: &'static str,
    },
    /// Another process has it locked.
    InUse(PathBuf),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Why a map of a header that was newer can't be joined to the one that counts.
fn cannot_be_joined(file: &File, wanted: &Wanted<'_>) -> io::Result<Option<&'static str>> {
    Ok(if !wanted.alone {
        Some("the leaf's file is an older copy of itself, or its disk has lost a write")
    } else if file.metadata()?.len() < wanted.shape.file_len()? {
        Some("the live map is cut short")
    } else if wanted.void
        || Owner::is_being_replaced(file)?
        || Owner::sectors(file)? != wanted.shape.sectors
    {
        Some("the newer copy of the header is damaged, and the leaf had another size or was reset")
    } else {
        None
    })
}

/// Puts the map at `found` to `path`, if it is not only to be read and the place can be
/// had; where it is.
fn take_place(
    found: PathBuf,
    path: &Path,
    wanted: &Wanted<'_>,
    read_only: bool,
) -> io::Result<PathBuf> {
    if read_only || found == path || !make_way(path, &wanted.owner, wanted.leaf)? {
        return Ok(found);
    }
    std::fs::rename(&found, path)?;
    log::info!("the live map {} is {} now", found.display(), path.display());
    Ok(path.to_owned())
}

/// A new, empty file for the map of the leaf at `leaf`, `owner`'s: at `path`, or where
/// another process has that, beside it.
pub(super) fn create(path: &Path, owner: &Owner, leaf: &Path) -> io::Result<(File, PathBuf)> {
    let _directory = lock_directory(path)?;
    let path = match make_way(path, owner, leaf)? {
        true => path.to_owned(),
        false => free_name(path, owner)?,
    };
    let file = open::new_file(&path)?;
    mark_used(&file);
    Ok((file, path))
}

/// Locks a new file as long as it is open.
fn mark_used(file: &File) {
    let _ = file.try_lock();
}

/// Where the map that is wanted is in the directory, if it is there; one that is
/// newer than the header first.
pub(in crate::leaf) fn find(directory: &Path, wanted: &Wanted<'_>) -> io::Result<Option<PathBuf>> {
    let Candidates { fits, ahead } = look_through(&maps_in(directory)?, wanted)?;
    Ok(ahead.map(|(path, _)| path).or(fits))
}

/// Maps of the leaf that is wanted.
#[derive(Default)]
struct Candidates {
    /// The header's.
    fits: Option<PathBuf>,
    /// The latest that is newer than the header, and its generation.
    ahead: Option<(PathBuf, u64)>,
}

fn look_through(places: &[PathBuf], wanted: &Wanted<'_>) -> io::Result<Candidates> {
    let mut candidates = Candidates::default();
    for path in places {
        let file = match open::own_file(path, Access::Read).map_err(io::Error::from) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            // One that can't be read could be the leaf's: not silently left out.
            file => file?,
        };
        let fits = wanted.unclosed && LiveMap::is_owned(&file, &wanted.owner, &wanted.shape)?;
        let generation = Owner::read(&file)
            .filter(|found| found.is_of_leaf_of(&wanted.owner))
            .map_or(0, |found| found.generation);
        let latest = candidates.ahead.as_ref().map_or(wanted.owner.generation, |(_, there)| *there);
        if (fits || generation > latest) && is_of_another_file(&file, &wanted.owner, wanted.leaf) {
            let (map, leaf) = (path.display(), wanted.leaf.display());
            log::warn!("leaf {leaf}: the live map {map} is that of another copy of this leaf");
        } else if fits {
            candidates.fits = Some(path.clone());
        } else if generation > latest {
            candidates.ahead = Some((path.clone(), generation));
        }
    }
    Ok(candidates)
}

/// What may be live maps in the directory.
pub(super) fn maps_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut maps = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_map = path.extension().is_some_and(|extension| extension == "map");
        // Not a link: a daemon makes none.
        if is_map && std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            maps.push(path);
        }
    }
    Ok(maps)
}

/// Removes what is at `path`, if it is `file`.
pub(super) fn remove(path: &Path, file: &File) -> io::Result<()> {
    let _directory = lock_directory(path)?;
    let (ours, named) = (file.metadata()?, std::fs::symlink_metadata(path)?);
    match (ours.dev(), ours.ino()) == (named.dev(), named.ino()) {
        true => std::fs::remove_file(path),
        false => Ok(()),
    }
}

/// Removes the map at `path`, unless another process has it.
///
/// # Errors
/// As open(2) and unlink(2).
pub(in crate::leaf) fn remove_unused(path: &Path) -> io::Result<()> {
    let file = own_map(path)?;
    match flock::take(&file, false)? {
        true => remove(path, &file),
        false => Ok(()),
    }
}

/// A directory that is locked as long as this value lives.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

pub(super) fn lock_directory(of: &Path) -> io::Result<Directory> {
    let path = match of.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let lock = open::directory(&path)?;
    lock.lock()?;
    Ok(Directory { path, _lock: lock })
}

/// A daemon makes regular files.
pub(super) fn own_map(path: &Path) -> io::Result<File> {
    Ok(open::own_file(path, Access::Write)?)
}
