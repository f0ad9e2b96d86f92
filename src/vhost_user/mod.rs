//! One frontend's connection: the only code that knows vhost-user.
//!
//! The `vhost` crate reads and answers messages; [`handler`] turns them into
//! commands for a reactor, with what [`vring`] and [`inflight`] keep of the
//! queues and of requests in flight; [`socket`] waits for whole messages, so that half of
//! one stalls nobody but its sender; [`status`] answers the two messages that
//! the crate doesn't know; [`session`] says how far a connection is, [`peer`] who it comes from, [`link`] what
//! others may do with it, and [`unused_leaf`] keeps guests out that had another disk, for
//! which [`process`] knows a frontend again.
//!
//! A connection has a thread of its own: it may block, on its peer or on a
//! reactor's answer. When it ends, for whatever reason, its queues are stopped,
//! what is in flight is finished, and the guest's memory is unmapped.

mod handler;
mod inflight;
mod link;
mod peer;
mod process;
mod session;
mod socket;
mod status;
mod unused_leaf;
mod vring;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::{BackendReqHandler, Error};

use crate::disk::Disk;
use crate::reactor::Mailbox;
use handler::Handler;
pub use link::{FrontendLink, Told};
pub use peer::Peer;
pub use process::FrontendProcess;
pub use session::Session;
use socket::{Incoming, MessageSocket, SET_BACKEND_REQ_FD};
pub use unused_leaf::UnusedLeaf;

/// A frontend may ask for at most this ring (vhost-user says nothing; QEMU
/// allows 1024, the spec 32768).
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Serves one connection until the peer closes it, breaks the protocol, or
/// [`UnixStream::shutdown`] is called on a clone of it. Its device is detached
/// when this returns, unless [`Session::is_given_up`]: then somebody else
/// sees to that. May wait in a close of what the peer sends, as long as the peer
/// likes. `unused` is there where no guest may have used the disk's leaf yet.
///
/// `Ok` where the peer went away between messages; otherwise a sentence on what
/// it did wrong.
///
/// # Errors
/// That sentence.
pub fn serve(
    stream: UnixStream,
    disk: &Arc<Disk>,
    queues: u16,
    reactor: &Arc<Mailbox>,
    session: &Arc<Session>,
    unused: Option<&Arc<UnusedLeaf>>,
) -> Result<(), String> {
    if let Some(unused) = unused {
        unused.admit(&stream)?;
    }
    session.begin().map_err(|e| e.to_string())?;
    let handler = Handler::attach(Arc::clone(disk), queues, Arc::clone(reactor), session)
        .map(|handler| handler.with_unused_leaf(unused.cloned()));
    let result = handler.and_then(|handler| serve_connected(stream, handler, session));
    session.end(reactor);
    result
}

fn serve_connected(
    stream: UnixStream,
    handler: Handler,
    session: &Arc<Session>,
) -> Result<(), String> {
    let socket = MessageSocket::new(&stream).map_err(|e| format!("can't use its socket: {e}"))?;
    let handler = Arc::new(Mutex::new(handler));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    loop {
        let message = socket.next_message();
        session.while_served(|| ()).map_err(|e| e.to_string())?;
        match message {
            Ok(Incoming::Closed) => return Ok(()),
            Ok(Incoming::Status(message)) => {
                status::answer(&socket, &message, &mut handler::lock(&handler))?;
            }
            Ok(Incoming::Other(code)) => {
                // The crate keeps the channel to itself: ours is a second
                // handle on it, used once the crate has agreed to the message.
                let channel = match code {
                    SET_BACKEND_REQ_FD => socket.peek_channel(),
                    _ => None,
                };
                match requests.handle_request() {
                    Ok(()) => {
                        if let Some(channel) = channel {
                            link::set_channel(session, channel)?;
                        }
                    }
                    Err(Error::Disconnected) => return Ok(()),
                    Err(e) => {
                        let why = handler::lock(&handler).take_error();
                        let why = why.unwrap_or_else(|| e.to_string());
                        return Err(format!("message {code} can't be served: {why}"));
                    }
                }
            }
            Err(why) => return Err(why),
        }
    }
}
