//! Lanes that give way: a flush's work in the kernel is done when a CPU has
//! nothing better to do, for a while.
//!
//! A flush takes a millisecond or more of CPU in system calls. Where a guest's
//! thread wakes on the CPU that does it, the guest waits; and the scheduler
//! lets a thread that has begun its slice end it. So a lane that flushes beside
//! other busy VMs is `SCHED_IDLE` meanwhile (sched(7)): any other thread has the CPU at
//! once, and one that wakes takes the CPU of a lane for a free one. Figures:
//! docs/BENCHMARKS.md, noisy neighbour.
//!
//! On a busy host such a thread might get no CPU for seconds, perhaps while it
//! holds a lock of the file system. Therefore the *lifter*, a thread of the
//! process, gives it its own policy back after [`PATIENCE`]. That needs
//! `CAP_SYS_NICE` or an `RLIMIT_NICE` of 20: where neither is to be had, as the
//! lifter finds out when it starts, nobody gives way.
#![expect(unsafe_code, reason = "sched_setscheduler(2) has no safe form in the crates here")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// For so long a lane gives way.
const PATIENCE: Duration = Duration::from_millis(8);
/// After so long without a lane that gives way the lifter stops ticking.
const LINGER: Duration = Duration::from_millis(100);

/// A lane that gives way.
struct Low {
    thread: i32,
    /// What it is to be again.
    policy: i32,
    until: Instant,
}

#[derive(Default)]
struct Lifter {
    low: Mutex<Vec<Low>>,
    /// Its thread, once it knows that it may lift.
    thread: OnceLock<Thread>,
    dozing: AtomicBool,
}

static LIFTER: OnceLock<&'static Lifter> = OnceLock::new();

/// Starts the lifter, if it has not been: until it runs nobody gives way. Logs why
/// nobody may.
pub fn start() {
    LIFTER.get_or_init(Lifter::start);
}

/// Does `work`, on the current thread; for a while only when no other thread
/// wants the CPU, where that may be undone.
pub(super) fn give_way<T>(work: impl FnOnce() -> T) -> T {
    let Some(lifter) = LIFTER.get() else {
        return work();
    };
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let _lowered = lifter.lower(thread, Instant::now() + PATIENCE);
    work()
}

/// A thread's own policy comes back at the end.
struct Lowered {
    lifter: &'static Lifter,
    thread: i32,
}

impl Drop for Lowered {
    fn drop(&mut self) {
        self.lifter.lift(|low| low.thread == self.thread);
    }
}

