//! What other threads may know of a VM's frontend, tell it, and do where its
//! connection's thread is stuck.
//!
//! The channel by which a backend speaks first (vhost-user, "Backend
//! communication") is the frontend's to offer. Only one thing is ever said on
//! it: that the configuration space has changed. No answer is asked for, so
//! nothing is ever read from it.
//!
//! A VM has one frontend after the other, each with a [`Session`] of its own.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SendFlags, SocketType, send};

use super::peer::Peer;
use super::process::FrontendProcess;
use super::session::Session;
use crate::reactor::Mailbox;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no reply needed, no body.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// A VM's frontend, whether there is one or not.
#[derive(Debug, Default)]
pub struct FrontendLink {
    last: Mutex<Arc<Session>>,
}

/// Who learned of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Nobody is connected: the next guest's frontend reads what is true then.
    Nobody,
    /// The frontend was told.
    Frontend,
    /// The frontend offers no way to tell it (docs/control.md has when it looks).
    NotPossible,
}

impl FrontendLink {
    /// The session of the client behind `stream`, which is let in. The one before is over,
    /// or was given up.
    pub fn let_in(&self, stream: &UnixStream) -> Arc<Session> {
        let session = Arc::new(Session::of(stream));
        *self.lock() = Arc::clone(&session);
        session
    }

    /// Whether a frontend is connected.
    pub fn is_connected(&self) -> bool {
        self.last().is_connected()
    }

    /// Who the frontend is that is connected.
    pub fn peer(&self) -> Option<Peer> {
        let last = self.last();
        last.is_connected().then(|| last.peer().clone())
    }

    /// The process of the frontend that is connected, or was last: where that is known
    /// and it still runs.
    pub fn process(&self) -> Option<FrontendProcess> {
        self.last().process()
    }

    /// Detaches the device in the stead of the connection's thread, which is
    /// stuck or has not come to run, and returns when the device is drained. False
    /// where the thread is detaching it, and will say so when it is drained.
    pub fn give_up(&self, reactor: &Mailbox) -> bool {
        self.last().give_up(reactor)
    }

    /// Tells the frontend to read the configuration space again. Waits for
    /// nobody: the channel is a Unix socket, and those don't.
    pub fn config_changed(&self) -> Told {
        let told = self.last().with_channel(|channel| {
            let Some(channel) = channel else {
                return Told::NotPossible;
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(channel, &CONFIG_CHANGE, flags) {
                Ok(sent) if sent == CONFIG_CHANGE.len() => Told::Frontend,
                // Full: it takes nothing from the channel.
                _ => Told::NotPossible,
            }
        });
        told.unwrap_or(Told::Nobody)
    }

    fn last(&self) -> Arc<Session> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Session>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a channel for messages of the backend from the frontend.
///
/// # Errors
/// A sentence, where it is something else than a Unix stream socket, to
/// which a write may wait; or where the session was given up.
pub(super) fn set_channel(session: &Session, channel: UnixStream) -> Result<(), String> {
    let is_unix = socket_domain(&channel) == Ok(AddressFamily::UNIX)
        && socket_type(&channel) == Ok(SocketType::STREAM);
    if !is_unix {
        return Err("its channel for messages of the backend is no Unix socket".into());
    }
    session.set_channel(channel).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A link whose frontend has connected.
    fn connected() -> (FrontendLink, Arc<Session>, Arc<Mailbox>) {
        let link = FrontendLink::default();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let session = link.let_in(&ours);
        session.begin().unwrap();
        (link, session, Mailbox::new().unwrap())
    }

    #[test]
    fn a_change_is_told_to_who_can_hear_it() {
        let link = FrontendLink::default();
        assert_eq!(link.config_changed(), Told::Nobody);
        let (link, session, reactor) = connected();
        assert_eq!(link.config_changed(), Told::NotPossible);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        set_channel(&session, ours).unwrap();
        assert_eq!(link.config_changed(), Told::Frontend);
        let mut bytes = [0; 12];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, CONFIG_CHANGE);
        session.end(&reactor);
        assert_eq!(link.config_changed(), Told::Nobody);
    }

    #[test]
    fn a_channel_that_is_no_unix_socket_is_refused() {
        let (link, session, _) = connected();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        for other in [tcp.into(), read] {
            set_channel(&session, UnixStream::from(other)).unwrap_err();
            assert_eq!(link.config_changed(), Told::NotPossible);
        }
    }

    #[test]
    fn a_channel_that_is_slow_to_close_keeps_nobody_from_the_link() {
        use std::os::fd::AsFd;
        use std::sync::mpsc::channel;
        let (link, session, reactor) = connected();
        let (ours, theirs) = UnixStream::pair().unwrap();
        set_channel(&session, ours).unwrap();
        let mut lingering = crate::lingering::Lingering::new();
        lingering.send_over(theirs.as_fd());
        let (ended, has_ended) = channel();
        let thread = std::thread::spawn(move || {
            session.end(&reactor);
            ended.send(()).unwrap();
        });
        while link.is_connected() {
            std::thread::yield_now();
        }
        assert_eq!(link.config_changed(), Told::Nobody);
        assert!(has_ended.try_recv().is_err(), "the close waits");
        drop(lingering);
        thread.join().unwrap();
    }

    #[test]
    fn a_frontend_that_never_listens_stops_nobody() {
        let (link, session, _) = connected();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        set_channel(&session, ours).unwrap();
        // A socket's buffer is far smaller.
        let untold = (0..1 << 20).find(|_| link.config_changed() == Told::NotPossible);
        assert!(untold.is_some());
    }

    #[test]
    fn a_session_that_was_given_up_stays_so_when_the_next_client_is_let_in() {
        let link = FrontendLink::default();
        let reactor = Mailbox::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let late = link.let_in(&ours);
        assert!(link.give_up(&reactor));
        let next = link.let_in(&ours);
        next.begin().unwrap();
        assert!(late.begin().is_err());
        late.end(&reactor);
        assert!(link.is_connected(), "the next one's session is its own");
    }
}
