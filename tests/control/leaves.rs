//! Which leaf a VM has: the one that it had. A missing one, or another one, is that VM's
//! failure, and nobody else's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::http::Control;
use crate::common::scene::{Log, ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root};

/// A directory with a root and a daemon that can be started again.
struct Place {
    dir: tempfile::TempDir,
    root: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = format!("debian={}", make_root(dir.path(), ROOT_SECTORS).display());
        Self { dir, root }
    }

    fn start(&self, vms: &[&str]) -> (Daemon, Log) {
        Daemon::start_logged(self.dir.path(), &self.args(vms))
    }

    fn args<'a>(&'a self, vms: &'a [&str]) -> Vec<&'a str> {
        let vms = vms.iter().flat_map(|vm| ["--vm", vm]);
        ["--root", &self.root].into_iter().chain(vms).collect()
    }

    fn leaf(&self, vm: &str) -> PathBuf {
        self.dir.path().join(format!("state/{vm}.leaf"))
    }

    fn away(&self, vm: &str) -> PathBuf {
        self.dir.path().join(format!("{vm}.away"))
    }

    /// Runs leafblk with its directories; its exit status and what it says.
    fn leafblk(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        let output = command
            .current_dir(self.dir.path())
            .args(args)
            .args(["--runtime-dir", "run"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|out| String::from_utf8(out).unwrap());
        (output.status.code(), said.concat())
    }

    fn check(&self, vms: &[&str]) -> (Option<i32>, String) {
        let args = [&["serve", "--state-dir", "state", "--check"][..], &self.args(vms)].concat();
        self.leafblk(&args)
    }

    fn copy(&self, from: &Path, to: &Path) {
        let status = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
        assert!(status.success());
    }
}

fn state(control: &Control, vm: &str) -> Value {
    control.get(&format!("/v1/vms/{vm}")).expect(200)
}

/// The VM is known as failed, for this reason.
fn is_failed(control: &Control, vm: &str, parts: &[&str]) {
    let info = state(control, vm);
    assert_eq!(info["state"], "failed", "{info}");
    let reason = info["reason"].as_str().unwrap();
    for part in parts {
        assert!(reason.contains(part), "{reason:?} lacks {part:?}");
    }
}

fn fill(daemon: &Daemon, vm: &str, byte: u8) {
    let mut client = Client::connect(&daemon.socket(vm));
    client.write(0, &[byte; 4096]);
    client.flush();
}

fn holds(daemon: &Daemon, vm: &str, byte: u8) {
    assert!(Client::connect(&daemon.socket(vm)).read(0, 4096) == [byte; 4096], "{vm}");
}

fn is_like_root(daemon: &Daemon, vm: &str) {
    assert!(Client::connect(&daemon.socket(vm)).read(0, 4096) == root_content(0, 8), "{vm}");
}

fn reload(daemon: &Daemon, log: &mut Log) {
    daemon.signal(rustix::process::Signal::HUP);
    log.wait_for(&["reloaded the configuration"]);
}

