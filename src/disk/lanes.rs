//! Threads of a VM's own for what waits on a disk: writes that can't be done
//! at once, zeroing, flushes, write-back.
//!
//! A *lane* is one thread with a queue, started when there is work and gone
//! after some seconds without, or when its VM is. Each VM has its own, so that
//! one VM's slow sync delays no other; and three of them, so that its flush
//! doesn't queue behind its writes. What is queued is bounded by the requests
//! that a VM may have in flight.
//!
//! Each job is answered, also one that panics: then the leaf takes no more
//! writes until it is opened again ([`Leaf::abandon`]), and the lane goes on to
//! say so.
#![expect(unsafe_code, reason = "writes from guest buffers")]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::courtesy::give_way;
use crate::leaf::{Leaf, LeafError};
use crate::units::{Ranges, SectorRange};
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
    Flush {
        /// At first only with what CPU time others leave.
        gives_way: bool,
    },
    /// Begin write-back, and wait until what was under way is done.
    WriteBack,
}

/// Who is told when the work is done: a reactor.
pub trait Report: Send + Sync {
    /// The job named `token` is done; its buffers come back, to be used again.
    /// Must not panic.
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
    /// There will be no more: the thread ends when it has done what there is.
    closing: bool,
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
            Work::Flush { .. } => &self.flush,
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

impl Drop for Lanes {
    /// Ends idle threads at once, since a frontend can come and go a thousand
    /// times in the time that they would stay. Waits for none of them.
    fn drop(&mut self) {
        for lane in [&self.write, &self.flush, &self.write_back] {
            lane.queue.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
            lane.wake.notify_one();
        }
    }
}

impl Job {
    fn run(self, leaf: &Leaf) -> (Result<(), LeafError>, Vec<GuestBuf>) {
        let mut bufs = Vec::new();
        let mut result = match self.work {
            Work::Write(range, list) => {
                bufs = list;
                // SAFETY: by `submit`'s contract.
                unsafe { leaf.write(range, &bufs) }
            }
            Work::Zero(ranges) => {
                ranges.as_slice().iter().try_for_each(|range| leaf.write_zeroes(*range))
            }
            Work::Flush { gives_way: true } => leaf.flush_by(&|work| give_way(work)),
            Work::Flush { gives_way: false } => leaf.flush(),
            Work::WriteBack => leaf.start_write_back().map_err(|source| {
                let (path, operation) = (leaf.path().to_owned(), "write back");
                LeafError::Io { path, operation, source }
            }),
        };
        if self.then_flush && result.is_ok() {
            result = leaf.flush();
        }
        (result, bufs)
    }
}

impl Lane {
    fn run(&self, leaf: &Leaf, report: &dyn Report) {
        while let Some(job) = self.next() {
            let token = job.token;
            // Nothing of what the job changed is looked at afterwards but by the
            // leaf, which knows.
            let (result, bufs) = catch_unwind(AssertUnwindSafe(|| job.run(leaf)))
                .unwrap_or_else(|_| (Err(leaf.abandon()), Vec::new()));
            report.done(token, result, bufs);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closing {
                queue.running = false;
                return None;
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;
    use crate::leaf::tests::mem::Mem;
    use crate::leaf::{OpenOptions, create_storage};
    use crate::root::RootIdentity;

    type Answer = (u32, Result<(), LeafError>);

    struct Tell(Sender<Answer>);

    impl Report for Tell {
        fn done(&self, token: u32, result: Result<(), LeafError>, _: Vec<GuestBuf>) {
            let _ = self.0.send((token, result));
        }
    }

    /// Lanes of a leaf in memory, and what they report.
    fn lanes(mem: &Mem) -> (Arc<Leaf>, Lanes, Receiver<Answer>) {
        let path = Path::new("vm.leaf");
        let root = RootIdentity { len_bytes: 1 << 20, fingerprint: [1; 32], name: "r".into() };
        create_storage(path, mem, crate::leaf::Layout::Packed, 1 << 20, &root).unwrap();
        let storage = Box::new(mem.clone());
        let leaf = Leaf::open_storage(path, storage, &root, &OpenOptions::default()).unwrap();
        let leaf = Arc::new(leaf);
        let (sender, done) = channel();
        let lanes = Lanes::new(Arc::clone(&leaf), Arc::new(Tell(sender)));
        (leaf, lanes, done)
    }

    fn work(bytes: &mut [u8]) -> [Work; 3] {
        let range = SectorRange::whole(bytes.len() as u64 / 512).unwrap();
        let buf = GuestBuf::new(bytes.as_mut_ptr(), bytes.len());
        [Work::Write(range, vec![buf]), Work::Flush { gives_way: true }, Work::WriteBack]
    }

    /// Each thread holds the leaf; idle ones would for seconds.
    fn wait_for_threads_to_end(leaf: &Arc<Leaf>) {
        let begun = Instant::now();
        while Arc::strong_count(leaf) > 1 {
            assert!(begun.elapsed() < IDLE / 2, "{} threads stay", Arc::strong_count(leaf) - 1);
            std::thread::yield_now();
        }
    }

    #[test]
    fn threads_end_with_their_lanes_after_what_they_were_given() {
        let (leaf, lanes, done) = lanes(&Mem::default());
        let mut bytes = vec![0; 4096];
        for work in work(&mut bytes) {
            // SAFETY: the buffer is as long as the range, and is kept until the end.
            unsafe { lanes.submit(work, false, 7) };
        }
        drop(lanes);
        (0..3).for_each(|_| assert!(matches!(done.recv(), Ok((7, Ok(()))))));
        wait_for_threads_to_end(&leaf);
    }

    #[test]
    fn a_job_that_panics_is_answered_and_so_is_each_one_after_it() {
        const SOON: Duration = Duration::from_secs(30);
        let mem = Mem::default();
        let (leaf, lanes, done) = lanes(&mem);
        let mut bytes = vec![0x11; 4096];
        let [write, flush, write_back] = work(&mut bytes);
        mem.state().panic_in_sync = true;
        // SAFETY: the buffer is as long as the range, and is kept until the end.
        unsafe { lanes.submit(write, true, 1) };
        let answer = done.recv_timeout(SOON);
        assert!(matches!(answer, Ok((1, Err(LeafError::Abandoned { .. })))), "{answer:?}");
        mem.state().panic_in_sync = false;
        let [write, ..] = work(&mut bytes);
        // SAFETY: see above.
        unsafe {
            lanes.submit(write, false, 2);
            lanes.submit(flush, false, 3);
            lanes.submit(write_back, false, 4);
        }
        let mut answers: Vec<_> = (0..3).map(|_| done.recv_timeout(SOON).unwrap()).collect();
        answers.sort_by_key(|(token, _)| *token);
        let refused = |answer: &Answer| matches!(answer.1, Err(LeafError::Abandoned { .. }));
        assert_eq!(answers.iter().map(refused).collect::<Vec<_>>(), [true, true, false]);
        drop(lanes);
        wait_for_threads_to_end(&leaf);
    }
}
