//! The server itself: who may use it, and that nobody can hold it up.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::json;

use crate::common::frontend::PATIENCE;
use crate::common::http::read_answer;
use crate::common::lingering::Lingering;
use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, make_root};

#[test]
fn the_control_socket_is_its_owners_and_goes_with_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let socket = dir.path().join("run/control.sock");
    let meta = std::fs::metadata(&socket).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    daemon.stop();
    assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
    let state: Vec<_> = std::fs::read_dir(dir.path().join("state")).unwrap().collect();
    assert!(state.is_empty(), "{state:?}");
}

#[test]
fn a_group_that_is_named_may_use_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let group = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let daemon = Daemon::start(dir.path(), &["--control-group", &group.name]);
    let meta = std::fs::metadata(dir.path().join("run/control.sock")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o777, meta.gid()), (0o660, group.gid.as_raw()));
    let run = std::fs::metadata(dir.path().join("run")).unwrap();
    assert_eq!((run.permissions().mode() & 0o777, run.gid()), (0o710, group.gid.as_raw()));
    daemon.stop();
}

#[test]
fn a_directory_that_keeps_the_groups_out_is_named_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let open = |path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    open(&run, 0o700);
    let group = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let args = ["--socket-group", &group.name, "--control-group", &group.name];
    let start = || Daemon::start_logged(dir.path(), &args);
    let (daemon, mut log) = start();
    for setting in ["control-group", "socket-group"] {
        log.wait_for(&["members of the", setting, "chmod o+x", run.to_str().unwrap()]);
    }
    daemon.stop();
    open(&run, 0o711);
    let (daemon, mut log) = start();
    daemon.stop();
    let said = log.rest();
    assert!(!said.contains("can't reach"), "{said}");
}

/// How a start fails.
fn fails(dir: &std::path::Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_leafblk"))
        .args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--state-dir"])
        .arg(dir.join("state"))
        .arg("--runtime-dir")
        .arg(dir.join("run"))
        .args(args)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn a_second_daemon_and_an_unknown_group_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = fails(dir.path(), &["--control-group", "no-such-group"]);
    assert!(text.contains("there is no group no-such-group"), "{text}");
    assert!(!dir.path().join("run").exists() && !dir.path().join("state").exists());
    let daemon = Daemon::start(dir.path(), &[]);
    let text = fails(dir.path(), &[]);
    assert!(text.contains("control API: the socket") && text.contains("another leafblk"), "{text}");
    let other = dir.path().join("other.sock");
    let text = fails(dir.path(), &["--control-socket", other.to_str().unwrap()]);
    assert!(text.contains("the state directory") && text.contains("another leafblk"), "{text}");
    assert!(!other.exists());
    daemon.stop();
}

#[test]
fn without_a_control_socket_there_is_no_state_either() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--control-socket", "off", "--root", root.to_str().unwrap(), "--vm", "web1"];
    let daemon = Daemon::start(dir.path(), &args);
    assert!(!dir.path().join("run/control.sock").exists());
    assert_eq!(Client::connect(&daemon.socket("web1")).capacity, ROOT_SECTORS * 512);
    daemon.stop();
}

/// Waits until the server has closed; what it said before.
fn rest(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn slow_clients_hold_up_nobody_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    // One that promises a body and sends none.
    let mut no_body = control.connect();
    write!(no_body, "POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{").unwrap();
    // One that asks and asks, and takes no answer.
    let deaf = control.connect();
    deaf.set_nonblocking(true).unwrap();
    let request = "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let _ = (&deaf).write(request.as_bytes());
    // As many as may come at a time, each with half a request.
    let mut halves: Vec<UnixStream> = (0..62).map(|_| control.connect()).collect();
    for half in &mut halves {
        half.write_all(b"GET /v1/status HT").unwrap();
    }
    // There is a place for this one once they are thrown out.
    control.get("/v1/status").expect(200);
    for half in &halves {
        let said = rest(half);
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{said:?}");
    }
    read_answer(no_body).problem(408, "timeout");
    deaf.set_nonblocking(false).unwrap();
    let mut said = Vec::new();
    // Closed by the server, with or without the rest of what it had to say.
    let _ = (&deaf).read_to_end(&mut said);
    assert!(!said.is_empty());
    daemon.stop();
}