#[test]
fn a_vm_whose_leaf_is_missing_is_not_served_until_it_is_back() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1", "other"]);
    let control = daemon.control();
    control.post("/v1/vms", &json!({"name": "web2"})).expect(201);
    for (vm, byte) in [("web1", 1), ("web2", 2), ("other", 3)] {
        fill(&daemon, vm, byte);
    }
    daemon.stop();
    for vm in ["web1", "web2"] {
        std::fs::rename(place.leaf(vm), place.away(vm)).unwrap();
    }
    let (status, said) = place.check(&["web1", "other"]);
    assert_eq!(status, Some(1), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, vm) in lines.iter().zip(["web1", "web2"]) {
        assert!(line.starts_with(&format!("leafblk: VM {vm} had the leaf ")), "{said}");
        assert!(line.contains(&format!("state/{vm}.leaf")), "{said}");
    }

    let (daemon, mut log) = place.start(&["web1", "other"]);
    log.wait_for(&["VM web1 is not served: VM web1 had the leaf", "run leafblk reload"]);
    log.wait_for(&["VM web2, attached through the API, is not served"]);
    assert_eq!(daemon.announced.last().unwrap(), "ready: serving 1 VM; 2 VMs failed");
    let control = daemon.control();
    for vm in ["web1", "web2"] {
        let command = format!("leafblk vm new-leaf {vm} makes an empty one");
        is_failed(&control, vm, &["there is none at", &command]);
        assert!(!place.leaf(vm).exists() && !daemon.socket(vm).exists());
        let said = |line: &String| line.starts_with(&format!("{vm}: not served: VM {vm} had"));
        assert!(daemon.announced.iter().any(said), "{:?}", daemon.announced);
    }
    assert_eq!(control.get("/v1/health").expect(200)["status"], "degraded");
    holds(&daemon, "other", 3);
    reload(&daemon, &mut log);
    is_failed(&control, "web1", &["there is none at"]);

    for vm in ["web1", "web2"] {
        std::fs::rename(place.away(vm), place.leaf(vm)).unwrap();
    }
    reload(&daemon, &mut log);
    assert_eq!(control.get("/v1/health").expect(200)["status"], "ok");
    holds(&daemon, "web1", 1);
    holds(&daemon, "web2", 2);
    daemon.stop();
    let (status, said) = place.check(&["web1", "other"]);
    assert_eq!(status, Some(0), "{said}");
    for vm in ["web1", "web2", "other"] {
        let line = format!("{vm}: leaf {} (existing)", place.leaf(vm).display());
        let line = line.replace(&format!("{}/", place.dir.path().display()), "");
        assert!(said.replace(&format!("{}/", place.dir.path().display()), "").contains(&line));
    }
}

#[test]
fn a_lost_leaf_is_replaced_by_a_new_one_when_somebody_says_so() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1"]);
    assert_eq!(state(&daemon.control(), "web1")["leaf_is_new"], true);
    daemon.control().post("/v1/vms", &json!({"name": "web2"})).expect(201);
    fill(&daemon, "web1", 1);
    fill(&daemon, "web2", 2);
    let uuid = state(&daemon.control(), "web1")["leaf_uuid"].clone();
    daemon.stop();
    for vm in ["web1", "web2"] {
        std::fs::remove_file(place.leaf(vm)).unwrap();
    }
    let (daemon, mut log) = place.start(&["web1"]);
    let control = daemon.control();
    control.post("/v1/vms/web1/accept-leaf", &Value::Null).problem(409, "unexpected-leaf");
    is_failed(&control, "web1", &["was to have the leaf at", "leafblk vm new-leaf web1 makes"]);
    let (status, said) = place.leafblk(&["vm", "new-leaf", "web1"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("web1.leaf (new), size 2MiB"), "{said}");
    log.wait_for(&["VM web1: attached, with a new leaf"]);
    let info = control.post("/v1/vms/web2/new-leaf", &Value::Null).expect(200);
    assert_eq!((&info["leaf_is_new"], &info["origin"]), (&json!(true), &json!("api")));
    is_like_root(&daemon, "web1");
    is_like_root(&daemon, "web2");
    assert_ne!(state(&control, "web1")["leaf_uuid"], uuid);
    let refused = control.post("/v1/vms/web1/new-leaf", &Value::Null).problem(409, "served");
    assert!(refused.contains("detach it first"), "{refused}");
    // From now on that one is expected.
    daemon.stop();
    let (daemon, _) = place.start(&["web1"]);
    for vm in ["web1", "web2"] {
        assert_eq!(state(&daemon.control(), vm)["leaf_is_new"], false);
    }
    daemon.stop();
}

