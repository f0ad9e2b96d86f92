//! QEMU overlays, by the `imago` library.
//!
//! imago (MIT, by a maintainer of QEMU's block layer) does all that is qcow2
//! here: tables, reference counts, copying the rest of a partly changed cluster
//! up from the backing image, zero and compressed clusters. It takes no locks,
//! so ours are taken around it, and it opens by itself whatever an image names,
//! unless told not to: it is told not to.
//!
//! An image that comes in is somebody else's, so it is looked at before imago
//! reads it: its [`header`], where [`layout`] says that its tables and data are,
//! and its [`backing`] file, which must be the root. What imago passes over is
//! refused there: encryption, and tables or data past the file's end, which it
//! reads as zeros.

mod backing;
mod chain;
mod export;
mod header;
mod image;
mod layout;

pub(super) use export::write_overlay;
pub(super) use image::Overlay;
pub(super) use layout::Part;

use std::fs::File;
use std::io;

use imago::file::File as ImagoFile;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};

use crate::root::Root;

fn storage(file: &File, write: bool) -> io::Result<ImagoFile> {
    ImagoFile::from_open_file(file.try_clone()?, StorageOpenOptions::new().write(write))
}

fn raw(root: &Root) -> io::Result<FormatAccess<ImagoFile>> {
    Ok(FormatAccess::new(Raw::open_image(storage(root.file(), false)?, false)?))
}
