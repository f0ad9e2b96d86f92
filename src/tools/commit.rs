//! `leafblk leaf commit`: a new root image, the root plus the leaf's changes.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::opened::Unclosed;
use super::raw_writer::write_raw;
use super::view::View;
use super::{LeafPlace, ToolError, human, new_file};
use crate::config::RootEntry;
use crate::root::Root;

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
        "committed {} to {}: {}, {} on disk, verified; root {}",
        what.leaf.path.display(),
        what.output.display(),
        human(written.size),
        human(written.allocated),
        written.identity,
    ))
}

/// A raw image that was written.
pub(super) struct Flattened {
    pub(super) size: u64,
    pub(super) allocated: u64,
    pub(super) identity: crate::root::RootIdentity,
}

/// Writes what a guest would see into a new raw image.
pub(super) fn flatten(
    leaf: &LeafPlace,
    root: &RootEntry,
    output: &Path,
) -> Result<Flattened, ToolError> {
    let beside = new_file(output)?;
    let view = View::open(leaf, Some(root), false, Unclosed::Refuse)?;
    write_raw(&view, &beside)?;
    let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unnamed = format!("/proc/self/fd/{}", beside.file().as_raw_fd());
    let identity = Root::open_buffered(&stem, Path::new(&unnamed))?.identity().clone();
    let allocated = beside.file().metadata().map_err(|e| beside.error(e))?.blocks() * 512;
    beside.publish()?;
    Ok(Flattened { size: view.size_bytes(), allocated, identity })
}
