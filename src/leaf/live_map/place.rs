//! Where live maps lie: found by what they say, whatever their names.
//!
//! A VM can be renamed and a name given to another leaf while the maps of killed
//! daemons are still needed. So a map that is not where its leaf's VM would have
//! it is looked for in the same directory, and one that is in the way of another
//! leaf's is given a name of its own there, UUID.map; it is never removed within
//! its boot. The directory is locked (flock(2)) meanwhile: leaves are opened side
//! by side, and a map that is just being renamed could be missed.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LiveMap, Owner, Shape};

/// Whose map is looked for, and what its leaf's header says.
#[derive(Clone, Copy, Debug)]
pub(in crate::leaf) struct Wanted {
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

/// What was found.
pub(super) enum Found {
    Nothing,
    /// The header's.
    Fits(File),
    /// Of the header that was newer, and is damaged; of this generation.
    Ahead(File, u64),
}

/// Opens the map that is wanted, if it is in the directory of `path`. It is at
/// `path` then, unless it is only to be read.
///
/// # Errors
/// [`OpenError::Ahead`] for one that is newer than the header and can't be joined
/// to it.
pub(super) fn open(path: &Path, wanted: &Wanted, read_only: bool) -> Result<Found, OpenError> {
    let directory = match lock_directory(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        directory => directory?,
    };
    let Wanted { owner, shape, unclosed, alone, .. } = *wanted;
    if unclosed
        && !alone
        && let Some(file) = open_owned(path, &owner, &shape)?
    {
        return Ok(Found::Fits(file));
    }
    // With both copies whole and the leaf closed, only what lies where this
    // leaf's map would be: many leaves are opened side by side.
    let others = match unclosed || alone {
        true => maps_in(&directory.path)?,
        false => vec![named_by_uuid(path, &owner)],
    };
    let candidates = look_through(&[&[path.to_owned()], &others[..]].concat(), wanted)?;
    if let Some((found, generation)) = candidates.ahead {
        let file = open_options().open(&found)?;
        if let Some(why) = cannot_be_joined(&file, wanted)? {
            return Err(OpenError::Ahead { map: found, why });
        }
        take_place(&found, path, &owner, read_only)?;
        return Ok(Found::Ahead(file, generation));
    }
    let Some(found) = candidates.fits else {
        return Ok(Found::Nothing);
    };
    let file = open_owned(&found, &owner, &shape)?;
    take_place(&found, path, &owner, read_only)?;
    Ok(file.map_or(Found::Nothing, Found::Fits))
}

/// Why a map can't be opened.
pub(in crate::leaf) enum OpenError {
    Io(io::Error),
    /// It is newer than the header that counts.
    Ahead {
        map: PathBuf,
        why: &'static str,
    },
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Why a map of a header that was newer can't be joined to the one that counts.
fn cannot_be_joined(file: &File, wanted: &Wanted) -> io::Result<Option<&'static str>> {
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

/// Puts the map at `found` to `path`, unless it is only to be read.
fn take_place(found: &Path, path: &Path, owner: &Owner, read_only: bool) -> io::Result<()> {
    if read_only || found == path {
        return Ok(());
    }
    make_way(path, owner)?;
    std::fs::rename(found, path)?;
    log::info!("the live map {} is {} now", found.display(), path.display());
    Ok(())
}

/// A new, empty file for `owner`'s map.
pub(super) fn create(path: &Path, owner: &Owner) -> io::Result<File> {
    let _directory = lock_directory(path)?;
    make_way(path, owner)?;
    let file = open_options().create_new(true).open(path)?;
    mark_used(&file);
    Ok(file)
}

/// Locks the file as long as it is open: for whoever looks for maps that nobody
/// needs, and nobody else.
pub(super) fn mark_used(file: &File) {
    let _ = file.try_lock();
}

/// Where the map that is wanted is in the directory, if it is there; one that is
/// newer than the header first.
pub(in crate::leaf) fn find(directory: &Path, wanted: &Wanted) -> io::Result<Option<PathBuf>> {
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

fn look_through(places: &[PathBuf], wanted: &Wanted) -> io::Result<Candidates> {
    let mut candidates = Candidates::default();
    for path in places {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            // One that can't be read could be the leaf's: not silently left out.
            file => file?,
        };
        if wanted.unclosed && LiveMap::is_owned(&file, &wanted.owner, &wanted.shape)? {
            candidates.fits = Some(path.clone());
            continue;
        }
        let generation = Owner::read(&file)
            .filter(|found| found.is_of_leaf_of(&wanted.owner))
            .map_or(0, |found| found.generation);
        let latest = candidates.ahead.as_ref().map_or(wanted.owner.generation, |(_, there)| *there);
        if generation > latest {
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

/// Where a map of the leaf lies that was in another's way.
fn named_by_uuid(path: &Path, owner: &Owner) -> PathBuf {
    let uuid = uuid::Uuid::from_bytes(owner.uuid).simple().to_string();
    path.with_file_name(uuid).with_extension("map")
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

fn open_owned(path: &Path, owner: &Owner, shape: &Shape) -> io::Result<Option<File>> {
    match open_options().open(path) {
        Ok(file) => Ok(LiveMap::is_owned(&file, owner, shape)?.then_some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes `path` free for `owner`'s map. Another leaf's of this boot is moved
/// aside: acknowledged writes may be named by nothing else.
fn make_way(path: &Path, owner: &Owner) -> io::Result<()> {
    if let Some(other) = owner_at(path).filter(|other| other.is_of_another_leaf(owner)) {
        let aside = named_by_uuid(path, &other);
        // Of two of one leaf, the one of the older generation fits no more.
        let is_older = owner_at(&aside)
            .is_some_and(|there| there.uuid == other.uuid && there.generation > other.generation);
        if !is_older {
            std::fs::rename(path, &aside)?;
            let (path, aside) = (path.display(), aside.display());
            log::warn!("the live map {path} is another leaf's; it is {aside} now");
            return Ok(());
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn owner_at(path: &Path) -> Option<Owner> {
    Owner::read(&open_options().open(path).ok()?)
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
    let lock = File::open(&path)?;
    lock.lock()?;
    Ok(Directory { path, _lock: lock })
}

fn open_options() -> std::fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}
