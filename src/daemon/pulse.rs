//! Whether the reactors live: each is sent a message through its mailbox, and
//! answers.
//!
//! One that doesn't answer is not asked again before it does, so that questions
//! don't pile up in its mailbox.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::reactor::{Command, Mailbox};

/// All reactors, and what is known of them.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Felt>);

#[derive(Debug)]
struct Felt {
    reactors: Vec<Asked>,
    /// When it was last felt for, and the numbers of those that did not answer.
    last: Option<(Instant, Vec<usize>)>,
}

impl Pulse {
    pub(super) fn new(reactors: &[Arc<Mailbox>]) -> Self {
        let reactors = reactors.iter().map(Asked::new).collect();
        Self(Mutex::new(Felt { reactors, last: None }))
    }

    /// The numbers of the reactors that give no sign of life within `wait`. Who
    /// calls while another does waits for that one, and takes its word if it
    /// began later than the call.
    pub(super) fn stuck(&self, wait: Duration) -> Vec<usize> {
        let called = Instant::now();
        let mut felt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((begun, stuck)) = &felt.last
            && *begun > called
        {
            return stuck.clone();
        }
        let begun = Instant::now();
        // All are asked before the first is waited for.
        felt.reactors.iter_mut().for_each(Asked::ask);
        let reactors = felt.reactors.iter_mut().enumerate();
        let stuck: Vec<usize> = reactors
            .filter_map(|(number, reactor)| (!reactor.answers_by(begun + wait)).then_some(number))
            .collect();
        felt.last = Some((begun, stuck.clone()));
        stuck
    }
}

/// A reactor, and the question that it has not answered yet: never more than
/// one, however long it takes.
#[derive(Debug)]
struct Asked {
    reactor: Arc<Mailbox>,
    answer: Option<Receiver<()>>,
}

impl Asked {
    fn new(reactor: &Arc<Mailbox>) -> Self {
        Self { reactor: Arc::clone(reactor), answer: None }
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
            self.answer = None;
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn a_reactor_that_does_not_answer_is_asked_once_and_counts_as_dead() {
        let mailbox = Mailbox::new().unwrap();
        let pulse = Pulse::new(&[Arc::clone(&mailbox)]);
        for _ in 0..3 {
            assert_eq!(pulse.stuck(SOON), [0]);
        }
        assert_eq!(mailbox.waiting(), 1, "one question, however often");
    }

    #[test]
    fn many_who_ask_at_once_wait_little_longer_than_one() {
        const MANY: u32 = 16;
        let mailbox = Mailbox::new().unwrap();
        let pulse = Pulse::new(&[Arc::clone(&mailbox)]);
        let wait = Duration::from_millis(200);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..MANY {
                scope.spawn(|| assert_eq!(pulse.stuck(wait), [0]));
            }
        });
        assert!(begun.elapsed() < wait * (MANY / 2), "they waited one after the other");
        assert_eq!(mailbox.waiting(), 1);
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
        let pulse = Pulse::new(&mailboxes);
        for _ in 0..3 {
            assert_eq!(pulse.stuck(Duration::from_secs(60)), [0; 0]);
        }
    }
}
