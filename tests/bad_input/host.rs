//! A host that keeps something back: io_uring, a tmpfs for the runtime directory; and a
//! service manager that takes a service's directories away with it.
#![expect(unsafe_code, reason = "a seccomp filter is set between fork and exec")]

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::scene::ROOT_SECTORS;
use crate::common::{Daemon, make_root};
use crate::{CommandExt, fails, inventory, serve, text};

/// Lets `command` get `errno` from io_uring_setup(2), as a container's seccomp filter
/// has it (seccomp(2)).
fn without_io_uring(command: &mut Command, errno: i32) {
    let step = |code: u32, jump: (u8, u8), k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump.0,
        jf: jump.1,
        k,
    };
    let filter = [
        // The number of the call, the first field of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), libc::SYS_io_uring_setup as u32),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: two system calls, which is all that may happen between fork and exec;
        // `program` outlives the second one.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
                    == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: as said there.
    unsafe { command.pre_exec(set) };
}

#[test]
fn a_seccomp_filter_that_blocks_io_uring_is_named_at_a_start_and_by_a_check() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1"];
    let before = inventory(temp.path());
    for errno in [libc::EPERM, libc::ENOSYS] {
        for args in [&args[..], &[&args[..], &["--check"]].concat()] {
            let mut command = serve(temp.path(), args);
            without_io_uring(&mut command, errno);
            let parts = [
                "can't have an io_uring",
                "a seccomp filter blocks it, as containers have one",
                "io_uring_setup, io_uring_enter and io_uring_register",
                "docs/operations.md",
            ];
            fails(command, 1, &parts);
        }
    }
    assert_eq!(inventory(temp.path()), before);
}

/// A container's root file system, as its runtime directory may lie on: unmounted when
/// it is dropped.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn mount() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let part = |name: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            dir.path().join(name).display().to_string()
        };
        let (lower, upper, work, at) = (part("lower"), part("upper"), part("work"), part("at"));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let mount = ["-t", "overlay", "-o", &options, "leafblk-test", &at];
        let mounted = Command::new("mount").args(mount).output().expect("mount(8) is installed");
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test needs an overlayfs, and root: {said}");
        Self(dir)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_runtime_directory_that_is_on_no_tmpfs_is_named_at_a_start_and_by_a_check() {
    let warning = ["runtime directory", "not on a tmpfs", "30 to 50 % more CPU", "--runtime-dir"];
    let check = |dir: &Path, root: &str| {
        let mut command = serve(dir, &["--root", root, "--vm", "web1", "--check"]);
        let checked = command.stdin(Stdio::null()).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        String::from_utf8(checked.stderr).unwrap()
    };
    let overlay = Overlay::mount();
    let root = make_root(&overlay.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1"];
    let said = check(&overlay.path(), text(&root));
    assert!(said.starts_with("leafblk: warning: ") && said.contains("is on overlayfs"), "{said}");
    assert!(warning.iter().all(|part| said.contains(part)), "{said}");
    let (daemon, mut log) = Daemon::start_logged(&overlay.path(), &args);
    log.wait_for(&[&warning[..], &["is on overlayfs"]].concat());
    daemon.stop();

    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let said = check(memory.path(), text(&root));
    assert!(!said.contains("tmpfs") && said.contains("the state directory"), "{said}");
    let (daemon, mut log) = Daemon::start_logged(memory.path(), &args);
    daemon.stop();
    let said = log.rest();
    assert!(!said.contains("tmpfs"), "{said}");
}

/// Directories as systemd gives them to a service, in a mount namespace of the command's
/// own; it runs there, in `dir`.
fn in_own_mounts(dir: &Path, mounts: &str, command: &Command) -> Command {
    let mut inside = Command::new("unshare");
    let script = format!("{mounts} || exit 3; shift; exec \"$@\"");
    inside.args(["--mount", "sh", "-c", &script, "sh", "leafblk"]);
    inside.arg(command.get_program()).args(command.get_args()).current_dir(dir);
    inside
}

/// Of a service that has a private /tmp, which is the host's by another name.
const PRIVATE_TMP: &str =
    "p=systemd-private-1a-leafblk.service-x; mkdir -p $p/tmp own && mount --bind $p/tmp own";
const OWN_TMPFS: &str = "mkdir -p own && mount -t tmpfs leafblk-test own";

#[test]
fn a_leaf_or_a_state_directory_that_goes_with_the_service_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let leaf = dir.join("own/below/web1.leaf");
    let vm = format!("web1,leaf={}", leaf.display());
    let started = |vm: &str| {
        let args = ["--root", text(&root), "--vm", vm, "--vm", "web2", "--check"];
        serve(dir, &args)
    };
    for (mounts, parts) in [
        (PRIVATE_TMP, "the service's own, not the host's, which systemd removes"),
        (OWN_TMPFS, "a tmpfs that only leafblk's mount namespace has"),
    ] {
        let command = in_own_mounts(dir, mounts, &started(&vm));
        let said = fails(command, 1, &["VM web1 would lose the leaf", text(&leaf), parts]);
        assert!(said.contains("choose another leaf=") && said.contains("PrivateTmp="), "{said}");
        let mut state = serve(&dir.join("own"), &["--root", text(&root), "--vm", "web2"]);
        for check in [&[][..], &["--check"]] {
            state.args(check);
            let command = in_own_mounts(dir, mounts, &state);
            fails(command, 1, &["the state directory", "own/state", parts, "another --state-dir"]);
        }
        // A leaf that may go.
        let command = in_own_mounts(dir, mounts, &started(&format!("{vm},ephemeral")));
        checks(command);
    }
    assert!(!dir.join("state").exists() && !leaf.exists());
}

