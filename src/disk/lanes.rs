//! Threads of a VM's own for what waits on a disk: writes that can't be done
//! at once, zeroing, flushes, write-back.
//!
//! A *lane* is one thread with a queue, started when there is work and gone
//! after some seconds without. Each VM has its own, so that one VM's slow sync
//! delays no other; and three of them, so that its flush doesn't queue behind
//! its writes. What is queued is bounded by the requests that a VM may have in
//! flight.
#![expect(unsafe_code, reason = "writes from guest buffers")]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::leaf::{Leaf, LeafError};
use crate::request::Ranges;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// How long an idle lane keeps its thread.
const IDLE: Duration = Duration::from_secs(5);
/// Enough for system calls and a log line.
const STACK_BYTES: usize = 128 << 10;

/// Work that may wait for a disk.
#[derive(Debug)]
pub enum Work {
    /// Write the buffers to the range.
    Write(SectorRange, Vec<GuestBuf>),
    /// Zero the ranges.
    Zero(Box<Ranges>),
    /// Make everything durable.
    Flush,
    /// Begin write-back, and wait until what was under way is done.
    WriteBack,
}

/// Who is told when the work is done: a reactor.
pub trait Report: Send + Sync {
    /// The job named `token` is done; its buffers come back, to be used again.
    fn done(&self, token: u32, result: Result<(), LeafError>, bufs: Vec<GuestBuf>);
}

struct Job {
    work: Work,
    /// Sync after it: the guest wants write-through.
    then_flush: bool,
    token: u32,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

struct Lane {
    name: &'static str,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// A VM's lanes.
pub struct Lanes {
    leaf: Arc<Leaf>,
    report: Arc<dyn Report>,
    write: Arc<Lane>,
    flush: Arc<Lane>,
    write_back: Arc<Lane>,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("leaf", &self.leaf.path()).finish_non_exhaustive()
    }
}

impl Lanes {
    /// Lanes that work on `leaf` and report to `report`. No thread yet.
    pub fn new(leaf: Arc<Leaf>, report: Arc<dyn Report>) -> Self {
        let lane = |name| Arc::new(Lane { name, queue: Mutex::default(), wake: Condvar::new() });
        Self {
            leaf,
            report,
            write: lane("leaf-write"),
            flush: lane("leaf-flush"),
            write_back: lane("leaf-back"),
        }
    }

    /// Queues work; `token` comes back through [`Report::done`], also where no
    /// thread can be had.
    ///
    /// # Safety
    /// The buffers of a [`Work::Write`] stay mapped until then, and have the
    /// range's length in all.
    pub unsafe fn submit(&self, work: Work, then_flush: bool, token: u32) {
        let lane = match &work {
            Work::Write(..) | Work::Zero(_) => &self.write,
            Work::Flush => &self.flush,
            Work::WriteBack => &self.write_back,
        };
        let mut queue = lane.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push_back(Job { work, then_flush, token });
        if queue.running {
            drop(queue);
            lane.wake.notify_one();
            return;
        }
        let (leaf, report) = (Arc::clone(&self.leaf), Arc::clone(&self.report));
        let thread_lane = Arc::clone(lane);
        let spawned = std::thread::Builder::new()
            .name(lane.name.into())
            .stack_size(STACK_BYTES)
            .spawn(move || thread_lane.run(&leaf, &*report));
        match spawned {
            Ok(_) => queue.running = true,
            Err(source) => {
                let Some(job) = queue.jobs.pop_back() else {
                    return;
                };
                drop(queue);
                let (path, operation) = (self.leaf.path().to_owned(), "start a thread");
                let error = LeafError::Io { path, operation, source };
                self.report.done(job.token, Err(error), Vec::new());
            }
        }
    }
}

impl Lane {
    fn run(&self, leaf: &Leaf, report: &dyn Report) {
        while let Some(job) = self.next() {
            let mut bufs = Vec::new();
            let mut result = match job.work {
                Work::Write(range, list) => {
                    bufs = list;
                    // SAFETY: by `submit`'s contract.
                    unsafe { leaf.write(range, &bufs) }
                }
                Work::Zero(ranges) => {
                    ranges.as_slice().iter().try_for_each(|range| leaf.write_zeroes(*range))
                }
                Work::Flush => leaf.flush(),
                Work::WriteBack => leaf.start_write_back().map_err(|source| {
                    let (path, operation) = (leaf.path().to_owned(), "write back");
                    LeafError::Io { path, operation, source }
                }),
            };
            if job.then_flush && result.is_ok() {
                result = leaf.flush();
            }
            report.done(job.token, result, bufs);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            let waited = self.wake.wait_timeout(queue, IDLE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.running = false;
                return None;
            }
        }
    }
}
