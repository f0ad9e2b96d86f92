//! What is in a socket's place already, and whom it lets in.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::common::scene::{ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root};
use crate::{file, refuses, text};

#[test]
fn a_live_socket_is_refused_and_its_owner_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let leaf = format!("web1,leaf={}", temp.path().join("other.leaf").display());
    let parts = ["web1.sock", "another process listens"];
    refuses(temp.path(), &["--root", text(&root), "--vm", &leaf], 1, &parts);
    assert!(Client::connect(&daemon.socket("web1")).read(0, 512) == root_content(0, 1));
    daemon.stop();
}

#[test]
fn a_stale_socket_is_replaced_with_one_for_its_owner_only() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1"];
    let daemon = Daemon::start(temp.path(), &args);
    let socket = daemon.socket("web1");
    daemon.kill();
    let meta = fs::symlink_metadata(&socket).expect("kill -9 leaves the socket's file");
    assert!(meta.file_type().is_socket());
    let daemon = Daemon::start(temp.path(), &args);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Client::connect(&socket).read(0, 512) == root_content(0, 1));
    daemon.stop();
    assert!(!socket.exists(), "it goes with the daemon");
}

#[test]
fn a_group_is_let_in_where_it_is_asked_for_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), 64);
    let args = ["--root", text(&root), "--vm", "web1", "--socket-group"];
    let unknown = [&args[..], &["no-such-group-here"]].concat();
    refuses(dir.path(), &unknown, 1, &["there is no group no-such-group-here", "socket-group"]);
    // A group that everybody is a member of: one's own.
    let own = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let daemon = Daemon::start(dir.path(), &[&args[..], &[&own.name]].concat());
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket("web1")), 0o660);
    assert_eq!(mode(&dir.path().join("run")), 0o710);
    let mut client = Client::connect(&daemon.socket("web1"));
    client.read(0, 512);
    drop(client);
    daemon.stop();
}

#[test]
fn a_file_in_the_place_of_a_socket_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let precious = file(temp.path(), "precious", b"data");
    let vm = format!("web1,socket={precious}");
    refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 1, &["precious", "no socket"]);
}

#[test]
fn a_socket_of_another_program_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let socket = temp.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let vm = format!("web1,socket={}", socket.display());
    refuses(
        temp.path(),
        &["--root", text(&root), "--vm", &vm],
        1,
        &["other.sock", "another process listens"],
    );
    drop(UnixStream::connect(&socket).unwrap());
    drop(listener);
}
