//! The lines for people: what is served, and what was.

use std::fmt::{self, Write};

use super::host::{Host, State};
use super::vm::Vm;
use crate::config::size::{format_amount, format_size};

/// How many VMs are served, and how much is not. Displayed, half a sentence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    served: usize,
    failed_vms: usize,
    failed_roots: usize,
}

impl Summary {
    /// As it is now.
    pub(super) fn of(host: &Host) -> Self {
        let (vms, roots) = (host.vms(), host.roots());
        let is_failed = |state: &State| matches!(state, State::Failed(_));
        Self {
            served: vms.iter().filter(|view| view.vm.is_some()).count(),
            failed_vms: vms.iter().filter(|view| is_failed(&view.state)).count(),
            failed_roots: roots.iter().filter(|view| is_failed(&view.state)).count(),
        }
    }

    /// Whether nothing failed.
    pub(super) const fn is_whole(self) -> bool {
        self.failed_vms == 0 && self.failed_roots == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, what: &str| {
            format!("{count} {what}{}", if count == 1 { "" } else { "s" })
        };
        write!(f, "serving {}", count(self.served, "VM"))?;
        match (self.failed_vms, self.failed_roots) {
            (0, 0) => Ok(()),
            (vms, 0) => write!(f, "; {} failed", count(vms, "VM")),
            (0, roots) => write!(f, "; {} failed", count(roots, "root")),
            (vms, roots) => write!(f, "; {} and {} failed", count(vms, "VM"), count(roots, "root")),
        }
    }
}

/// What `leafblk serve` prints of a VM when it begins to serve it.
pub(super) fn line_at_start(vm: &Vm) -> String {
    let disk = vm.disk();
    let leaf = match disk.leaf() {
        Some(leaf) => {
            let age = if vm.has_new_leaf() { "new" } else { "existing" };
            format!("{} ({age})", leaf.path().display())
        }
        None => format!("none (read-only; {} does not exist)", vm.config().leaf.display()),
    };
    format!(
        "{}: socket {}, leaf {leaf}, size {}, root {}",
        disk.name(),
        vm.config().socket.display(),
        format_size(disk.sectors() * 512),
        disk.root().root().name(),
    )
}

/// What it prints of a VM when it has stopped serving it.
pub(super) fn line_at_end(vm: &Vm) -> String {
    let disk = vm.disk();
    let counters = disk.counters();
    let size = |sectors: u64| format_amount(sectors * 512);
    let mut line = format!(
        "{}: read {} from its leaf, {} from the cache, {} from the root, {} of zeros; wrote {}",
        disk.name(),
        size(counters.read_sectors_leaf.get()),
        size(counters.read_sectors_cache.get()),
        size(counters.read_sectors_root.get()),
        size(counters.read_sectors_zero.get()),
        size(counters.written_sectors.get()),
    );
    if let Some(leaf) = disk.leaf() {
        let _ = write!(line, "; its leaf holds {}", size(leaf.present_sectors()));
        if let Ok(allocated) = leaf.allocated_bytes() {
            let _ = write!(line, " and occupies {}", format_amount(allocated));
        }
    }
    let errors = counters.all_errors();
    if errors > 0 {
        let _ = write!(line, "; {errors} errors");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_failed() {
        let summary = |served, failed_vms, failed_roots| {
            Summary { served, failed_vms, failed_roots }.to_string()
        };
        assert_eq!(summary(1, 0, 0), "serving 1 VM");
        assert_eq!(summary(0, 1, 0), "serving 0 VMs; 1 VM failed");
        assert_eq!(summary(2, 0, 1), "serving 2 VMs; 1 root failed");
        assert_eq!(summary(2, 3, 1), "serving 2 VMs; 3 VMs and 1 root failed");
    }
}
