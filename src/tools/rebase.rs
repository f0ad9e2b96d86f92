//! `leafblk leaf rebase`: the same guest content on another root.

use super::compact::replace;
use super::opened::{LockedAgainst, Unclosed};
use super::rewrite::Held;
use super::view::View;
use super::{LeafPlace, ToolError, counted, open_root};
use crate::config::RootEntry;
use crate::config::size::format_amount;

/// What is to be rebased.
#[derive(Clone, Debug)]
pub struct Rebase {
    /// The leaf.
    pub leaf: LeafPlace,
    /// The root that it is on.
    pub from: RootEntry,
    /// The root that it is to be on.
    pub to: RootEntry,
}

/// Puts a leaf on the other root in its place; says what it holds.
///
/// # Errors
/// The leaf's and the roots'; [`ToolError::SmallerThanRoot`]; of writing, and
/// the old leaf stays then.
pub fn run(what: &Rebase) -> Result<String, ToolError> {
    let view = View::open(&what.leaf, Some(&what.from), LockedAgainst::All, Unclosed::Refuse)?;
    let root = open_root(&what.to)?;
    if root.len_bytes() > view.size_bytes() {
        return Err(ToolError::SmallerThanRoot {
            path: what.leaf.path.clone(),
            size: view.size_bytes(),
            root_len: root.len_bytes(),
        });
    }
    let before = Held::of(&view)?;
    let after = replace(&view, &root, "rebasing")?;
    view.forget_live_map();
    Ok(format!(
        "rebased {} onto root {}: {} changed ({}), {} before",
        what.leaf.path.display(),
        root.identity(),
        counted(after.sectors, "sector"),
        format_amount(after.sectors * 512),
        before.sectors,
    ))
}
