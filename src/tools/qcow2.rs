//! QEMU overlays, by the `imago` library.
//!
//! imago (MIT, by a maintainer of QEMU's block layer) does all that is qcow2
//! here: tables, reference counts, copying the rest of a partly changed cluster
//! up from the backing image, zero and compressed clusters. It takes no locks,
//! so ours are taken around it, and it opens by itself whatever an image names,
//! unless told not to: it is told not to. What it refuses (a dirty or corrupt
//! mark, encryption, extended L2 entries, zstd) is refused here with its words.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, ShallowMapping,
    StorageOpenOptions,
};

use super::ToolError;
use super::pieces::{Buffer, pieces};
use super::progress::Progress;
use super::rewrite::LeafWriter;
use super::view::{Source, View};
use crate::io::beside::Beside;
use crate::root::{Root, lock};
use crate::units::{Sector, SectorRange};

/// A qcow2 header's room for the backing file's name.
const BACKING_NAME_MAX: usize = 1023;

fn storage(file: &File, write: bool) -> io::Result<ImagoFile> {
    ImagoFile::from_open_file(file.try_clone()?, StorageOpenOptions::new().write(write))
}

fn raw(root: &Root) -> io::Result<FormatAccess<ImagoFile>> {
    Ok(FormatAccess::new(Raw::open_image(storage(root.file(), false)?, false)?))
}

/// The root's path as an overlay names it: from wherever the overlay is.
fn backing_name(root: &Root) -> Result<String, ToolError> {
    let path = root
        .path()
        .canonicalize()
        .map_err(|source| ToolError::Read { path: root.path().to_owned(), source })?;
    let name = path.to_str().filter(|name| name.len() <= BACKING_NAME_MAX);
    Ok(name.ok_or_else(|| ToolError::BackingName { path: path.clone() })?.to_owned())
}

/// Writes the leaf of `view`, which has its root, as an overlay into the new
/// file; returns the name of its backing file.
pub(super) fn write_overlay(view: &View, beside: &Beside) -> Result<String, ToolError> {
    let Some(root) = &view.root else {
        return Err(beside.error(io::ErrorKind::InvalidInput.into()).into());
    };
    let name = backing_name(root)?;
    let write_error = |source| beside.error(source);
    let backing = raw(root).map_err(write_error)?;
    let image = storage(beside.file(), true).map_err(write_error)?;
    let image = Qcow2::<ImagoFile>::create_builder(image)
        .size(view.size_bytes())
        .backing(name.clone(), "raw".to_owned())
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::builder(image).write(true).backing(Some(backing)))
        })
        .map_err(write_error)?;
    let image = FormatAccess::new(image);
    let progress = Progress::new("exporting", view.leaf.present_sectors() * 512);
    let mut buffer = Buffer::new();
    let mut extents = view.extents();
    while let Some(extent) = extents.next()? {
        match extent.source {
            Source::Leaf => {
                for piece in pieces(extent.range) {
                    let content = buffer.of(piece);
                    view.read(piece, content)?;
                    image.write(&*content, piece.byte_offset()).map_err(write_error)?;
                    progress.advance(piece.byte_len());
                }
            }
            Source::LeafZero => {
                let (start, len) = (extent.range.byte_offset(), extent.range.byte_len());
                image.write_zeroes(start, len).map_err(write_error)?;
                progress.advance(len);
            }
            Source::Root | Source::RootZero | Source::Beyond => {}
        }
    }
    image.flush().map_err(write_error)?;
    Ok(name)
}

/// A qcow2 image that is read.
#[derive(Debug)]
pub(super) struct Overlay {
    path: PathBuf,
    image: FormatAccess<ImagoFile>,
}

