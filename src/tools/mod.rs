//! The leaf's tools: what `leafblk leaf …` does with a leaf that no VM uses.
//!
//! One file a command. Owns the order in which a tool changes something: a
//! leaf is locked before it is looked at; a new file is written without a name,
//! synced, named, and its directory synced ([`Beside`]), so that at any moment
//! the name stands for the old file or the new one, whole. It knows nothing of
//! daemons but the live map that a killed one leaves ([`opened`]), and nothing
//! of flags or terminals but [`progress`].
//!
//! What a tool has to say it returns as one line, or writes to the given
//! output; docs/leaf-tools.md describes the commands.

pub mod check;
pub mod commit;
pub mod compact;
pub mod create;
pub mod diff;
mod error;
pub mod export;
mod extents;
pub mod import;
pub mod info;
mod list;
pub mod map;
mod opened;
mod pieces;
pub(crate) mod progress;
mod qcow2;
mod raw_writer;
pub mod rebase;
pub mod remove;
pub mod reset;
pub mod resize;
mod rewrite;
mod root_reader;
mod view;

use std::path::{Path, PathBuf};

pub use error::ToolError;
pub use opened::{RuntimeDir, State};

use crate::config::RootEntry;
use crate::io::beside::Beside;
use crate::root::{Root, RootAccess, RootError, RootOptions};

/// Which leaf, and how to find what a killed daemon left of it.
#[derive(Clone, Debug)]
pub struct LeafPlace {
    /// The leaf file.
    pub path: PathBuf,
    /// Where its live map would be.
    pub runtime_dir: RuntimeDir,
    /// Go by what was flushed where the leaf was not closed, and look at no live
    /// map.
    pub flushed_only: bool,
    /// Who says, where the leaf is in use, which VM has it.
    pub vm_of: VmOf,
}

/// Finds the VM that has the leaf at a path, of the daemon with this runtime directory;
/// `None` where none is found.
pub type VmOf = fn(&Path, &RuntimeDir) -> Option<String>;

/// A root as the tools read it, locked against writers.
fn open_root(entry: &RootEntry) -> Result<Root, RootError> {
    let options = RootOptions { format: entry.format, access: RootAccess::Buffered };
    Root::open_as(&entry.name, &entry.path, options)
}

/// That `target` is free: otherwise a tool need not begin.
fn check_free(target: &Path) -> Result<(), ToolError> {
    match std::fs::symlink_metadata(target) {
        Ok(_) => Err(ToolError::Exists { path: target.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// A new file for `target`, which is free.
fn new_file(target: &Path) -> Result<Beside, ToolError> {
    check_free(target)?;
    Ok(Beside::new(target)?)
}

/// "1 sector", "2 sectors".
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_takes_no_other_name_than_a_free_one() {
        let taken = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(new_file(taken.path()), Err(ToolError::Exists { .. })));
        assert!(matches!(new_file(Path::new("")), Err(ToolError::NoName { .. })));
        let error = new_file(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all can't be written"), "{error}");
    }

    #[test]
    fn what_is_counted_has_its_plural() {
        assert_eq!([counted(1, "sector"), counted(0, "sector")], ["1 sector", "0 sectors"]);
    }
}
