//! Lanes that give way: a flush's work in the kernel is done when a CPU has
//! nothing better to do, for a while.
//!
//! A flush takes a millisecond or more of CPU in system calls. Where a guest's
//! thread wakes on the CPU that does it, the guest waits; and the scheduler
//! lets a thread that has begun its slice end it. So a lane that flushes beside
//! other busy VMs is `SCHED_IDLE` meanwhile (sched(7)): another thread has the
//! CPU at once, and one that wakes takes the CPU of such a lane for a free one.
//! That holds between threads of one CPU cgroup; what it does between several is
//! not known. Figures: docs/BENCHMARKS.md, noisy neighbour.
//!
//! On a busy host such a thread might get no CPU for seconds, perhaps while it
//! holds a lock of the file system. Therefore the *lifter*, a thread of the
//! process, gives it its own policy back after [`PATIENCE`]. That needs
//! `CAP_SYS_NICE` or an `RLIMIT_NICE` of 20: where neither is to be had, as the
//! lifter finds out when it starts, nobody gives way.
//!
//! Nobody who gives way holds the list of those who do, or waits for it.
#![expect(unsafe_code, reason = "sched_setscheduler(2) has no safe form in the crates here")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::thread::own_id;

/// For so long a lane gives way.
const PATIENCE: Duration = Duration::from_millis(8);
/// After so long without a lane that gives way the lifter stops ticking.
const LINGER: Duration = Duration::from_millis(100);

/// A lane that gives way, or is about to.
struct Low {
    thread: i32,
    /// What it is to be again.
    policy: i32,
    until: Instant,
    /// It does: it will not begin to once it has been lifted.
    lowered: AtomicBool,
}

#[derive(Default)]
struct Lifter {
    low: Mutex<Vec<Arc<Low>>>,
    /// Its thread, once it knows that it may lift.
    thread: OnceLock<Thread>,
    dozing: AtomicBool,
    /// It may no longer: nobody else is to give way.
    broken: AtomicBool,
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
    let _lowered = lifter.lower(Instant::now() + PATIENCE);
    work()
}

/// A thread's own policy comes back at the end.
struct Lowered {
    lifter: &'static Lifter,
    low: Arc<Low>,
}