/// Runs a check, which finds nothing wrong; what it says on stderr.
fn checks(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_runtime_directory_of_the_service_has_no_leaves_unless_the_unit_keeps_it() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let kept = temp.path().join("run");
    std::fs::create_dir(&kept).unwrap();
    let leaf = format!("web1,leaf={}/web1.leaf", kept.display());
    let check = |preserve: &str| {
        let mut command = serve(temp.path(), &["--root", text(&root), "--vm", &leaf, "--check"]);
        command.env("RUNTIME_DIRECTORY", &kept);
        command.env("LEAFBLK_RUNTIME_DIRECTORY_PRESERVE", preserve);
        command
    };
    fails(
        check("no"),
        1,
        &["web1.leaf", "RuntimeDirectory=, which systemd removes", "Places that"],
    );
    let said = checks(check("yes"));
    let lost = ["VM web1: its leaf", "in memory", "lost when the host reboots"];
    assert!(lost.iter().all(|part| said.contains(part)), "{said}");
}

#[test]
fn a_vm_whose_leaf_would_go_with_the_service_is_refused_while_others_are_served() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let (daemon, mut log) =
        Daemon::start_logged(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    // As a host's own tmpfs has it, too.
    log.wait_for(&["the state directory", "in memory", "lost when the host reboots"]);
    // A file that has lost its name: another process's, which has it open.
    let nameless = tempfile::tempfile_in(temp.path()).unwrap();
    let by_number = format!("/proc/{}/fd/{}", std::process::id(), nameless.as_raw_fd());
    let vm = serde_json::json!({ "name": "web2", "root": "root", "leaf": by_number });
    let said = daemon.control().post("/v1/vms", &vm).problem(409, "unfit");
    assert!(said.contains("VM web2 would lose the leaf") && said.contains("no name"), "{said}");
    daemon.stop();
}

#[test]
fn a_check_finds_directories_that_cannot_be_written() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    // For root, too.
    let read_only = |name: &str| {
        format!("mkdir -p {name} && mount --bind {name} {name} && mount -o remount,bind,ro {name}")
    };
    let (leaf, socket) = (dir.join("own/w.leaf"), dir.join("own/w.sock"));
    let (leaf, socket) =
        (format!("web1,leaf={}", text(&leaf)), format!("web1,socket={}", text(&socket)));
    for (directory, vm, what) in [
        ("state", "web1", "the state directory"),
        ("run", "web1", "the runtime directory"),
        ("own", &leaf, "the leaf of VM web1"),
        ("own", &socket, "the directory of the socket of VM web1"),
    ] {
        let check = serve(dir, &["--root", text(&root), "--vm", vm, "--check"]);
        let command = in_own_mounts(dir, &read_only(directory), &check);
        let parts =
            [what, directory, "can't be written (Read-only file system", "for reading only"];
        fails(command, 1, &parts);
        checks(check);
    }
}
