//! The process at the other end of a frontend's socket: as long as it runs, so may its
//! guest.

#![expect(unsafe_code, reason = "getsockopt(2), where rustix has a type without the kernel's 0")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process that has connected; `None` where it is in a PID namespace that this
/// process doesn't see.
pub(super) fn pid_of_peer(stream: &UnixStream) -> Option<Pid> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `peer`, in which
    // any bits make a value; the descriptor is open as long as `stream` is borrowed.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Pid::from_raw(peer.pid) } else { None }
}

/// A process that has had a VM's disk.
#[derive(Debug)]
pub struct FrontendProcess {
    pid: Pid,
    /// Readable when the process has ended. `None` where it can't be had: then the
    /// process counts as running.
    pidfd: Option<OwnedFd>,
}

impl FrontendProcess {
    /// The process `pid`; `None` where it has ended.
    pub(super) fn open(pid: Pid) -> Option<Self> {
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Some(Self { pid, pidfd: Some(pidfd) }),
            Err(Errno::SRCH) => None,
            Err(_) => Some(Self { pid, pidfd: None }),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Whether it is this process that has connected, and not a later one of its number.
    pub(super) fn has_connected(&self, stream: &UnixStream) -> bool {
        pid_of_peer(stream) == Some(self.pid) && self.runs()
    }

    fn runs(&self) -> bool {
        self.pidfd.as_ref().is_none_or(|pidfd| {
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            !poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_its_socket_until_it_ends() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let own = pid_of_peer(&ours).unwrap();
        assert_eq!(own, rustix::process::getpid());
        assert!(FrontendProcess::open(own).unwrap().has_connected(&ours));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = FrontendProcess::open(pid).unwrap();
        assert!(process.runs() && !process.has_connected(&ours));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.runs());
        assert!(FrontendProcess::open(pid).is_none());
    }
}