impl Drop for Lowered {
    fn drop(&mut self) {
        // Before the list is waited for.
        self.lifter.raise(&self.low);
        self.lifter.lock().retain(|low| !Arc::ptr_eq(low, &self.low));
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

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Low>>> {
        self.low.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the current thread give way until then; nothing if it may not, or has a
    /// policy of its own.
    fn lower(&'static self, until: Instant) -> Option<Lowered> {
        let lifter_thread = self.thread.get()?;
        if self.broken.load(Ordering::Relaxed) {
            return None;
        }
        let thread = own_id();
        let usual = [libc::SCHED_OTHER, libc::SCHED_BATCH];
        let policy = policy(thread).filter(|policy| usual.contains(policy))?;
        let low = Arc::new(Low { thread, policy, until, lowered: AtomicBool::new(false) });
        self.lock().push(Arc::clone(&low));
        if self.dozing.load(Ordering::SeqCst) {
            lifter_thread.unpark();
        }
        let lowered = Lowered { lifter: self, low };
        // From here on the lifter knows, however long the rest may take.
        set_policy(thread, libc::SCHED_IDLE).ok()?;
        lowered.low.lowered.store(true, Ordering::SeqCst);
        Some(lowered)
    }

    /// Gives a thread back what it had.
    fn raise(&self, low: &Low) {
        if let Err(error) = set_policy(low.thread, low.policy)
            && !self.broken.swap(true, Ordering::Relaxed)
        {
            log::error!(
                "can't give a flush its priority back ({error}): it may take long; from now on \
                 flushes don't give way to other VMs"
            );
        }
    }

    /// Lifts those whose time is over; whether there are any others.
    fn lift(&self, overdue: &mut Vec<Arc<Low>>) -> bool {
        let now = Instant::now();
        let any = {
            let mut low = self.lock();
            overdue.extend(low.iter().filter(|low| low.until <= now).cloned());
            // One that is about to give way is lifted again at the next tick.
            low.retain(|low| low.until > now || !low.lowered.load(Ordering::SeqCst));
            !low.is_empty()
        };
        overdue.drain(..).for_each(|low| self.raise(&low));
        any
    }

    fn run(&self) {
        let own = own_id();
        let usual = policy(own).unwrap_or(libc::SCHED_OTHER);
        let back = set_policy(own, libc::SCHED_IDLE).and_then(|()| set_policy(own, usual));
        if let Err(error) = back {
            log::info!(
                "flushes will not give way to other VMs ({error}): that needs CAP_SYS_NICE or \
                 RLIMIT_NICE 20 (LimitNICE=+0 in a systemd unit)"
            );
            return;
        }
        let _ = self.thread.set(std::thread::current());
        let (mut overdue, mut busy_until) = (Vec::new(), Instant::now());
        loop {
            if self.lift(&mut overdue) {
                busy_until = Instant::now() + LINGER;
            }
            if Instant::now() < busy_until {
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
            set_policy(own_id(), libc::SCHED_IDLE).unwrap();
            set_policy(own_id(), libc::SCHED_OTHER).is_ok()
        });
        let may_lift = may_lift.join().unwrap();
        if may_lift {
            wait_until(|| lifter.thread.get().is_some());
        }
        (lifter, may_lift)
    }

    fn wait_until(is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
    }

    fn own_is(wanted: i32) -> bool {
        policy(own_id()) == Some(wanted)
    }

    #[test]
    fn who_gives_way_has_its_policy_back_after_the_work() {
        let (lifter, may_lift) = lifter();
        for wanted in [libc::SCHED_OTHER, libc::SCHED_BATCH] {
            std::thread::spawn(move || {
                set_policy(own_id(), wanted).unwrap();
                let lowered = lifter.lower(Instant::now() + SOON);
                assert_eq!(lowered.is_some(), may_lift);
                assert!(own_is(if may_lift { libc::SCHED_IDLE } else { wanted }));
                drop(lowered);
                assert!(own_is(wanted));
                assert!(lifter.lock().iter().all(|low| low.thread != own_id()));
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
                let lowered = lifter.lower(Instant::now() + PATIENCE);
                wait_until(|| own_is(libc::SCHED_OTHER));
                wait_until(|| lifter.lock().iter().all(|low| low.thread != own_id()));
                drop(lowered);
                assert!(own_is(libc::SCHED_OTHER), "also after it was lifted");
            });
            worker.join().unwrap();
        }
    }

    #[test]
    fn who_is_late_to_give_way_is_lifted_all_the_same() {
        let (lifter, may_lift) = lifter();
        std::thread::spawn(move || {
            let low = Low {
                thread: own_id(),
                policy: libc::SCHED_OTHER,
                until: Instant::now(),
                lowered: AtomicBool::new(false),
            };
            lifter.lock().push(Arc::new(low));
            let mut overdue = Vec::new();
            assert!(lifter.lift(&mut overdue), "it stays in the list");
            if may_lift {
                set_policy(own_id(), libc::SCHED_IDLE).unwrap();
            }
            let mine = |low: &Arc<Low>| low.thread == own_id();
            let low = lifter.lock().iter().find(|low| mine(low)).cloned().unwrap();
            low.lowered.store(true, Ordering::SeqCst);
            assert!(!lifter.lift(&mut overdue) && own_is(libc::SCHED_OTHER));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_is_idle_by_itself_stays_so() {
        let (lifter, _) = lifter();
        let worker = std::thread::spawn(|| {
            set_policy(own_id(), libc::SCHED_IDLE).unwrap();
            assert!(lifter.lower(Instant::now()).is_none());
            assert!(own_is(libc::SCHED_IDLE));
        });
        worker.join().unwrap();
    }
}