#[test]
fn another_leaf_in_its_place_is_a_vms_failure_until_it_is_accepted() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1"]);
    daemon.control().post("/v1/vms", &json!({"name": "web2"})).expect(201);
    fill(&daemon, "web1", 1);
    fill(&daemon, "web2", 2);
    daemon.stop();
    let swap = || {
        std::fs::rename(place.leaf("web1"), place.away("web1")).unwrap();
        std::fs::rename(place.leaf("web2"), place.leaf("web1")).unwrap();
        std::fs::rename(place.away("web1"), place.leaf("web2")).unwrap();
    };
    swap();
    let (status, said) = place.check(&["web1"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("VM web1 had the leaf") && said.contains("is another ("), "{said}");
    let (daemon, mut log) = place.start(&["web1"]);
    let control = daemon.control();
    for vm in ["web1", "web2"] {
        let command = format!("leafblk vm accept-leaf {vm} takes it");
        is_failed(&control, vm, &["is another (", "put the right one there", &command]);
    }
    let refused =
        control.post("/v1/vms/web1/new-leaf", &Value::Null).problem(409, "unexpected-leaf");
    assert!(refused.contains("was to have a new leaf, and there is one"), "{refused}");
    swap();
    reload(&daemon, &mut log);
    holds(&daemon, "web1", 1);
    holds(&daemon, "web2", 2);
    daemon.stop();

    swap();
    let (daemon, _) = place.start(&["web1"]);
    let (status, said) = place.leafblk(&["vm", "accept-leaf", "web1"]);
    assert!(status == Some(0) && said.contains("web1.leaf (existing)"), "{said}");
    daemon.control().post("/v1/vms/web2/accept-leaf", &Value::Null).expect(200);
    holds(&daemon, "web1", 2);
    holds(&daemon, "web2", 1);
    daemon.stop();
    assert_eq!(place.check(&["web1"]).0, Some(0));
}

#[test]
fn a_vm_that_is_renamed_in_the_configuration_does_not_begin_with_an_empty_disk() {
    for restart in [false, true] {
        let place = Place::new();
        let file = place.dir.path().join("leafblk.toml");
        let image = place.dir.path().join("root.raw");
        let write = |vms: &[&str]| {
            let vms: String = vms.iter().map(|vm| format!("[[vm]]\n{vm}\n")).collect();
            let root = format!("[[root]]\nname = \"debian\"\npath = {image:?}\n");
            std::fs::write(&file, root + &vms).unwrap();
        };
        let args = ["--config", file.to_str().unwrap()];
        write(&["name = \"web1\"", "name = \"stays\""]);
        let (mut daemon, mut log) = Daemon::start_logged(place.dir.path(), &args);
        fill(&daemon, "web1", 1);
        let renamed =
            ["name = \"web9\"", "name = \"stays\"", "name = \"temporary\"\nephemeral = true"];
        write(&renamed);
        let take_effect = |daemon: &mut Daemon, log: &mut Log| {
            if restart {
                daemon.signal(rustix::process::Signal::TERM);
                assert!(daemon.ended().success());
                (*daemon, *log) = Daemon::start_logged(place.dir.path(), &args);
            } else {
                reload(daemon, log);
            }
        };
        // It stays so, whatever is tried again.
        for _ in 0..2 {
            take_effect(&mut daemon, &mut log);
            let leaf = place.leaf("web1").display().to_string();
            let parts =
                ["as VM web1 (leaf ", &leaf, "left it", "leafblk vm new-leaf web9 makes", "leaf="];
            is_failed(&daemon.control(), "web9", &parts);
            assert!(!place.leaf("web9").exists() && place.leaf("web1").exists(), "{leaf}");
            assert_eq!(state(&daemon.control(), "temporary")["state"], "serving");
        }
        // The same VM by another name.
        let with_leaf = format!("name = \"web9\"\nleaf = {:?}", place.leaf("web1"));
        write(&[&with_leaf, "name = \"stays\""]);
        take_effect(&mut daemon, &mut log);
        holds(&daemon, "web9", 1);
        // A later one is new: nobody has gone.
        write(&[&with_leaf, "name = \"stays\"", "name = \"later\""]);
        take_effect(&mut daemon, &mut log);
        assert_eq!(state(&daemon.control(), "later")["leaf_is_new"], true);
        daemon.stop();
    }
}

#[test]
fn vms_of_flags_may_be_others_at_each_start() {
    let place = Place::new();
    for vm in ["web1", "web2", "web1"] {
        let (daemon, _) = place.start(&[vm]);
        assert_eq!(state(&daemon.control(), vm)["state"], "serving");
        daemon.stop();
    }
}

