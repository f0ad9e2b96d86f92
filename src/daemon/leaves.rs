//! The leaves of a state directory, as its records and the files in it have them: for
//! tools, which ask no daemon.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::leaf_records::{Expected, LeafRecord, LeafRecords, Remembered};
use crate::error::Error;
use crate::io::lock;
use crate::leaf::{Holder, LeafError, offline};

/// A leaf that is there, or that a VM should have.
#[derive(Debug)]
pub struct ListedLeaf {
    /// Where it is, or was.
    pub path: PathBuf,
    /// The VM that it is the leaf of.
    pub vm: Option<String>,
    /// Since when that VM is not served any more.
    pub detached: Option<Timestamp>,
    /// What is at the path.
    pub found: Result<FoundLeaf, Unfound>,
}

/// What a leaf is.
#[derive(Debug)]
pub struct FoundLeaf {
    /// Its disk's UUID.
    pub disk: Uuid,
    /// The name of its root when it was made.
    pub root: String,
    /// The disk's size.
    pub size_bytes: u64,
    /// What the file occupies.
    pub allocated_bytes: u64,
    /// Who has it locked, if that can be told.
    pub in_use: Option<Holder>,
}

/// Why nothing is known of a leaf.
#[derive(Debug)]
pub enum Unfound {
    /// There is none.
    Missing,
    /// What is there is none, or can't be read.
    Unreadable(LeafError),
}

/// The leaves in `state_dir`, and those that its VMs have elsewhere, by path. A VM that is
/// detached and has none any more is left out.
///
/// # Errors
/// Where the directory or its records can't be read.
pub fn list(state_dir: &Path) -> Result<Vec<ListedLeaf>, Error> {
    let remembered = LeafRecords::in_directory(state_dir).read().map_err(Error::failure)?;
    let recorded = remembered.all().map(|(_, record)| record.path.clone());
    let paths: BTreeSet<PathBuf> = leaves_in(state_dir)?.into_iter().chain(recorded).collect();
    let leaves = paths.into_iter().map(|path| listed(path, &remembered));
    let is_gone =
        |leaf: &ListedLeaf| matches!(leaf.found, Err(Unfound::Missing)) && leaf.detached.is_some();
    Ok(leaves.filter(|leaf| !is_gone(leaf)).collect())
}

fn listed(path: PathBuf, remembered: &Remembered) -> ListedLeaf {
    let found = look(&path);
    let owner = match &found {
        Ok(leaf) => owner(remembered, &path, leaf.disk),
        // The VM that is without it.
        Err(_) => remembered.all().find(|(_, record)| record.path == path),
    };
    let (vm, detached) =
        owner.map_or((None, None), |(vm, record)| (Some(vm.to_owned()), record.detached));
    ListedLeaf { path, vm, detached, found }
}

/// The VM that has had the leaf of this disk: here, or, where the file was moved, elsewhere.
fn owner<'a>(
    remembered: &'a Remembered,
    path: &Path,
    disk: Uuid,
) -> Option<(&'a str, &'a LeafRecord)> {
    let mut of_disk = remembered.all().filter(|(_, record)| has_disk(record, disk));
    let here = remembered.all().find(|(_, record)| has_disk(record, disk) && record.path == path);
    here.or_else(|| of_disk.find(|(_, record)| look(&record.path).is_err()))
}

fn has_disk(record: &LeafRecord, disk: Uuid) -> bool {
    matches!(record.expected, Expected::Disk { uuid, .. } if uuid == disk)
}

fn look(path: &Path) -> Result<FoundLeaf, Unfound> {
    let file = offline::open_beside(path).map_err(|error| match error {
        LeafError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Unfound::Missing
        }
        error => Unfound::Unreadable(error),
    })?;
    let (header, _) = offline::header(path, &file).map_err(Unfound::Unreadable)?;
    Ok(FoundLeaf {
        disk: Uuid::from_bytes(header.disk_uuid()),
        size_bytes: header.virtual_size,
        root: header.root.name,
        allocated_bytes: file.metadata().map_or(0, |found| found.blocks() * 512),
        in_use: lock::holder(&file),
    })
}

/// Files of the directory that are called as leaves are.
fn leaves_in(state_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failure = |source| {
        Error::failure(format!(
            "the state directory {} can't be read ({source}); pass the --state-dir of leafblk serve",
            state_dir.display()
        ))
    };
    let mut leaves = Vec::new();
    for entry in fs::read_dir(state_dir).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        if path.extension() == Some(OsStr::new("leaf")) && path.is_file() {
            leaves.push(path);
        }
    }
    Ok(leaves)
}

/// Forgets the leaf of this disk, which was removed from `path`, where its VM is detached:
/// what its next attach makes is new. The VM that should have it still, if there is one.
///
/// # Errors
/// Where the records can't be changed.
pub fn forget(state_dir: &Path, path: &Path, disk: Uuid) -> Result<Option<String>, Error> {
    let records = LeafRecords::in_directory(state_dir);
    let forget = |all: &mut Remembered| {
        let owner = all.all().find(|(_, record)| has_disk(record, disk) && record.path == path);
        let (vm, is_detached) =
            owner.map(|(vm, record)| (vm.to_owned(), record.detached.is_some()))?;
        if !is_detached {
            return Some(vm);
        }
        all.set(&vm, None);
        None
    };
    // Nothing is made where there is no such directory.
    match state_dir.is_dir() {
        true => records.change(forget).map_err(Error::failure),
        false => Ok(None),
    }
}
