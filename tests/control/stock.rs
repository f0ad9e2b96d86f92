//! Which leaves there are, whose they are, and their end.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, make_root};

/// Runs leafblk with this directory's; its exit status and what it says.
fn leafblk(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.current_dir(dir).args(args).stdin(Stdio::null());
    if args[0] == "leaf" {
        command.args(["--state-dir", "state"]);
    }
    if args[1] != "list" {
        command.args(["--runtime-dir", "run"]);
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|out| String::from_utf8(out).unwrap());
    (output.status.code(), said.concat())
}

/// What a command that succeeds says.
fn says(dir: &Path, args: &[&str]) -> String {
    let (status, said) = leafblk(dir, args);
    assert_eq!(status, Some(0), "{args:?}: {said}");
    said
}

/// The leaf of that file name as `leaf list --json` has it.
fn listed(dir: &Path, leaf: &str) -> Option<Value> {
    let list = says(dir, &["leaf", "list", "--json"]);
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    list.into_iter().find(|row| row["path"].as_str().unwrap().ends_with(&format!("/{leaf}")))
}

fn is(row: &Value, vm: Option<&str>, is_detached: bool, state: &str) {
    assert_eq!(row["vm"].as_str(), vm, "{row}");
    assert_eq!(row["vm_detached"].is_string(), is_detached, "{row}");
    assert_eq!(row["state"], state, "{row}");
}

