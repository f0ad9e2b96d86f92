//! Leaves whose daemon was killed: what it acknowledged is never left out
//! unnoticed.

use crate::scene::*;

/// A leaf with a flushed change, and one that only the live map in `run` names.
fn killed(scene: &Scene) -> (Vec<u8>, Vec<u8>) {
    scene.empty_leaf("a.leaf");
    let leaf = scene.open("a.leaf");
    let root = std::fs::read(scene.root()).unwrap();
    let flushed = apply(&leaf, &root, &[Op::Write(100, 8, 1)]);
    leaf.flush().unwrap();
    let acknowledged = apply(&leaf, &flushed[..root.len()], &[Op::Write(200, 8, 2)]);
    // Dropped, not closed: as by SIGKILL.
    drop(leaf);
    (flushed, acknowledged)
}

#[test]
fn every_command_sees_what_the_live_map_names() {
    let root = ["--root", "root.raw"];
    for what in ["compact", "rebase", "resize", "commit", "raw", "qcow2", "check"] {
        let scene = Scene::new();
        let (_, content) = killed(&scene);
        let info = scene.json(&["info", "a.leaf", "--json"]);
        assert_eq!((&info["state"], &info["changed_sectors"]), (&"live-map".into(), &16.into()));
        assert_eq!(
            info["live_map"].as_str().unwrap(),
            "run/a.leaf.map".replace("run", scene.path("run").to_str().unwrap())
        );
        let map = scene.json(&["map", "a.leaf", "--json"]);
        assert!(map.as_array().unwrap().iter().any(|row| row["start"] == 200 * 512));
        let rows = scene.json(&[&["diff", "a.leaf", "--json"][..], &root].concat());
        assert_eq!(rows.as_array().unwrap().len(), 2);
        let in_leaf = || scene.content(&scene.path("a.leaf"), &scene.root());
        match what {
            "compact" => {
                scene.line(&[&["compact", "a.leaf"][..], &root].concat());
                assert!(in_leaf() == content);
            }
            "rebase" => {
                let args = ["rebase", "a.leaf", "--from", "root.raw"];
                scene.line(&[&args[..], &root].concat());
                assert!(in_leaf() == content);
            }
            "resize" => {
                scene.line(&["resize", "a.leaf", "4MiB"]);
                assert!(in_leaf()[..content.len()] == content);
            }
            "check" => {
                assert!(scene.say(&["check", "a.leaf"]).contains("its live map is there"));
                assert!(scene.say(&["check", "a.leaf", "--repair"]).contains("taken over"));
                assert!(in_leaf() == content);
            }
            "commit" => {
                scene.line(&[&["commit", "a.leaf", "--output", "new"][..], &root].concat());
                assert!(std::fs::read(scene.path("new")).unwrap() == content);
            }
            format => {
                let args = ["export", "a.leaf", "--format", format, "--output", "new"];
                scene.line(&[&args[..], &root].concat());
                std::fs::write(scene.path("content"), &content).unwrap();
                scene.qemu_img(&["compare", "-f", format, "-F", "raw", "new", "content"]);
            }
        }
        // What changed the leaf has left it clean, without a live map; what
        // only read it has left both as they were.
        let info = scene.json(&["info", "a.leaf", "--json"]);
        let reads = matches!(what, "commit" | "raw" | "qcow2");
        assert_eq!(info["state"], if reads { "live-map" } else { "clean" }, "{what}");
        let maps = std::fs::read_dir(scene.path("run")).unwrap().count();
        assert_eq!(maps, usize::from(reads), "{what}");
    }
}

#[test]
fn a_damaged_copy_of_the_header_hides_no_live_map_from_a_command() {
    use std::os::unix::fs::FileExt;
    for copy in [0, 4096] {
        let scene = Scene::new();
        let (_, content) = killed(&scene);
        let file = std::fs::File::options().write(true).open(scene.path("a.leaf")).unwrap();
        file.write_all_at(b"damage", copy + 500).unwrap();
        let info = scene.json(&["info", "a.leaf", "--json"]);
        assert_eq!((&info["state"], &info["changed_sectors"]), (&"live-map".into(), &16.into()));
        let args = ["commit", "a.leaf", "--output", "new", "--root", "root.raw"];
        scene.line(&args);
        assert!(std::fs::read(scene.path("new")).unwrap() == content);
        assert!(scene.say(&["check", "a.leaf", "--repair"]).contains("taken over"));
        assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
    }
}

