//! info, map, diff: what they say, for people and for programs.

use crate::scene::*;

#[test]
fn info_tells_what_a_leaf_is_and_holds() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let said = scene.say(&["info", "a.leaf"]);
    for part in [
        "format version:   1\n",
        "layout:           packed\n",
        "virtual size:     2675200B\n",
        "root:             root, 2163200B\n",
        "changed:          510 sectors, 255KiB\n",
        "state:            closed cleanly\n",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    let info = scene.json(&["info", "a.leaf", "--json", "--root", "root.raw"]);
    assert_eq!(info["virtual_size"], LEAF_SECTORS * 512);
    assert_eq!(info["layout"], "packed");
    assert_eq!(info["changed_sectors"], 510);
    assert_eq!(info["changed_bytes"], 510 * 512);
    assert_eq!(info["state"], "clean");
    assert_eq!(info["root"]["length"], ROOT_SECTORS * 512);
    assert_eq!(info["root"]["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(info["uuid"].as_str().unwrap().len(), 36);
    assert!(info["created"].as_str().unwrap().starts_with("20"));
    let on_disk = info["allocated_bytes"].as_u64().unwrap();
    assert!(on_disk > 150 << 10 && on_disk < 2 << 20, "{on_disk}");
    assert!(info.get("live_map").is_none());
}

#[test]
fn map_lists_extents_without_a_gap() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let rows = scene.json(&["map", "a.leaf", "--json"]);
    let rows = rows.as_array().unwrap();
    let mut at = 0;
    let mut last = None;
    for row in rows {
        assert_eq!(row["start"], at);
        at += row["length"].as_u64().unwrap();
        let from = (row["from"].as_str(), row["depth"].as_u64(), row["present"].as_bool());
        assert_ne!(Some(from), last, "neighbours are joined");
        last = Some(from);
        assert_ne!(row["zero"], row["data"]);
    }
    assert_eq!(at, LEAF_SECTORS * 512);
    let find = |sector: u64| {
        let holds = |row: &&serde_json::Value| {
            let start = row["start"].as_u64().unwrap();
            (start..start + row["length"].as_u64().unwrap()).contains(&(sector * 512))
        };
        rows.iter().find(holds).unwrap()
    };
    let is = |sector: u64| {
        let row = find(sector);
        (row["from"].as_str().unwrap(), row["depth"].as_u64().unwrap(), row["zero"] == true)
    };
    assert_eq!(is(0), ("root", 1, false));
    assert_eq!(is(3), ("leaf", 0, false));
    assert_eq!(is(600), ("zero", 0, true), "a discarded page is a hole of the leaf");
    assert_eq!(is(2050), ("root", 1, false), "without the root, its holes are unknown");
    assert_eq!(is(ROOT_SECTORS + 100), ("zero", 0, true), "past the root's end");
    assert_eq!(find(3)["offset"].as_u64().unwrap() % 4096, 3 * 512);
    let with_root = scene.json(&["map", "a.leaf", "--json", "--root", "root.raw"]);
    let hole = with_root.as_array().unwrap().iter().find(|row| row["offset"] == 2048 * 512);
    assert_eq!(hole.unwrap()["zero"], true, "with the root, its holes are told");
}

#[test]
fn map_for_people_is_a_table_of_numbers_in_hex() {
    let scene = Scene::new();
    scene.leaf_with("a.leaf", &[Op::Write(8, 8, 1), Op::Zero(64, 64)]);
    let said = scene.say(&["map", "a.leaf"]);
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["Offset", "Length", "From", "Mapped", "to", "File"]);
    assert_eq!(lines[1], ["0x0", "0x1000", "root", "0x0", "root", "root"]);
    assert_eq!(lines[2][..3], ["0x1000", "0x1000", "leaf"]);
    assert!(lines[2][4].ends_with("/a.leaf"), "{said}");
    assert_eq!(lines[3][..3], ["0x2000", "0x6000", "root"]);
    assert_eq!(lines[4], ["0x8000", "0x8000", "zero"]);
    assert_eq!(lines.len(), 7, "root again, zeros beyond it: {said}");
}

