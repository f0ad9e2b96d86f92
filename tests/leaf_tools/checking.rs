//! check, with and without --repair.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::scene::*;

const MAP_OFFSET: u64 = 8192;

fn raw(scene: &Scene) -> File {
    File::options().read(true).write(true).open(scene.path("a.leaf")).unwrap()
}

fn data_offset(scene: &Scene) -> u64 {
    let mut field = [0; 8];
    raw(scene).read_exact_at(&mut field, 72).unwrap();
    u64::from_le_bytes(field)
}

/// Runs check and compares its exit status and the kinds of its findings.
#[track_caller]
fn check(scene: &Scene, flags: &[&str], status: i32, findings: &[(&str, bool)]) {
    let args = [&["check", "a.leaf", "--json"][..], flags].concat();
    let output = scene.run(&args);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<(&str, bool)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["what"].as_str().unwrap(), f["repaired"].as_bool().unwrap()))
        .collect();
    assert_eq!(found, findings, "{report}");
    assert_eq!(output.status.code(), Some(status), "{report}");
    assert!(output.stderr.is_empty());
}

/// Finds it, mends it, finds nothing, and the content is what it was.
#[track_caller]
fn finds_and_mends(scene: &Scene, content: &[u8], what: &[&str]) {
    let with = |repaired| what.iter().map(|w| (*w, repaired)).collect::<Vec<_>>();
    check(scene, &[], 1, &with(false));
    check(scene, &["--repair", "--root", "root.raw"], 0, &with(true));
    check(scene, &["--root", "root.raw"], 0, &[]);
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
}

#[test]
fn a_leaf_in_order_has_no_errors() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    check(&scene, &[], 0, &[]);
    check(&scene, &["--root", "root.raw"], 0, &[]);
    check(&scene, &["--repair"], 0, &[]);
    let said = scene.say(&["check", "a.leaf"]);
    assert!(said.ends_with("a.leaf: no errors; closed cleanly\n"), "{said}");
}

#[test]
fn a_damaged_copy_of_the_header_is_written_again_from_the_good_one() {
    for damage in [&b"damage"[..], &[0; 4096]] {
        let scene = Scene::new();
        let content = scene.leaf("a.leaf");
        raw(&scene).write_all_at(damage, 0).unwrap();
        finds_and_mends(&scene, &content, &["header"]);
    }
}

#[test]
fn a_damaged_copy_beside_a_live_map_is_written_again_and_the_good_one_spared() {
    for damaged in [0, 4096] {
        let scene = Scene::new();
        scene.empty_leaf("a.leaf");
        let leaf = scene.open("a.leaf");
        // Both copies are of one generation then.
        leaf.grow(4 << 20).unwrap();
        leaf.write_zeroes(range(9, 3)).unwrap();
        drop(leaf); // as by SIGKILL
        raw(&scene).write_all_at(b"damage", damaged + 500).unwrap();
        check(&scene, &[], 1, &[("header", false)]);
        check(&scene, &["--repair"], 0, &[("header", true)]);
        check(&scene, &[], 0, &[]);
        assert_eq!(scene.json(&["info", "a.leaf", "--json"])["changed_sectors"], 3);
    }
}

#[test]
fn where_the_newer_copy_is_damaged_the_older_one_says_in_use_and_repair_asks() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    raw(&scene).write_all_at(b"damage", 4096 + 500).unwrap();
    check(&scene, &[], 1, &[("header", false)]);
    let refused = scene.refusal(&["check", "a.leaf", "--repair"], 1);
    assert!(refused.contains("not closed cleanly"), "{refused}");
    check(&scene, &["--repair", "--flushed-only"], 0, &[("header", true)]);
    check(&scene, &[], 0, &[]);
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
}

#[test]
fn a_leaf_without_a_good_header_is_left_alone() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    for copy in [0, 4096] {
        raw(&scene).write_all_at(b"damage", copy + 500).unwrap();
    }
    let refused = scene.refusal(&["check", "a.leaf", "--repair"], 1);
    assert!(refused.contains("damaged header (both copies)"), "{refused}");
}

#[test]
fn bits_past_the_disks_end_are_cleared() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let last = MAP_OFFSET + LEAF_SECTORS / 8;
    let mut byte = [0];
    raw(&scene).read_exact_at(&mut byte, last).unwrap();
    assert_eq!(LEAF_SECTORS % 8, 1);
    raw(&scene).write_all_at(&[byte[0] | 0x82, 0xff], last).unwrap();
    finds_and_mends(&scene, &content, &["map"]);
    let mut after = [0; 2];
    raw(&scene).read_exact_at(&mut after, last).unwrap();
    assert_eq!(after, [byte[0], 0]);
}

#[test]
fn data_that_no_bit_names_is_given_back() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let blocks = || std::fs::metadata(scene.path("a.leaf")).unwrap().blocks();
    let before = blocks();
    let data = data_offset(&scene);
    // In the disk, in the room for a longer map, and behind the disk.
    raw(&scene).write_all_at(&[7; 65536], data + 1200 * 512).unwrap();
    raw(&scene).write_all_at(&[7; 8192], MAP_OFFSET + (4 << 20)).unwrap();
    let end = data + LEAF_SECTORS * 512;
    raw(&scene).write_all_at(&[7; 8192], end.next_multiple_of(4096)).unwrap();
    raw(&scene).sync_all().unwrap();
    finds_and_mends(&scene, &content, &["leftover data"]);
    raw(&scene).sync_all().unwrap();
    // The file system may have grown its own list of the file's extents by a block.
    assert!(blocks() <= before + 8, "{} blocks, {before} before", blocks());
}

#[test]
fn two_blocks_in_one_slot_are_told_and_left_alone() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let mut table = [0; 8];
    raw(&scene).read_exact_at(&mut table, 384).unwrap();
    // Of two blocks in the middle of a long write.
    let mut entry = [0; 4];
    let place = |block: u64| u64::from_le_bytes(table) + block * 4;
    raw(&scene).read_exact_at(&mut entry, place(20)).unwrap();
    raw(&scene).write_all_at(&entry, place(21)).unwrap();
    check(&scene, &[], 1, &[("block table", false), ("leftover data", false)]);
    check(&scene, &["--repair"], 1, &[("block table", false), ("leftover data", true)]);
    check(&scene, &[], 1, &[("block table", false)]);
}

#[test]
fn all_findings_are_told_at_once_and_mended_together() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    raw(&scene).write_all_at(b"damage", 500).unwrap();
    raw(&scene).write_all_at(&[0xff], MAP_OFFSET + LEAF_SECTORS / 8 + 1).unwrap();
    raw(&scene).write_all_at(&[7; 65536], data_offset(&scene) + 1200 * 512).unwrap();
    let said = scene.run(&["check", "a.leaf"]);
    let said = text(&said.stdout);
    assert!(said.contains("3 found, 3 not repaired; --repair mends what is safe"), "{said}");
    finds_and_mends(&scene, &content, &["header", "map", "leftover data"]);
}

#[test]
fn a_leaf_on_another_root_is_an_error_and_nothing_is_mended() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.other_root("other.raw");
    raw(&scene).write_all_at(b"damage", 500).unwrap();
    let found = [("root", false), ("header", false)];
    check(&scene, &["--root", "other.raw", "--repair"], 1, &found);
    check(&scene, &["--root", "other.raw"], 1, &found);
}
