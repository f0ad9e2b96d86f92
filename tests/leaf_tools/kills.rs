//! Each tool, killed instead of each of its system calls that change
//! something: the old file is whole, or the new one is; and the order of those
//! calls, which is what counts when the power goes.

use std::path::{Path, PathBuf};

use crate::scene::*;
use crate::stepper::{Call, run};

/// Panics unless what it looks at is whole.
type Look<'a> = &'a dyn Fn(&Scene);

/// What may be there after a kill, besides the scene's own files.
struct Expected<'a> {
    /// The new file, and a look at it.
    whole: (&'a str, Look<'a>),
    /// Whether an old file has that name until then.
    replaces: bool,
}

/// Kills `args` at every step in fresh scenes; how many there were.
fn kill_everywhere(make: &dyn Fn() -> Scene, args: &[&str], expected: &Expected<'_>) -> usize {
    let scene = make();
    let done = run(scene.command(args), None);
    assert!(done.succeeded, "{args:?}");
    (expected.whole.1)(&scene);
    assert_durable(&done.calls, args);
    let steps = done.calls.len();
    let mut scene = make();
    for step in 0..steps {
        let before = scene.names();
        let inode = |scene: &Scene| inode(&scene.path(expected.whole.0));
        let old = inode(&scene);
        let killed = run(scene.command(args), Some(step));
        assert!(killed.killed, "{args:?} makes the same calls each time");
        let temporary = |name: &String| {
            name.starts_with(&format!(".{}.", expected.whole.0)) && name.ends_with(".new")
        };
        let unexpected: Vec<String> = scene
            .names()
            .into_iter()
            .filter(|name| !before.contains(name) && !temporary(name))
            .filter(|name| name != expected.whole.0)
            .collect();
        assert_eq!(unexpected, [""; 0], "{args:?} killed at {step}: {:?}", killed.calls.last());
        let new = inode(&scene);
        assert_eq!(old.is_some(), expected.replaces);
        // Whichever it is, it is whole.
        if new.is_some() {
            (expected.whole.1)(&scene);
        }
        if new != old || !scene.names().iter().all(|name| before.contains(name)) {
            scene = make();
        }
    }
    steps
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|found| found.ino())
}

/// A new file is synced after its last change and before it gets its name, and
/// the directory after that: whatever order a disk writes in between, it has
/// all of the file before the name.
fn assert_durable(calls: &[Call], args: &[&str]) {
    let named = calls
        .iter()
        .position(|call| matches!(call, Call::Name("link" | "rename")))
        .unwrap_or_else(|| panic!("{args:?} names no file: {calls:?}"));
    let (file, last_change) = calls[..named]
        .iter()
        .enumerate()
        .rev()
        .find_map(|(i, call)| match call {
            Call::Change(file) => Some((file, i)),
            _ => None,
        })
        .unwrap();
    let synced = calls[last_change..named].iter().any(|call| *call == Call::Sync(file.clone()));
    assert!(synced, "{args:?}: {calls:?}");
    assert!(
        !calls[named..].iter().any(|call| matches!(call, Call::Change(_))),
        "{args:?} changes something after it was named: {calls:?}"
    );
    let last_name = calls.iter().rposition(|call| *call == Call::Name("rename"));
    let after = &calls[last_name.unwrap_or(named)..];
    let directory: PathBuf = file.parent().unwrap().into();
    assert!(after.contains(&Call::Sync(directory)), "{args:?}: {calls:?}");
}

fn mixed() -> Scene {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.other_root("other.raw");
    let args = ["export", "a.leaf", "--root", "root.raw", "--format", "qcow2"];
    scene.line(&[&args[..], &["--output", "in.qcow2"]].concat());
    scene
}

fn content() -> Vec<u8> {
    mixed_content(LEAF_SECTORS)
}

fn mixed_content(sectors: u64) -> Vec<u8> {
    let scene = Scene::new();
    let mut content = scene.leaf("a.leaf");
    content.resize(sectors as usize * SECTOR, 0);
    content
}

