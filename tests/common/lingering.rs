//! A descriptor whose last close waits for as long as a test wants.

use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A TCP socket with SO_LINGER whose peer takes nothing; closing it waits until
/// this value is dropped.
pub(crate) struct Lingering {
    socket: Option<TcpStream>,
    _peer: TcpStream,
}

impl Lingering {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let an_hour = Some(Duration::from_secs(3600));
        rustix::net::sockopt::set_socket_linger(&socket, an_hour).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 1 << 16]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        Self { socket: Some(socket), _peer: peer }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().unwrap().as_fd()
    }

    /// From here on, whoever was sent it has the last copy.
    pub(crate) fn let_go(&mut self) {
        // Another one is still open, so this close doesn't wait.
        self.socket = None;
    }

    /// Sends it over a Unix socket, with a byte.
    pub(crate) fn send_over(&mut self, channel: BorrowedFd<'_>) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [self.descriptor()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent = sendmsg(channel, &[IoSlice::new(&[1])], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(1));
        self.let_go();
    }
}
