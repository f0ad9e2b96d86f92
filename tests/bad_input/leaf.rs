//! Leaves that are damaged, another root's, in use or of a size that can't be.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::scene::ROOT_SECTORS;
use crate::common::small_disk::SmallDisk;
use crate::common::{Client, Daemon, make_root};
use crate::{file, inventory, refuses, serve, text, with_leaf};

/// Damages a leaf, which is then refused.
fn damaged_leaf(parts: &[&str], damage: impl FnOnce(&fs::File)) {
    let (temp, root, leaf) = with_leaf();
    damage(&fs::File::options().read(true).write(true).open(&leaf).unwrap());
    refuses(temp.path(), &["--root", text(&root), "--vm", "web1"], 1, parts);
}

/// Changes both copies of the header, and their sums.
fn edit_header(leaf: &fs::File, at: usize, with: &[u8]) {
    for copy in 0..2 {
        let mut bytes = [0; 4096];
        leaf.read_exact_at(&mut bytes, copy * 4096).unwrap();
        bytes[at..at + with.len()].copy_from_slice(with);
        let sum = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..].copy_from_slice(&sum.to_le_bytes());
        leaf.write_all_at(&bytes, copy * 4096).unwrap();
    }
}

#[test]
fn a_leaf_cut_short_is_refused() {
    damaged_leaf(&["web1.leaf", "cut short"], |leaf| {
        leaf.set_len(leaf.metadata().unwrap().len() - 512).unwrap();
    });
    damaged_leaf(&["web1.leaf", "cut short"], |leaf| leaf.set_len(8192).unwrap());
}

#[test]
fn a_leaf_with_a_damaged_header_is_refused() {
    damaged_leaf(&["web1.leaf", "damaged header"], |leaf| {
        leaf.write_all_at(&[0xff; 16], 100).unwrap();
        leaf.write_all_at(&[0xff; 16], 4096 + 100).unwrap();
    });
    damaged_leaf(&["web1.leaf"], |leaf| leaf.set_len(0).unwrap());
    damaged_leaf(&["web1.leaf"], |leaf| leaf.set_len(100).unwrap());
    damaged_leaf(&["web1.leaf", "not a leaf"], |leaf| {
        leaf.write_all_at(&[0; 8192], 0).unwrap();
    });
}

#[test]
fn something_else_in_the_place_of_a_leaf_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let fifo = temp.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let text_file = temp.path().join("text");
    fs::write(&text_file, "precious").unwrap();
    for path in [fifo.as_path(), temp.path(), text_file.as_path(), Path::new("/dev/null")] {
        let vm = format!("web1,leaf={}", path.display());
        refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 1, &[text(path)]);
    }
    let vm = format!("web1,leaf={}", root.display());
    let parts = ["root.raw", "the leaf of VM web1"];
    refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 2, &parts);
}

#[test]
fn one_damaged_copy_of_a_leafs_header_does_no_harm() {
    for copy in 0..2 {
        let (temp, root, leaf) = with_leaf();
        let file = fs::File::options().write(true).open(&leaf).unwrap();
        file.write_all_at(&[0xff; 4096], copy * 4096).unwrap();
        let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
        assert!(Client::connect(&daemon.socket("web1")).read(0, 4096) == [1; 4096]);
        daemon.stop();
    }
}

#[test]
fn a_leaf_of_a_newer_format_is_refused() {
    damaged_leaf(&["web1.leaf", "version 77", "newer leafblk"], |leaf| {
        edit_header(leaf, 8, &77u32.to_le_bytes());
    });
}

#[test]
fn a_leaf_of_another_root_is_refused() {
    let (temp, _, _) = with_leaf();
    let other = file(temp.path(), "other.raw", &vec![9; ROOT_SECTORS as usize * 512]);
    let parts = ["web1.leaf", "another root", "recorded", "given", "--root"];
    refuses(temp.path(), &["--root", &other, "--vm", "web1"], 1, &parts);
}