#[test]
fn a_vm_that_is_attached_again_has_its_leaf_or_says_which() {
    let place = Place::new();
    let (daemon, _) = place.start(&[]);
    let control = daemon.control();
    let attach = |query: &str| control.post(&format!("/v1/vms{query}"), &json!({"name": "web1"}));
    let detach = || control.delete("/v1/vms/web1?force=true").expect(204);
    assert_eq!(attach("").expect(201)["leaf_is_new"], true);
    fill(&daemon, "web1", 1);
    detach();
    assert_eq!(attach("").expect(201)["leaf_is_new"], false);
    holds(&daemon, "web1", 1);
    detach();
    let refused = attach("?leaf=new").problem(409, "unexpected-leaf");
    assert!(refused.contains("attach the VM with --accept-leaf, which takes it"), "{refused}");
    attach("?leaf=newest").problem(400, "bad-request");
    std::fs::remove_file(place.leaf("web1")).unwrap();
    for query in ["", "?leaf=accept"] {
        let refused = attach(query).problem(409, "unexpected-leaf");
        assert!(
            refused.contains("attach it with --new-leaf, which makes an empty one"),
            "{refused}"
        );
        assert!(!place.leaf("web1").exists());
        assert_eq!(control.get("/v1/vms").expect(200), json!([]));
    }
    let (status, said) = place.leafblk(&["vm", "attach", "web1", "--new-leaf"]);
    assert!(status == Some(0) && said.contains("web1.leaf (new)"), "{said}");
    is_like_root(&daemon, "web1");
    let (status, said) = place.leafblk(&["vm", "show", "web1"]);
    assert!(status == Some(0) && said.contains("leaf is:          new"), "{said}");
    // An ephemeral one has none after its detach.
    for _ in 0..2 {
        let vm = json!({"name": "temporary", "ephemeral": true});
        assert_eq!(control.post("/v1/vms", &vm).expect(201)["leaf_is_new"], true);
        fill(&daemon, "temporary", 5);
        control.delete("/v1/vms/temporary?force=true").expect(204);
    }
    let text = std::fs::read_to_string(place.dir.path().join("state/leaves.toml")).unwrap();
    assert!(text.contains("version = 1") && !text.contains("temporary"), "{text}");
    daemon.stop();
}

#[test]
fn what_the_tools_put_in_a_leafs_place_is_the_vms_leaf_and_what_came_from_elsewhere_is_not() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1"]);
    fill(&daemon, "web1", 1);
    let uuid = state(&daemon.control(), "web1")["leaf_uuid"].clone();
    daemon.stop();
    place.copy(&place.leaf("web1"), &place.away("backup"));
    let leaf = place.leaf("web1").display().to_string();
    let tool = |args: &[&str]| {
        let (status, said) = place.leafblk(args);
        assert_eq!(status, Some(0), "{said}");
    };
    let root = ["--root", "root.raw"];
    // Twice, with no start in between.
    tool(&[&["leaf", "compact", &leaf][..], &root].concat());
    tool(&[&["leaf", "rebase", &leaf, "--from", "root.raw"][..], &root].concat());
    let (daemon, _) = place.start(&["web1"]);
    holds(&daemon, "web1", 1);
    assert_eq!(state(&daemon.control(), "web1")["leaf_uuid"], uuid);
    fill(&daemon, "web1", 7);
    daemon.stop();
    // An older copy of the same disk.
    place.copy(&place.away("backup"), &place.leaf("web1"));
    let (daemon, _) = place.start(&["web1"]);
    holds(&daemon, "web1", 1);
    daemon.stop();
    // The same content, by way of a qcow2 image, is another disk.
    let args = ["leaf", "export", &leaf, "--format", "qcow2", "--output", "web1.qcow2"];
    tool(&[&args[..], &root].concat());
    std::fs::remove_file(&leaf).unwrap();
    let args = ["leaf", "import", "web1.qcow2", &leaf, "--root", "root.raw"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    assert!(command.current_dir(place.dir.path()).args(args).status().unwrap().success());
    let (daemon, _) = place.start(&["web1"]);
    is_failed(&daemon.control(), "web1", &["is another ("]);
    daemon.control().post("/v1/vms/web1/accept-leaf", &Value::Null).expect(200);
    holds(&daemon, "web1", 1);
    daemon.stop();
}

