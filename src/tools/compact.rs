//! `leafblk leaf compact`: gives back what the leaf needn't hold.
//!
//! Bits are never cleared in a leaf's map, so what remains goes into a new
//! leaf, which takes the old one's place: sectors that equal the root leave,
//! those that are zeros over other content become holes.

use super::opened::{LockedAgainst, Unclosed};
use super::rewrite::{Held, LeafWriter};
use super::view::View;
use super::{LeafPlace, ToolError};
use crate::config::RootEntry;
use crate::config::size::format_amount;
use crate::io::beside::Beside;
use crate::root::Root;

/// What is to be compacted.
#[derive(Clone, Debug)]
pub struct Compact {
    /// The leaf.
    pub leaf: LeafPlace,
    /// Its root.
    pub root: RootEntry,
}

/// Puts a smaller leaf in its place; says how much smaller.
///
/// # Errors
/// The leaf's and the root's; of writing, and the old leaf stays then.
pub fn run(what: &Compact) -> Result<String, ToolError> {
    let view = View::open(&what.leaf, Some(&what.root), LockedAgainst::All, Unclosed::Refuse)?;
    let before = Held::of(&view)?;
    // It was asked for above.
    let after = view.root.as_ref().map(|root| replace(&view, root, "compacting")).transpose()?;
    if after.is_some() {
        view.forget_live_map();
    }
    let after = after.unwrap_or(before);
    Ok(format!(
        "compacted {}: {} of {} changed sectors given back, {} on disk instead of {}",
        what.leaf.path.display(),
        before.sectors.saturating_sub(after.sectors),
        before.sectors,
        format_amount(after.allocated),
        format_amount(before.allocated),
    ))
}

/// Puts a leaf on `root` with the view's content in the place of the view's.
pub(super) fn replace(view: &View, root: &Root, what: &'static str) -> Result<Held, ToolError> {
    let beside = Beside::new(&view.locked.path)?;
    let mut writer = LeafWriter::new(beside, view.size_bytes(), root, Some(&view.locked.header))?;
    writer.copy(view, what)?;
    let (beside, held) = writer.finish()?;
    beside.replace(&view.locked.file)?;
    Ok(held)
}
