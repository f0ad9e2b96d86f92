//! What other threads may know of a VM's frontend, and tell it.
//!
//! The channel by which a backend speaks first (vhost-user, "Backend
//! communication") is the frontend's to offer. Only one thing is ever said on
//! it: that the configuration space has changed. No answer is asked for, so
//! nothing is ever read from it.

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{SendFlags, send};

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

    /// Tells the frontend to read the configuration space again. Waits for
    /// nobody.
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
        *self.lock() = State { connected: true, channel: None };
    }

    /// The frontend offers its channel.
    pub(super) fn set_channel(&self, channel: UnixStream) {
        self.lock().channel = Some(channel);
    }

    /// The frontend is gone.
    pub(super) fn disconnected(&self) {
        *self.lock() = State::default();
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
        link.set_channel(ours);
        assert_eq!(link.config_changed(), Told::Frontend);
        let mut bytes = [0; 12];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, CONFIG_CHANGE);
        link.disconnected();
        assert_eq!(link.config_changed(), Told::Nobody);
    }

    #[test]
    fn a_frontend_that_never_listens_stops_nobody() {
        let link = FrontendLink::default();
        link.connected();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        link.set_channel(ours);
        // A socket's buffer is far smaller.
        let untold = (0..1 << 20).find(|_| link.config_changed() == Told::NotPossible);
        assert!(untold.is_some());
    }
}
