//! `leafblk leaf reset`: back to the root.

use super::opened::{Locked, LockedAgainst, Unclosed};
use super::{LeafPlace, ToolError, counted};
use crate::config::size::format_amount;
use crate::leaf::Leaf;

/// Discards every change, durably; says how much that was. A leaf that was not
/// closed cleanly is no obstacle, since nothing of it is kept.
///
/// # Errors
/// The leaf's: all of its changes are there then, or none.
pub fn run(place: &LeafPlace) -> Result<String, ToolError> {
    let locked = Locked::new(place, LockedAgainst::All, Unclosed::Tell)?;
    let held = locked.read()?.present_sectors();
    locked.change(Leaf::reset)?;
    Ok(format!(
        "reset {}: {} discarded ({})",
        place.path.display(),
        counted(held, "changed sector"),
        format_amount(held * 512)
    ))
}