#[test]
fn without_the_live_map_nothing_is_done_unless_told() {
    let scene = Scene::new();
    let (flushed, _) = killed(&scene);
    let root = ["--root", "root.raw"];
    let commands = [
        vec!["check", "a.leaf", "--repair"],
        [&["diff", "a.leaf"][..], &root].concat(),
        vec!["resize", "a.leaf", "1GiB"],
        [&["commit", "a.leaf", "--output", "new.raw"][..], &root].concat(),
        [&["rebase", "a.leaf", "--from", "root.raw"][..], &root].concat(),
        [&["export", "a.leaf", "--format", "qcow2", "--output", "new"][..], &root].concat(),
        [&["compact", "a.leaf"][..], &root].concat(),
    ];
    std::fs::create_dir(scene.path("elsewhere")).unwrap();
    for args in &commands {
        let args = [args, &["--runtime-dir", "elsewhere"][..]].concat();
        let refused = scene.refusal(&args, 1);
        for part in ["not closed cleanly", "start leafblk serve once", "--runtime-dir", "elsewhere"]
        {
            assert!(refused.contains(part), "{args:?}: {refused}");
        }
    }
    // Reports tell.
    let said = scene.say(&["info", "a.leaf", "--runtime-dir", "elsewhere"]);
    assert!(said.contains("shown is what was flushed"), "{said}");
    let output = scene.run(&["map", "a.leaf", "--runtime-dir", "elsewhere"]);
    assert!(text(&output.stderr).contains("was not closed cleanly"));
    let output = scene.run(&["check", "a.leaf", "--runtime-dir", "elsewhere"]);
    let said = text(&output.stdout);
    assert!(said.contains("or what the missing live map names"), "{said}");
    // Nothing was lost by any of that.
    assert_eq!(scene.json(&["info", "a.leaf", "--json"])["changed_sectors"], 16);
    let flags = ["--runtime-dir", "elsewhere", "--flushed-only"];
    scene.line(&[&["commit", "a.leaf", "--output", "new.raw"][..], &root, &flags].concat());
    assert!(std::fs::read(scene.path("new.raw")).unwrap() == flushed);
    scene.line(&[&["compact", "a.leaf"][..], &root, &flags].concat());
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == flushed);
}

#[test]
fn reset_discards_what_a_killed_daemon_left_too() {
    for dir in ["run", "elsewhere"] {
        let scene = Scene::new();
        killed(&scene);
        scene.line(&["reset", "a.leaf", "--runtime-dir", dir]);
        let mut root = root_content(1);
        root.resize(LEAF_SECTORS as usize * SECTOR, 0);
        assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == root);
        // The live map that is left does not come back.
        drop(scene.open("a.leaf"));
        assert_eq!(scene.held("a.leaf"), 0);
    }
}

#[test]
fn a_map_that_is_another_leafs_is_no_help() {
    let scene = Scene::new();
    killed(&scene);
    let map = scene.path("run/a.leaf.map");
    let mut bytes = std::fs::read(&map).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&map, bytes).unwrap();
    let refused = scene.refusal(&["compact", "a.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("its live map is not in"), "{refused}");
}

#[test]
fn told_to_go_by_what_was_flushed_no_command_looks_at_a_live_map() {
    let scene = Scene::new();
    let (flushed, _) = killed(&scene);
    let map = std::fs::read(scene.path("run/a.leaf.map")).unwrap();
    let info = scene.json(&["info", "a.leaf", "--json", "--flushed-only"]);
    assert_eq!((&info["state"], &info["changed_sectors"]), (&"flushed-only".into(), &8.into()));
    let said = scene.say(&["info", "a.leaf", "--flushed-only"]);
    assert!(said.contains("not closed cleanly: shown is what was flushed"), "{said}");
    let args = ["commit", "a.leaf", "--root", "root.raw", "--output", "new.raw", "--flushed-only"];
    scene.line(&args);
    assert!(std::fs::read(scene.path("new.raw")).unwrap() == flushed);
    // Without the flag the leaf is what it was.
    assert!(std::fs::read(scene.path("run/a.leaf.map")).unwrap() == map);
    assert_eq!(scene.json(&["info", "a.leaf", "--json"])["changed_sectors"], 16);
    scene.line(&["resize", "a.leaf", "4MiB", "--flushed-only"]);
    assert!(std::fs::read(scene.path("run/a.leaf.map")).unwrap() == map);
    assert_eq!(scene.json(&["info", "a.leaf", "--json"])["changed_sectors"], 8);
}