#[test]
fn leaves_are_listed_with_their_vms_and_rm_takes_those_that_nobody_needs() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let root = format!("debian={}", root.display());
    let daemon = Daemon::start(dir, &["--root", &root]);
    let elsewhere = dir.join("elsewhere.leaf");
    let control = daemon.control();
    control.post("/v1/vms", &json!({"name": "web1", "size": "8MiB"})).expect(201);
    control.post("/v1/vms", &json!({"name": "web2"})).expect(201);
    control.post("/v1/vms", &json!({"name": "web3", "leaf": elsewhere})).expect(201);
    Client::connect(&daemon.socket("web1")).write(0, &[1; 4096]);
    says(dir, &["vm", "detach", "web2"]);
    let create = ["leaf", "create", "state/stray.leaf", "--root", &root];
    let made = Command::new(env!("CARGO_BIN_EXE_leafblk")).current_dir(dir).args(create).status();
    assert!(made.unwrap().success());
    std::fs::write(dir.join("state/bad.leaf"), "no leaf").unwrap();

    let web1 = listed(dir, "web1.leaf").unwrap();
    is(&web1, Some("web1"), false, "in-use");
    assert_eq!((&web1["root"], &web1["virtual_size"]), (&"debian".into(), &(8 << 20).into()));
    assert_eq!(web1["process"], daemon.child.id());
    is(&listed(dir, "web2.leaf").unwrap(), Some("web2"), true, "free");
    is(&listed(dir, "elsewhere.leaf").unwrap(), Some("web3"), false, "in-use");
    is(&listed(dir, "stray.leaf").unwrap(), None, false, "free");
    let bad = listed(dir, "bad.leaf").unwrap();
    is(&bad, None, false, "unreadable");
    assert!(bad["reason"].as_str().unwrap().contains("is not a leaf"), "{bad}");
    let table = says(dir, &["leaf", "list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0].split_whitespace().last(), Some("LEAF"));
    assert_eq!(lines.len(), 6, "{table}");
    let web2 = lines.iter().find(|line| line.contains("/web2.leaf")).unwrap();
    let cells: Vec<&str> = web2.split_whitespace().collect();
    assert_eq!(cells[..4], ["web2", "(detached)", "free", "debian"], "{table}");

    // A file that was moved is its VM's; a copy beside it is nobody's.
    let at = |name: &str| dir.join("state").join(name);
    std::fs::rename(at("web2.leaf"), at("moved.leaf")).unwrap();
    is(&listed(dir, "moved.leaf").unwrap(), Some("web2"), true, "free");
    assert!(listed(dir, "web2.leaf").is_none());
    std::fs::copy(at("moved.leaf"), at("web2.leaf")).unwrap();
    is(&listed(dir, "moved.leaf").unwrap(), None, false, "free");
    is(&listed(dir, "web2.leaf").unwrap(), Some("web2"), true, "free");
    std::fs::remove_file(at("moved.leaf")).unwrap();

    // In use: not even beside one that is not.
    let both = ["leaf", "rm", "--yes", "state/web2.leaf", "state/web1.leaf"];
    let (status, said) = leafblk(dir, &both);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("in use by VM web1") && said.contains("leafblk vm detach web1"),
        "{said}"
    );
    // Nobody to ask.
    let (status, said) = leafblk(dir, &["leaf", "rm", "state/web2.leaf", "state/stray.leaf"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("web2.leaf: a disk of ") && said.contains("add --yes"), "{said}");
    assert!(listed(dir, "web2.leaf").is_some() && listed(dir, "stray.leaf").is_some());
    let said = says(dir, &["leaf", "rm", "--yes", "state/web2.leaf", "state/stray.leaf"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(listed(dir, "web2.leaf").is_none() && listed(dir, "stray.leaf").is_none());
    // Its leaf was deleted on purpose: it gets a new one.
    let attached = says(dir, &["vm", "attach", "web2"]);
    assert!(attached.contains("web2.leaf (new)"), "{attached}");

    daemon.stop();
    // A VM that is wanted keeps the record of the leaf that it lacks.
    let said = says(dir, &["leaf", "rm", "--yes", "state/web1.leaf"]);
    assert!(
        said.contains("VM web1 is not detached") && said.contains("vm new-leaf web1"),
        "{said}"
    );
    is(&listed(dir, "web1.leaf").unwrap(), Some("web1"), false, "missing");
    let daemon = Daemon::start(dir, &["--root", &root]);
    assert_eq!(daemon.control().get("/v1/vms/web1").expect(200)["state"], "failed");
    daemon.stop();
}

#[test]
fn a_vm_is_detached_with_its_leaf_if_that_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let root = format!("debian={}", root.display());
    let daemon = Daemon::start(dir, &["--root", &root]);
    let control = daemon.control();
    let leaf = daemon.leaf("web1");
    let path = "/v1/vms/web1";
    let attach = || control.post("/v1/vms", &json!({"name": "web1"})).expect(201);
    attach();
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(0, &[1; 4096]);
    control.delete(&format!("{path}?leaf=delete")).expect(409);
    control.delete(&format!("{path}?leaf=keep-it")).expect(400);
    assert!(client.read(0, 4096) == [1; 4096]);
    drop(client);

    let (status, said) = leafblk(dir, &["vm", "detach", "web1", "--delete"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("leaf") && said.contains("add --yes"), "{said}");
    assert!(leaf.exists());
    let said = says(dir, &["vm", "detach", "web1", "--delete", "--yes"]);
    assert_eq!(said, "VM web1 is detached, and its leaf deleted\n");
    assert!(!leaf.exists() && !dir.join("run/web1.map").exists());
    control.get(path).expect(404);
    assert!(listed(dir, "web1.leaf").is_none(), "nothing is remembered of it");

    // The API asks nobody, and what comes next is new.
    assert_eq!(attach()["leaf_is_new"], true);
    control.delete(&format!("{path}?leaf=delete&force=true")).expect(204);
    assert!(!leaf.exists());

    // One that is not served: nobody can tell whose leaf is at its place.
    attach();
    control.delete(path).expect(204);
    assert!(leaf.exists());
    let readonly = json!({"name": "web1", "readonly": true});
    control.post("/v1/vms", &readonly).expect(201);
    let refused = control.delete(&format!("{path}?leaf=delete")).expect(409);
    assert!(refused["detail"].as_str().unwrap().contains("reading only"), "{refused}");
    assert!(leaf.exists());
    control.get(path).expect(200);
    daemon.stop();
}