#[test]
fn a_state_directory_that_is_moved_takes_what_is_remembered_along() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1", "web2"]);
    fill(&daemon, "web1", 1);
    daemon.stop();
    let moved = place.dir.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    std::fs::rename(place.dir.path().join("state"), moved.join("state")).unwrap();
    std::fs::remove_file(moved.join("state/web2.leaf")).unwrap();
    let (daemon, _) = Daemon::start_logged(&moved, &place.args(&["web1", "web2"]));
    holds(&daemon, "web1", 1);
    let was = place.leaf("web2").display().to_string();
    is_failed(&daemon.control(), "web2", &["at", &was, "there is none at", "moved/state"]);
    daemon.stop();
}

#[test]
fn without_a_control_api_the_file_is_the_way_to_a_new_leaf() {
    let place = Place::new();
    let args = [&place.args(&["web1"])[..], &["--control-socket", "off"]].concat();
    Daemon::start(place.dir.path(), &args).stop();
    std::fs::remove_file(place.leaf("web1")).unwrap();
    let (daemon, mut log) = Daemon::start_logged(place.dir.path(), &args);
    log.wait_for(&["web1 is not served", "take the entry of VM web1 out of", "state/leaves.toml"]);
    std::fs::write(place.dir.path().join("state/leaves.toml"), "version = 1\n").unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    log.wait_for(&["VM web1: attached, with a new leaf"]);
    is_like_root(&daemon, "web1");
    daemon.stop();
}

#[test]
fn a_file_that_remembers_and_cannot_be_understood_stops_a_start() {
    let place = Place::new();
    let file = place.dir.path().join("state/leaves.toml");
    std::fs::create_dir(place.dir.path().join("state")).unwrap();
    std::fs::write(&file, "version = 9\n").unwrap();
    for flag in ["--check", "--keep-cache"] {
        let args = ["serve", "--state-dir", "state", flag];
        let (status, said) = place.leafblk(&[&args[..], &place.args(&["web1"])].concat());
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("leaves.toml has version 9"), "{said}");
    }
    assert!(!place.leaf("web1").exists());
}

// Copies.

#[test]
fn of_two_leaves_with_one_uuid_the_second_is_refused_by_name() {
    let place = Place::new();
    let (daemon, _) = place.start(&["web1"]);
    fill(&daemon, "web1", 1);
    daemon.stop();
    place.copy(&place.leaf("web1"), &place.leaf("web2"));
    let (one, two) = (place.leaf("web1"), place.leaf("web2"));
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    let parts = [two, "of VM web2 is a copy of", one, "VM web1 has", "leafblk leaf compact"];
    let (status, said) = place.check(&["web1", "web2"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("state/web2.leaf of VM web2 is a copy of"), "{said}");
    // Both in the configuration: the first is served.
    let (daemon, _) = place.start(&["web1", "web2"]);
    is_failed(&daemon.control(), "web2", &parts);
    holds(&daemon, "web1", 1);
    daemon.stop();
    // One after the other.
    let (daemon, _) = place.start(&["web1"]);
    let control = daemon.control();
    let refused = control.post("/v1/vms", &json!({"name": "web2"})).problem(409, "unexpected-leaf");
    parts.iter().for_each(|part| assert!(refused.contains(part), "{refused}"));
    fill(&daemon, "web1", 3);
    control.delete("/v1/vms/web1?force=true").expect(204);
    control.post("/v1/vms", &json!({"name": "web2"})).expect(201);
    holds(&daemon, "web2", 1);
    control.delete("/v1/vms/web2?force=true").expect(204);
    // With a UUID of its own.
    let (status, said) = place.leafblk(&["leaf", "compact", two, "--root", "root.raw"]);
    assert_eq!(status, Some(0), "{said}");
    control.post("/v1/vms", &json!({"name": "web2"})).expect(201);
    daemon.signal(rustix::process::Signal::HUP);
    crate::common::wait_until("web1 is back", || {
        control.get("/v1/vms/web1").status == 200 && state(&control, "web1")["state"] == "serving"
    });
    holds(&daemon, "web1", 3);
    holds(&daemon, "web2", 1);
    daemon.stop();
}
