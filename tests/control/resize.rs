//! A disk that grows while its guest runs.

use std::io::Read;
use std::os::unix::net::UnixStream;

use serde_json::json;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::errors::served;
use crate::common::frontend::{
    EVENT_IDX, F_FLUSH, INDIRECT, IOERR, PATIENCE, Ring, T_IN, T_OUT, VERSION_1, Vmm,
};
use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, wait_until};

const MIB: u64 = 1 << 20;

/// A running VMM that takes the backend's messages; the end where they come.
fn with_channel(socket: &std::path::Path) -> (Vmm, UnixStream) {
    let mut vmm = Vmm::negotiated(socket, VERSION_1 | EVENT_IDX | INDIRECT | F_FLUSH);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    vmm.frontend.set_backend_request_fd(&theirs).unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 256));
    (vmm, ours)
}

fn capacity(vmm: &mut Vmm) -> u64 {
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, bytes) = vmm.frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn a_running_guest_sees_its_disk_grow_and_uses_all_of_it() {
    const OLD: u64 = ROOT_SECTORS;
    const NEW: u64 = 3 * ROOT_SECTORS;
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let (mut vmm, mut channel) = with_channel(&daemon.socket("web1"));
    assert_eq!(capacity(&mut vmm), OLD);
    vmm.write_sectors(7, &[7; 512]);
    assert_eq!(vmm.request(T_IN, OLD, 512).0, IOERR);

    let answer = control.post("/v1/vms/web1/resize", &json!({"size": NEW * 512})).expect(200);
    assert_eq!((&answer["told"], &answer["vm"]["size"]), (&json!("client"), &json!(NEW * 512)));
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no body.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(capacity(&mut vmm), NEW);
    assert!(vmm.read_sectors(OLD, 8) == [0; 4096]);
    vmm.write_sectors(NEW - 8, &[9; 4096]);
    assert!(vmm.read_sectors(NEW - 8, 8) == [9; 4096]);
    assert!(vmm.read_sectors(7, 1) == [7; 512]);
    for (kind, sector) in [(T_IN, NEW), (T_OUT, NEW), (T_OUT, NEW - 7)] {
        assert_eq!(vmm.request(kind, sector, 4096).0, IOERR);
    }

    let shrink = control.post("/v1/vms/web1/resize", &json!({"size": OLD * 512}));
    let detail = shrink.problem(409, "shrink");
    assert!(detail.contains("can't shrink"), "{detail}");
    let odd = control.post("/v1/vms/web1/resize", &json!({"size": NEW * 512 + 1}));
    assert!(odd.problem(422, "invalid").contains("a multiple of 512"));
    let huge = control.post("/v1/vms/web1/resize", &json!({"size": "1048576TiB"}));
    assert!(huge.problem(422, "invalid").contains("up to 1024TiB"));
    let large = control.post("/v1/vms/web1/resize", &json!({"size": "1024TiB"}));
    large.problem(409, "unfit");
    assert_eq!(capacity(&mut vmm), NEW);
    drop(vmm);
    daemon.kill();

    let daemon = Daemon::start(dir.path(), &[]);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert_eq!(client.capacity, NEW * 512);
    assert!(client.read((NEW - 8) * 512, 4096) == [9; 4096]);
    drop(client);
    daemon.stop();
}

#[test]
fn a_client_that_cannot_be_told_sees_the_new_size_when_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let resize =
        |size: &str| control.post("/v1/vms/web1/resize", &json!({"size": size})).expect(200);
    assert_eq!(resize("16MiB")["told"], "nobody");
    let client = Client::connect(&daemon.socket("web1"));
    assert_eq!(client.capacity, 16 << 20);
    assert_eq!(resize("32MiB")["told"], "not-possible");
    drop(client);
    assert_eq!(Client::connect(&daemon.socket("web1")).capacity, 32 << 20);
    daemon.stop();
}

