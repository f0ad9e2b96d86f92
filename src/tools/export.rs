//! `leafblk leaf export`: a QEMU overlay, or one raw image of it all.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::commit::flatten;
use super::opened::{LockedAgainst, Unclosed};
use super::view::View;
use super::{LeafPlace, ToolError, new_file, qcow2};
use crate::config::RootEntry;
use crate::config::size::{format_amount, format_size};

/// What comes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// A qcow2 overlay, with the root as its raw backing file.
    Qcow2,
    /// Root and changes in one raw image.
    Raw,
}

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// The leaf, which stays as it is.
    pub leaf: LeafPlace,
    /// Its root.
    pub root: RootEntry,
    /// Into what.
    pub format: Format,
    /// The new file.
    pub output: PathBuf,
}

/// Writes the new file; says what it is.
///
/// # Errors
/// The leaf's and the root's; of writing the output, which doesn't exist then.
pub fn run(what: &Export) -> Result<String, ToolError> {
    let (path, output) = (what.leaf.path.display(), what.output.display());
    match what.format {
        Format::Raw => {
            let written = flatten(&what.leaf, &what.root, &what.output)?;
            Ok(format!(
                "exported {path} to {output}: raw, {}, {} on disk, verified{}",
                format_size(written.size),
                format_amount(written.allocated),
                written.remark()
            ))
        }
        Format::Qcow2 => {
            let beside = new_file(&what.output)?;
            let view =
                View::open(&what.leaf, Some(&what.root), LockedAgainst::Writers, Unclosed::Refuse)?;
            let backing = qcow2::write_overlay(&view, &beside)?;
            let allocated = beside.file().metadata().map_err(|e| beside.error(e))?.blocks() * 512;
            beside.publish()?;
            Ok(format!(
                "exported {path} to {output}: qcow2, {}, {} on disk, backing file {backing}",
                format_size(view.size_bytes()),
                format_amount(allocated)
            ))
        }
    }
}
