//! How a reactor learns that a cool queue has requests: by its kick, an eventfd in the
//! epoll set, or, where there is none, by looking.
//!
//! A queue that is looked at keeps its device hot (`heat`), and its reactor from
//! sleeping longer than a millisecond.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// One queue's.
#[derive(Debug)]
pub(super) struct Kick(Option<Watched>);

impl Kick {
    /// Nothing says when there are requests: the queue is polled.
    pub(super) fn polled() -> Self {
        Self(None)
    }

    /// Has `epoll` watch `eventfd`, and say `token` for it when the driver kicks. A kick
    /// from before is forgotten, so look at the queue after this.
    ///
    /// # Errors
    /// As epoll_ctl(2): the user has no watches left (ENOSPC), no memory.
    pub(super) fn watch(epoll: &Arc<OwnedFd>, eventfd: OwnedFd, token: u64) -> io::Result<Self> {
        let events = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
        let event = epoll::Event::new(events, token);
        let add = epoll::ControlOptions::EPOLL_CTL_ADD;
        forget_kicks(&eventfd);
        epoll::ctl(epoll.as_raw_fd(), add, eventfd.as_raw_fd(), event)?;
        Ok(Self(Some(Watched { epoll: Arc::clone(epoll), eventfd })))
    }

    pub(super) fn is_polled(&self) -> bool {
        self.0.is_none()
    }
}

/// Takes what `fd` holds if it is an eventfd: QEMU makes them with a kick in them, which
/// is nobody's. Anything else is left alone, for its read could wait.
fn forget_kicks(fd: &OwnedFd) {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    if link.is_ok_and(|link| link.as_bytes() == b"anon_inode:[eventfd]") {
        let mut count = [0; 8];
        // Not pread: an eventfd has no offsets.
        let at = u64::MAX;
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        // EAGAIN where there is none.
        let _ = rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut count)], at, flags);
    }
}

/// An eventfd in the epoll set, until it is dropped.
#[derive(Debug)]
struct Watched {
    epoll: Arc<OwnedFd>,
    eventfd: OwnedFd,
}

impl Drop for Watched {
    /// The frontend has the same eventfd open, so closing it would not take it out.
    fn drop(&mut self) {
        let event = epoll::Event::new(epoll::Events::empty(), 0);
        let del = epoll::ControlOptions::EPOLL_CTL_DEL;
        let _ = epoll::ctl(self.epoll.as_raw_fd(), del, self.eventfd.as_raw_fd(), event);
    }
}
