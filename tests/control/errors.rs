//! Every mistake has its status, its kind and its sentence, and changes nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::http::{Answer, Control};
use crate::common::scene::{ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root};

/// A daemon with the root `debian` and the VM `web1`, both through the API.
pub(crate) fn served(dir: &Path) -> (Daemon, Control) {
    let root = make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    let control = daemon.control();
    control.post("/v1/roots", &json!({"name": "debian", "path": root})).expect(201);
    control.post("/v1/vms", &json!({"name": "web1"})).expect(201);
    (daemon, control)
}

fn refuses(answer: &Answer, status: u16, kind: &str, parts: &[&str]) {
    let detail = answer.problem(status, kind);
    for part in parts {
        assert!(detail.contains(part), "{detail:?} lacks {part:?}");
    }
    assert!(!detail.contains('\n'), "{detail:?} is no sentence");
}

#[test]
fn a_vm_that_makes_no_sense_is_refused_with_the_sentence_of_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let before = control.get("/v1/vms").expect(200);
    let state = std::fs::read(dir.path().join("state/attached.toml")).unwrap();
    let long = format!("/tmp/{}", "s".repeat(120));
    let leaf = daemon.leaf("web1");
    for (vm, status, kind, parts) in [
        (json!({"name": "../x"}), 422, "invalid", &["has a slash"][..]),
        (json!({"name": "control"}), 409, "exists", &["is reserved"]),
        (json!({"name": "x", "root": "nope"}), 404, "not-found", &["nope", "the roots are debian"]),
        (json!({"name": "x", "root": "no/pe"}), 422, "invalid", &["has a slash"]),
        (json!({"name": "x", "size": "4G"}), 422, "invalid", &["write 4GiB"]),
        (json!({"name": "x", "size": 513}), 422, "invalid", &["a multiple of 512"]),
        (json!({"name": "x", "size": -1}), 422, "invalid", &["a size such as"]),
        (json!({"name": "x", "size": 512}), 409, "unfit", &["is less than the"]),
        (json!({"name": "x", "size": "2048TiB"}), 422, "invalid", &["up to 1024TiB"]),
        (
            json!({"name": "x", "readonly": true, "size": "8GiB"}),
            409,
            "unfit",
            &["has no leaf", "leave size out"],
        ),
        (json!({"name": "x", "queues": 65}), 422, "invalid", &["from 1 to 64"]),
        (json!({"name": "x", "leaf": "x.leaf"}), 422, "invalid", &["is not absolute"]),
        (json!({"name": "x", "socket": long}), 422, "invalid", &["at most 107"]),
        (json!({"name": "x", "leaf": leaf}), 409, "unfit", &["both the leaf of VM web1"]),
        (json!({"name": "x", "leaf": "/no/such/dir"}), 409, "unfit", &["can't be created"]),
        (json!({"name": "x", "sise": 1}), 422, "invalid", &["sise", "docs/control.md"]),
        (json!({"name": 7}), 422, "invalid", &["expected a string"]),
        (json!([]), 422, "invalid", &[]),
        (json!({"name": "web1"}), 409, "exists", &["there is a VM web1 already"]),
    ] {
        refuses(&control.post("/v1/vms", &vm), status, kind, parts);
    }
    refuses(&control.request("POST", "/v1/vms", "{"), 400, "bad-request", &["is no JSON"]);
    refuses(&control.request("POST", "/v1/vms", ""), 400, "bad-request", &["send one JSON object"]);
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(70_000));
    refuses(&control.request("POST", "/v1/vms", &large), 413, "body-too-large", &["65536"]);
    assert_eq!(control.get("/v1/vms").expect(200), before);
    assert_eq!(std::fs::read(dir.path().join("state/attached.toml")).unwrap(), state);
    assert!(!daemon.leaf("x").exists() && !daemon.socket("x").exists());
    daemon.stop();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("ragged.raw"), [0; 700]).unwrap();
    std::fs::write(at("no.leaf"), "nonsense").unwrap();
    std::fs::write(at("other.raw"), [1; 1 << 20]).unwrap();
    for (path, part) in [
        (at("missing.raw"), "can't be read"),
        (at("ragged.raw"), "no multiple of 512"),
        (at(""), "is neither a file"),
    ] {
        let added = control.post("/v1/roots", &json!({"name": "r", "path": path}));
        let detail = added.problem(
            if path == at("") { 422 } else { 409 },
            if path == at("") { "invalid" } else { "unfit" },
        );
        assert!(detail.contains(part) || path == at(""), "{detail}");
    }
    let attach = |leaf: &str| control.post("/v1/vms", &json!({"name": "x", "leaf": at(leaf)}));
    refuses(&attach("no.leaf"), 409, "unfit", &["no.leaf"]);
    control.post("/v1/roots", &json!({"name": "other", "path": at("other.raw")})).expect(201);
    control.delete("/v1/vms/web1").expect(204);
    let leaf = daemon.leaf("web1");
    let elsewhere = json!({"name": "x", "root": "other", "leaf": leaf});
    refuses(&control.post("/v1/vms", &elsewhere), 409, "unfit", &["was made on another root"]);
    let socket = json!({"name": "x", "root": "other", "socket": at("no.leaf")});
    refuses(&control.post("/v1/vms", &socket), 409, "unfit", &["is no socket"]);
    daemon.stop();
}

