//! The lines for people: what is served, and what was.

use std::fmt::Write;

use super::vm::Vm;
use crate::config::size::{format_amount, format_size};

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
