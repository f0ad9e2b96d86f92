//! What can be wrong with a leaf.

use std::io;
use std::path::PathBuf;

use super::SIZE_MAX;
use super::header::VERSION;
use crate::io::lock::Holder;

/// An error of one leaf; each says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum LeafError {
    #[error("leaf {} can't be opened: {source}; check the path and its permissions", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("leaf {} can't be created: {source}; check the directory, its permissions and its free space", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{} is not a leaf; give a path that does not exist yet, or a leaf made by leafblk", path.display())]
    NotALeaf { path: PathBuf },
    #[error("leaf {} has a damaged header (both copies); restore it from a backup", path.display())]
    Damaged { path: PathBuf },
    #[error("leaf {} has format version {version}, and this leafblk knows version {VERSION} only; use a newer leafblk", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("leaf {} uses features that this leafblk doesn't know (bits {bits:#x}); use a newer leafblk", path.display())]
    Features { path: PathBuf, bits: u64 },
    #[error("leaf {} is cut short: it has {have} bytes and should have {need}; restore it from a backup", path.display())]
    CutShort { path: PathBuf, have: u64, need: u64 },
    #[error(
        "leaf {} was made on another root (recorded {recorded}, given {given}); \
         pass --root with the image that it was created from",
        path.display()
    )]
    OtherRoot { path: PathBuf, recorded: String, given: String },
    #[error(
        "leaf {} is in use by {}; stop that one first",
        path.display(),
        by.as_ref().map_or("another process".into(), ToString::to_string)
    )]
    InUse { path: PathBuf, by: Option<Holder> },
    #[error("leaf {} has {have} bytes, not the {asked} asked for; leave size out to use it as it is", path.display())]
    OtherSize { path: PathBuf, have: u64, asked: u64 },
    #[error(
        "leaf {} can't grow to {asked} bytes: its presence map has room for {most}; \
         make a leaf of that size and copy the disk to it",
        path.display()
    )]
    NoRoom { path: PathBuf, asked: u64, most: u64 },
    #[error(
        "leaf {} has {have} bytes and can't grow to {asked}: what lies beyond would be lost; if it \
         may be, detach the VM and run leafblk leaf resize with --shrink",
        path.display()
    )]
    WouldShrink { path: PathBuf, have: u64, asked: u64 },
    #[error(
        "a disk of {size} bytes is not possible: a size is a multiple of 512, at least the root's and at \
         most {} PiB",
        SIZE_MAX >> 50
    )]
    BadSize { size: u64 },
    #[error("the live map {} can't be made: {source}; check the runtime directory and its free space", path.display())]
    LiveMap { path: PathBuf, source: io::Error },
    #[error(
        "leaf {}: its live map {} is newer than its header, as {why}; nothing was changed, and \
         writes that were acknowledged may be named in that map only: put the newer file in the \
         leaf's place, or, to go on without those writes, move the map out of its directory: \
         mv {} /var/tmp/, and leafblk reload, or attach the VM again",
        path.display(),
        map.display(),
        map.display()
    )]
    LiveMapAhead { path: PathBuf, map: PathBuf, why: &'static str },
    #[error(
        "leaf {}: its live map {} is in use by another process, which has a copy of this leaf; stop \
         that process first (the leaf's tools do without the map if told --flushed-only)",
        path.display(),
        map.display()
    )]
    LiveMapInUse { path: PathBuf, map: PathBuf },
    #[error(
        "leaf {}: {operation} failed: {source}; look at its disk and the runtime directory (free space, \
         errors in dmesg)",
        path.display()
    )]
    Io { path: PathBuf, operation: &'static str, source: io::Error },
    #[error("leaf {} takes no more writes, because a sync failed; detach the VM and attach it again once the disk works", path.display())]
    Poisoned { path: PathBuf },
    #[error(
        "leaf {} takes no more writes, because a part of leafblk failed while it worked on it (the log \
         says more; please report it); detach the VM and attach it again: what was acknowledged is there",
        path.display()
    )]
    Abandoned { path: PathBuf },
}
