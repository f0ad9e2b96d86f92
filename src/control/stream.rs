//! A client of the control socket, and what comes with its bytes.
//!
//! Whoever may use the socket can send descriptors over it (SCM_RIGHTS), though
//! nobody here wants any. A read that makes no room for them closes them, and so
//! does the close of a socket in whose queue they are left. The last close of a
//! descriptor may wait as long as its owner likes ([`crate::daemon::apart`]), and the
//! control thread serves all clients. So reads take descriptors in, a client that
//! sends some is hung up on, and a thread of its own closes both.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::daemon::apart::drop_apart;

/// Descriptors that one message can have (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 253;

/// A client, whose place is free when it is closed.
pub(super) struct UnixClient {
    // Only taken out by the drop.
    stream: Option<UnixStream>,
    place: Option<OwnedSemaphorePermit>,
    unwanted: Vec<OwnedFd>,
}

impl UnixClient {
    pub(super) fn new(stream: UnixStream, place: OwnedSemaphorePermit) -> Self {
        Self { stream: Some(stream), place: Some(place), unwanted: Vec::new() }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut UnixStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Reads what is there, and takes in the descriptors that come with it.
fn receive(
    stream: &UnixStream,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(received.bytes)
}

impl AsyncRead for UnixClient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(stream) = &this.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        loop {
            ready!(stream.poll_read_ready(context))?;
            let into = buf.initialize_unfilled();
            let unwanted = &mut this.unwanted;
            match stream.try_io(Interest::READABLE, || receive(stream, into, unwanted)) {
                // It is not ready any more, and waited for again.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) if !this.unwanted.is_empty() => {
                    let what = "it sent descriptors, which the control API takes none of";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for UnixClient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Drop for UnixClient {
    fn drop(&mut self) {
        // Out of the runtime, which would close it here.
        let Some(Ok(stream)) = self.stream.take().map(UnixStream::into_std) else {
            return;
        };
        let (unwanted, place) = (std::mem::take(&mut self.unwanted), self.place.take());
        // The place stays taken until it is closed: so many threads and
        // descriptors at most wait for what clients have sent.
        if let Err((stream, unwanted, place)) = drop_apart((stream, unwanted, place), || ()) {
            // Without a thread they stay open; the client notices that it is over.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            std::mem::forget((stream, unwanted));
            drop(place);
        }
    }
}
