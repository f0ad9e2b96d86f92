//! Live maps that no leaf here needs.
//!
//! A map outlives its daemon for its leaf's sake. Where the leaf is deleted instead
//! of opened again, nothing can be told from the map: a file that is not where it
//! was may have been renamed, or its file system may not be mounted. So a map of this
//! boot that says whose it is stays until the machine goes down, and is named in the
//! log; removed is what nobody can need: maps of another boot, which are never taken
//! over, and those that are nobody's.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::owner::RECORDS_LEN;
use super::{Owner, PAGE_LEN, place};

/// What a directory of live maps had beside those of leaves that are in use.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Maps that nobody can need, and that are removed.
    pub removed: usize,
    /// Maps that may be needed.
    pub kept: Vec<Leftover>,
}

/// A live map of this boot whose leaf is not in use here.
#[derive(Debug)]
pub struct Leftover {
    /// Its file.
    pub map: PathBuf,
    /// Memory that it takes.
    pub bytes: u64,
    /// Where its leaf was when it was last opened, if that is known.
    pub leaf: Option<PathBuf>,
}

/// Looks through the directory, of which the leaves with these UUIDs are in use.
///
/// # Errors
/// As open(2) and readdir(3) on the directory.
pub(in crate::leaf) fn clear(
    directory: &Path,
    boot_id: &[u8; 16],
    in_use: &[[u8; 16]],
) -> io::Result<Leftovers> {
    let _directory = place::lock_directory(&directory.join("any"))?;
    let mut leftovers = Leftovers::default();
    for map in place::maps_in(directory)? {
        let Ok(file) = place::own_map(&map) else {
            continue;
        };
        // One that is being filled, or in use by a tool, is locked.
        if file.try_lock().is_err() {
            continue;
        }
        match needed_by(&file, boot_id)? {
            Need::Nobody => {
                std::fs::remove_file(&map)?;
                leftovers.removed += 1;
            }
            Need::Leaf(uuid) if !in_use.contains(&uuid) => {
                let bytes = file.metadata()?.blocks() * 512;
                leftovers.kept.push(Leftover { map, bytes, leaf: super::leaf_path(&file) });
            }
            Need::Leaf(_) | Need::Unknown => {}
        }
    }
    Ok(leftovers)
}

enum Need {
    Nobody,
    Leaf([u8; 16]),
    /// It is no live map.
    Unknown,
}

fn needed_by(file: &File, boot_id: &[u8; 16]) -> io::Result<Need> {
    let mut records = [0; RECORDS_LEN];
    match file.read_exact_at(&mut records, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Need::Unknown),
        read => read?,
    }
    if records == [0; RECORDS_LEN] {
        // Given up by its leaf, or never filled.
        let is_map = file.metadata()?.len().is_multiple_of(PAGE_LEN as u64);
        return Ok(if is_map { Need::Nobody } else { Need::Unknown });
    }
    let owners = [Owner::read(file), Owner::read_next(file)];
    let of_this_boot = owners.iter().flatten().find(|owner| owner.boot_id == *boot_id);
    Ok(match of_this_boot {
        Some(owner) => Need::Leaf(owner.uuid),
        None if owners.iter().any(Option::is_some) => Need::Nobody,
        None => Need::Unknown,
    })
}