#[test]
fn a_connection_takes_one_request_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let mut stream = daemon.control().connect();
    write!(stream, "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    write!(stream, "GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let said = String::from_utf8(rest(&stream)).unwrap();
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2, "{said}");
    assert!(said.trim_end().ends_with("[]"), "{said}");
    daemon.stop();
}

#[test]
fn nonsense_instead_of_http_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    let header = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(32 << 10));
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"hello\r\n\r\n", header.as_bytes()] {
        let mut stream = control.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{said:?}");
    }
    control.get("/v1/version").expect(200);
    daemon.stop();
}

/// Whole numbers in a /proc file of a thread: its waits, and its CPU ticks.
fn thread_use(pid: i32, name: &str) -> (u64, u64) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap().trim() != name {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let stat = std::fs::read_to_string(path.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        return (waits.unwrap().trim().parse().unwrap(), ticks(11) + ticks(12));
    }
    panic!("there is no thread {name}");
}

#[test]
fn want_of_descriptors_makes_clients_wait_and_nothing_spin() {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap(), "--vm", "web1"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    let pid = daemon.pid().as_raw_nonzero().get();
    // Once it answers it has all the descriptors that it needs; the connection
    // is kept, so that its number doesn't become free meanwhile.
    let mut kept = daemon.control().connect();
    kept.write_all(b"GET /v1/health HTTP/1.1\r\nHost: leafblk\r\n\r\n").unwrap();
    kept.read_exact(&mut [0; 12]).unwrap();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<u64> =
        open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let free = (0..).find(|number| !open.contains(number)).unwrap();
    let limit = Rlimit { current: Some(free), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(daemon.pid()), Resource::Nofile, limit).unwrap();

    let socket = daemon.socket("web1");
    let client = std::thread::spawn(move || Client::connect(&socket).capacity);
    log.wait_for(&["VM web1: can't accept a connection, trying again"]);
    let (waits, ticks) = thread_use(pid, "acceptor");
    loop {
        let (waits_now, ticks_now) = thread_use(pid, "acceptor");
        assert!(ticks_now - ticks < 20, "the acceptor spins: {waits_now} waits");
        if waits_now >= waits + 4 {
            break;
        }
        std::thread::yield_now();
    }
    prlimit(Some(daemon.pid()), Resource::Nofile, before).unwrap();
    assert_eq!(client.join().unwrap(), ROOT_SECTORS * 512, "it was let in later");
    assert_eq!(daemon.control().get("/v1/vms/web1").expect(200)["connections"], json!(1));
    daemon.stop();
}

#[test]
fn a_client_that_sends_what_is_slow_to_close_keeps_nobody_from_the_api_or_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    let mut slow = Vec::new();
    for before in [&b""[..], b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /v1/"] {
        // Read by the server, and left in its queue: with a client that stays, one
        // that hangs up, and many at once.
        for stays in [true, false] {
            let mut lingering = Lingering::new();
            // The server has the last copy then.
            let mut client = daemon.while_paused(|| {
                let mut client = control.connect();
                client.write_all(before).unwrap();
                lingering.send_over(client.as_fd());
                stays.then_some(client)
            });
            if let Some(client) = &mut client {
                // It is hung up on.
                let mut rest = Vec::new();
                let _ = client.read_to_end(&mut rest);
            }
            slow.push((lingering, client));
            control.get("/v1/health").expect(200);
        }
    }
    let begun = std::time::Instant::now();
    daemon.stop();
    assert!(begun.elapsed() < PATIENCE, "took {:?}", begun.elapsed());
}
