//! Files that are deleted or replaced while leafblk has them open.

use std::process::{Command, Output, Stdio};

use serde_json::json;

use super::errors::served;
use crate::common::{Client, wait_until};

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