impl Lifter {
    /// Starts the thread, which then says whether anybody may give way.
    fn start() -> &'static Self {
        let lifter: &'static Self = Box::leak(Box::default());
        let spawned = std::thread::Builder::new().name("lifter".into()).spawn(|| lifter.run());
        if let Err(error) = spawned {
            log::warn!("flushes will not give way to other VMs: can't start a thread: {error}");
        }
        lifter
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Low>> {
        self.low.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a thread give way until then; nothing if it may not, or has a
    /// policy of its own.
    fn lower(&'static self, thread: i32, until: Instant) -> Option<Lowered> {
        let lifter_thread = self.thread.get()?;
        let mut low = self.lock();
        let policy =
            policy(thread).filter(|p| [libc::SCHED_OTHER, libc::SCHED_BATCH].contains(p))?;
        set_policy(thread, libc::SCHED_IDLE).ok()?;
        low.push(Low { thread, policy, until });
        drop(low);
        if self.dozing.load(Ordering::SeqCst) {
            lifter_thread.unpark();
        }
        Some(Lowered { lifter: self, thread })
    }

    /// Gives those back what they had of whom `which` says so.
    fn lift(&self, which: impl Fn(&Low) -> bool) {
        self.lock().retain(|low| {
            let stays = !which(low);
            if !stays && let Err(error) = set_policy(low.thread, low.policy) {
                log::error!("can't give a flush its priority back, it may take long: {error}");
            }
            stays
        });
    }

    fn run(&self) {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let back =
            set_policy(own, libc::SCHED_IDLE).and_then(|()| set_policy(own, libc::SCHED_OTHER));
        if let Err(error) = back {
            log::info!(
                "flushes will not give way to other VMs ({error}): that needs CAP_SYS_NICE or \
                 RLIMIT_NICE 20 (LimitNICE=+0 in a systemd unit)"
            );
            return;
        }
        let _ = self.thread.set(std::thread::current());
        let mut busy_until = Instant::now();
        loop {
            let now = Instant::now();
            self.lift(|low| low.until <= now);
            if !self.lock().is_empty() {
                busy_until = now + LINGER;
            }
            if now < busy_until {
                std::thread::park_timeout(PATIENCE / 2);
                continue;
            }
            // Of "dozing" and "there is one" at least one of the two threads
            // sees what the other one wrote.
            self.dozing.store(true, Ordering::SeqCst);
            if self.lock().is_empty() {
                std::thread::park();
            }
            self.dozing.store(false, Ordering::SeqCst);
            busy_until = Instant::now() + LINGER;
        }
    }
}

fn policy(thread: i32) -> Option<i32> {
    // SAFETY: a plain system call.
    let policy = unsafe { libc::sched_getscheduler(thread) };
    (policy >= 0).then_some(policy)
}

fn set_policy(thread: i32, policy: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call, which only reads it.
    match unsafe { libc::sched_setscheduler(thread, policy, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// A lifter that has found out what it may, and whether it is to be relied on.
    fn lifter() -> (&'static Lifter, bool) {
        let lifter = Lifter::start();
        let may_lift = std::thread::spawn(|| {
            let own = own();
            set_policy(own, libc::SCHED_IDLE).unwrap();
            set_policy(own, libc::SCHED_OTHER).is_ok()
        });
        let may_lift = may_lift.join().unwrap();
        if may_lift {
            wait_until(|| lifter.thread.get().is_some());
        }
        (lifter, may_lift)
    }

    fn own() -> i32 {
        rustix::thread::gettid().as_raw_nonzero().get()
    }

    fn wait_until(is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
    }

    fn own_is(wanted: i32) -> bool {
        policy(own()) == Some(wanted)
    }

    #[test]
    fn who_gives_way_has_its_policy_back_after_the_work() {
        let (lifter, may_lift) = lifter();
        for wanted in [libc::SCHED_OTHER, libc::SCHED_BATCH] {
            std::thread::spawn(move || {
                set_policy(own(), wanted).unwrap();
                let lowered = lifter.lower(own(), Instant::now() + SOON);
                assert_eq!(lowered.is_some(), may_lift);
                assert!(own_is(if may_lift { libc::SCHED_IDLE } else { wanted }));
                drop(lowered);
                assert!(own_is(wanted));
                assert!(lifter.lock().iter().all(|low| low.thread != own()));
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn who_gives_way_does_so_for_a_while_only_also_when_the_lifter_dozed() {
        let (lifter, may_lift) = lifter();
        for _ in 0..3 {
            wait_until(|| !may_lift || lifter.dozing.load(Ordering::SeqCst));
            let worker: JoinHandle<()> = std::thread::spawn(|| {
                let _lowered = lifter.lower(own(), Instant::now() + PATIENCE);
                wait_until(|| own_is(libc::SCHED_OTHER));
            });
            worker.join().unwrap();
        }
    }

    #[test]
    fn who_is_idle_by_itself_stays_so() {
        let (lifter, _) = lifter();
        let worker = std::thread::spawn(|| {
            set_policy(own(), libc::SCHED_IDLE).unwrap();
            assert!(lifter.lower(own(), Instant::now()).is_none());
            assert!(own_is(libc::SCHED_IDLE));
        });
        worker.join().unwrap();
    }
}
