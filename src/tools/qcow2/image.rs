//! A qcow2 image that is read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, ShallowMapping};
use rustix::fs::SeekFrom;

use super::header::{Header, HeaderError};
use super::layout::{self, LayoutError};
use super::{chain, raw, storage};
use crate::io::open::{self, OpenError};
use crate::root::{Root, lock};
use crate::tools::ToolError;
use crate::tools::pieces::{Buffer, pieces};
use crate::tools::progress::Progress;
use crate::tools::rewrite::LeafWriter;
use crate::units::{Sector, SectorRange};

/// A qcow2 image that is read.
#[derive(Debug)]
pub(crate) struct Overlay {
    path: PathBuf,
    file: File,
    len: u64,
    image: FormatAccess<ImagoFile>,
}

impl Overlay {
    /// Opens the image at `path`, locked against writers, with `root` as its
    /// backing image, which must be the one that it names.
    pub(crate) fn open(path: &Path, root: &Root) -> Result<Self, ToolError> {
        let broken = |source| ToolError::Qcow2 { path: path.to_owned(), source };
        let file = lock_file(path)?;
        let len = len_of(&file).map_err(broken)?;
        let header = Header::read(&file, len).map_err(|error| match error {
            HeaderError::NotQcow2 => chain::not_qcow2(path, &file, len).unwrap_or_else(broken),
            HeaderError::Cut => broken(io::Error::other("the file ends in its header")),
            HeaderError::Damaged(why) => broken(io::Error::other(why)),
            HeaderError::Io(source) => broken(source),
        })?;
        chain::check(path, &header, root)?;
        layout::check(&file, len, &header).map_err(|error| match error {
            LayoutError::Cut(part, end) => {
                ToolError::Qcow2Cut { path: path.to_owned(), part, end, have: len }
            }
            LayoutError::Io(source) => broken(source),
        })?;
        if header.size() < root.len_bytes() {
            return Err(ToolError::Qcow2Smaller {
                path: path.to_owned(),
                size: header.size(),
                root_len: root.len_bytes(),
            });
        }
        let image = storage(&file, false).map_err(broken)?;
        let mut image = Qcow2::<ImagoFile>::open_image(image, false).map_err(broken)?;
        let backing = header.backing().map(|_| raw(root)).transpose().map_err(broken)?;
        image.set_backing(backing);
        image.set_data_file(None);
        Ok(Self { path: path.to_owned(), file, len, image: FormatAccess::new(image) })
    }

    /// The size of its disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    /// Gives the writer all that the image says itself.
    pub(crate) fn copy_into(&self, writer: &mut LeafWriter<'_>) -> Result<(), ToolError> {
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
        // imago reads zeros past the file's end, wherever that is by now.
        match len_of(&self.file).map_err(broken)? {
            len if len < self.len => Err(broken(io::Error::other("it was cut while it was read"))),
            _ => Ok(()),
        }
    }
}

/// Of a file or of a block device.
fn len_of(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

/// The image, open and locked as QEMU locks what it only reads.
fn lock_file(path: &Path) -> Result<File, ToolError> {
    let read_error = |source| ToolError::Read { path: path.to_owned(), source };
    let file = open::image(path).map_err(|error| match error {
        OpenError::Io(source) => read_error(source),
        kind @ OpenError::Kind(_) => {
            ToolError::Qcow2 { path: path.to_owned(), source: io::Error::other(kind) }
        }
    })?;
    lock::lock_image(&file).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => ToolError::Qcow2InUse { path: path.to_owned() },
        _ => read_error(e),
    })?;
    Ok(file)
}
