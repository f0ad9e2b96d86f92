//! create, reset, resize, commit, rebase, compact: what they leave.

use crate::scene::*;

#[test]
fn create_makes_an_empty_leaf_of_the_roots_size_or_a_larger_one() {
    let scene = Scene::new();
    let said = scene.line(&["create", "a.leaf", "--root", "root.raw"]);
    assert!(said.starts_with("created a.leaf: 2163200B on root "), "{said}");
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == root_content(1));
    scene.line(&["create", "b.leaf", "--root", "debian=root.raw", "--size", "1GiB"]);
    let info = scene.json(&["info", "b.leaf", "--json"]);
    assert_eq!(
        (&info["virtual_size"], &info["root"]["name"]),
        (&(1 << 30).into(), &"debian".into())
    );
    assert_eq!(info["changed_sectors"], 0);
    // A name that a root can't have on the command line of serve.
    std::fs::copy(scene.root(), scene.path("my image.raw")).unwrap();
    scene.line(&["create", "c.leaf", "--root", "my image.raw"]);
}

#[test]
fn reset_goes_back_to_the_root_and_gives_the_space_back() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let said = scene.line(&["reset", "a.leaf"]);
    assert_eq!(said, "reset a.leaf: 510 changed sectors discarded (255KiB)\n");
    let mut root = root_content(1);
    root.resize(LEAF_SECTORS as usize * SECTOR, 0);
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == root);
    let info = scene.json(&["info", "a.leaf", "--json"]);
    assert_eq!((&info["changed_sectors"], &info["state"]), (&0.into(), &"clean".into()));
    assert!(info["allocated_bytes"].as_u64().unwrap() <= 16 << 10, "{info}");
    assert!(scene.say(&["check", "a.leaf"]).contains("no errors"));
}

#[test]
fn resize_grows_with_zeros_and_shrinks_only_when_told() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let path = scene.path("a.leaf");
    let said = scene.line(&["resize", "a.leaf", "8MiB"]);
    assert_eq!(said, "resized a.leaf: 8MiB instead of 2675200B\n");
    let mut grown = content.clone();
    grown.resize(8 << 20, 0);
    assert!(scene.content(&path, &scene.root()) == grown);
    assert_eq!(scene.line(&["resize", "a.leaf", "8MiB"]), "a.leaf has 8MiB already\n");
    let refused = scene.refusal(&["resize", "a.leaf", "3MiB"], 1);
    assert!(refused.contains("pass --shrink"), "{refused}");
    let smaller = (ROOT_SECTORS + 10) * 512;
    scene.line(&["resize", "a.leaf", &smaller.to_string(), "--shrink"]);
    assert!(scene.content(&path, &scene.root()) == content[..smaller as usize]);
    // What lay beyond doesn't come back.
    scene.line(&["resize", "a.leaf", "8MiB"]);
    let mut cut = content[..smaller as usize].to_vec();
    cut.resize(8 << 20, 0);
    assert!(scene.content(&path, &scene.root()) == cut);
    assert!(scene.say(&["check", "a.leaf"]).contains("no errors"));
    let refused = scene.refusal(&["resize", "a.leaf", "1MiB", "--shrink"], 1);
    assert!(refused.contains("less than the root"), "{refused}");
    scene.refusal(&["resize", "a.leaf", "8388609"], 1);
    // A size that doesn't work leaves a leaf that works.
    let refused = scene.refusal(&["resize", "a.leaf", "512TiB"], 1);
    assert!(refused.contains("has room for"), "{refused}");
    assert!(scene.say(&["check", "a.leaf"]).contains("closed cleanly"));
}

#[test]
fn commit_writes_a_sparse_root_of_what_the_guest_saw() {
    use std::os::unix::fs::MetadataExt;
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let said = scene.line(&["commit", "a.leaf", "--root", "root.raw", "--output", "new.raw"]);
    assert!(said.starts_with("committed a.leaf to new.raw: 2675200B, "), "{said}");
    assert!(said.contains(" on disk, verified; root "), "{said}");
    assert!(std::fs::read(scene.path("new.raw")).unwrap() == content);
    let on_disk = std::fs::metadata(scene.path("new.raw")).unwrap().blocks() * 512;
    let zeros = content.chunks(4096).filter(|block| block.iter().all(|b| *b == 0)).count();
    assert!(on_disk <= (content.len() - zeros * 4096) as u64 + (64 << 10), "{on_disk}");
    // It is a root: a leaf that is rebased onto it holds nothing.
    scene.line(&["rebase", "a.leaf", "--from", "root.raw", "--root", "new.raw"]);
    assert_eq!(scene.held("a.leaf"), 0);
    assert!(scene.content(&scene.path("a.leaf"), &scene.path("new.raw")) == content);
}

