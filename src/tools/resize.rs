//! `leafblk leaf resize`: another size for the disk.

use super::opened::{Locked, LockedAgainst, Unclosed};
use super::{LeafPlace, ToolError};
use crate::config::size::format_size;
use crate::leaf::LeafError;

/// What is to be resized.
#[derive(Clone, Debug)]
pub struct Resize {
    /// The leaf.
    pub leaf: LeafPlace,
    /// The new size in bytes.
    pub size: u64,
    /// What lies beyond the new end may be lost.
    pub shrink: bool,
}

/// Gives the disk its new size; says so.
///
/// # Errors
/// The leaf's; [`ToolError::WouldShrink`], [`ToolError::BelowRoot`].
pub fn run(what: &Resize) -> Result<String, ToolError> {
    let path = || what.leaf.path.clone();
    if !what.size.is_multiple_of(512) {
        return Err(LeafError::BadSize { size: what.size }.into());
    }
    let locked = Locked::new(&what.leaf, LockedAgainst::All, Unclosed::Refuse)?;
    let (have, root_len) = (locked.header.virtual_size, locked.header.root.len_bytes);
    if what.size < root_len {
        return Err(ToolError::BelowRoot { path: path(), size: what.size, root_len });
    }
    if what.size < have && !what.shrink {
        return Err(ToolError::WouldShrink { path: path(), have, asked: what.size });
    }
    if what.size == have {
        return Ok(format!("{} has {} already", what.leaf.path.display(), format_size(have)));
    }
    locked.change(|leaf| leaf.shrink(what.size))?;
    Ok(format!(
        "resized {}: {} instead of {}",
        what.leaf.path.display(),
        format_size(what.size),
        format_size(have)
    ))
}
