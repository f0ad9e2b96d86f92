//! Who is connected to a VM, and what went wrong with those who were.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};

use super::errors::served;
use crate::common::frontend::{PATIENCE, message};
use crate::common::{Client, Daemon, wait_until};

/// A frontend that asks for a queue of three entries, and is hung up on.
fn fails_to_connect(daemon: &Daemon) {
    const SET_VRING_NUM: u32 = 8;
    let mut stream = UnixStream::connect(daemon.socket("web1")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&message(SET_VRING_NUM, 0, &[0, 0, 0, 0, 3, 0, 0, 0])).unwrap();
    assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0);
}

fn show(daemon: &Daemon) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["vm", "show", "web1", "--runtime-dir"]).arg(daemon.dir.join("run"));
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn connections_that_failed_are_kept_with_their_time_until_a_request_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let web1 = || control.get("/v1/vms/web1").expect(200);
    assert_eq!((&web1()["last_trouble"], &web1()["client"]), (&Value::Null, &Value::Null));
    for _ in 0..3 {
        fails_to_connect(&daemon);
    }
    let info = web1();
    let trouble = &info["last_trouble"];
    assert_eq!(trouble["times"], 3, "{info}");
    let why = trouble["why"].as_str().unwrap();
    assert!(why.contains("queue size 3 is not a power of two"), "{why}");
    let problem = info["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("its last 3 connections failed, the last at 2"), "{problem}");
    assert!(problem.ends_with(why), "{problem}");
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["problems"], json!([format!("VM web1: {problem}")]));
    // What top and the page show.
    let stats = control.get("/v1/stats").expect(200);
    assert_eq!(stats["failing"][0]["problem"], problem, "{stats}");
    assert_eq!(stats["vms"][0]["failing"], true);
    let shown = show(&daemon);
    assert!(shown.contains("last trouble:") && shown.contains(", 3 times: "), "{shown}");

    // It is over with the first request, and still there for who asks.
    let mut client = Client::connect(&daemon.socket("web1"));
    client.read(0, 4096);
    // It is counted after the answer is shown.
    wait_until("the trouble is over", || control.get("/v1/health").expect(200)["status"] == "ok");
    let info = web1();
    assert_eq!((&info["problems"], &info["last_trouble"]), (&json!([]), trouble));
    drop(client);
    fails_to_connect(&daemon);
    assert_eq!(web1()["last_trouble"]["times"], 1, "the three before are over");
    daemon.stop();
}

#[test]
fn the_process_that_is_connected_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let client = Client::connect(&daemon.socket("web1"));
    let command = std::fs::read_to_string("/proc/self/comm").unwrap();
    let (pid, command) = (std::process::id(), command.trim_end());
    let named = json!({"pid": pid, "command": command});
    assert_eq!(control.get("/v1/vms/web1").expect(200)["client"], named);
    assert_eq!(control.get("/v1/vms").expect(200)[0]["client"], named);
    assert_eq!(control.get("/v1/stats").expect(200)["vms"][0]["client"], named);
    let shown = show(&daemon);
    assert!(shown.contains(&format!("{command}, pid {pid}")), "{shown}");
    drop(client);
    wait_until("nobody is connected", || {
        control.get("/v1/vms/web1").expect(200)["client"].is_null()
    });
    daemon.stop();
}
