//! Files that are deleted or replaced while leafblk has them open, leaves that come from
//! another root, and a look at the configuration beside the leafblk that serves it.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::errors::served;
use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, make_root, wait_until};

fn leafblk(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// The command in a sentence that begins with `first`, up to `last`.
fn command<'a>(sentence: &'a str, first: &str, last: &str) -> Vec<&'a str> {
    let at = sentence.find(first).unwrap_or_else(|| panic!("no {first} in: {sentence}"));
    let end = sentence[at..].find(last).unwrap_or_else(|| panic!("no {last} in: {sentence}"));
    sentence[at..at + end].split_whitespace().collect()
}

fn runs(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{words:?}");
}

#[test]
fn a_leaf_that_is_deleted_under_its_vm_is_named_and_can_be_had_back() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (daemon, control) = served(dir.path());
    let leaf = daemon.leaf("web1");
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(4096, &[0x5a; 4096]);
    let problems = || control.get("/v1/vms/web1").expect(200)["problems"].clone();
    assert_eq!(problems(), json!([]));
    std::fs::remove_file(&leaf).unwrap();
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded", "{health}");
    let problem = problems()[0].as_str().unwrap().to_owned();
    assert_eq!(health["problems"], json!([format!("VM web1: {problem}")]));
    assert!(problem.contains("was deleted while it is in use"), "{problem}");
    wait_until("the metric", || {
        let text = String::from_utf8(control.get("/metrics").body).unwrap();
        text.contains("\nleafblk_vm_leaf_lost{vm=\"web1\"} 1\n")
    });
    // What the sentence says is typed, with the guest shut down.
    drop(client);
    let flush = command(&problem, "leafblk vm flush", ", and cp");
    let run = dir.path().join("run");
    let flush = [&flush[1..], &["--runtime-dir", run.to_str().unwrap()]].concat();
    assert!(leafblk(&flush).status.success());
    runs(&problem[problem.find("cp --sparse").unwrap()..].split(' ').collect::<Vec<_>>());
    wait_until("it is disconnected", || {
        control.get("/v1/vms/web1").expect(200)["connected"] == json!(false)
    });
    control.delete("/v1/vms/web1").expect(204);
    control.post("/v1/vms", &json!({"name": "web1"})).expect(201);
    assert_eq!(problems(), json!([]));
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(4096, 4096) == [0x5a; 4096]);
    drop(client);
    daemon.stop();
}

#[test]
fn a_root_that_is_replaced_under_its_vms_is_named_and_the_old_one_can_be_had_back() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (daemon, control) = served(dir.path());
    let (root, new) = (dir.path().join("root.raw"), dir.path().join("new.raw"));
    let old = std::fs::read(&root).unwrap();
    std::fs::write(&new, [7; 1 << 20]).unwrap();
    std::fs::rename(&new, &root).unwrap();
    let shown = || control.get("/v1/roots/debian").expect(200);
    let problem = shown()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("was replaced by another file while VMs read the old"), "{problem}");
    assert_eq!(shown()["changed"], json!(true));
    assert_eq!(control.get("/v1/health").expect(200)["status"], "degraded");
    runs(&command(&problem, "cp --sparse", " saves the old one"));
    assert!(std::fs::read(dir.path().join("root.raw.saved")).unwrap() == old);
    // In its place again, it is another file of the same content.
    std::fs::rename(dir.path().join("root.raw.saved"), &root).unwrap();
    daemon.stop();
}

#[test]
fn a_leaf_that_was_made_on_a_root_of_another_name_is_warned_of_with_both() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = make_root(dir.path(), ROOT_SECTORS);
    let root = |name: &str| format!("{name}={}", image.display());
    let (debian, v2) = (root("debian"), root("v2"));
    Daemon::start(dir.path(), &["--root", &debian, "--vm", "web1"]).stop();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &["--root", &v2, "--vm", "web1"]);
    let parts = ["VM web1: its leaf", "made on root debian, and is used on root v2"];
    let line = log.wait_for(&parts);
    assert!(line.contains("attach it with root=debian"), "{line}");
    let leaf = daemon.leaf("web1");
    daemon.stop();
    let check = |root: &str| {
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let mut check = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        check.args(["serve", "--check", "--root", root, "--vm", "web1", "--state-dir"]);
        let output = check.arg(state).arg("--runtime-dir").arg(run).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = check(&v2);
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    assert!(!check(&debian).contains("made on"));
    // It is the same image: the line that ends it, with the image's path.
    let words = command(&said, "leafblk leaf rebase", ", with the VM");
    let image = image.to_str().unwrap();
    let words: Vec<String> = words[1..].iter().map(|word| word.replace("IMAGE", image)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert!(words.contains(&leaf.to_str().unwrap()), "{words:?}");
    assert!(leafblk(&words).status.success(), "{words:?}");
    assert!(!check(&v2).contains("made on"));
}

#[test]
fn a_check_beside_the_leafblk_that_serves_the_vms_does_not_disturb_it() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", image.to_str().unwrap(), "--vm", "web1"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    let mut client = Client::connect(&daemon.socket("web1"));
    let connections = || -> Value {
        daemon.control().get("/v1/stats").expect(200)["vms"][0]["connections"].clone()
    };
    assert_eq!(connections(), json!(1));
    let mut check = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    check.args(["serve", "--check"]).args(args);
    check.arg("--state-dir").arg(dir.path().join("state"));
    let checked = check.arg("--runtime-dir").arg(dir.path().join("run")).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    // It is served on, and nothing has come to its socket.
    assert_eq!(client.read(0, 512).len(), 512);
    assert_eq!(connections(), json!(1));
    drop(client);
    daemon.stop();
    let said = log.rest();
    assert!(!said.contains("client was turned away"), "{said}");
}
