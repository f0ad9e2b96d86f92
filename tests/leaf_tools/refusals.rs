//! What no tool does: touch a leaf in use, work on the wrong root, write over
//! something.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::Value;

use crate::common::unopened::WaitingWriter;
use crate::scene::*;

/// Every command on `a.leaf`, with outputs that are free.
fn commands() -> Vec<Vec<&'static str>> {
    let root = ["--root", "root.raw"];
    let with_root = |args: &[&'static str]| [args, &root].concat();
    vec![
        vec!["info", "a.leaf"],
        vec!["map", "a.leaf"],
        vec!["check", "a.leaf"],
        vec!["check", "a.leaf", "--repair"],
        with_root(&["diff", "a.leaf"]),
        with_root(&["diff", "b.leaf", "a.leaf"]),
        vec!["reset", "a.leaf"],
        vec!["resize", "a.leaf", "1GiB"],
        with_root(&["commit", "a.leaf", "--output", "new.raw"]),
        with_root(&["rebase", "a.leaf", "--from", "root.raw"]),
        with_root(&["export", "a.leaf", "--format", "qcow2", "--output", "new.qcow2"]),
        with_root(&["export", "a.leaf", "--format", "raw", "--output", "new.raw"]),
        with_root(&["compact", "a.leaf"]),
    ]
}

#[test]
fn every_command_but_two_reports_refuses_a_leaf_in_use() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    scene.leaf("b.leaf");
    let info = scene.json(&["info", "a.leaf", "--json"]);
    let map = scene.say(&["map", "a.leaf"]);
    let held = scene.in_use("a.leaf", "-x");
    let user = format!("in use by process {} (flock)", held.process());
    for args in commands() {
        if matches!(args[0], "info" | "map") {
            let output = scene.run(&args);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(output.status.success() && said.contains(&user), "{args:?}: {said}");
        } else {
            let refused = scene.refusal(&args, 1);
            assert!(refused.contains(&format!("a.leaf is {user}, for no VM")), "{refused}");
        }
    }
    let now = scene.json(&["info", "a.leaf", "--json"]);
    assert_eq!((&now["changed_sectors"], &now["vm"]), (&info["changed_sectors"], &Value::Null));
    assert_eq!((&now["state"], &now["process"]), (&"in-use".into(), &held.process().into()));
    assert_eq!(text(&scene.run(&["map", "a.leaf"]).stdout), map);
    drop(held);
    assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == content);
    for args in commands() {
        let output = scene.run(&args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        let _ = std::fs::remove_file(scene.path("new.raw"));
    }
}

#[test]
fn commands_that_change_a_leaf_refuse_one_that_is_read() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.leaf("b.leaf");
    let _reader = scene.in_use("a.leaf", "-s");
    for args in commands() {
        let changes = matches!(args[0], "reset" | "resize" | "rebase" | "compact")
            || args.contains(&"--repair");
        if changes {
            assert!(scene.refusal(&args, 1).contains("in use"), "{args:?}");
        } else {
            assert!(scene.run(&args).status.success(), "{args:?}");
            let _ = std::fs::remove_file(scene.path("new.raw"));
        }
    }
}

#[test]
fn no_command_works_on_another_root() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.other_root("other.raw");
    let root = ["--root", "other.raw"];
    for args in [
        &["info", "a.leaf"][..],
        &["map", "a.leaf"],
        &["diff", "a.leaf"],
        &["commit", "a.leaf", "--output", "new.raw"],
        &["rebase", "a.leaf", "--from", "other.raw"],
        &["export", "a.leaf", "--format", "qcow2", "--output", "new.qcow2"],
        &["export", "a.leaf", "--format", "raw", "--output", "new.raw"],
        &["compact", "a.leaf"],
    ] {
        let refused = scene.refusal(&[args, &root].concat(), 1);
        assert!(refused.contains("made on another root"), "{refused}");
        assert!(refused.contains("pass --root"), "{refused}");
    }
}

