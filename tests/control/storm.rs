//! VMs come and go all the time; a neighbour notices nothing.

use std::time::Instant;

use serde_json::json;

use super::errors::served;
use crate::common::Client;
use crate::common::frontend::PATIENCE;
use crate::common::scene::{Neighbour, root_content};

#[test]
fn vms_that_come_and_go_disturb_no_neighbour_and_leave_nothing() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let neighbour = Neighbour::start(&daemon.socket("web1"));
    neighbour.goes_on(1);
    let pid = daemon.pid().as_raw_nonzero().get();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();

    let storm: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (control, run) = (control.clone(), dir.path().join("run"));
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    let name = format!("vm{thread}-{}", round % 3);
                    let path = format!("/v1/vms/{name}");
                    let vm = json!({"name": name, "ephemeral": round % 2 == 0});
                    control.post("/v1/vms", &vm).expect(201);
                    // A twin is refused whatever else is under way.
                    control.post("/v1/vms", &vm).problem(409, "exists");
                    let mut client = Client::connect(&run.join(format!("{name}.sock")));
                    client.write(0, &[7; 4096]);
                    assert!(client.read(4096, 4096) == root_content(8, 8));
                    if round % 2 == 0 {
                        control.delete(&path).problem(409, "connected");
                        control.delete(&format!("{path}?force=true")).expect(204);
                    } else {
                        drop(client);
                        control.delete(&format!("{path}?force=true")).expect(204);
                    }
                    control.get(&path).problem(404, "not-found");
                }
            })
        })
        .collect();
    for thread in storm {
        thread.join().unwrap();
    }
    neighbour.goes_on(20);
    neighbour.stop();
    let list = control.get("/v1/vms").expect(200);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let sockets = std::fs::read_dir(dir.path().join("run")).unwrap();
    let sockets: Vec<String> =
        sockets.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(sockets.iter().all(|name| !name.starts_with("vm")), "{sockets:?}");
    // The threads that wrote leaves end after some seconds without work.
    let deadline = Instant::now() + PATIENCE;
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", descriptors());
        std::thread::yield_now();
    }
    daemon.stop();
}

#[test]
fn of_many_that_attach_one_name_at_once_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let control = control.clone();
            std::thread::spawn(move || control.post("/v1/vms", &json!({"name": "x"})).status)
        })
        .collect();
    let mut statuses: Vec<u16> = tries.into_iter().map(|one| one.join().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(control.get("/v1/vms/x").expect(200)["state"], "serving");
    daemon.stop();
}
