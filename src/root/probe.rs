//! What a file's bytes say it is, where it is no raw disk image.
//!
//! By the magic numbers that the formats' own descriptions give, each long enough that
//! a disk has it by intent or not at all. What may be a guest's disk as it is, is none
//! of these: boot sectors, file systems, ISO images and hybrids, LUKS, LVM.
//!
//! A guest can write any bytes to its disk, and these too. So only images that nobody
//! has declared are looked at, and what is found is refused, never converted.

use std::fmt;
use std::io;
use std::path::Path;

use crate::io::storage::{Storage, read_exact};
use crate::shell;

/// Bytes from the start that are looked at.
const HEAD: usize = 1024;
/// Bytes from the end: a VHD's footer, or a DMG's.
const TAIL: usize = 512;

/// A format that is no raw disk image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// `a VMDK image`.
    name: &'static str,
    way: Way,
}

/// How a raw image is made of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// `qemu-img convert`, by QEMU's name of the format.
    QemuImg(&'static str),
    /// A program that reads it from stdin and writes to stdout what is in it.
    Filter(&'static str),
    /// A command before the path, and what is then to do.
    Unpack(&'static str),
    /// A command before the path and the new image.
    Convert(&'static str),
}

impl Foreign {
    const fn new(name: &'static str, way: Way) -> Self {
        Self { name, way }
    }

    /// QEMU's name of the format, where it has a driver for it.
    pub(crate) fn qemu_driver(self) -> Option<&'static str> {
        match self.way {
            Way::QemuImg(driver) => Some(driver),
            Way::Filter(_) | Way::Unpack(_) | Way::Convert(_) => None,
        }
    }

    /// What to do with the file at `path`, for a shell.
    pub(crate) fn conversion(self, path: &Path) -> String {
        let path = shell::quote_path(path);
        match self.way {
            Way::QemuImg(driver) => {
                format!("convert it: qemu-img convert -f {driver} -O raw {path} NEW.raw")
            }
            Way::Filter(program) => format!("unpack it: {program} < {path} > NEW.raw"),
            Way::Unpack(command) => {
                format!("unpack it ({command} {path}) and give the disk image that is in it")
            }
            Way::Convert(command) => format!("convert it: {command} {path} NEW.raw"),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const QCOW: Foreign = Foreign::new("a qcow image (version 1)", Way::QemuImg("qcow"));
const QCOW2: Foreign = Foreign::new("a qcow2 image", Way::QemuImg("qcow2"));
const VMDK: Foreign = Foreign::new("a VMDK image", Way::QemuImg("vmdk"));
const VHD: Foreign = Foreign::new("a VHD image", Way::QemuImg("vpc"));
const VDI: Foreign = Foreign::new("a VDI image", Way::QemuImg("vdi"));
const DMG: Foreign = Foreign::new("a DMG image", Way::QemuImg("dmg"));
const TAR: Foreign = Foreign::new("a tar archive, such as an OVA file", Way::Unpack("tar xf"));
const ZSTD: Foreign = Foreign::new("compressed by zstd", Way::Filter("zstd -dc"));

/// What a file begins with.
const PREFIXES: &[(&[u8], Foreign)] = &[
    (b"QFI\xfb\0\0\0\x01", QCOW),
    (b"QFI\xfb", QCOW2),
    (b"KDMV", VMDK),
    (b"COWD", VMDK),
    // A seSparse extent: 0xcafebabe in 64 bits.
    (b"\xbe\xba\xfe\xca\0\0\0\0", VMDK),
    (b"vhdxfile", Foreign::new("a VHDX image", Way::QemuImg("vhdx"))),
    (b"WithoutFreeSpace", Foreign::new("a Parallels image", Way::QemuImg("parallels"))),
    (b"WithouFreSpacExt", Foreign::new("a Parallels image", Way::QemuImg("parallels"))),
    (b"QED\0", Foreign::new("a QED image", Way::QemuImg("qed"))),
    (b"Bochs Virtual HD Image", Foreign::new("a Bochs image", Way::QemuImg("bochs"))),
    (b"#!/bin/sh\n#V2.0 Format\n", Foreign::new("a cloop image", Way::QemuImg("cloop"))),
    (b"\x1f\x8b\x08", Foreign::new("compressed by gzip", Way::Filter("gunzip"))),
    (b"\xfd7zXZ\0", Foreign::new("compressed by xz", Way::Filter("xz -dc"))),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"\x04\x22\x4d\x18", Foreign::new("compressed by lz4", Way::Filter("lz4 -dc"))),
    (b"\x02\x21\x4c\x18", Foreign::new("compressed by lz4", Way::Filter("lz4 -dc"))),
    (b"LZIP\x01", Foreign::new("compressed by lzip", Way::Filter("lzip -dc"))),
    (b"\x89LZO\0\r\n\x1a\n", Foreign::new("compressed by lzop", Way::Filter("lzop -dc"))),
    (b"PK\x03\x04", Foreign::new("a zip archive", Way::Unpack("unzip"))),
    (b"7z\xbc\xaf\x27\x1c", Foreign::new("a 7z archive", Way::Unpack("7z x"))),
    (b"Rar!\x1a\x07", Foreign::new("a RAR archive", Way::Unpack("unrar x"))),
    (b"VMA\0", Foreign::new("a backup archive of Proxmox VE", Way::Unpack("vma extract"))),
    (b"\x3a\xff\x26\xed", Foreign::new("a sparse image of Android", Way::Convert("simg2img"))),
];

/// Looks at a file of `len` bytes; `None` for what may be a raw disk image.
///
/// # Errors
/// As pread(2).
pub(crate) fn probe(file: &dyn Storage, len: u64) -> io::Result<Option<Foreign>> {
    let mut head = [0; HEAD];
    let there = usize::try_from(len).unwrap_or(HEAD).min(HEAD);
    read_exact(file, &mut head[..there], 0)?;
    if let Some(found) = by_head(&head[..there]) {
        return Ok(Some(found));
    }
    let mut tail = [0; TAIL];
    let Some(start) = len.checked_sub(TAIL as u64) else {
        return Ok(None);
    };
    read_exact(file, &mut tail, start)?;
    Ok(by_tail(&tail))
}

fn by_head(head: &[u8]) -> Option<Foreign> {
    let by_prefix = PREFIXES.iter().find(|(prefix, _)| head.starts_with(prefix));
    by_prefix.map(|(_, found)| *found).or_else(|| {
        if head.starts_with(b"conectix") {
            Some(VHD)
        } else if head.get(0x40..0x44) == Some(b"\x7f\x10\xda\xbe") {
            Some(VDI)
        } else if is_zstd_skippable(head) {
            Some(ZSTD)
        } else if is_bzip2(head) {
            Some(Foreign::new("compressed by bzip2", Way::Filter("bunzip2")))
        } else if is_vmdk_descriptor(head) {
            Some(VMDK)
        } else {
            is_tar(head).then_some(TAR)
        }
    })
}

/// A VHD of fixed size is a raw disk and a footer; the oldest ones' has 511 bytes.
fn by_tail(tail: &[u8; TAIL]) -> Option<Foreign> {
    if tail.starts_with(b"koly\0\0\0\x04") {
        return Some(DMG);
    }
    [&tail[..], &tail[1..]].into_iter().any(is_vhd_footer).then_some(VHD)
}

/// "conectix", and a sum over the footer that is right: the complement of the sum of its
/// bytes but those of the sum itself.
fn is_vhd_footer(footer: &[u8]) -> bool {
    const SUM: std::ops::Range<usize> = 64..68;
    let bytes = footer.iter().enumerate().filter(|(at, _)| !SUM.contains(at));
    let sum: u32 = bytes.map(|(_, byte)| u32::from(*byte)).sum();
    footer.starts_with(b"conectix") && footer[SUM] == (!sum).to_be_bytes()
}

/// A frame that zstd skips (RFC 8878, 3.1.2), as its parallel versions write first.
fn is_zstd_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// `BZh`, the block size, and the magic of a block or of the end.
fn is_bzip2(head: &[u8]) -> bool {
    matches!(
        head,
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..]
    )
}

/// The text that names a VMDK's extents: comments and blank lines, then its version.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    if !head.starts_with(b"#") && !head.starts_with(b"version=") {
        return false;
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    matches!(first, Some([b'v', b'e', b'r', b's', b'i', b'o', b'n', b'=', b'1'..=b'4']))
}

/// `ustar`, in a header whose sum is right (tar(5)).
fn is_tar(head: &[u8]) -> bool {
    const SUM: std::ops::Range<usize> = 148..156;
    let Some(header) = head.get(..512).filter(|header| header[257..262] == *b"ustar") else {
        return false;
    };
    let as_spaces =
        |(at, byte): (usize, &u8)| if SUM.contains(&at) { 32 } else { u32::from(*byte) };
    let sum: u32 = header.iter().enumerate().map(as_spaces).sum();
    let text = std::str::from_utf8(&header[SUM]).unwrap_or_default();
    u32::from_str_radix(text.trim_matches(['\0', ' ']), 8) == Ok(sum)
}

#[cfg(test)]
mod tests;
