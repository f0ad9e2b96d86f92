//! `leafblk leaf import`: a leaf from a qcow2 image.

use std::path::PathBuf;

use super::rewrite::LeafWriter;
use super::{ToolError, counted, new_file, open_root, qcow2};
use crate::config::RootEntry;
use crate::config::size::{format_amount, format_size};

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct Import {
    /// The qcow2 image, which stays as it is.
    pub image: PathBuf,
    /// The new leaf.
    pub path: PathBuf,
    /// Its root: the overlay's backing file, or any where it has none.
    pub root: RootEntry,
}

/// Makes the leaf; says what it holds.
///
/// # Errors
/// The image's and the root's; of writing the leaf, which doesn't exist then.
pub fn run(what: &Import) -> Result<String, ToolError> {
    let beside = new_file(&what.path)?;
    let root = open_root(&what.root)?;
    let image = qcow2::Overlay::open(&what.image, &root)?;
    let size = image.size_bytes();
    let mut writer = LeafWriter::new(beside, size, &root, None)?;
    image.copy_into(&mut writer)?;
    let (beside, held) = writer.finish()?;
    beside.publish()?;
    Ok(format!(
        "imported {} as {}: {} on root {}, {} changed ({})",
        what.image.display(),
        what.path.display(),
        format_size(size),
        root.identity(),
        counted(held.sectors, "sector"),
        format_amount(held.sectors * 512),
    ))
}
