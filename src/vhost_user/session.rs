//! How far one connection is.
//!
//! The connection's thread closes what its frontend sends, and the frontend can make
//! it wait there as long as it likes; or it has not come to run yet. Then somebody
//! else detaches its device: whoever takes it out of the session first. The phases
//! only go forward, so a thread that comes late finds that it is over: the leaf may be
//! closed by then, and the VM gone.

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

use super::peer::Peer;
use super::process::{FrontendProcess, pid_of_peer};
use crate::reactor::{Command, DeviceId, Mailbox};

/// One connection, from when its client is let in.
#[derive(Debug, Default)]
pub struct Session {
    /// Which process has connected, where that is known.
    process: Option<Pid>,
    peer: Peer,
    phase: Mutex<Phase>,
}

/// Each comes after those above it.
#[derive(Debug, Default)]
enum Phase {
    /// Its thread has not begun.
    #[default]
    LetIn,
    /// Its thread serves it.
    Served(Served),
    /// Its thread detaches the device.
    Detaching,
    /// Its thread is done with it.
    Over,
    /// Somebody else has detached the device, or does. What the thread still has to
    /// close is kept for it.
    GivenUp(Option<UnixStream>),
}

#[derive(Debug, Default)]
struct Served {
    device: Option<DeviceId>,
    /// By which the frontend hears what the backend says of its own accord.
    channel: Option<UnixStream>,
}

/// The connection was given up: nothing may be done for it any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("its VM was detached without it, since its connection did not end in time")]
pub(super) struct GivenUp;

impl Session {
    /// The session of the client behind `stream`.
    pub(super) fn of(stream: &UnixStream) -> Self {
        let process = pid_of_peer(stream);
        Self { process, peer: Peer::of(process), phase: Mutex::default() }
    }

    /// Who has connected.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The process that has connected, where that is known and it still runs.
    pub(super) fn process(&self) -> Option<FrontendProcess> {
        self.process.and_then(FrontendProcess::open)
    }

    /// Whether a frontend is connected.
    pub(super) fn is_connected(&self) -> bool {
        matches!(*self.lock(), Phase::Served(_) | Phase::Detaching)
    }

    /// Whether somebody else has detached the device.
    pub fn is_given_up(&self) -> bool {
        matches!(*self.lock(), Phase::GivenUp(_))
    }

    /// Its thread begins.
    pub(super) fn begin(&self) -> Result<(), GivenUp> {
        let mut phase = self.lock();
        match *phase {
            Phase::LetIn => {
                *phase = Phase::Served(Served::default());
                Ok(())
            }
            Phase::Served(_) | Phase::Detaching | Phase::Over | Phase::GivenUp(_) => Err(GivenUp),
        }
    }

    /// It has a device now.
    pub(super) fn attached(&self, device: DeviceId) -> Result<(), GivenUp> {
        self.with_served(|served| served.device = Some(device))
    }

    /// Does something that a connection must not do once its VM is detached: who
    /// gives it up waits.
    pub(super) fn while_served<T>(&self, work: impl FnOnce() -> T) -> Result<T, GivenUp> {
        self.with_served(|_| work())
    }

    /// The frontend offers its channel.
    pub(super) fn set_channel(&self, channel: UnixStream) -> Result<(), GivenUp> {
        // What was there is closed by the connection's thread, which may wait in it,
        // and without the lock that others want.
        let old = self.with_served(|served| served.channel.replace(channel));
        old.map(drop)
    }

    /// Looks at the channel; `None` unless a frontend is connected.
    pub(super) fn with_channel<T>(&self, look: impl FnOnce(Option<&UnixStream>) -> T) -> Option<T> {
        match &*self.lock() {
            Phase::Served(served) => Some(look(served.channel.as_ref())),
            Phase::LetIn | Phase::Detaching | Phase::Over | Phase::GivenUp(_) => None,
        }
    }

