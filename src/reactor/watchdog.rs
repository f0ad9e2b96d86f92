//! The watchdog: a thread that gets reactors out of calls that wait.
//!
//! Knows of each reactor whether it is awake and whether it is in a call
//! ([`Pulse`]); knows nothing of devices. It looks every [`TICK`] while any
//! reactor is awake, and without any it doesn't tick at all. A reactor that is
//! in the same call at two looks is interrupted by a signal: why that is right
//! is told in [`super::call`].

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use super::{Mailbox, interrupt};
use crate::thread::own_id;

/// Between two looks. A call that waits is interrupted after one to two.
const TICK: Duration = Duration::from_millis(25);

/// What a reactor tells the watchdog. On a cache line of its own: the reactor
/// writes it at each call.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Pulse {
    /// Calls begun and calls ended: odd while in one.
    calls: AtomicU64,
    awake: AtomicBool,
    /// The reactor's thread id; 0 where there is none.
    thread: AtomicI32,
    watch: OnceLock<Watch>,
}

/// How a reactor wakes the watchdog.
#[derive(Debug)]
struct Watch {
    dozing: Arc<AtomicBool>,
    thread: Thread,
}

impl Pulse {
    /// The current thread is the reactor from now on.
    pub(super) fn begin(&self) {
        self.thread.store(own_id(), Ordering::Release);
        self.woke();
    }

    /// The reactor has ended.
    pub(super) fn end(&self) {
        self.thread.store(0, Ordering::Release);
        self.awake.store(false, Ordering::Release);
    }

    /// The reactor waits in epoll from here on, where it is in no call.
    pub(super) fn sleeps(&self) {
        self.awake.store(false, Ordering::Release);
    }

    /// The reactor goes on.
    pub(super) fn woke(&self) {
        // SeqCst, as in `doze`: of "awake" and "dozing" at least one of the two
        // threads sees what the other one wrote.
        self.awake.store(true, Ordering::SeqCst);
        if let Some(watch) = self.watch.get()
            && watch.dozing.load(Ordering::SeqCst)
        {
            watch.thread.unpark();
        }
    }

    /// Runs `call`, in which the reactor may get stuck.
    #[inline]
    pub(super) fn in_call<T>(&self, call: impl FnOnce() -> T) -> T {
        // One writer: no read-modify-write is needed.
        let before = self.calls.load(Ordering::Relaxed);
        self.calls.store(before.wrapping_add(1), Ordering::Relaxed);
        let result = call();
        self.calls.store(before.wrapping_add(2), Ordering::Relaxed);
        result
    }
}

/// The running watchdog.
#[derive(Debug)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches the reactors of these mailboxes, from now on and also those that
    /// start later.
    ///
    /// # Errors
    /// As sigaction(2) and where there is no thread to be had.
    pub fn start(reactors: Arc<[Arc<Mailbox>]>) -> io::Result<Self> {
        interrupt::install()?;
        let stop = Arc::new(AtomicBool::new(false));
        let dozing = Arc::new(AtomicBool::new(false));
        let watching = Watching {
            seen: vec![0; reactors.len()],
            reactors: Arc::clone(&reactors),
            dozing: Arc::clone(&dozing),
            stop: Arc::clone(&stop),
        };
        let thread =
            std::thread::Builder::new().name("watchdog".into()).spawn(move || watching.run())?;
        for reactor in reactors.iter() {
            let watch = Watch { dozing: Arc::clone(&dozing), thread: thread.thread().clone() };
            let _ = reactor.pulse.watch.set(watch);
        }
        // It may have dozed off before the reactors could wake it.
        thread.thread().unpark();
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

struct Watching {
    reactors: Arc<[Arc<Mailbox>]>,
    /// Each reactor's call count at the last look.
    seen: Vec<u64>,
    dozing: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Watching {
    fn run(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            if self.all_asleep() {
                self.doze();
            } else {
                // May return early, by a wake-up that is left over: then a
                // call that waits is interrupted sooner, and no other is.
                std::thread::park_timeout(TICK);
            }
            self.look();
        }
    }

    fn all_asleep(&self) -> bool {
        self.reactors.iter().all(|reactor| !reactor.pulse.awake.load(Ordering::SeqCst))
    }

    /// Waits for a reactor to wake.
    fn doze(&self) {
        self.dozing.store(true, Ordering::SeqCst);
        if self.all_asleep() && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.dozing.store(false, Ordering::SeqCst);
    }

    fn look(&mut self) {
        for (reactor, seen) in self.reactors.iter().zip(&mut self.seen) {
            let calls = reactor.pulse.calls.load(Ordering::Relaxed);
            let in_call = calls % 2 == 1;
            if in_call && calls == *seen {
                interrupt::thread(reactor.pulse.thread.load(Ordering::Acquire));
            }
            *seen = calls;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A thread in the place of a reactor, which makes a call that waits.
    fn stuck(mailbox: &Arc<Mailbox>) -> JoinHandle<rustix::io::Result<usize>> {
        let mailbox = Arc::clone(mailbox);
        std::thread::spawn(move || {
            let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            let write = |value: u64| rustix::io::write(&full, &value.to_ne_bytes());
            write(u64::MAX - 1).unwrap();
            mailbox.pulse.begin();
            let result = mailbox.pulse.in_call(|| write(1));
            mailbox.pulse.end();
            result
        })
    }

    #[test]
    fn a_call_that_waits_is_interrupted_also_when_the_watchdog_dozed() {
        let mailboxes: Arc<[_]> = (0..2).map(|_| Mailbox::new().unwrap()).collect();
        let watchdog = Watchdog::start(Arc::clone(&mailboxes)).unwrap();
        for round in 0..3 {
            for mailbox in mailboxes.iter() {
                let deadline = Instant::now() + Duration::from_secs(60);
                let dozing = || {
                    let watch = mailbox.pulse.watch.get().unwrap();
                    watch.dozing.load(Ordering::SeqCst)
                };
                while !dozing() {
                    assert!(Instant::now() < deadline, "it ticks on though all are asleep");
                    std::thread::yield_now();
                }
                let result = stuck(mailbox).join().unwrap();
                assert_eq!(result, Err(rustix::io::Errno::INTR), "round {round}");
            }
        }
        drop(watchdog);
    }
}
