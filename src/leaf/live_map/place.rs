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

/// Opens `owner`'s map, of this shape, if there is one in the
/// directory of `path`. It is at `path` then, unless it is only to be read.
pub(super) fn open(
    path: &Path,
    owner: &Owner,
    shape: &Shape,
    read_only: bool,
) -> io::Result<Option<File>> {
    let directory = match lock_directory(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        directory => directory?,
    };
    if let Some(file) = open_owned(path, owner, shape)? {
        return Ok(Some(file));
    }
    let Some(found) = find(&directory.path, owner, shape)? else {
        return Ok(None);
    };
    if read_only {
        return open_owned(&found, owner, shape);
    }
    make_way(path, owner)?;
    std::fs::rename(&found, path)?;
    log::info!("the live map {} is {} now", found.display(), path.display());
    open_owned(path, owner, shape)
}

/// A new, empty file for `owner`'s map.
pub(super) fn create(path: &Path, owner: &Owner) -> io::Result<File> {
    let _directory = lock_directory(path)?;
    make_way(path, owner)?;
    open_options().create_new(true).open(path)
}

/// Where `owner`'s map is in the directory, if it is there.
pub(in crate::leaf) fn find(
    directory: &Path,
    owner: &Owner,
    shape: &Shape,
) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_map = path.extension().is_some_and(|extension| extension == "map");
        // Not a link: a daemon makes none.
        if !is_map || !std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            continue;
        }
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // One that can't be read could be the leaf's: not silently left out.
            Err(e) => return Err(e),
            Ok(file) => {
                if LiveMap::is_owned(&file, owner, shape)? {
                    return Ok(Some(path));
                }
            }
        }
    }
    Ok(None)
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
        let uuid = uuid::Uuid::from_bytes(other.uuid).simple().to_string();
        let aside = path.with_file_name(uuid).with_extension("map");
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
struct Directory {
    path: PathBuf,
    _lock: File,
}

fn lock_directory(of: &Path) -> io::Result<Directory> {
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
