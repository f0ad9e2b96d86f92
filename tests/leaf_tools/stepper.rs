//! Runs a command system call by system call (ptrace(2)), and kills it before
//! any of those that change something.
//!
//! Single-threaded commands only, which the tools are.
#![expect(unsafe_code, reason = "ptrace(2)")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A system call that changes a file or makes changes durable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Call {
    /// Content, length or holes of the file.
    Change(PathBuf),
    Sync(PathBuf),
    /// A name comes or goes.
    Name(&'static str),
    /// A new file.
    Create,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// The calls, in order; the last one was not made if `killed`.
    pub(crate) calls: Vec<Call>,
    pub(crate) killed: bool,
    pub(crate) succeeded: bool,
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, addr: usize, data: usize) -> libc::c_long {
    // SAFETY: the requests used here touch only the child and, for its
    // information, the buffer that `data` points to.
    unsafe { libc::ptrace(request, pid, addr, data) }
}

/// Runs `command` and kills it instead of its changing call number
/// `kill_before`, counted from 0.
pub(crate) fn run(mut command: Command, kill_before: Option<usize>) -> Run {
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    // SAFETY: a system call, which is all that may happen between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    // Waited for by `wait`, which also hears of stops.
    #[expect(clippy::zombie_processes, reason = "waitpid(2) is called for it until it has ended")]
    let mut child = crate::scene::spawn(&mut command);
    let pid = child.id().cast_signed();
    assert!(libc::WIFSTOPPED(wait(pid)), "stopped at its exec");
    let options = (libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL).cast_unsigned();
    assert_eq!(ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as usize), 0);
    let mut calls = Vec::new();
    let mut signal = 0;
    loop {
        assert_eq!(ptrace(libc::PTRACE_SYSCALL, pid, 0, signal), 0);
        signal = 0;
        let status = wait(pid);
        if libc::WIFEXITED(status) {
            let succeeded = libc::WEXITSTATUS(status) == 0;
            return Run { calls, killed: false, succeeded };
        }
        assert!(libc::WIFSTOPPED(status), "it ended by a signal: {status:#x}");
        if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
            signal = libc::WSTOPSIG(status).cast_unsigned() as usize;
            continue;
        }
        let Some(call) = entered(pid) else { continue };
        calls.push(call);
        if kill_before == Some(calls.len() - 1) {
            child.kill().unwrap();
            while !libc::WIFSIGNALED(wait(pid)) {}
            return Run { calls, killed: true, succeeded: false };
        }
    }
}

fn wait(pid: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: writes to the int given.
    let result = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    assert_eq!(result, pid, "{}", std::io::Error::last_os_error());
    status
}

/// The changing call that the stopped child is about to make, if it is one.
fn entered(pid: libc::pid_t) -> Option<Call> {
    // SAFETY: a plain C struct of numbers, for which zero is valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&info);
    let result = ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, (&raw mut info).addr());
    assert!(result > 0);
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: at an entry, this is the part of the union that is there.
    let entry = unsafe { info.u.entry };
    let file = || std::fs::read_link(format!("/proc/{pid}/fd/{}", entry.args[0])).unwrap();
    match i64::try_from(entry.nr).unwrap() {
        libc::SYS_write
        | libc::SYS_pwrite64
        | libc::SYS_pwritev
        | libc::SYS_pwritev2
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_copy_file_range => {
            // What it says is no change of a file.
            (entry.args[0] > 2).then(|| Call::Change(file()))
        }
        libc::SYS_fchown | libc::SYS_fchmod => Some(Call::Change(file())),
        libc::SYS_fsync | libc::SYS_fdatasync => Some(Call::Sync(file())),
        libc::SYS_linkat => Some(Call::Name("link")),
        libc::SYS_renameat | libc::SYS_renameat2 => Some(Call::Name("rename")),
        libc::SYS_unlinkat => Some(Call::Name("unlink")),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => Some(Call::Name("rename")),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_link => Some(Call::Name("link")),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => Some(Call::Name("unlink")),
        libc::SYS_openat => {
            let makes = (libc::O_CREAT | libc::O_TMPFILE) as u64 & !(libc::O_DIRECTORY as u64);
            (entry.args[2] & makes != 0).then_some(Call::Create)
        }
        _ => None,
    }
}
