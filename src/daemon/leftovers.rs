//! Live maps in the runtime directory that belong to no VM, at a start.

use super::host::Host;
use crate::config::size::format_amount;
use crate::leaf::{self, Leftover};

/// Maps that are named; of more, only how many there are.
const NAMED_MAX: usize = 8;

/// Removes what nobody can need, and names in the log what may be needed.
pub(super) fn tell(host: &Host) {
    let views = host.vms();
    let leaves = views.iter().filter_map(|view| view.vm.as_ref()?.disk().leaf());
    let in_use: Vec<_> = leaves.map(|leaf| leaf.uuid()).collect();
    let found = match leaf::clear_leftovers(host.runtime_dir(), &in_use) {
        Ok(found) => found,
        Err(error) => {
            let dir = host.runtime_dir().display();
            return log::warn!("{dir} can't be looked through for live maps of no VM: {error}");
        }
    };
    if found.removed > 0 {
        log::info!("removed {} live maps that no leaf can need", found.removed);
    }
    found.kept.iter().take(NAMED_MAX).for_each(name);
    if let Some(more) = found.kept.len().checked_sub(NAMED_MAX + 1) {
        log::warn!("{} more live maps are of leaves that no VM has", more + 1);
    }
}

fn name(left: &Leftover) {
    let (map, size) = (left.map.display(), format_amount(left.bytes));
    let leaf = match &left.leaf {
        Some(leaf) if leaf.exists() => leaf.display().to_string(),
        Some(leaf) => format!("{}, which is not there", leaf.display()),
        None => "a leaf".into(),
    };
    log::warn!(
        "the live map {map} ({size}) is of {leaf}; no VM that is served has it. It names writes \
         that were acknowledged and not flushed: attach that leaf again, or remove the map if the \
         leaf was deleted"
    );
}
