//! What the service manager hears (sd_notify(3)): ready, reloading, stopping,
//! and again and again that the process lives.
//!
//! Alive means that every reactor has taken a message out of its mailbox and
//! answered: a process whose reactors are stuck is killed and started again by
//! systemd, and its VMs go on after their reconnect. Without a service manager
//! nothing here does anything.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use sd_notify::NotifyState;

use crate::reactor::{Command, Mailbox};

/// Signs of life within the time after which systemd gives up (WatchdogSec=).
const SIGNS: u32 = 3;

/// The way to the service manager.
#[derive(Debug)]
pub(super) struct Service {
    signs: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Service {
    /// Gives signs of life from now on, if systemd asks for them, as long as
    /// all of `reactors` answer.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub(super) fn start(reactors: &[Arc<Mailbox>]) -> io::Result<Self> {
        let Some(patience) = sd_notify::watchdog_enabled() else {
            return Ok(Self { signs: None });
        };
        let (stop, stopped) = sync_channel(1);
        let mut asked: Vec<Asked> = reactors.iter().map(Asked::new).collect();
        let every = patience / SIGNS;
        let thread = std::thread::Builder::new().name("signs-of-life".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                if all_answer(&mut asked, Instant::now() + every) {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        })?;
        Ok(Self { signs: Some((stop, thread)) })
    }

    /// All is served; `status` says how much.
    pub(super) fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A new configuration is being taken up; [`Self::ready`] ends it.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(e) => log::warn!("there is no monotonic clock: {e}"),
        }
    }

    /// No longer: it stops, which may take a while where much is to be flushed.
    pub(super) fn stopping(mut self) {
        notify(&[NotifyState::Stopping, NotifyState::Status("flushing the leaves")]);
        // systemd expects no signs of life from here on, and the reactors go.
        if let Some((stop, thread)) = self.signs.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::warn!("the service manager can't be told {state:?}: {e}");
    }
}

/// A reactor, and the question that it has not answered yet: never more than
/// one, however long it takes.
struct Asked {
    reactor: Arc<Mailbox>,
    answer: Option<Receiver<()>>,
    /// It was in the log.
    reported: bool,
}

impl Asked {
    fn new(reactor: &Arc<Mailbox>) -> Self {
        Self { reactor: Arc::clone(reactor), answer: None, reported: false }
    }

    fn ask(&mut self) {
        if self.answer.is_none() {
            let (answer, answered) = sync_channel(1);
            self.reactor.send(Command::Ping(answer));
            self.answer = Some(answered);
        }
    }

    fn answers_by(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let answers = self.answer.as_ref().is_some_and(|answer| answer.recv_timeout(left).is_ok());
        if answers {
            (self.answer, self.reported) = (None, false);
        }
        answers
    }
}

/// Whether every reactor answers before `deadline`.
fn all_answer(asked: &mut [Asked], deadline: Instant) -> bool {
    asked.iter_mut().for_each(Asked::ask);
    let mut all = true;
    for (index, reactor) in asked.iter_mut().enumerate() {
        if !reactor.answers_by(deadline) {
            all = false;
            if !std::mem::replace(&mut reactor.reported, true) {
                log::error!("reactor {index} does not answer; the VMs on it stand still");
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn a_reactor_that_does_not_answer_is_asked_once_and_counts_as_dead() {
        let mailbox = Mailbox::new().unwrap();
        let mut asked = [Asked::new(&mailbox)];
        for _ in 0..3 {
            assert!(!all_answer(&mut asked, Instant::now() + SOON));
        }
        assert_eq!(mailbox.waiting(), 1, "one question, however often");
    }

    #[test]
    fn reactors_that_answer_are_alive() {
        use crate::cache::{Cache, CacheConfig, Hugepages};
        use crate::reactor::Reactor;
        let config = CacheConfig {
            size_bytes: 16 << 20,
            block_bytes: 64 << 10,
            hugepages: Hugepages::Off,
            readers_max: 2,
        };
        let (cache, _) = Cache::new(&config).unwrap();
        let mailboxes: Arc<[_]> = (0..2).map(|_| Mailbox::new().unwrap()).collect();
        let _reactors: Vec<_> = (0..2)
            .map(|i| Reactor::start(i, Arc::clone(&cache), Arc::clone(&mailboxes), 0).unwrap())
            .collect();
        let mut asked: Vec<_> = mailboxes.iter().map(Asked::new).collect();
        for _ in 0..3 {
            assert!(all_answer(&mut asked, Instant::now() + Duration::from_secs(60)));
        }
    }
}