    /// The connection ends: detaches the device, unless somebody else has done that,
    /// and returns when it is drained. To be called by its thread, again and again
    /// if need be.
    pub(super) fn end(&self, reactor: &Mailbox) {
        let mut phase = self.lock();
        let served = match &mut *phase {
            Phase::Served(served) => std::mem::take(served),
            Phase::GivenUp(channel) => {
                let channel = channel.take();
                drop(phase);
                return drop(channel);
            }
            Phase::LetIn | Phase::Detaching | Phase::Over => Served::default(),
        };
        *phase = Phase::Detaching;
        drop(phase);
        if let Some(device) = served.device {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
        }
        *self.lock() = Phase::Over;
        // Last: this may wait, and then the session may be given up.
        drop(served.channel);
    }

    /// Detaches the device in the stead of the connection's thread, and returns when
    /// it is drained. The thread may do what it likes afterwards: its device is not
    /// there any more. False where the thread is detaching it, and will say so.
    pub(super) fn give_up(&self, reactor: &Mailbox) -> bool {
        let mut phase = self.lock();
        let served = match &mut *phase {
            Phase::Detaching => return false,
            Phase::GivenUp(_) => return true,
            Phase::Served(served) => std::mem::take(served),
            Phase::LetIn | Phase::Over => Served::default(),
        };
        *phase = Phase::GivenUp(served.channel);
        drop(phase);
        if let Some(device) = served.device {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
        }
        true
    }

    fn with_served<T>(&self, work: impl FnOnce(&mut Served) -> T) -> Result<T, GivenUp> {
        match &mut *self.lock() {
            Phase::Served(served) => Ok(work(served)),
            Phase::LetIn | Phase::Detaching | Phase::Over | Phase::GivenUp(_) => Err(GivenUp),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each way to go on, by its thread.
    fn every_step_is_refused(session: &Session, reactor: &Mailbox) {
        assert_eq!(session.begin(), Err(GivenUp));
        assert_eq!(session.attached(DeviceId(7)), Err(GivenUp));
        assert_eq!(session.while_served(|| panic!("it is served")), Err(GivenUp));
        let (channel, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(session.set_channel(channel), Err(GivenUp));
        assert_eq!(session.with_channel(|_| ()), None);
        session.end(reactor);
        assert!(!session.is_connected());
        assert_eq!(reactor.waiting(), 0, "the reactor is asked for something");
    }

    #[test]
    fn a_thread_that_comes_after_its_session_was_given_up_never_serves() {
        let reactor = Mailbox::new().unwrap();
        // Before the thread ran, and after each thing that it may have done.
        for steps in 0..3 {
            let session = Session::default();
            if steps > 0 {
                session.begin().unwrap();
            }
            if steps > 1 {
                let (channel, _theirs) = UnixStream::pair().unwrap();
                session.set_channel(channel).unwrap();
            }
            assert!(session.give_up(&reactor));
            for _ in 0..2 {
                every_step_is_refused(&session, &reactor);
                assert!(session.is_given_up());
                assert!(session.give_up(&reactor));
            }
        }
    }

    #[test]
    fn a_session_that_is_over_does_not_begin_again() {
        let reactor = Mailbox::new().unwrap();
        let session = Session::default();
        session.begin().unwrap();
        session.end(&reactor);
        every_step_is_refused(&session, &reactor);
        assert!(!session.is_given_up());
    }

    #[test]
    fn a_device_is_detached_by_one_and_the_other_knows() {
        let reactor = Mailbox::new().unwrap();
        let session = Session::default();
        session.begin().unwrap();
        session.attached(DeviceId(7)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| session.end(&reactor));
            // The reactor is asked, and has not answered.
            while reactor.waiting() == 0 {
                std::thread::yield_now();
            }
            assert!(session.is_connected());
            assert!(!session.give_up(&reactor), "its thread says when it is drained");
            reactor.drop_all();
            thread.join().unwrap();
        });
        assert!(!session.is_connected());
        // It may hang in a close now.
        assert!(session.give_up(&reactor));
        assert_eq!(reactor.waiting(), 0, "detached twice");
    }
}