#[test]
fn an_attach_that_fails_leaves_no_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    // In the place of the live map, which is found out when the leaf is opened.
    let in_the_way = dir.path().join("run/x.map");
    std::fs::create_dir(&in_the_way).unwrap();
    let attach = || control.post("/v1/vms", &json!({"name": "x"}));
    refuses(&attach(), 500, "failed", &["x.map", "can't be made"]);
    assert!(!daemon.leaf("x").exists() && !daemon.socket("x").exists());
    std::fs::remove_dir(&in_the_way).unwrap();
    attach().expect(201);
    daemon.stop();
}

#[test]
fn what_is_not_there_or_in_use_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    for path in ["/v1/vms/nope", "/v1/roots/nope"] {
        refuses(&control.get(path), 404, "not-found", &["nope"]);
        refuses(&control.delete(path), 404, "not-found", &["nope"]);
    }
    for verb in ["revert", "flush"] {
        let answer = control.post(&format!("/v1/vms/nope/{verb}"), &Value::Null);
        refuses(&answer, 404, "not-found", &["there is no VM nope"]);
    }
    refuses(&control.get("/v2/vms"), 404, "not-found", &["there is no path /v2/vms"]);
    refuses(&control.request("PUT", "/v1/vms", "{}"), 405, "method-not-allowed", &["takes no PUT"]);
    refuses(&control.delete("/v1/roots/debian"), 409, "root-used", &["used by VM web1"]);
    refuses(&control.delete("/v1/vms/web1?forc=true"), 400, "bad-request", &["force=true"]);
    refuses(&control.delete("/v1/vms/%ff"), 400, "bad-request", &[]);

    let mut client = Client::connect(&daemon.socket("web1"));
    let connected = ["has a client connected", "force"];
    refuses(&control.delete("/v1/vms/web1"), 409, "connected", &connected);
    refuses(&control.post("/v1/vms/web1/revert", &Value::Null), 409, "connected", &connected);
    assert!(client.read(0, 4096) == root_content(0, 8), "the client is untouched");
    drop(client);
    daemon.stop();
}

#[test]
fn a_read_only_vm_has_nothing_to_revert_or_resize() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let vm = json!({"name": "ro", "readonly": true});
    assert_eq!(control.post("/v1/vms", &vm).expect(201)["leaf_held_bytes"], Value::Null);
    let revert = control.post("/v1/vms/ro/revert", &Value::Null);
    refuses(&revert, 409, "no-leaf", &["VM ro has no leaf, so there is nothing to revert"]);
    let resize = control.post("/v1/vms/ro/resize", &json!({"size": "1GiB"}));
    refuses(&resize, 409, "no-leaf", &["nothing to resize"]);
    control.post("/v1/vms/ro/flush", &Value::Null).expect(204);
    daemon.stop();
}

#[test]
fn each_kind_of_problem_is_described_where_its_type_points() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    let kinds = control.get("/v1/problems").expect(200);
    let kinds = kinds.as_array().unwrap();
    assert!(kinds.len() > 10);
    for kind in kinds {
        assert_eq!(control.get(kind["type"].as_str().unwrap()).expect(200), *kind);
    }
    control.get("/v1/problems/nope").problem(404, "not-found");
    daemon.stop();
}
