//! A host that keeps something back: io_uring, a tmpfs for the runtime directory.
#![expect(unsafe_code, reason = "a seccomp filter is set between fork and exec")]

use std::io;
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
    assert_eq!(check(memory.path(), text(&root)), "");
    let (daemon, mut log) = Daemon::start_logged(memory.path(), &args);
    daemon.stop();
    let said = log.rest();
    assert!(!said.contains("tmpfs"), "{said}");
}
