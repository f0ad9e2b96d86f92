//! `leafblk leaf create`: an empty leaf.

use std::path::PathBuf;

use super::{ToolError, check_free, open_root};
use crate::config::RootEntry;
use crate::config::size::format_size;
use crate::leaf::{self, LeafError};

/// What is to be created.
#[derive(Clone, Debug)]
pub struct Create {
    /// The new leaf.
    pub path: PathBuf,
    /// Its root.
    pub root: RootEntry,
    /// The disk's size in bytes; the root's if `None`.
    pub size: Option<u64>,
}

/// Creates it; says so.
///
/// # Errors
/// The leaf's and the root's; [`ToolError::Exists`].
pub fn run(what: &Create) -> Result<String, ToolError> {
    check_free(&what.path)?;
    let root = open_root(&what.root)?;
    let size = what.size.unwrap_or(root.len_bytes());
    if size < root.len_bytes() {
        return Err(LeafError::BadSize { size }.into());
    }
    leaf::create(&what.path, size, root.identity())?;
    Ok(format!(
        "created {}: {} on root {}",
        what.path.display(),
        format_size(size),
        root.identity()
    ))
}
