//! Waiting until a whole message has come.
//!
//! The `vhost` crate takes a message that is split for a wrong one, and waits
//! for ever for the rest of one that never comes. So its `handle_request` is
//! only called when all bytes of a message are there.
#![expect(unsafe_code, reason = "MSG_PEEK and FIONREAD have no safe form")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long the rest of a message may take once its first byte has come, and
/// how long a peer may leave our answers unread.
const STALL_MAX: Duration = Duration::from_secs(5);

/// Bytes of a message's header: request, flags, size (vhost-user, "Header").
pub(super) const HEADER_LEN: usize = 12;
/// Largest body that the vhost crate takes.
const BODY_MAX: usize = 4096;

pub(super) const GET_STATUS: u32 = 40;
pub(super) const SET_STATUS: u32 = 39;
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;

/// What has come.
pub(super) enum Incoming {
    /// The peer is gone.
    Closed,
    /// A whole SET_STATUS or GET_STATUS, taken off the socket.
    Status(Vec<u8>),
    /// Some other whole message, left on the socket; its code.
    Other(u32),
}

/// A second handle on a connection's socket.
pub(super) struct MessageSocket {
    stream: UnixStream,
}

impl MessageSocket {
    pub(super) fn new(stream: &UnixStream) -> io::Result<Self> {
        let stream = stream.try_clone()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STALL_MAX))?;
        stream.set_write_timeout(Some(STALL_MAX))?;
        Ok(Self { stream })
    }

    /// Waits, as long as it takes, for a message to begin; then for the rest of
    /// it, at most [`STALL_MAX`].
    pub(super) fn next_message(&self) -> Result<Incoming, String> {
        self.wait(None).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let mut header = [0; HEADER_LEN];
        loop {
            match self.peek(&mut header).map_err(|e| format!("its socket can't be read: {e}"))? {
                0 => return Ok(Incoming::Closed),
                HEADER_LEN => break,
                _ => self.wait_more(begun)?,
            }
        }
        let field = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (code, size) = (field(0), field(8) as usize);
        if size > BODY_MAX {
            return Err(format!("a message of {size} bytes is too long"));
        }
        while self.available().map_err(|e| e.to_string())? < HEADER_LEN + size {
            self.wait_more(begun)?;
        }
        if code != SET_STATUS && code != GET_STATUS {
            return Ok(Incoming::Other(code));
        }
        let mut message = vec![0; HEADER_LEN + size];
        io::Read::read_exact(&mut &self.stream, &mut message).map_err(|e| e.to_string())?;
        Ok(Incoming::Status(message))
    }

    /// The socket that comes with the next message, left with it as well.
    pub(super) fn peek_channel(&self) -> Option<UnixStream> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [0; HEADER_LEN];
        let mut bufs = [io::IoSliceMut::new(&mut header)];
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.stream, &mut bufs, &mut control, flags).ok()?;
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        fds.next().map(UnixStream::from)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut &self.stream, bytes)
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        let timeout = timeout.and_then(|t| t.try_into().ok());
        loop {
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(|_| ()).map_err(Into::into),
            }
        }
    }

    /// Gives a message that is under way time to come. The socket polls
    /// readable all along, so this waits for what comes next by peeking for
    /// more than there is.
    fn wait_more(&self, begun: Instant) -> Result<(), String> {
        if begun.elapsed() >= STALL_MAX {
            return Err(format!("a message stays unfinished for {} s", STALL_MAX.as_secs()));
        }
        let have = self.available().map_err(|e| e.to_string())?;
        let mut beyond = vec![0; have + 1];
        let flags = libc::MSG_PEEK | libc::MSG_WAITALL;
        // SAFETY: the buffer outlives the call and has the length given.
        let count = unsafe {
            libc::recv(self.stream.as_raw_fd(), beyond.as_mut_ptr().cast(), beyond.len(), flags)
        };
        match usize::try_from(count) {
            // Ended by a close, a timeout, or a boundary that peeking doesn't
            // cross (attached descriptors): the caller looks again.
            Ok(count) if count <= have => self.hung_up(),
            _ => Ok(()),
        }
    }

    fn hung_up(&self) -> Result<(), String> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let soon = Duration::from_millis(1).try_into().ok();
        // Waits a little where nothing ended, so as not to spin.
        match poll(&mut fds, soon.as_ref()) {
            Ok(count) if count > 0 => Err("it closes in the middle of a message".into()),
            _ => Ok(()),
        }
    }

    fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer outlives the call and has the length given.
            let count = unsafe {
                libc::recv(
                    self.stream.as_raw_fd(),
                    into.as_mut_ptr().cast(),
                    into.len(),
                    libc::MSG_PEEK,
                )
            };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    // A reset is as good as a close.
                    e if e.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                    e => return Err(e),
                },
            }
        }
    }

    fn available(&self) -> io::Result<usize> {
        let count = rustix::io::ioctl_fionread(&self.stream)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}
