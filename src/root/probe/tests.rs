//! Each format is found by what its own tools write; what a guest may boot is none.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::io::storage::FileStorage;

fn probe_file(path: &Path) -> Option<Foreign> {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    probe(&FileStorage::new(file), len).unwrap()
}

fn probe_bytes(bytes: &[u8]) -> Option<Foreign> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    probe_file(file.path())
}

/// A disk of 1 MiB with data at its start.
fn disk() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut content = vec![0; 1 << 20];
    for (i, byte) in content[..300_000].iter_mut().enumerate() {
        *byte = u8::try_from(i * 7 % 251).unwrap();
    }
    std::fs::write(&path, &content).unwrap();
    (dir, path, content)
}

/// Runs a line of a shell in the directory.
fn shell(dir: &TempDir, line: &str) {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).current_dir(dir.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}; is the program installed?");
}

/// What the sentence says to run makes the disk again.
fn converts_back(dir: &TempDir, name: &str, format: &str, content: &[u8]) {
    let found = probe_file(&dir.path().join(name)).unwrap_or_else(|| panic!("{name} is taken"));
    assert!(found.to_string().contains(format), "{name}: {found}");
    let said = found.conversion(Path::new(name));
    let (_, line) = said.split_once(": ").unwrap();
    shell(dir, &line.replace("NEW.raw", "back.raw"));
    let back = std::fs::read(dir.path().join("back.raw")).unwrap();
    // VHD's geometry rounds a disk's size up.
    assert!(back.len() >= content.len() && back[..content.len()] == *content, "{name}: {line}");
    assert!(back[content.len()..].iter().all(|byte| *byte == 0), "{name}: {line}");
    std::fs::remove_file(dir.path().join("back.raw")).unwrap();
}

#[test]
fn images_that_qemu_makes_are_found_and_the_line_converts_them() {
    let (dir, _, content) = disk();
    for (name, format, options) in [
        ("a.qcow2", "qcow2", "-O qcow2"),
        ("old.qcow2", "qcow2", "-O qcow2 -o compat=0.10"),
        ("a.qcow", "qcow image (version 1)", "-O qcow"),
        ("a.vmdk", "VMDK", "-O vmdk"),
        ("stream.vmdk", "VMDK", "-O vmdk -o subformat=streamOptimized"),
        ("flat.vmdk", "VMDK", "-O vmdk -o subformat=monolithicFlat"),
        ("split.vmdk", "VMDK", "-O vmdk -o subformat=twoGbMaxExtentSparse"),
        ("a.vdi", "VDI", "-O vdi"),
        ("a.vhdx", "VHDX", "-O vhdx"),
        ("a.vhd", "VHD", "-O vpc"),
        ("fixed.vhd", "VHD", "-O vpc -o subformat=fixed"),
        ("exact.vhd", "VHD", "-O vpc -o subformat=fixed,force_size"),
        ("a.hds", "Parallels", "-O parallels"),
        ("a.qed", "QED", "-O qed"),
    ] {
        shell(&dir, &format!("qemu-img convert -f raw {options} disk.raw {name}"));
        converts_back(&dir, name, format, &content);
    }
    // The extent of a flat VMDK is the disk.
    assert_eq!(probe_file(&dir.path().join("flat-flat.vmdk")), None);
}

#[test]
fn compressed_disks_are_found_and_the_line_unpacks_them() {
    let (dir, _, content) = disk();
    for (name, format, line) in [
        ("disk.raw.gz", "gzip", "gzip -k disk.raw"),
        ("disk.raw.xz", "xz", "xz -k disk.raw"),
        ("disk.raw.zst", "zstd", "zstd -q disk.raw"),
        ("disk.raw.bz2", "bzip2", "bzip2 -k disk.raw"),
        ("empty.bz2", "bzip2", "bzip2 < /dev/null > empty.bz2"),
    ] {
        shell(&dir, line);
        let content = if name == "empty.bz2" { &[][..] } else { &content };
        converts_back(&dir, name, format, content);
    }
}

