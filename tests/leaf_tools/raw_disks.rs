//! Disks whose bytes look like an image of another format: what leafblk has written is
//! raw, whatever the guest made of it.

use crate::scene::*;

/// A leaf whose guest wrote `start` to the beginning of its disk; the disk.
fn leaf_that_begins_with(scene: &Scene, name: &str, start: &[u8]) -> Vec<u8> {
    let mut content = scene.leaf(name);
    let mut sector = content[..SECTOR].to_vec();
    sector[..start.len()].copy_from_slice(start);
    let leaf = scene.open(name);
    leaf.write_bytes(range(0, 1), &sector).unwrap();
    leaf.close().unwrap();
    content[..SECTOR].copy_from_slice(&sector);
    content
}

#[test]
fn a_disk_that_looks_like_another_format_is_committed_and_exported() {
    for (start, format) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "a qcow2 image"),
        (b"QFI\xfb\0\0\0\x01", "a qcow image (version 1)"),
        (b"KDMV\x01\0\0\0", "a VMDK image"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
    ] {
        let scene = Scene::new();
        let content = leaf_that_begins_with(&scene, "a.leaf", start);
        let said = scene.line(&["commit", "a.leaf", "--root", "root.raw", "--output", "new.raw"]);
        let remark = format!("; it looks like {format}: as a root, declare it format=raw\n");
        assert!(said.ends_with(&remark), "{said}");
        assert!(std::fs::read(scene.path("new.raw")).unwrap() == content);
        let args = ["--root", "root.raw", "--format", "raw", "--output", "again.raw"];
        let said = scene.line(&[&["export", "a.leaf"][..], &args].concat());
        assert!(said.ends_with(&remark), "{said}");
        assert!(std::fs::read(scene.path("again.raw")).unwrap() == content);
        // QEMU sees the same disk in the overlay.
        let args = ["--root", "root.raw", "--format", "qcow2", "--output", "a.qcow2"];
        scene.line(&[&["export", "a.leaf"][..], &args].concat());
        scene.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "new.raw"]);
    }
}

#[test]
fn such_a_disk_is_a_root_where_it_is_declared_raw() {
    let scene = Scene::new();
    let content = leaf_that_begins_with(&scene, "a.leaf", b"QFI\xfb\0\0\0\x03");
    scene.line(&["commit", "a.leaf", "--root", "root.raw", "--output", "new.raw"]);
    for args in [
        &["create", "b.leaf", "--root", "new.raw"][..],
        &["rebase", "a.leaf", "--from", "root.raw", "--root", "new.raw"],
    ] {
        let refused = scene.refusal(args, 1);
        let line = "qemu-img convert -f qcow2 -O raw new.raw NEW.raw";
        assert!(refused.contains(line) && refused.contains("format=raw"), "{refused}");
    }
    let refused = scene.refusal(&["create", "b.leaf", "--root", "new.raw,format=qcow2"], 2);
    assert!(refused.contains("\"qcow2\" is unknown; use raw"), "{refused}");
    scene.line(&["create", "b.leaf", "--root", "new.raw,format=raw"]);
    let raw = "new.raw,format=raw";
    scene.line(&["rebase", "a.leaf", "--from", "root.raw", "--root", raw]);
    assert_eq!(scene.held("a.leaf"), 0);
    scene.say(&["diff", "a.leaf", "b.leaf", "--root", raw, "--exit-code"]);
    // Out as an overlay, which QEMU reads as it is, and back.
    let args = ["--root", raw, "--format", "qcow2", "--output", "a.qcow2"];
    scene.line(&[&["export", "a.leaf"][..], &args].concat());
    std::fs::write(scene.path("content.raw"), &content).unwrap();
    scene.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "content.raw"]);
    scene.line(&["import", "a.qcow2", "c.leaf", "--root", raw]);
    scene.say(&["diff", "c.leaf", "b.leaf", "--root", raw, "--exit-code"]);
    let said = scene.line(&["commit", "c.leaf", "--root", raw, "--output", "c.raw"]);
    assert!(said.contains("declare it format=raw"), "{said}");
    assert!(std::fs::read(scene.path("c.raw")).unwrap() == content);
}
