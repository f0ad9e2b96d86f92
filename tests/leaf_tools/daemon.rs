//! The tools beside a running daemon, and after its kill.

use std::process::Stdio;

use crate::common::{Client, Daemon, make_root, root_sector};
use crate::scene::{no_leaf_is_open, output, text};

const SECTORS: u64 = 4096;

/// `leafblk leaf ARGS` on the daemon's directories: its status and what it says.
fn leaf(dir: &std::path::Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.current_dir(dir).arg("leaf").args(args);
    let output = output(&mut command);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_served_leaf_is_refused_and_a_killed_daemons_acknowledged_write_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), SECTORS);
    let root = root.to_str().unwrap();
    let start = || {
        let _none = no_leaf_is_open();
        Daemon::start_with(dir.path(), &["--root", root, "--vm", "web1"], Stdio::null())
    };
    let daemon = start();
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(100 * 512, &[0x5a; 4096]);
    let path = daemon.leaf("web1");
    let path = path.to_str().unwrap();
    let run = ["--runtime-dir", "run"];
    let process = format!("process {} (leafblk)", daemon.child.id());
    for args in [
        &["reset", path][..],
        &["check", path],
        &["commit", path, "--root", root, "--output", "new.raw"],
        &["compact", path, "--root", root],
    ] {
        let (status, said) = leaf(dir.path(), &[args, &run].concat());
        assert_eq!(status, Some(1), "{args:?}: {said}");
        let who = format!("is in use by VM web1, which {process} serves; ");
        let what = "leafblk vm detach web1 --runtime-dir run\n";
        assert!(said.contains(&who) && said.ends_with(what), "{args:?}: {said}");
        // Another runtime directory, where no leafblk answers.
        let (status, said) = leaf(dir.path(), &[args, &["--runtime-dir", "elsewhere"]].concat());
        assert_eq!(status, Some(1), "{args:?}: {said}");
        let who = format!("is in use by {process}, for no VM of a leafblk with the runtime");
        assert!(said.contains(&who), "{args:?}: {said}");
    }
    // Acknowledged, not flushed.
    client.write(200 * 512, &[0xa5; 512]);
    daemon.kill();
    drop(client);
    let mut content: Vec<u8> = (0..SECTORS).flat_map(root_sector).collect();
    content[100 * 512..][..4096].fill(0x5a);
    content[200 * 512..][..512].fill(0xa5);
    let args = ["commit", path, "--root", root, "--output", "new.raw"];
    let (status, said) = leaf(dir.path(), &[&args[..], &run].concat());
    assert_eq!(status, Some(0), "{said}");
    assert!(std::fs::read(dir.path().join("new.raw")).unwrap() == content);
    // The daemon goes on with the compacted leaf.
    let (status, said) = leaf(dir.path(), &[&["compact", path, "--root", root][..], &run].concat());
    assert_eq!(status, Some(0), "{said}");
    let daemon = start();
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(96 * 512, 128 * 512) == content[96 * 512..][..128 * 512]);
    drop(client);
    daemon.stop();
}

#[test]
fn tools_on_a_copy_take_nothing_from_its_original_which_runs_or_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), SECTORS);
    let root = root.to_str().unwrap();
    let start = || {
        let _none = no_leaf_is_open();
        Daemon::start_with(dir.path(), &["--root", root, "--vm", "web1"], Stdio::null())
    };
    let daemon = start();
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(100 * 512, &[0x5a; 512]);
    client.flush();
    let mut flushed: Vec<u8> = (0..SECTORS).flat_map(root_sector).collect();
    flushed[100 * 512..][..512].fill(0x5a);
    let mut copy = std::process::Command::new("cp");
    copy.current_dir(dir.path()).args(["--sparse=always", "state/web1.leaf", "copy.leaf"]);
    assert!(output(&mut copy).status.success());
    client.write(200 * 512, &[0xa5; 512]);
    let map = dir.path().join("run/web1.map");
    let before = std::fs::read(&map).unwrap();
    let look = |runs: bool| {
        for (args, status, part) in [
            (&["info", "copy.leaf"][..], 0, "shown is what was flushed"),
            (&["check", "copy.leaf"], 0, "not closed cleanly"),
            (&["check", "copy.leaf", "--repair"], 1, "for a copy, --flushed-only"),
            (
                &["export", "copy.leaf", "--format", "raw", "--root", root, "--output", "x"],
                1,
                "copy",
            ),
        ] {
            let (code, said) = leaf(dir.path(), &[args, &["--runtime-dir", "run"]].concat());
            assert_eq!(code, Some(status), "{args:?}, runs: {runs}: {said}");
            assert!(said.contains(part), "{args:?}, runs: {runs}: {said}");
        }
        let args =
            ["export", "copy.leaf", "--format", "raw", "--root", root, "--output", "new.raw"];
        let flags = ["--flushed-only", "--runtime-dir", "run"];
        let (code, said) = leaf(dir.path(), &[&args[..], &flags].concat());
        assert_eq!(code, Some(0), "runs: {runs}: {said}");
        assert!(std::fs::read(dir.path().join("new.raw")).unwrap() == flushed);
        std::fs::remove_file(dir.path().join("new.raw")).unwrap();
        assert!(std::fs::read(&map).unwrap() == before, "runs: {runs}");
    };
    look(true);
    daemon.kill();
    drop(client);
    look(false);
    // A tool that puts another file in the copy's place.
    let args = ["compact", "copy.leaf", "--root", root, "--flushed-only", "--runtime-dir", "run"];
    let (code, said) = leaf(dir.path(), &args);
    assert_eq!(code, Some(0), "{said}");
    let daemon = start();
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(100 * 512, 512) == [0x5a; 512]);
    assert!(client.read(200 * 512, 512) == [0xa5; 512], "acknowledged, never flushed");
    drop(client);
    daemon.stop();
}

