//! The serial number of a VM's disk: what its guest reads, and the warning where two
//! VMs have the same.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::errors::served;
use crate::common::frontend::{DATA, OK, T_GET_ID, Vmm};
use crate::common::{Daemon, make_root};

const ONE: &str = "web-production-frontend-1";
const TWO: &str = "web-production-frontend-2";
const SAME: [&str; 3] = [ONE, TWO, "have the same serial number \"web-production-front\""];

/// What a guest reads (virtio 1.3, 5.2.6: VIRTIO_BLK_T_GET_ID).
fn read_serial(socket: &Path) -> Vec<u8> {
    let mut vmm = Vmm::running(socket);
    assert_eq!(vmm.request(T_GET_ID, 0, 20), (OK, 21));
    vmm.read(DATA, 20)
}

fn leafblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leafblk")).args(args).output().unwrap()
}

#[test]
fn a_guest_reads_the_serial_number_that_is_set_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let vm = json!({"name": "web2", "serial": "twenty characters, ."});
    assert_eq!(control.post("/v1/vms", &vm).expect(201)["serial"], "twenty characters, .");
    assert_eq!(read_serial(&daemon.socket("web2")), b"twenty characters, .");
    assert_eq!(read_serial(&daemon.socket("web1")), b"web1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    control.post("/v1/vms/web2/revert", &Value::Null).expect(200);
    assert_eq!(read_serial(&daemon.socket("web2")), b"twenty characters, .");
    let socket = dir.path().join("run/control.sock");
    let shown = leafblk(&["vm", "show", "web2", "--socket", socket.to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("twenty characters, .\n"), "{shown}");
    for (serial, part) in [("", "is empty"), ("a\nb", "has the character"), (" a", "a space")] {
        let refused = control.post("/v1/vms", &json!({"name": "x", "serial": serial}));
        let detail = refused.problem(422, "invalid");
        assert!(detail.contains("VM x: serial") && detail.contains(part), "{detail}");
    }
    daemon.kill();
    let daemon = Daemon::start(dir.path(), &[]);
    assert_eq!(read_serial(&daemon.socket("web2")), b"twenty characters, .");
    let vms = daemon.control().get("/v1/vms").expect(200);
    assert_eq!((&vms[0]["serial"], &vms[1]["serial"]), (&json!("web1"), &vm["serial"]));
    assert_eq!(vms[1].get("serial_shared_with"), None);
    daemon.stop();
}

#[test]
fn two_vms_with_the_same_serial_number_are_named_at_an_attach_and_at_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), 64);
    let root = ["--root", root.to_str().unwrap()];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &root);
    let socket = dir.path().join("run/control.sock");
    let attach = |vm: &str| {
        let attached = leafblk(&["vm", "attach", vm, "--socket", socket.to_str().unwrap()]);
        assert!(attached.status.success(), "{attached:?}");
        String::from_utf8(attached.stderr).unwrap()
    };
    assert_eq!(attach(ONE), "");
    let said = attach(TWO);
    assert!(said.contains("warning: VM web-production-frontend-1 has the serial number"), "{said}");
    assert!(said.contains("with a serial= of its own"), "{said}");
    log.wait_for(&SAME);
    let one = daemon.control().get(&format!("/v1/vms/{ONE}")).expect(200);
    assert_eq!(one["serial_shared_with"], TWO);
    daemon.stop();

    // Of the state file, and one of each.
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &root);
    log.wait_for(&SAME);
    daemon.control().delete(&format!("/v1/vms/{ONE}")).expect(204);
    daemon.stop();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &[&root[..], &["--vm", ONE]].concat());
    log.wait_for(&SAME);
    // With a serial number of its own there is nothing to say.
    daemon.control().delete(&format!("/v1/vms/{TWO}")).expect(204);
    assert_eq!(attach(&format!("{TWO},serial=frontend-2")), "");
    daemon.stop();
    assert!(!log.rest().contains("serial number"));
}

#[test]
fn a_reload_and_a_check_warn_of_the_same_serial_number() {
    let dir = tempfile::tempdir().unwrap();
    make_root(dir.path(), 64);
    let file = dir.path().join("leafblk.toml");
    let file = file.to_str().unwrap();
    let write = |vms: &str| std::fs::write(file, format!("[[root]]\npath='root.raw'\n{vms}"));
    let vm = |name: &str, more: &str| format!("[[vm]]\nname = '{name}'\n{more}\n");
    write(&vm(ONE, "")).unwrap();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &["--config", file]);
    let (state, run) = (dir.path().join("state"), dir.path().join("run"));
    let directories =
        ["--state-dir", state.to_str().unwrap(), "--runtime-dir", run.to_str().unwrap()];
    let check = || {
        let checked =
            leafblk(&[&["serve", "--config", file, "--check"], &directories[..]].concat());
        assert!(checked.status.success(), "{checked:?}");
        // Other warnings are of the host.
        let said = String::from_utf8(checked.stderr).unwrap();
        said.lines().filter(|line| line.contains("serial number")).collect::<String>()
    };
    assert_eq!(check(), "");
    write(&[vm(ONE, ""), vm(TWO, "")].concat()).unwrap();
    let said = check();
    assert!(said.starts_with("leafblk: warning: VM web-"), "{said}");
    assert!(SAME.iter().all(|part| said.contains(part)), "{said}");
    assert!(said.contains("such as serial=frontend-2 for VM web-production-frontend-2"), "{said}");
    daemon.signal(Signal::HUP);
    log.wait_for(&SAME);
    log.wait_for(&["reloaded the configuration"]);
    daemon.stop();
    write(&[vm(ONE, ""), vm(TWO, "serial = 'frontend-2'")].concat()).unwrap();
    assert_eq!(check(), "");
    // What is attached through the API counts too.
    let daemon = Daemon::start(dir.path(), &["--config", file]);
    daemon.control().post("/v1/vms", &json!({"name": "x", "serial": "frontend-2"})).expect(201);
    let said = check();
    assert!(said.contains("VM web-production-frontend-2 and VM x have the same"), "{said}");
    daemon.stop();
}