#[test]
fn rebase_keeps_the_content_and_drops_what_the_new_root_has() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let before = scene.json(&["info", "a.leaf", "--json"]);
    let other = scene.other_root("other.raw");
    let said = scene.line(&["rebase", "a.leaf", "--from", "root.raw", "--root", "other.raw"]);
    assert!(said.starts_with("rebased a.leaf onto root "), "{said}");
    assert!(scene.content(&scene.path("a.leaf"), &scene.path("other.raw")) == content);
    let mut other = other;
    other.resize(content.len(), 0);
    let differ = content.chunks(512).zip(other.chunks(512)).filter(|(new, old)| new != old).count();
    let after = scene.json(&["info", "a.leaf", "--json"]);
    assert_eq!(after["changed_sectors"], differ as u64, "only what differs is held");
    assert_ne!(after["uuid"], before["uuid"]);
    let refused = scene.refusal(&["info", "a.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("made on another root"), "{refused}");
    // And back.
    scene.line(&["rebase", "a.leaf", "--from", "other.raw", "--root", "root.raw"]);
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
}

#[test]
fn rebase_refuses_a_root_that_is_larger_than_the_disk() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    write_sparse(&scene.path("large.raw"), &noise(5, 4 << 20));
    let args = ["rebase", "a.leaf", "--from", "root.raw", "--root", "large.raw"];
    let refused = scene.refusal(&args, 1);
    assert!(refused.contains("leafblk leaf resize a.leaf 4194304"), "{refused}");
    scene.line(&["resize", "a.leaf", "4194304"]);
    scene.line(&args);
}

#[test]
fn compact_gives_back_what_equals_the_root_and_what_is_zeros() {
    let scene = Scene::new();
    // Zeros that were written, over data and over nothing.
    let content = {
        scene.empty_leaf("a.leaf");
        let leaf = scene.open("a.leaf");
        let root = std::fs::read(scene.root()).unwrap();
        let content = apply(&leaf, &root, &MIXED);
        leaf.write_bytes(range(1024, 256), &vec![0; 256 * SECTOR]).unwrap();
        leaf.write_bytes(range(2300, 64), &vec![0; 64 * SECTOR]).unwrap();
        leaf.close().unwrap();
        let mut content = content;
        content[1024 * SECTOR..1280 * SECTOR].fill(0);
        content[2300 * SECTOR..2364 * SECTOR].fill(0);
        content
    };
    let before = scene.json(&["info", "a.leaf", "--json"]);
    let said = scene.line(&["compact", "a.leaf", "--root", "root.raw"]);
    assert!(said.contains("of 830 changed sectors given back"), "{said}");
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
    let after = scene.json(&["info", "a.leaf", "--json"]);
    let mut root = root_content(1);
    root.resize(content.len(), 0);
    let differ = content.chunks(512).zip(root.chunks(512)).filter(|(new, old)| new != old).count();
    assert_eq!(after["changed_sectors"], differ as u64);
    let size = |info: &serde_json::Value| info["allocated_bytes"].as_u64().unwrap();
    assert!(size(&after) + (128 << 10) <= size(&before), "{} to {}", size(&before), size(&after));
    let rows = scene.json(&["map", "a.leaf", "--json"]);
    let zeros = rows.as_array().unwrap().iter().find(|row| row["start"] == 1024 * 512).unwrap();
    assert_eq!((&zeros["from"], &zeros["length"]), (&"zero".into(), &(256 * 512).into()));
    assert!(scene.say(&["check", "a.leaf"]).contains("no errors"));
}

#[test]
fn a_leaf_behind_a_link_is_replaced_where_it_is() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("store")).unwrap();
    let content = scene.leaf("a.leaf");
    std::fs::rename(scene.path("a.leaf"), scene.path("store/a.leaf")).unwrap();
    std::os::unix::fs::symlink("store/a.leaf", scene.path("a.leaf")).unwrap();
    scene.line(&["compact", "a.leaf", "--root", "root.raw"]);
    assert!(std::fs::symlink_metadata(scene.path("a.leaf")).unwrap().is_symlink());
    assert!(scene.content(&scene.path("store/a.leaf"), &scene.root()) == content);
}