#[test]
fn a_leaf_that_is_larger_than_asked_for_or_cannot_grow_is_refused() {
    let (temp, root, _) = with_leaf();
    let args = |vm| ["--root", text(&root), "--vm", vm];
    Daemon::start(temp.path(), &args("web1,size=4MiB")).stop();
    refuses(temp.path(), &args("web1,size=3MiB"), 1, &["web1.leaf", "leave size out"]);
    let read_only = "web1,size=8MiB,readonly";
    refuses(temp.path(), &args(read_only), 1, &["web1.leaf", "leave size out"]);
    refuses(temp.path(), &args("web1,size=1024TiB"), 1, &["web1.leaf", "can't grow to"]);
    let args = ["--root", text(&root), "--vm", "web2,size=1MiB"];
    refuses(temp.path(), &args, 1, &["web2", "less than"]);
}

#[test]
fn a_read_only_vm_without_a_leaf_has_its_roots_size_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = |vm| ["--root", text(&root), "--vm", vm];
    let parts = ["VM web1", "readonly and has no leaf", "the 2MiB of root", "leave size out"];
    refuses(temp.path(), &args("web1,readonly,size=8GiB"), 1, &parts);
    let check = [&args("web1,readonly,size=8GiB")[..], &["--check"]].concat();
    refuses(temp.path(), &check, 1, &parts);
    let daemon = Daemon::start(temp.path(), &args("web1,readonly,size=2MiB"));
    let client = Client::open(&daemon.socket("web1"), true).unwrap();
    assert_eq!(client.capacity, ROOT_SECTORS * 512);
    drop(client);
    daemon.stop();
}

#[test]
fn a_disk_that_no_leaf_can_have_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1,size=2048TiB"];
    let parts = ["VM web1: size is 2048TiB", "up to 1024TiB"];
    refuses(temp.path(), &args, 2, &parts);
    refuses(temp.path(), &[&args[..], &["--check"]].concat(), 2, &parts);
    // A root of that size; few file systems have such files.
    let disk = SmallDisk::mount("1M");
    let root = disk.path().join("large.raw");
    fs::File::create(&root).unwrap().set_len((1 << 50) + 512).unwrap();
    let args = ["--root", text(&root), "--vm", "web1"];
    let parts = ["VM web1", "root large has 1125899906843136B", "at most 1024TiB"];
    refuses(temp.path(), &args, 1, &parts);
    refuses(temp.path(), &[&args[..], &["--check"]].concat(), 1, &parts);
}

#[test]
fn a_check_finds_what_a_start_would_and_changes_nothing_beside_a_daemon() {
    let (temp, root, _) = with_leaf();
    let dir = temp.path();
    let before = inventory(dir);
    let check = |vm| [&["--root", text(&root), "--vm", vm][..], &["--check"]].concat();
    let says_right = |vm| {
        let output = serve(dir, &check(vm)).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.starts_with("the configuration is right: 1 root, 1 VM;"), "{said}");
    };
    says_right("web1,size=4MiB");
    says_right("new");
    refuses(dir, &check("web1,size=1MiB"), 1, &["web1", "less than"]);
    refuses(dir, &["--root", "/missing.raw", "--check"], 1, &["/missing.raw"]);
    refuses(dir, &["--socket-group", "nobody-has-it", "--check"], 1, &["no group nobody-has-it"]);
    refuses(dir, &["--reactors", "0", "--check"], 2, &["reactors"]);
    assert_eq!(inventory(dir), before);
    let daemon = Daemon::start(dir, &["--root", text(&root), "--vm", "web1"]);
    let client = Client::connect(&daemon.socket("web1"));
    says_right("web1");
    drop(client);
    daemon.stop();
}

#[test]
fn a_leaf_in_use_is_refused_and_its_user_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let leaf = format!("other,leaf={}", daemon.leaf("web1").display());
    refuses(temp.path(), &["--root", text(&root), "--vm", &leaf], 1, &["web1.leaf", "in use"]);
    Client::connect(&daemon.socket("web1")).write(0, &[1; 512]);
    daemon.stop();
}

#[test]
fn two_vms_on_one_leaf_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "a,leaf=/tmp/x.leaf", "--vm", "b,leaf=/tmp/x.leaf"];
    refuses(temp.path(), &args, 2, &["/tmp/x.leaf", "VM a", "VM b"]);
}
