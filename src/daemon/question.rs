//! A question whose answer may not come: one that is put to a file system, which
//! hangs when its server is gone (hard NFS) or its device is.
//!
//! It is asked on a thread of its own, and not again before it was answered: a file
//! system that hangs costs one thread, however often somebody wants to know.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Enough for system calls.
const STACK_BYTES: usize = 64 << 10;

/// How long an answer is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// What is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Answer<T> {
    /// The last answer; `None` where there was none, or nobody could give it.
    pub(super) last: Option<T>,
    /// For how long another one has been owed.
    pub(super) owed: Option<Duration>,
}

#[derive(Debug)]
struct State<T> {
    /// Since when an answer is owed.
    asked: Option<Instant>,
    last: Option<T>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    answered: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One question, asked again and again.
#[derive(Debug)]
pub(super) struct Question<T>(Arc<Shared<T>>);

impl<T> Default for Question<T> {
    fn default() -> Self {
        let state = Mutex::new(State { asked: None, last: None });
        Self(Arc::new(Shared { state, answered: Condvar::new() }))
    }
}

impl<T: Clone + Send + 'static> Question<T> {
    /// Asks, unless an answer is still owed. Waits for nothing.
    pub(super) fn ask(&self, find: impl FnOnce() -> T + Send + 'static) {
        {
            let mut state = self.0.lock();
            if state.asked.is_some() {
                return;
            }
            state.asked = Some(Instant::now());
        }
        let owed = Owed { shared: Arc::clone(&self.0), answer: None };
        let thread = std::thread::Builder::new().name("question".into()).stack_size(STACK_BYTES);
        // Where no thread can be had, `owed` is dropped, and nothing is known.
        let _ = thread.spawn(move || owed.give(find()));
    }

    /// The answer, waited for until [`PATIENCE`] after it was asked for.
    pub(super) fn answer(&self) -> Answer<T> {
        let mut state = self.0.lock();
        while let Some(asked) = state.asked {
            let left = PATIENCE.saturating_sub(asked.elapsed());
            if left.is_zero() {
                break;
            }
            let woken = self.0.answered.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Answer { last: state.last.clone(), owed: state.asked.map(|asked| asked.elapsed()) }
    }
}

/// An answer that is owed until this is dropped.
struct Owed<T> {
    shared: Arc<Shared<T>>,
    answer: Option<T>,
}

impl<T> Owed<T> {
    fn give(mut self, answer: T) {
        self.answer = Some(answer);
    }
}

impl<T> Drop for Owed<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.asked, state.last) = (None, self.answer.take());
        self.shared.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    fn answer<T: Clone + Send + 'static>(question: &Question<T>) -> Option<T> {
        loop {
            // On a busy machine it may take a while.
            let Answer { last, owed } = question.answer();
            if owed.is_none() {
                return last;
            }
        }
    }

    #[test]
    fn an_answer_that_comes_is_given_and_asked_for_anew_each_time() {
        let question = Question::default();
        assert_eq!(answer(&question), None, "nobody asked");
        for number in 0..3 {
            question.ask(move || number);
            assert_eq!(answer(&question), Some(number));
        }
    }

    #[test]
    fn one_that_is_not_answered_is_asked_once_and_waited_for_once() {
        let question = Question::default();
        question.ask(|| 3);
        assert_eq!(answer(&question), Some(3));
        let asked = Arc::new(AtomicUsize::new(0));
        let (go, wait) = channel();
        let (begun, counted) = (Instant::now(), Arc::clone(&asked));
        question.ask(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            wait.recv().unwrap()
        });
        for _ in 0..100 {
            let counted = Arc::clone(&asked);
            question.ask(move || counted.fetch_add(1, Ordering::SeqCst));
            let Answer { last, owed } = question.answer();
            assert!(last == Some(3) && owed >= Some(PATIENCE));
        }
        assert!(begun.elapsed() < PATIENCE * 20, "each was waited for");
        go.send(7).unwrap();
        assert_eq!(answer(&question), Some(7));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn one_whose_thread_panics_is_not_waited_for() {
        let question = Question::<u32>::default();
        question.ask(|| panic!("on purpose"));
        assert_eq!(answer(&question), None);
    }
}
