//! What a tool can't do, each with its sentence.

use std::io;
use std::path::{Path, PathBuf};

use super::qcow2::Part;
use crate::io::beside::BesideError;
use crate::leaf::{Holder, LeafError};
use crate::root::RootError;
use crate::root::probe::Foreign;
use crate::shell::{quote, quote_path};

/// A tool that didn't do its work. Nothing has changed then, unless the
/// sentence says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum ToolError {
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Usage(#[from] crate::config::UsageError),
    #[error(
        "leaf {} was not closed cleanly and its live map is not in {}: what its daemon \
         acknowledged last may be missing; start leafblk serve once, or pass the --runtime-dir \
         that it had, or, after a loss of power and for a copy, --flushed-only",
        path.display(), dir.display()
    )]
    NotClosed { path: PathBuf, dir: PathBuf },
    #[error(
        "leaf {} is in use by VM {vm}{}; shut its guest down and detach it first: leafblk vm detach \
         {vm}{}",
        path.display(),
        by.as_ref().map_or(String::new(), |by| format!(", which {by} serves")),
        runtime_dir.as_ref().map_or(String::new(), |dir| format!(" --runtime-dir {}", quote_path(dir)))
    )]
    Served { path: PathBuf, vm: String, by: Option<Holder>, runtime_dir: Option<PathBuf> },
    #[error(
        "leaf {} is in use by {}, for no VM of a leafblk with the runtime directory {}; stop it \
         first, or, if it is a leafblk with another one, pass its --runtime-dir",
        path.display(),
        by.as_ref().map_or("another process".into(), ToString::to_string),
        dir.display()
    )]
    InUse { path: PathBuf, by: Option<Holder>, dir: PathBuf },
    #[error("the live maps in {} can't be read: {source}; check --runtime-dir and its permissions", dir.display())]
    LiveMaps { dir: PathBuf, source: io::Error },
    #[error("{} exists already; give a name that is free", path.display())]
    Exists { path: PathBuf },
    #[error("{} is no name for a new file; give a path that ends in one", path.display())]
    NoName { path: PathBuf },
    #[error("{} can't be read: {source}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} can't be written: {source}; check the directory, its permissions and its free space", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{} reads back other than it was written; the disk or the memory is faulty, and no file was made",
        path.display()
    )]
    NotVerified { path: PathBuf },
    #[error("the output can't be printed: {0}")]
    Print(#[source] io::Error),
    #[error(
        "leaf {} has {size} bytes and its new root {root_len}; grow it first: leafblk leaf resize {} {root_len}",
        path.display(), path.display()
    )]
    SmallerThanRoot { path: PathBuf, size: u64, root_len: u64 },
    #[error(
        "leaf {} has {have} bytes and would lose those beyond {asked}; pass --shrink if nothing there is needed",
        path.display()
    )]
    WouldShrink { path: PathBuf, have: u64, asked: u64 },
    #[error("{size} bytes are less than the root of leaf {} has ({root_len}), and a leaf hides nothing of its root; give at least that size", path.display())]
    BelowRoot { path: PathBuf, size: u64, root_len: u64 },
    #[error("leaf {} was made on another root ({recorded}) than any that is given; pass --root with that one too", path.display())]
    NoRootFits { path: PathBuf, recorded: String },
    #[error("the path of root {} can't stand in a qcow2 header, which takes UTF-8 of at most 1023 bytes; give another path to it", path.display())]
    BackingName { path: PathBuf },
    #[error("{} is no qcow2 image that can be read: {source}; qemu-img check says more", path.display())]
    Qcow2 { path: PathBuf, source: io::Error },
    #[error("{} is open for writing in another program, such as QEMU; close it there first", path.display())]
    Qcow2InUse { path: PathBuf },
    #[error("{}", not_qcow2(path, *found))]
    NotQcow2 { path: PathBuf, found: Option<Foreign> },
    #[error(
        "{} is encrypted ({how}), and import reads no ciphertext; decrypt it into a new image and \
         import that: qemu-img convert --object secret,id=key,file=PASSPHRASE-FILE \
         --image-opts {} -O qcow2 NEW.qcow2",
        path.display(),
        quote(options)
    )]
    Encrypted { path: PathBuf, how: &'static str, options: String },
    #[error(
        "{} is cut short: {part} ends at byte {end} of the file, which has {have}; copy it again \
         from where it is whole (qemu-img check says more)",
        path.display()
    )]
    Qcow2Cut { path: PathBuf, part: Part, end: u64, have: u64 },
    #[error(
        "{} is marked as {mark}; repair it first: qemu-img check -r all {}",
        path.display(),
        quote_path(path)
    )]
    Qcow2Marked { path: PathBuf, mark: &'static str },
    #[error(
        "{} has {feature}, which import doesn't read; convert it: qemu-img convert -O qcow2 {} \
         NEW.qcow2",
        path.display(),
        quote_path(path)
    )]
    Qcow2Feature { path: PathBuf, feature: String },
    #[error(
        "{} is an overlay of {backing}, whose format is {format}, and a leaf's root is raw; put it \
         onto the root first, which keeps its content: qemu-img rebase -F raw -b {} {}",
        path.display(),
        quote_path(root),
        quote_path(path)
    )]
    BackingFormat { path: PathBuf, backing: String, format: String, root: PathBuf },
    #[error(
        "{} is an overlay of {backing}, which QEMU reaches by {driver}, and a leaf's root is a file \
         or block device of this host; copy that image here, tell the overlay (qemu-img rebase -u \
         -F raw -b COPY {}) and pass the copy as root",
        path.display(),
        quote_path(path)
    )]
    BackingElsewhere { path: PathBuf, backing: String, driver: String },
    #[error(
        "{} is an overlay of {backing}, which is not the given root ({reason}); pass that one, or \
         tell the overlay that it moved: qemu-img rebase -u -F raw -b ROOT {}",
        path.display(),
        quote_path(path)
    )]
    OtherBacking { path: PathBuf, backing: String, reason: String },
    #[error(
        "{} keeps its data in another file (an external data file), which import doesn't open; \
         convert it: qemu-img convert -O qcow2 {} NEW.qcow2",
        path.display(),
        quote_path(path)
    )]
    DataFile { path: PathBuf },
    #[error(
        "{} has {size} bytes and the root {root_len}; make it at least as large: qemu-img resize {} {root_len}",
        path.display(),
        quote_path(path)
    )]
    Qcow2Smaller { path: PathBuf, size: u64, root_len: u64 },
}

/// What an image is that is no qcow2 image, and how one is made of it.
fn not_qcow2(path: &Path, found: Option<Foreign>) -> String {
    let (shown, quoted) = (path.display(), quote_path(path));
    let convert = |driver| format!("qemu-img convert -f {driver} -O qcow2 {quoted} NEW.qcow2");
    match found {
        None => format!("{shown} is no qcow2 image; make one of a raw image: {}", convert("raw")),
        Some(found) => match found.qemu_driver() {
            Some(driver) => format!("{shown} is {found}, no qcow2 image; {}", convert(driver)),
            None => format!("{shown} is {found}, no qcow2 image; {}", found.conversion(path)),
        },
    }
}

impl From<BesideError> for ToolError {
    fn from(error: BesideError) -> Self {
        match error {
            BesideError::Exists(path) => Self::Exists { path },
            BesideError::NoName(path) => Self::NoName { path },
            BesideError::Write(path, source) => Self::Write { path, source },
        }
    }
}
