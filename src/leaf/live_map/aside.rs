//! Live maps that are in another's way: of another leaf, or of another copy of the
//! leaf that is opened. They lie beside it under names of their own, since they may name
//! acknowledged writes that nothing else names. The directory is locked meanwhile.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::Owner;
use super::place::{is_of_another_file, own_map};
use crate::io::lock as flock;

/// Most copies of a leaf whose maps lie aside.
const ASIDE_MAX: u32 = 64;

/// Where a map of the leaf lies that was in another's way; with a number from 1 on, that
/// of a copy of it.
pub(super) fn named_by_uuid(path: &Path, owner: &Owner, number: u32) -> PathBuf {
    let uuid = uuid::Uuid::from_bytes(owner.uuid);
    let uuid = uuid.simple();
    path.with_file_name(match number {
        0 => format!("{uuid}.map"),
        _ => format!("{uuid}-{number}.map"),
    })
}

/// Makes `path` free for the map of the leaf at `leaf`, `owner`'s; false if another
/// process has what is there. Another leaf's of this boot is moved aside: acknowledged
/// writes may be named by nothing else.
pub(super) fn make_way(path: &Path, owner: &Owner, leaf: &Path) -> io::Result<bool> {
    // What can't be opened is no map.
    if let Ok(file) = own_map(path) {
        if !flock::take(&file, false)? {
            return Ok(false);
        }
        let other = Owner::read(&file).filter(|other| {
            other.is_of_another_leaf(owner)
                || (other.is_of_leaf_of(owner) && is_of_another_file(&file, owner, leaf))
        });
        if let Some(other) = other
            && let Some(aside) = aside_for(path, &file, &other)?
        {
            std::fs::rename(path, &aside)?;
            let (path, aside) = (path.display(), aside.display());
            log::warn!("the live map {path} is another leaf's; it is {aside} now");
            return Ok(true);
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(true),
    }
}

fn too_many() -> io::Error {
    io::Error::other("there are too many live maps of copies of this leaf")
}

/// Where the map `file` at `path` can lie, `owner`'s; `None` if it is needed no more, as
/// that of a later run of the same leaf lies there.
fn aside_for(path: &Path, file: &File, owner: &Owner) -> io::Result<Option<PathBuf>> {
    for number in 0..ASIDE_MAX {
        let aside = named_by_uuid(path, owner, number);
        let there = match own_map(&aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(aside)),
            there => there?,
        };
        let same_leaf = super::leaf_path(&there) == super::leaf_path(file);
        let found = Owner::read(&there).filter(|found| found.is_of_leaf_of(owner));
        match found {
            Some(_) if !same_leaf => {}
            // Of two of one leaf, the one of the older generation fits no more.
            Some(found) if found.generation > owner.generation => return Ok(None),
            _ if flock::take(&there, false)? => return Ok(Some(aside)),
            _ => {}
        }
    }
    Err(too_many())
}

/// Where the map can be of which another process has the place.
pub(super) fn free_name(path: &Path, owner: &Owner) -> io::Result<PathBuf> {
    let names = (0..ASIDE_MAX).map(|number| named_by_uuid(path, owner, number));
    let mut free = names.filter(|name| std::fs::symlink_metadata(name).is_err());
    free.next().ok_or_else(too_many)
}
