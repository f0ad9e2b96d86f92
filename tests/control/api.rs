//! What the API does, by example.

use std::time::Instant;

use serde_json::json;

use crate::common::frontend::PATIENCE;
use crate::common::scene::{ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root};

#[test]
fn an_empty_host_gets_a_root_and_a_vm_and_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    assert_eq!(control.get("/v1/vms").expect(200), json!([]));
    assert_eq!(control.get("/v1/roots").expect(200), json!([]));

    let added = control.post("/v1/roots", &json!({"name": "debian", "path": root}));
    assert_eq!(added.header("location"), Some("/v1/roots/debian"));
    let info = added.expect(201);
    assert_eq!(info["state"], "serving");
    assert_eq!(info["origin"], "api");
    assert_eq!(info["size"], ROOT_SECTORS * 512);
    assert_eq!(info["fingerprint"].as_str().unwrap().len(), 64);

    let attached = control.post("/v1/vms", &json!({"name": "web1", "size": "16MiB", "queues": 2}));
    assert_eq!(attached.header("location"), Some("/v1/vms/web1"));
    let info = attached.expect(201);
    assert_eq!(info["root"], "debian");
    assert_eq!(info["size"], 16 << 20);
    assert_eq!(info["connected"], false);
    assert_eq!(control.get("/v1/roots/debian").expect(200)["vms"], json!(["web1"]));

    let mut client = Client::connect(&daemon.socket("web1"));
    assert_eq!(client.capacity, 16 << 20);
    assert!(client.read(0, 65536) == root_content(0, 128));
    client.write(1 << 20, &[0x5a; 4096]);
    let info = control.get("/v1/vms/web1").expect(200);
    assert_eq!((&info["connected"], &info["connections"]), (&json!(true), &json!(1)));
    assert_eq!(info["leaf_held_bytes"], 4096);
    // Counted after the answer is shown (docs/observability.md).
    let deadline = Instant::now() + PATIENCE;
    while control.get("/v1/vms/web1").expect(200)["counters"]["writes"] != 1 {
        assert!(Instant::now() < deadline, "the write is never counted");
        std::thread::yield_now();
    }
    control.post("/v1/vms/web1/flush", &json!(null)).expect(204);
    let status = control.get("/v1/status").expect(200);
    assert_eq!(status["vms_connected"], 1);
    drop(client);

    control.delete("/v1/vms/web1?force=true").expect(204);
    assert!(!daemon.socket("web1").exists());
    assert_eq!(control.get("/v1/vms").expect(200), json!([]));
    control.post("/v1/vms", &json!({"name": "web1"})).expect(201);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert_eq!(client.capacity, 16 << 20, "the leaf keeps its size");
    assert!(client.read(1 << 20, 4096) == [0x5a; 4096]);
    drop(client);
    daemon.stop();
}
