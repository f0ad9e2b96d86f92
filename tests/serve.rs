//! `leafblk serve` as who starts it meets it: what it prints, how signals end it,
//! what `leafblk qemu-args` says of it, and that it need not poll.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::frontend::Vmm;
use common::scene::{ROOT_SECTORS, root_content};
use common::{Client, Daemon, make_root, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A directory with a root, and that root's argument, which names it `debian`.
fn place() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let root = format!("debian={}", make_root(dir.path(), ROOT_SECTORS).display());
    (dir, root)
}

// What it prints.

#[test]
fn it_prints_where_each_vm_is_and_then_that_it_is_ready() {
    let (dir, root) = place();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let own = format!("web3,socket={},leaf={}", at("own.sock"), at("own.leaf"));
    let vms = ["--vm", "web1,size=10MiB", "--vm", "web2,readonly", "--vm", &own];
    let daemon = Daemon::start(dir.path(), &[&["--root", &root][..], &vms].concat());
    let web1 = format!(
        "web1: socket {}, leaf {} (new), size 10MiB, root debian",
        at("run/web1.sock"),
        at("state/web1.leaf")
    );
    let web2 = format!(
        "web2: socket {}, leaf none (read-only; {} does not exist), size 2MiB, root debian",
        at("run/web2.sock"),
        at("state/web2.leaf")
    );
    let web3 = format!(
        "web3: socket {}, leaf {} (new), size 2MiB, root debian",
        at("own.sock"),
        at("own.leaf")
    );
    assert_eq!(daemon.announced, [&web1, &web2, &web3, "ready: serving 3 VMs"]);
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &["--root", &root, "--vm", "web1"]);
    let web1 = web1.replace("(new)", "(existing)");
    assert_eq!(daemon.announced, [&web1, "ready: serving 1 VM"], "a leaf keeps its size");
    daemon.stop();
}

// Signals.

#[test]
fn sigint_and_sigterm_flush_and_end_with_status_0() {
    let (dir, root) = place();
    let args = ["--root", &root, "--vm", "web1"];
    for (signal, fill) in [(Signal::INT, 0x11), (Signal::TERM, 0x22)] {
        let daemon = Daemon::start(dir.path(), &args);
        let mut client = Client::connect(&daemon.socket("web1"));
        client.write(8192, &[fill; 4096]);
        let said = daemon.stop_by(signal);
        assert!(said.starts_with("web1: read 0B from its leaf"), "{said}");
        assert!(said.contains("wrote 4KiB; its leaf holds 4KiB"), "{said}");
        // As after a power cut: only what was flushed is there.
        std::fs::remove_dir_all(dir.path().join("run")).unwrap();
        let daemon = Daemon::start(dir.path(), &args);
        let mut client = Client::connect(&daemon.socket("web1"));
        assert!(client.read(8192, 4096) == [fill; 4096], "{signal:?} flushes");
        daemon.stop();
    }
}

#[test]
fn a_second_signal_ends_a_stop_at_once_with_status_130() {
    let (dir, root) = place();
    let args = ["--root", &root, "--vm", "web1"];
    for (first, second) in [(Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)] {
        let (mut daemon, mut log) = Daemon::start_logged(dir.path(), &args);
        Client::connect(&daemon.socket("web1")).write(8192, &[0x33; 4096]);
        // The stop can't end: it prints what each VM did.
        daemon.fill_stdout();
        daemon.signal(first);
        log.wait_for(&["stopping"]);
        daemon.signal(second);
        assert_eq!(daemon.ended().code(), Some(130), "{first:?}, {second:?}");
        log.wait_for(&["stopping at once, without draining"]);
        // What was acknowledged is there, as after a SIGKILL.
        let daemon = Daemon::start(dir.path(), &args);
        assert!(Client::connect(&daemon.socket("web1")).read(8192, 4096) == [0x33; 4096]);
        daemon.stop();
    }
}

// `leafblk qemu-args`.