#[test]
fn diff_finds_exactly_the_sectors_that_differ() {
    let scene = Scene::new();
    let a = scene.leaf("a.leaf");
    let b =
        scene.leaf_with("b.leaf", &[Op::Write(3, 2, 11), Op::Write(129, 4, 99), Op::Zero(5, 1)]);
    for (args, other) in [
        (&["diff", "a.leaf", "b.leaf"][..], &b),
        (&["diff", "a.leaf"], &std::fs::read(scene.root()).unwrap()),
    ] {
        let mut other = other.clone();
        other.resize(a.len(), 0);
        let differ: Vec<bool> = a.chunks(512).zip(other.chunks(512)).map(|(a, b)| a != b).collect();
        let rows = scene.json(&[args, &["--root", "root.raw", "--json"]].concat());
        let mut found = vec![false; differ.len()];
        for row in rows.as_array().unwrap() {
            let start = row["start"].as_u64().unwrap() as usize / 512;
            let count = row["length"].as_u64().unwrap() as usize / 512;
            assert!(start == 0 || !found[start - 1], "ranges that touch are joined");
            found[start..start + count].fill(true);
        }
        assert!(found == differ, "{args:?}");
        let said = scene.say(&[args, &["--root", "root.raw"]].concat());
        let count = differ.iter().filter(|d| **d).count();
        let ranges = rows.as_array().unwrap().len();
        let summary = format!("differ in {ranges} ranges: {count} sectors");
        assert!(said.lines().last().unwrap().contains(&summary), "{said}");
        assert_eq!(said.lines().count(), ranges + 2);
    }
}

#[test]
fn diff_compares_content_across_roots_and_sizes() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.other_root("other.raw");
    scene.leaf("b.leaf");
    scene.line(&["rebase", "b.leaf", "--from", "root.raw", "--root", "other.raw"]);
    let roots = ["--root", "other.raw", "--root", "root.raw"];
    let same = scene.say(&[&["diff", "a.leaf", "b.leaf", "--exit-code"][..], &roots].concat());
    assert_eq!(same, "a.leaf and b.leaf have the same content\n");
    // A larger disk whose end is zeros has no content more.
    scene.line(&["resize", "b.leaf", "4MiB"]);
    let none = scene.json(&[&["diff", "b.leaf", "a.leaf", "--json"][..], &roots].concat());
    assert_eq!(none.as_array().unwrap().len(), 0);
}

#[test]
fn diff_finds_where_two_roots_differ_under_leaves_that_hold_nothing() {
    let scene = Scene::new();
    let root = root_content(1);
    let other = scene.other_root("other.raw");
    scene.line(&["create", "a.leaf", "--root", "root.raw"]);
    scene.line(&["create", "b.leaf", "--root", "other.raw"]);
    let roots = ["--root", "root.raw", "--root", "other.raw"];
    let rows = scene.json(&[&["diff", "a.leaf", "b.leaf", "--json"][..], &roots].concat());
    let found: u64 =
        rows.as_array().unwrap().iter().map(|row| row["length"].as_u64().unwrap() / 512).sum();
    let differ = root.chunks(512).zip(other.chunks(512)).filter(|(a, b)| a != b).count();
    assert_eq!(found, differ as u64);
    assert!(differ > 1000);
    let refused = scene.refusal(&["diff", "a.leaf", "b.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("leaf") && refused.contains("pass --root with that one too"));
}

#[test]
fn diff_ends_with_1_for_a_difference_if_asked_to() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let output = scene.run(&["diff", "a.leaf", "--root", "root.raw", "--exit-code"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    let output = scene.run(&["diff", "a.leaf", "--root", "root.raw"]);
    assert_eq!(output.status.code(), Some(0));
}