#[test]
fn archives_are_found() {
    let (dir, ..) = disk();
    for (name, format, line) in [
        ("a.ova", "tar", "tar cf a.ova disk.raw"),
        ("posix.tar", "tar", "tar --format=posix -cf posix.tar disk.raw"),
        ("ustar.tar", "tar", "tar --format=ustar -cf ustar.tar disk.raw"),
    ] {
        shell(&dir, line);
        let found = probe_file(&dir.path().join(name)).expect(name);
        assert!(found.to_string().contains(format), "{name}: {found}");
        assert!(found.conversion(Path::new(name)).contains(&format!("(tar xf {name})")));
    }
}

/// Formats whose tools are not at hand: by the magic numbers of their descriptions.
#[test]
fn formats_are_found_by_their_magic_numbers() {
    for (start, format) in [
        (&b"COWD\x01\0\0\0"[..], "VMDK"),
        (b"\xbe\xba\xfe\xca\0\0\0\0", "VMDK"),
        (b"# Disk DescriptorFile\r\n\r\n# x\r\nversion=1\r\n", "VMDK"),
        (b"WithoutFreeSpace", "Parallels"),
        (b"Bochs Virtual HD Image\0", "Bochs"),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
        (b"\x04\x22\x4d\x18\x64\x40", "lz4"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0", "zstd"),
        (b"LZIP\x01", "lzip"),
        (b"\x89LZO\0\r\n\x1a\n", "lzop"),
        (b"PK\x03\x04\x14\0", "zip"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"VMA\0\0\0\0\x01", "Proxmox"),
        (b"\x3a\xff\x26\xed\x01\0\0\0", "Android"),
    ] {
        let mut bytes = start.to_vec();
        bytes.resize(4096, 0);
        let found = probe_bytes(&bytes).unwrap_or_else(|| panic!("{format} is taken"));
        assert!(found.to_string().contains(format), "{found}");
        bytes.rotate_right(512);
        assert_eq!(probe_bytes(&bytes), None, "{format} in the second sector");
    }
    let mut dmg = vec![1; 4096];
    dmg[3584..3592].copy_from_slice(b"koly\0\0\0\x04");
    assert!(probe_bytes(&dmg).unwrap().to_string().contains("DMG"));
}

/// Boot sectors, file systems, LUKS, LVM, ISO images and hybrids: a guest can use each
/// as its disk.
#[test]
fn what_may_be_a_guests_disk_is_taken() {
    let at = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![0; 64 << 10];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    let mut hybrid = at(0x8001, b"CD001");
    hybrid[..4].copy_from_slice(b"\x45\x52\x08\0");
    hybrid[510..512].copy_from_slice(b"\x55\xaa");
    for disk in [
        hybrid,
        at(0x8001, b"CD001"),
        at(510, b"\x55\xaa"),
        at(0, b"LUKS\xba\xbe\0\x02"),
        at(0, b"hsqs"),
        at(0, b"XFSB"),
        at(1080, b"\x53\xef"),
        at(536, b"LVM2 001"),
        at(0, b"\xeb\x52\x90NTFS    "),
        // No whole magic number, or one whose check fails.
        at(0, b"QFI"),
        at(0, b"BZh9"),
        at(0, b"# a comment\nversions=1\n"),
        at(257, b"ustar"),
        at((64 << 10) - 512, b"conectix"),
        vec![0; 511],
        vec![7; 3],
    ] {
        assert_eq!(probe_bytes(&disk), None, "{:?}", &disk[..disk.len().min(16)]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_probe_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        probe_bytes(&bytes);
    }

    #[test]
    fn disks_of_noise_are_taken(bytes in proptest::collection::vec(any::<u8>(), 1024)) {
        prop_assert_eq!(probe_bytes(&bytes), None);
    }
}
