//! Whether an image, or what it is an overlay of, fits a root.
//!
//! The content of a leaf comes from the image and from the root, which a person has
//! named, and from nothing else that the image names: whoever made it could name any
//! file of this host. So the backing file must be the root by content, and an overlay of
//! an overlay is refused; qemu-img puts it onto the root first, at that person's word.
//! Headers below are looked at to say which it is.

use std::io;
use std::path::{Path, PathBuf};

use super::backing::{Format, Place, place};
use super::header::{Encryption, Header, Unsupported};
use crate::io::open;
use crate::root::{Root, RootAccess, RootFormat, RootOptions};
use crate::tools::ToolError;

/// Overlays of overlays that are looked at.
const DEPTH_MAX: usize = 64;

/// Refuses an image that can't be imported onto `root`.
pub(super) fn check(image: &Path, header: &Header, root: &Root) -> Result<(), ToolError> {
    check_encryption(image, image, header, 0)?;
    if let Some(feature) = header.unsupported() {
        return Err(unsupported(image, feature));
    }
    let Some(named) = header.backing() else {
        return Ok(());
    };
    let refused = Refused { image, backing: &named.name, root };
    match place(image, named) {
        Place::Here { path, format } => {
            let Some(format) = find_format(&path, format) else {
                return refused.unless_it_is_the_root(&path, named.format.is_some());
            };
            check_below(image, path, &format)?;
            Err(refused.of_format(&format))
        }
        Place::Driver(driver) => Err(refused.elsewhere(driver)),
        Place::Part => Err(refused.other("a part of a file, and a leaf's root is a whole one")),
        Place::Unknown => Err(refused.other("its options can't be understood")),
    }
}

/// The format, where it isn't raw: as declared, or found by its first bytes as QEMU does.
fn find_format(path: &Path, declared: Format) -> Option<String> {
    match declared {
        Format::Raw => None,
        Format::Other(format) => Some(format),
        Format::Undeclared => {
            let file = open::image(path).ok()?;
            let mut magic = [0; 4];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 0).ok()?;
            (magic == *b"QFI\xfb").then(|| "qcow2".to_owned())
        }
    }
}

/// Looks for encryption below an image, as far down as there are headers to read.
fn check_below(top: &Path, backing: PathBuf, format: &str) -> Result<(), ToolError> {
    let (mut path, mut format) = (backing, format.to_owned());
    for depth in 1..DEPTH_MAX {
        if format == "luks" {
            return Err(encrypted(top, &path, "LUKS", &format!("{}key-secret", prefix(depth))));
        }
        if format != "qcow2" {
            return Ok(());
        }
        let Some(header) = read_header(&path) else { return Ok(()) };
        check_encryption(top, &path, &header, depth)?;
        let Some(named) = header.backing() else { return Ok(()) };
        let Place::Here { path: next, format: declared } = place(&path, named) else {
            return Ok(());
        };
        let Some(found) = find_format(&next, declared) else { return Ok(()) };
        (path, format) = (next, found);
    }
    Ok(())
}

fn read_header(path: &Path) -> Option<Header> {
    let file = open::image(path).ok()?;
    let len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).ok()?;
    Header::read(&file, len).ok()
}

fn check_encryption(
    top: &Path,
    layer: &Path,
    header: &Header,
    depth: usize,
) -> Result<(), ToolError> {
    let how = match header.encryption() {
        None => return Ok(()),
        Some(Encryption::Aes) => "AES",
        Some(Encryption::Luks) => "LUKS",
        Some(Encryption::Unknown) => "by an unknown method",
    };
    Err(encrypted(top, layer, how, &format!("{}encrypt.key-secret", prefix(depth))))
}

/// QEMU's options of what is so many levels below an image.
fn prefix(depth: usize) -> String {
    "backing.".repeat(depth)
}

fn encrypted(top: &Path, layer: &Path, how: &'static str, secret: &str) -> ToolError {
    // In such a list a comma is written twice.
    let name = top.to_string_lossy().replace(',', ",,");
    ToolError::Encrypted {
        path: layer.to_owned(),
        how,
        options: format!("driver=qcow2,{secret}=key,file.filename={name}"),
    }
}

fn unsupported(image: &Path, feature: Unsupported) -> ToolError {
    let path = image.to_owned();
    let feature = match feature {
        Unsupported::Dirty => return ToolError::Qcow2Marked { path, mark: "dirty" },
        Unsupported::Corrupt => return ToolError::Qcow2Marked { path, mark: "corrupt" },
        Unsupported::ExternalData => return ToolError::DataFile { path },
        Unsupported::Compression => "zstd compression".to_owned(),
        Unsupported::ExtendedL2 => "extended L2 entries".to_owned(),
        Unsupported::Unknown(bits) => format!("features that are unknown here (bits {bits:#x})"),
    };
    ToolError::Qcow2Feature { path, feature }
}

/// An overlay that is not one of the root.
struct Refused<'a> {
    image: &'a Path,
    backing: &'a str,
    root: &'a Root,
}

impl Refused<'_> {
    fn backing(&self) -> String {
        printable(self.backing)
    }

    fn other(&self, reason: &str) -> ToolError {
        ToolError::OtherBacking {
            path: self.image.to_owned(),
            backing: self.backing(),
            reason: printable(reason),
        }
    }

    fn elsewhere(&self, driver: String) -> ToolError {
        ToolError::BackingElsewhere {
            path: self.image.to_owned(),
            backing: self.backing(),
            driver: printable(&driver),
        }
    }

    fn of_format(&self, format: &str) -> ToolError {
        let root = std::path::absolute(self.root.path());
        ToolError::BackingFormat {
            path: self.image.to_owned(),
            backing: self.backing(),
            format: printable(format),
            root: root.unwrap_or_else(|_| self.root.path().to_owned()),
        }
    }

    /// An overlay on another image would be silent corruption as a leaf on the root.
    fn unless_it_is_the_root(&self, path: &Path, declared: bool) -> Result<(), ToolError> {
        let options = RootOptions {
            // As QEMU takes it: what the overlay declares is not looked at.
            format: declared.then_some(RootFormat::Raw),
            access: RootAccess::Buffered,
        };
        let backing = Root::open_as("backing", path, options);
        let backing = backing.map_err(|error| self.other(&error.to_string()))?;
        if backing.identity().same_content(self.root.identity()) {
            Ok(())
        } else {
            Err(self.other(&format!("that is {}", self.root.identity())))
        }
    }
}

/// What an image says of itself, on one line and without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// That the image at `path` is none of qcow2's.
pub(super) fn not_qcow2(path: &Path, file: &std::fs::File, len: u64) -> io::Result<ToolError> {
    let mut magic = [0; 6];
    let there = usize::try_from(len).unwrap_or(6).min(6);
    std::os::unix::fs::FileExt::read_exact_at(file, &mut magic[..there], 0)?;
    let path = path.to_owned();
    if magic == *b"LUKS\xba\xbe" {
        let name = path.to_string_lossy().replace(',', ",,");
        let options = format!("driver=luks,key-secret=key,file.filename={name}");
        return Ok(ToolError::Encrypted { path, how: "LUKS", options });
    }
    let storage = crate::io::storage::FileStorage::new(file.try_clone()?);
    let found = crate::root::probe::probe(&storage, len)?;
    Ok(ToolError::NotQcow2 { path, found })
}
