//! What other threads may know of a VM's frontend, tell it, and do where its
//! connection's thread is stuck.
//!
//! The channel by which a backend speaks first (vhost-user, "Backend
//! communication") is the frontend's to offer. Only one thing is ever said on
//! it: that the configuration space has changed. No answer is asked for, so
//! nothing is ever read from it.
//!
//! The connection's thread closes what the frontend sends, and the frontend can
//! make it wait there as long as it likes. Then somebody else detaches its
//! device: whoever takes it out of the link first.

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SendFlags, SocketType, send};

use crate::reactor::{Command, DeviceId, Mailbox};

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no reply needed, no body.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// A VM's frontend, whether there is one or not.
#[derive(Debug, Default)]
pub struct FrontendLink {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    channel: Option<UnixStream>,
    /// The device, while it is attached and nobody detaches it.
    device: Option<DeviceId>,
    /// The connection's thread is detaching it.
    detaching: bool,
    /// Somebody else does, or has done it.
    given_up: bool,
}

/// Who learned of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Nobody is connected: the next frontend reads what is true then.
    Nobody,
    /// The frontend was told.
    Frontend,
    /// The frontend offers no way to tell it; it learns of the change when it
    /// connects again.
    NotPossible,
}

impl FrontendLink {
    /// Whether a frontend is connected.
    pub fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// Detaches the device in the stead of the connection's thread, which is
    /// stuck, and returns when the device is drained. The thread may do what it
    /// likes afterwards: its device is not there any more. False where the
    /// thread is detaching it, and will say so when it is drained.
    pub fn give_up(&self, reactor: &Mailbox) -> bool {
        let mut state = self.lock();
        if state.detaching {
            return false;
        }
        let device = state.device.take();
        state.given_up = true;
        drop(state);
        if let Some(device) = device {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
        }
        true
    }

    /// Whether [`Self::give_up`] has gone ahead of the connection's thread.
    pub fn is_given_up(&self) -> bool {
        self.lock().given_up
    }

    /// Tells the frontend to read the configuration space again. Waits for
    /// nobody: the channel is a Unix socket, and those don't.
    pub fn config_changed(&self) -> Told {
        let state = self.lock();
        match &state.channel {
            _ if !state.connected => Told::Nobody,
            None => Told::NotPossible,
            Some(channel) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match send(channel, &CONFIG_CHANGE, flags) {
                    Ok(sent) if sent == CONFIG_CHANGE.len() => Told::Frontend,
                    // Full: it takes nothing from the channel.
                    _ => Told::NotPossible,
                }
            }
        }
    }

    /// A frontend has come.
    pub(super) fn connected(&self) {
        self.replace(State { connected: true, ..State::default() });
    }

    /// The frontend has a device; false if nobody waits for it any more.
    pub(super) fn attached(&self, device: DeviceId) -> bool {
        let mut state = self.lock();
        state.device = Some(device).filter(|_| !state.given_up);
        state.device.is_some()
    }

    /// Detaches the device, unless somebody else has done that; returns when it
    /// is drained.
    pub(super) fn detach(&self, reactor: &Mailbox) {
        let device = {
            let mut state = self.lock();
            state.detaching = state.device.is_some();
            state.device.take()
        };
        if let Some(device) = device {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
            self.lock().detaching = false;
        }
    }

    /// The frontend offers its channel.
    ///
    /// # Errors
    /// A sentence, where it is something else than a Unix stream socket, to
    /// which a write may wait.
    pub(super) fn set_channel(&self, channel: UnixStream) -> Result<(), String> {
        let is_unix = socket_domain(&channel) == Ok(AddressFamily::UNIX)
            && socket_type(&channel) == Ok(SocketType::STREAM);
        if !is_unix {
            return Err("its channel for messages of the backend is no Unix socket".into());
        }
        let old = self.lock().channel.replace(channel);
        // Closed by the connection's thread, which may wait in it, and without
        // the lock that others want.
        drop(old);
        Ok(())
    }

    /// The frontend is gone.
    pub(super) fn disconnected(&self) {
        let given_up = self.lock().given_up;
        self.replace(State { given_up, ..State::default() });
    }

    /// As in [`Self::set_channel`], the old one is dropped without the lock.
    fn replace(&self, state: State) {
        let old = std::mem::replace(&mut *self.lock(), state);
        drop(old);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_change_is_told_to_who_can_hear_it() {
        let link = FrontendLink::default();
        assert_eq!(link.config_changed(), Told::Nobody);
        link.connected();
        assert_eq!(link.config_changed(), Told::NotPossible);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        link.set_channel(ours).unwrap();
        assert_eq!(link.config_changed(), Told::Frontend);
        let mut bytes = [0; 12];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, CONFIG_CHANGE);
        link.disconnected();
        assert_eq!(link.config_changed(), Told::Nobody);
    }

    #[test]
    fn a_channel_that_is_no_unix_socket_is_refused() {
        let link = FrontendLink::default();
        link.connected();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        for other in [tcp.into(), read] {
            link.set_channel(UnixStream::from(other)).unwrap_err();
            assert_eq!(link.config_changed(), Told::NotPossible);
        }
    }

    #[test]
    fn a_channel_that_is_slow_to_close_keeps_nobody_from_the_link() {
        use std::os::fd::AsFd;
        use std::sync::mpsc::channel;
        let link = std::sync::Arc::new(FrontendLink::default());
        link.connected();
        let (ours, theirs) = UnixStream::pair().unwrap();
        link.set_channel(ours).unwrap();
        let mut lingering = crate::lingering::Lingering::new();
        lingering.send_over(theirs.as_fd());
        let (ended, has_ended) = channel();
        let in_thread = std::sync::Arc::clone(&link);
        let thread = std::thread::spawn(move || {
            in_thread.disconnected();
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
        let link = FrontendLink::default();
        link.connected();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        link.set_channel(ours).unwrap();
        // A socket's buffer is far smaller.
        let untold = (0..1 << 20).find(|_| link.config_changed() == Told::NotPossible);
        assert!(untold.is_some());
    }
}