#[test]
fn no_command_writes_over_a_file() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let root = ["--root", "root.raw"];
    std::fs::write(scene.path("there"), b"somebody's").unwrap();
    std::os::unix::fs::symlink("nowhere", scene.path("dangling")).unwrap();
    for output in ["there", "dangling", "root.raw", "a.leaf", "run"] {
        for args in [
            &["create", output][..],
            &["commit", "a.leaf", "--output", output],
            &["export", "a.leaf", "--format", "qcow2", "--output", output],
            &["export", "a.leaf", "--format", "raw", "--output", output],
            &["import", "a.qcow2", output],
        ] {
            let refused = scene.refusal(&[args, &root].concat(), 1);
            assert!(refused.contains(&format!("{output} exists already")), "{refused}");
        }
    }
    assert_eq!(std::fs::read(scene.path("there")).unwrap(), b"somebody's");
}

#[test]
fn mistakes_in_the_flags_end_with_2_and_a_sentence() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    for (args, part) in [
        (&["create", "b.leaf"][..], "--root"),
        (&["create", "b.leaf", "--root", "root.raw", "--size", "4G"], "write 4GiB"),
        (&["create", "b.leaf", "--root", "x="], "has no path"),
        (&["resize", "a.leaf", "much"], "is no size"),
        (&["resize", "a.leaf"], "SIZE"),
        (&["diff", "a.leaf"], "--root"),
        (&["export", "a.leaf", "--root", "root.raw", "--format", "vmdk", "--output", "x"], "vmdk"),
        (&["rebase", "a.leaf", "--root", "root.raw"], "--from"),
        (&["infos", "a.leaf"], "did you mean info"),
    ] {
        let refused = scene.refusal(args, 2);
        assert!(refused.contains(part), "{args:?}: {refused}");
    }
}

#[test]
fn bad_input_is_one_sentence_with_its_path() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let writer = WaitingWriter::at(&scene.path("fifo"));
    std::fs::write(scene.path("short.leaf"), &std::fs::read(scene.path("a.leaf")).unwrap()[..9000])
        .unwrap();
    std::fs::write(scene.path("empty"), b"").unwrap();
    for (args, part) in [
        (&["info", "none.leaf"][..], "none.leaf can't be opened"),
        (&["info", "root.raw"], "root.raw is not a leaf"),
        (&["info", "run"], "run is not a leaf"),
        (&["info", "fifo"], "fifo is not a leaf"),
        (&["check", "empty"], "empty is not a leaf"),
        (&["check", "short.leaf"], "is cut short"),
        (&["compact", "a.leaf", "--root", "none.raw"], "root none.raw can't be read"),
        (&["compact", "a.leaf", "--root", "empty"], "is empty"),
        (&["compact", "a.leaf", "--root", "fifo"], "neither a file nor a block device"),
        (&["create", "b.leaf", "--root", "root.raw", "--size", "1MiB"], "at least the root's"),
        (
            &["commit", "a.leaf", "--root", "root.raw", "--output", "no/where.raw"],
            "no/where.raw can't be written",
        ),
        (&["create", "no/where.leaf", "--root", "root.raw"], "no/where.leaf can't be created"),
    ] {
        let refused = scene.refusal(args, 1);
        assert!(refused.contains(part), "{args:?}: {refused}");
    }
    writer.check();
}

#[test]
fn a_root_that_somebody_writes_to_is_refused() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let mut qemu = std::process::Command::new("qemu-io");
    qemu.current_dir(scene.path("")).args(["-f", "raw", "root.raw"]);
    let mut qemu = spawn(qemu.stdin(Stdio::piped()).stdout(Stdio::piped()));
    // It has its locks when it has answered.
    qemu.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    let mut answer = [0; 8];
    qemu.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    let refused = scene.refusal(&["compact", "a.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("open for writing in another program"), "{refused}");
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    scene.line(&["compact", "a.leaf", "--root", "root.raw"]);
}
