//! `leafblk leaf commit`: a new root image, the root plus the leaf's changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::opened::{LockedAgainst, Unclosed};
use super::raw_writer::write_raw;
use super::view::View;
use super::{LeafPlace, ToolError, new_file};
use crate::config::RootEntry;
use crate::config::size::{format_amount, format_size};
use crate::io::storage::FileStorage;
use crate::root::RootIdentity;
use crate::root::probe::{self, Foreign};

/// What is to be committed.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The leaf, which stays as it is.
    pub leaf: LeafPlace,
    /// Its root, which stays as it is.
    pub root: RootEntry,
    /// The new image.
    pub output: PathBuf,
}

/// Writes the new root, reads it back, and says what it is.
///
/// # Errors
/// The leaf's and the root's; of writing the output, which doesn't exist then.
pub fn run(what: &Commit) -> Result<String, ToolError> {
    let written = flatten(&what.leaf, &what.root, &what.output)?;
    Ok(format!(
        "committed {} to {}: {}, {} on disk, verified; root {}{}",
        what.leaf.path.display(),
        what.output.display(),
        format_size(written.size),
        format_amount(written.allocated),
        written.identity,
        written.remark(),
    ))
}

/// A raw image that was written.
pub(super) struct Flattened {
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) identity: RootIdentity,
    /// What its bytes say that it is, though they are the guest's disk.
    pub(super) looks_like: Option<Foreign>,
}

impl Flattened {
    /// What is to be known of it where it becomes a root.
    pub(super) fn remark(&self) -> String {
        match self.looks_like {
            None => String::new(),
            Some(format) => format!("; it looks like {format}: as a root, declare it format=raw"),
        }
    }
}

/// Writes what a guest would see into a new raw image.
pub(super) fn flatten(
    leaf: &LeafPlace,
    root: &RootEntry,
    output: &Path,
) -> Result<Flattened, ToolError> {
    let beside = new_file(output)?;
    let view = View::open(leaf, Some(root), LockedAgainst::Writers, Unclosed::Refuse)?;
    write_raw(&view, &beside)?;
    let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let storage = FileStorage::new(beside.file().try_clone().map_err(|e| beside.error(e))?);
    let looked = RootIdentity::of_raw(&stem, &storage).and_then(|identity| {
        let looks_like = probe::probe(&storage, identity.len_bytes)?;
        Ok((identity, looks_like))
    });
    let (identity, looks_like) = looked.map_err(|e| beside.error(e))?;
    let allocated = beside.file().metadata().map_err(|e| beside.error(e))?.blocks() * 512;
    beside.publish()?;
    Ok(Flattened { size: view.size_bytes(), allocated, identity, looks_like })
}