#[test]
fn a_frontend_that_looks_again_sees_the_new_size_without_being_told() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    // As Firecracker, which looks when it is asked to: PATCH /drives/ID.
    let mut vmm = Vmm::running_with(&daemon.socket("web1"), VERSION_1 | EVENT_IDX | F_FLUSH, 256);
    assert_eq!(capacity(&mut vmm), ROOT_SECTORS);
    let resize = || control.post("/v1/vms/web1/resize", &json!({"size": "4MiB"})).expect(200);
    assert_eq!(resize()["told"], "not-possible");
    assert_eq!(capacity(&mut vmm), 8192);
    vmm.write_sectors(8184, &[4; 4096]);
    assert!(vmm.read_sectors(8184, 8) == [4; 4096]);
    // What the command line says of it, here of the size that the disk has already.
    let run = dir.path().join("run");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["vm", "resize", "web1", "4MiB", "--runtime-dir"]).arg(&run);
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for part in ["VM web1 has 4MiB now; ", "PATCH /drives/ID", "removed and added again"] {
        assert!(said.contains(part), "{said}");
    }
    drop(vmm);
    wait_until("it is gone", || resize()["told"] == "nobody");
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(said.contains("under QEMU, do this again once it is connected"), "{said}");
    daemon.stop();
}

#[test]
fn a_running_qemu_is_told_again_of_the_size_that_its_disk_has() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    control.post("/v1/vms/web1/resize", &json!({"size": "4MiB"})).expect(200);
    let (vmm, mut channel) = with_channel(&daemon.socket("web1"));
    let again = control.post("/v1/vms/web1/resize", &json!({"size": "4MiB"})).expect(200);
    assert_eq!(again["told"], "client");
    channel.read_exact(&mut [0; 12]).unwrap();
    drop(vmm);
    daemon.stop();
}

#[test]
fn a_size_that_the_configuration_sets_is_changed_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = crate::common::make_root(dir.path(), ROOT_SECTORS);
    let vm = ["--vm", "fixed,size=8MiB", "--vm", "free"];
    let daemon =
        Daemon::start(dir.path(), &[&["--root", root.to_str().unwrap()][..], &vm].concat());
    let control = daemon.control();
    let fixed = control.post("/v1/vms/fixed/resize", &json!({"size": "16MiB"}));
    let detail = fixed.problem(409, "size-configured");
    assert!(detail.contains("set in the configuration; change it there"), "{detail}");
    control.post("/v1/vms/free/resize", &json!({"size": "16MiB"})).expect(200);
    daemon.stop();
    let daemon =
        Daemon::start(dir.path(), &[&["--root", root.to_str().unwrap()][..], &vm].concat());
    assert_eq!(daemon.control().get("/v1/vms/free").expect(200)["size"], 16 << 20);
    daemon.stop();
}

#[test]
fn a_larger_size_in_the_configuration_counts_at_the_next_start_as_at_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let root = crate::common::make_root(dir.path(), ROOT_SECTORS);
    let start = |size: u64| {
        let vm = format!("web1,size={size}MiB");
        Daemon::start(dir.path(), &["--root", root.to_str().unwrap(), "--vm", &vm])
    };
    let daemon = start(8);
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(8 * MIB - 4096, &[1; 4096]);
    // What it has not flushed is in its live map, which has to grow too.
    daemon.kill();
    drop(client);
    let daemon = start(16);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert_eq!(client.capacity, 16 * MIB);
    assert!(client.read(8 * MIB - 4096, 4096) == [1; 4096]);
    assert!(client.read(8 * MIB, 4096) == [0; 4096]);
    client.write(16 * MIB - 4096, &[2; 4096]);
    daemon.kill();
    drop(client);
    let daemon = start(32);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(8 * MIB - 4096, 4096) == [1; 4096]);
    assert!(client.read(16 * MIB - 4096, 4096) == [2; 4096]);
    assert!(client.read(32 * MIB - 4096, 4096) == [0; 4096]);
    drop(client);
    daemon.stop();
}