/// What `leafblk leaf ARGS --json` prints, beside what it remarks.
fn report(dir: &std::path::Path, args: &[&str]) -> (serde_json::Value, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.current_dir(dir).arg("leaf").args(args).arg("--json");
    let output = output(&mut command);
    let (said, remarks) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{args:?}: {remarks}");
    (serde_json::from_str(&said).unwrap(), remarks)
}

#[test]
fn reports_on_a_served_leaf_tell_all_that_was_acknowledged_and_touch_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), SECTORS);
    let root = root.to_str().unwrap();
    let daemon = {
        let _none = no_leaf_is_open();
        Daemon::start_with(dir.path(), &["--root", root, "--vm", "web1"], Stdio::null())
    };
    let mut client = Client::connect(&daemon.socket("web1"));
    let path = daemon.leaf("web1");
    let path = path.to_str().unwrap();
    let live_map = dir.path().join("run/web1.map");
    client.write(0, &[1; 512]);
    client.flush();
    for written in 1..12u64 {
        client.write(written * 300 * 512, &[1; 512]);
        let before = std::fs::read(&live_map).unwrap();
        let (rows, remarks) = report(dir.path(), &["map", path, "--runtime-dir", "run"]);
        let user = format!("is in use by VM web1, process {} (leafblk); ", daemon.child.id());
        let instant = "this was read while it runs, and is not of one instant\n";
        assert!(remarks.contains(&user) && remarks.ends_with(instant), "{remarks}");
        let held = |sector: u64| {
            let in_leaf = |row: &&serde_json::Value| row["from"] == "leaf";
            rows.as_array().unwrap().iter().filter(in_leaf).any(|row| {
                let start = row["start"].as_u64().unwrap();
                (start..start + row["length"].as_u64().unwrap()).contains(&(sector * 512))
            })
        };
        for sector in 0..=written {
            assert!(held(sector * 300) && !held(sector * 300 + 1), "{sector} of {written}");
        }
        let (info, _) = report(dir.path(), &["info", path, "--root", root, "--runtime-dir", "run"]);
        assert_eq!(info["changed_sectors"], written + 1);
        assert_eq!((&info["state"], &info["vm"]), (&"in-use".into(), &"web1".into()));
        assert_eq!(info["process"], daemon.child.id());
        assert!(std::fs::read(&live_map).unwrap() == before, "{written}");
    }
    // Where its live map isn't known, what was flushed is.
    for args in [&["--runtime-dir", "elsewhere"][..], &["--runtime-dir", "run", "--flushed-only"]] {
        let (info, _) = report(dir.path(), &[&["info", path], args].concat());
        assert_eq!((&info["state"], &info["changed_sectors"]), (&"in-use".into(), &1.into()));
        let (status, said) = leaf(dir.path(), &[&["info", path], args].concat());
        assert!(status == Some(0) && said.contains("this is what was flushed"), "{said}");
    }
    // The VM notices nothing.
    client.write(3900 * 512, &[2; 512]);
    client.flush();
    assert!(client.read(3900 * 512, 512) == [2; 512] && client.read(300 * 512, 512) == [1; 512]);
    drop(client);
    daemon.stop();
}