/// `leafblk qemu-args ARGS` beside the daemon of `dir`; the options, or the sentence
/// that says why there are none.
fn qemu_args(dir: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.arg("qemu-args").args(args).arg("--runtime-dir").arg(dir.join("run"));
    let output = command.env_clear().output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// What follows `key` in options, up to a comma.
fn option<'a>(options: &'a str, key: &str) -> &'a str {
    let (_, rest) = options.split_once(key).unwrap_or_else(|| panic!("no {key} in {options}"));
    rest.split([',', ' ', '\n']).next().unwrap()
}

#[test]
fn qemu_args_names_the_sockets_that_a_running_leafblk_listens_on() {
    let (dir, root) = place();
    let own = dir.path().join("own.sock");
    let web2 = format!("web2,queues=3,socket={}", own.display());
    let daemon = Daemon::start(dir.path(), &["--root", &root, "--vm", "web1", "--vm", &web2]);
    let vm = json!({"name": "web3", "root": "debian", "queues": 2});
    daemon.control().post("/v1/vms", &vm).expect(201);
    for (vm, queues, socket) in [
        ("web1", "1", daemon.socket("web1")),
        ("web2", "3", own),
        ("web3", "2", daemon.socket("web3")),
    ] {
        let qemu = qemu_args(dir.path(), &[vm]).unwrap();
        let cloud_hypervisor = qemu_args(dir.path(), &[vm, "--for", "cloud-hypervisor"]).unwrap();
        for (options, path, number) in
            [(qemu, "path=", "num-queues="), (cloud_hypervisor, "socket=", "num_queues=")]
        {
            assert_eq!(PathBuf::from(option(&options, path)), socket, "{options}");
            assert_eq!(option(&options, number), queues, "{options}");
            let mut client = Client::connect(Path::new(option(&options, path)));
            assert!(client.read(0, 4096) == root_content(0, 8), "{options}");
        }
    }
    let is_served = |vm: &str| match qemu_args(dir.path(), &[vm]) {
        Ok(_) => true,
        Err(said) => {
            assert!(said.contains(&format!("no leafblk serves a VM {vm} in")), "{said}");
            false
        }
    };
    daemon.control().delete("/v1/vms/web3?force=true").expect(204);
    assert_eq!(["web1", "web2", "web3"].map(is_served), [true, true, false]);
    daemon.stop();
    assert_eq!(["web1", "web2"].map(is_served), [false, false]);
}

// Polling.

/// The only reactor's turns and sleeps so far.
fn turns_and_sleeps(daemon: &Daemon) -> (u64, u64) {
    let stats = daemon.control().get("/v1/stats").expect(200);
    let number = |value: &Value| value.as_u64().unwrap();
    (number(&stats["reactors"][0]["polls"]), number(&stats["reactors"][0]["sleeps"]))
}

/// Writes and reads, with pauses in between; how many turns the reactor makes a sleep.
fn turns_a_sleep(poll_us: &str) -> u64 {
    let (dir, root) = place();
    let args = ["--root", &root, "--vm", "web1", "--reactors", "1", "--poll-us", poll_us];
    let daemon = Daemon::start(dir.path(), &args);
    let mut vmm = Vmm::running(&daemon.socket("web1"));
    let (turns, slept) = turns_and_sleeps(&daemon);
    let mut sleeps = slept;
    for round in 0..20u64 {
        let sector = round * 8;
        vmm.write_sectors(sector, &[round as u8; 4096]);
        let read = vmm.read_sectors(sector, 16);
        assert!(read[..4096] == [round as u8; 4096]);
        assert!(read[4096..] == root_content(sector + 8, 8));
        let before = sleeps;
        wait_until("the reactor sleeps", || {
            sleeps = turns_and_sleeps(&daemon).1;
            sleeps > before
        });
    }
    drop(vmm);
    let (turns_at_end, sleeps) = turns_and_sleeps(&daemon);
    daemon.stop();
    (turns_at_end - turns) / (sleeps - slept)
}

#[test]
fn without_polling_a_reactor_serves_and_sleeps_at_once() {
    let (without, with) = (turns_a_sleep("0"), turns_a_sleep("10000"));
    assert!(without < 20, "{without} turns a sleep without polling");
    assert!(with > 200, "{with} turns a sleep with a window of 10 ms: the measure says nothing");
}