impl Overlay {
    /// Opens the image at `path`, locked against writers, with `root` as its
    /// backing image, which must be the one that it names.
    pub(super) fn open(path: &Path, root: &Root) -> Result<Self, ToolError> {
        let broken = |source| ToolError::Qcow2 { path: path.to_owned(), source };
        let file = lock_file(path)?;
        let image = storage(&file, false).map_err(broken)?;
        let mut image = Qcow2::<ImagoFile>::open_image(image, false).map_err(broken)?;
        if image.requires_external_data_file() {
            return Err(ToolError::DataFile { path: path.to_owned() });
        }
        let backing = match image.implicit_backing_file() {
            Some(name) => {
                check_backing(path, name, image.implicit_backing_format(), root)?;
                Some(raw(root).map_err(broken)?)
            }
            None => None,
        };
        image.set_backing(backing);
        image.set_data_file(None);
        let image = FormatAccess::new(image);
        let size = image.size();
        if size < root.len_bytes() {
            return Err(ToolError::Qcow2Smaller {
                path: path.to_owned(),
                size,
                root_len: root.len_bytes(),
            });
        }
        Ok(Self { path: path.to_owned(), image })
    }

    /// The size of its disk.
    pub(super) fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    /// Gives the writer all that the image says itself.
    pub(super) fn copy_into(&self, writer: &mut LeafWriter<'_>) -> Result<(), ToolError> {
        let broken = |source| ToolError::Qcow2 { path: self.path.clone(), source };
        let size = self.size_bytes();
        let progress = Progress::new("importing", size);
        let mut buffer = Buffer::new();
        let mut at = 0;
        while at < size {
            let (mapping, len) = self.image.get_shallow_mapping(at, size - at).map_err(broken)?;
            // Clusters are whole sectors, and a disk's end may be none.
            let len = len.min(size - at) / 512 * 512;
            let range = SectorRange::new(Sector(at / 512), len / 512);
            let range = range.filter(|range| !range.is_empty());
            let range = range.ok_or_else(|| broken(io::ErrorKind::InvalidData.into()))?;
            match mapping {
                ShallowMapping::Indirect { .. } => {}
                ShallowMapping::Zero { .. } | ShallowMapping::Eof { .. } => {
                    writer.put_zeroes(range)?;
                }
                ShallowMapping::Raw { .. } | ShallowMapping::Special { .. } => {
                    for piece in pieces(range) {
                        let content = buffer.of(piece);
                        self.image.read(&mut *content, piece.byte_offset()).map_err(broken)?;
                        writer.put(piece, content)?;
                    }
                }
                _ => return Err(broken(io::ErrorKind::Unsupported.into())),
            }
            progress.advance(len);
            at += len;
        }
        Ok(())
    }
}

/// The image, open and locked as QEMU locks what it only reads.
fn lock_file(path: &Path) -> Result<File, ToolError> {
    let read_error = |source| ToolError::Read { path: path.to_owned(), source };
    // A FIFO would wait for its writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(read_error)?;
    if !file.metadata().map_err(read_error)?.is_file() {
        let source = io::Error::other("it is no file");
        return Err(ToolError::Qcow2 { path: path.to_owned(), source });
    }
    lock::lock_image(&file).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => ToolError::Qcow2InUse { path: path.to_owned() },
        _ => read_error(e),
    })?;
    Ok(file)
}

/// What an image says of itself, on one line and without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// An overlay on another image would be silent corruption as a leaf on `root`.
fn check_backing(
    path: &Path,
    name: &str,
    format: Option<&String>,
    root: &Root,
) -> Result<(), ToolError> {
    if let Some(format) = format.filter(|format| *format != "raw") {
        return Err(ToolError::BackingFormat { path: path.to_owned(), format: format.clone() });
    }
    let other = |reason: String| ToolError::OtherBacking {
        path: path.to_owned(),
        backing: printable(name),
        reason: printable(&reason),
    };
    // QEMU takes a relative name from where the overlay is, `file:` or not.
    let named = name.strip_prefix("file:").unwrap_or(name);
    let named = path.parent().unwrap_or(Path::new("")).join(named);
    let backing = Root::open_buffered("backing", &named).map_err(|e| other(e.to_string()))?;
    if backing.identity().same_content(root.identity()) {
        Ok(())
    } else {
        Err(other(format!("that is {}", root.identity())))
    }
}