#[test]
fn a_tool_that_makes_a_file_is_killed_at_every_step() {
    let content = content();
    let raw = |scene: &Scene| {
        assert!(std::fs::read(scene.path("new")).unwrap() == content);
    };
    let leaf = |scene: &Scene| {
        assert!(scene.content(&scene.path("new"), &scene.root()) == content);
        scene.say(&["check", "new"]);
    };
    let empty = |scene: &Scene| {
        assert!(scene.content(&scene.path("new"), &scene.root()) == root_content(1));
    };
    let overlay = |scene: &Scene| {
        scene.qemu_img(&["check", "-q", "new"]);
        scene.qemu_img(&["compare", "-q", "new", "in.qcow2"]);
    };
    let root = ["--root", "root.raw"];
    let mut steps = 0;
    let cases: [(&[&str], Look<'_>); 5] = [
        (&["commit", "a.leaf", "--output", "new"], &raw),
        (&["export", "a.leaf", "--format", "raw", "--output", "new"], &raw),
        (&["export", "a.leaf", "--format", "qcow2", "--output", "new"], &overlay),
        (&["import", "in.qcow2", "new"], &leaf),
        (&["create", "new"], &empty),
    ];
    for (args, whole) in cases {
        let args = [args, &root].concat();
        let expected = Expected { whole: ("new", whole), replaces: false };
        let here = kill_everywhere(&mixed, &args, &expected);
        println!("{}: killed at {here} steps", args[0]);
        assert!(here >= 6, "{args:?}");
        steps += here;
    }
    println!("killed at {steps} steps in all");
}

#[test]
fn a_tool_that_replaces_a_leaf_is_killed_at_every_step() {
    let content = content();
    // Old or new, on the one root or the other, the guest sees the same.
    let whole = |scene: &Scene| {
        let info = scene.json(&["info", "a.leaf", "--json"]);
        let other = scene.path("other.raw");
        let name = info["root"]["name"].as_str().unwrap().to_owned();
        let root = if name == "other" { other } else { scene.root() };
        assert!(scene.content(&scene.path("a.leaf"), &root) == content);
        assert_eq!(info["state"], "clean");
        scene.say(&["check", "a.leaf"]);
    };
    for args in [
        &["compact", "a.leaf", "--root", "root.raw"][..],
        &["rebase", "a.leaf", "--from", "root.raw", "--root", "other.raw"],
    ] {
        let expected = Expected { whole: ("a.leaf", &whole), replaces: true };
        let steps = kill_everywhere(&mixed, args, &expected);
        println!("{}: killed at {steps} steps", args[0]);
        assert!(steps >= 12, "{args:?}: {steps}");
    }
}

#[test]
fn a_tool_that_changes_a_leaf_in_place_is_killed_at_every_step() {
    let (old, grown) = (content(), mixed_content(8 << 11));
    let mut empty = root_content(1);
    empty.resize(old.len(), 0);
    let smaller = (ROOT_SECTORS + 20) * 512;
    let shrunk = old[..smaller as usize].to_vec();
    let size = smaller.to_string();
    for (args, new) in [
        (&["reset", "a.leaf"][..], &empty),
        (&["resize", "a.leaf", "8MiB"], &grown),
        (&["resize", "a.leaf", &size, "--shrink"], &shrunk),
        (&["check", "a.leaf", "--repair"], &old),
    ] {
        let make = || {
            let scene = Scene::new();
            scene.leaf("a.leaf");
            if args[0] == "check" {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::options().write(true).open(scene.path("a.leaf")).unwrap();
                file.write_all_at(b"damage", 500).unwrap();
                file.write_all_at(&[0xff], 8192 + LEAF_SECTORS / 8 + 1).unwrap();
                file.write_all_at(&[7; 65536], (1 << 28) + (2 << 20) + 1200 * 512).unwrap();
            }
            scene
        };
        let done = run(make().command(args), None);
        assert!(done.succeeded, "{args:?}");
        let mut seen = [false; 2];
        for step in 0..done.calls.len() {
            let scene = make();
            assert!(run(scene.command(args), Some(step)).killed);
            let found = scene.content(&scene.path("a.leaf"), &scene.root());
            assert!(found == old || found == *new, "{args:?} killed at {step}");
            seen[usize::from(found == *new)] = true;
            // Whatever is left half done is completed: by the same command, or,
            // what a shrinking one had still to give back, by check.
            let flags = &["--flushed-only"][..usize::from(args[0] != "reset")];
            let again = scene.run(&[args, flags].concat());
            assert!(again.status.success(), "{args:?} after a kill at {step}: {again:?}");
            assert!(scene.content(&scene.path("a.leaf"), &scene.root()) == *new);
            if args.contains(&"--shrink") {
                scene.say(&["check", "a.leaf", "--repair", "--flushed-only"]);
            }
            assert!(scene.say(&["check", "a.leaf"]).contains("no errors"), "{args:?} {step}");
        }
        println!("{args:?}: killed at {} steps", done.calls.len());
        assert!(done.calls.len() >= 5, "{args:?}");
        assert!(args[0] == "check" || seen == [true, true], "{args:?}: both were seen");
    }
}
