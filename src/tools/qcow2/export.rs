//! A leaf, written as an overlay of its root.

use std::io;

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use super::{raw, storage};
use crate::io::beside::Beside;
use crate::root::Root;
use crate::tools::ToolError;
use crate::tools::pieces::{Buffer, pieces};
use crate::tools::progress::Progress;
use crate::tools::view::{Source, View};

/// A qcow2 header's room for the backing file's name.
const BACKING_NAME_MAX: usize = 1023;

/// The root's path as an overlay names it: the given one, from wherever the overlay
/// is. Links stay: /dev/vg/golden is the same volume after a reboot, and the device that
/// it leads to now may be another.
fn backing_name(root: &Root) -> Result<String, ToolError> {
    let path = std::path::absolute(root.path())
        .map_err(|source| ToolError::Read { path: root.path().to_owned(), source })?;
    let name = path.to_str().filter(|name| name.len() <= BACKING_NAME_MAX);
    Ok(name.ok_or_else(|| ToolError::BackingName { path: path.clone() })?.to_owned())
}

/// Writes the leaf of `view`, which has its root, as an overlay into the new
/// file; returns the name of its backing file.
pub(crate) fn write_overlay(view: &View, beside: &Beside) -> Result<String, ToolError> {
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
