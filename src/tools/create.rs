//! `leafblk leaf create`: an empty leaf.

use std::path::PathBuf;

use super::beside::Beside;
use super::{ToolError, human, open_root};
use crate::config::RootEntry;
use crate::io::storage::FileStorage;
use crate::leaf::{self, LeafError, offline};

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
    let beside = Beside::new(&what.path)?;
    let root = open_root(&what.root)?;
    let size = what.size.unwrap_or(root.len_bytes());
    if size < root.len_bytes() {
        return Err(LeafError::BadSize { size }.into());
    }
    let storage = FileStorage::new(offline::clone(&what.path, beside.file())?);
    leaf::create_storage(&what.path, &storage, leaf::Layout::Packed, size, root.identity())?;
    beside.publish()?;
    Ok(format!("created {}: {} on root {}", what.path.display(), human(size), root.identity()))
}
