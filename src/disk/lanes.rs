//! Threads of a VM's own for what waits on a disk: writes that can't be done
//! at once, zeroing, flushes, write-back.
//!
//! A *lane* is one thread with a queue, started when there is work and gone
//! after some seconds without, or when its VM is. Each VM has its own, so that
//! one VM's slow sync delays no other; and three of them, so that its flush
//! doesn't queue behind its writes. What is queued is bounded by the requests
//! that a VM may have in flight.
//!
//! Zeroing can take seconds: a discard of what was written at random is a hole in the
//! file for each block. So it goes on for [`SLICE`] at a time, and the writes that came
//! meanwhile are done in between. Requests in flight have no order (virtio 1.3, 5.2.6):
//! of one that a write overlaps, either may be the later.
//!
//! Each job is answered, also one that panics: then the leaf takes no more
//! writes until it is opened again ([`Leaf::abandon`]), and the lane goes on to
//! say so.
#![expect(unsafe_code, reason = "writes from guest buffers")]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::courtesy::give_way;
use crate::leaf::{Leaf, LeafError};
use crate::units::{Ranges, SectorRange};
use crate::virtqueue::GuestBuf;

/// How long an idle lane keeps its thread.
const IDLE: Duration = Duration::from_secs(5);
/// How long zeroing goes on before writes have their turn. Tests try it call by call.
const SLICE: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(2) };
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
    /// Those that are done a slice at a time, the first perhaps begun.
    long: VecDeque<Job>,
    /// Of `jobs`, so many have their turn before the next slice.
    ahead: usize,
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
        let mut queue = lane.lock();
        queue.add(Job { work, then_flush, token });
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
                // Without a thread there was nothing else in it.
                let Some(job) = queue.take() else { return };
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
            lane.lock().closing = true;
            lane.wake.notify_one();
        }
    }
}

impl Work {
    /// Whether it is done a slice at a time.
    fn is_long(&self) -> bool {
        matches!(self, Self::Zero(_))
    }
}

impl Queue {
    fn add(&mut self, job: Job) {
        if !job.work.is_long() {
            return self.jobs.push_back(job);
        }
        if self.long.is_empty() {
            self.ahead = self.jobs.len();
        }
        self.long.push_back(job);
    }

    /// What has its turn: the short ones that came before the last slice ended, then
    /// another slice.
    fn take(&mut self) -> Option<Job> {
        if self.ahead == 0 && !self.long.is_empty() {
            return self.long.pop_front();
        }
        self.ahead = self.ahead.saturating_sub(1);
        self.jobs.pop_front()
    }

    /// A long one goes on when those have had their turn that wait now.
    fn put_back(&mut self, job: Job) {
        self.ahead = self.jobs.len();
        self.long.push_front(job);
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.long.is_empty()
    }
}

/// What came of a turn.
enum Done {
    /// The job is done; its buffers come back.
    All(Result<(), LeafError>, Vec<GuestBuf>),
    /// This is left of it.
    InPart(Job),
}

impl Job {
    fn run(self, leaf: &Leaf) -> Done {
        let Self { work, then_flush, token } = self;
        let (result, bufs) = match work {
            // SAFETY: by `submit`'s contract.
            Work::Write(range, bufs) => (unsafe { leaf.write(range, &bufs) }, bufs),
            Work::Zero(mut ranges) => match zero_for_a_slice(leaf, &ranges) {
                Ok(rest) if !rest.as_slice().is_empty() => {
                    *ranges = rest;
                    return Done::InPart(Self { work: Work::Zero(ranges), then_flush, token });
                }
                result => (result.map(drop), Vec::new()),
            },
            Work::Flush { gives_way: true } => (leaf.flush_by(&|work| give_way(work)), Vec::new()),
            Work::Flush { gives_way: false } => (leaf.flush(), Vec::new()),
            Work::WriteBack => {
                let result = leaf.start_write_back().map_err(|source| {
                    let (path, operation) = (leaf.path().to_owned(), "write back");
                    LeafError::Io { path, operation, source }
                });
                (result, Vec::new())
            }
        };
        let result = match result {
            Ok(()) if then_flush => leaf.flush(),
            result => result,
        };
        Done::All(result, bufs)
    }
}

/// Zeroes the ranges until a slice is over; what is left.
fn zero_for_a_slice(leaf: &Leaf, ranges: &Ranges) -> Result<Ranges, LeafError> {
    let (begun, mut over, mut left) = (Instant::now(), false, Ranges::default());
    for range in ranges.as_slice() {
        let mut rest = *range;
        while !over && !rest.is_empty() {
            rest = leaf.write_zeroes_in_part(rest)?;
            over = begun.elapsed() >= SLICE;
        }
        // There is room for as many as there were.
        let _ = left.push(rest);
    }
    Ok(left)
}

impl Lane {
    fn run(&self, leaf: &Leaf, report: &dyn Report) {
        while let Some(job) = self.next() {
            let token = job.token;
            // Nothing of what the job changed is looked at afterwards but by the
            // leaf, which knows.
            let done = catch_unwind(AssertUnwindSafe(|| job.run(leaf)))
                .unwrap_or_else(|_| Done::All(Err(leaf.abandon()), Vec::new()));
            match done {
                Done::All(result, bufs) => report.done(token, result, bufs),
                Done::InPart(rest) => self.lock().put_back(rest),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.take() {
                return Some(job);
            }
            if queue.closing {
                queue.running = false;
                return None;
            }
            let waited = self.wake.wait_timeout(queue, IDLE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if timeout.timed_out() && queue.is_empty() {
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

    use super::*;
    use crate::leaf::tests::mem::Mem;
    use crate::leaf::{OpenOptions, create_storage};
    use crate::root::RootIdentity;
    use crate::units::Sector;

    /// For what happens in no time.
    const SOON: Duration = Duration::from_secs(30);

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

    #[test]
    fn writes_have_their_turn_between_the_calls_of_a_discard_and_it_ends_beside_them() {
        const BLOCKS: u64 = 64;
        const TURNS: usize = 10;
        let mem = Mem::default();
        let (leaf, lanes, done) = lanes(&mem);
        let mut bytes = vec![0x22; 4096];
        let write = |block: u64, bytes: &mut Vec<u8>| {
            let range = SectorRange::new(Sector(block * 8), 8).unwrap();
            Work::Write(range, vec![GuestBuf::new(bytes.as_mut_ptr(), bytes.len())])
        };
        // In an order without neighbours: each block is a hole of its own.
        for block in (0..BLOCKS).map(|i| i * 5 % BLOCKS) {
            // SAFETY: the buffer is as long as the range,
            // and is kept until the end.
            unsafe { lanes.submit(write(block, &mut bytes), false, 0) };
            done.recv().unwrap().1.unwrap();
        }
        let punches = || mem.state().punches();
        let gate = mem.hold_punches();
        let mut ranges = Ranges::default();
        assert!(ranges.push(SectorRange::whole(BLOCKS * 8).unwrap()));
        // SAFETY: see above; no buffers.
        unsafe { lanes.submit(Work::Zero(Box::new(ranges)), false, 1) };
        let begun = punches();
        for turn in 0..TURNS {
            gate.wait_for_one();
            assert_eq!(punches() - begun, turn, "one call a turn");
            // SAFETY: see above.
            unsafe { lanes.submit(write(BLOCKS, &mut bytes), false, 2) };
            gate.let_one_go();
            let answer = done.recv_timeout(SOON);
            assert!(matches!(answer, Ok((2, Ok(())))), "before the discard goes on: {answer:?}");
        }
        gate.open();
        assert!(matches!(done.recv(), Ok((1, Ok(())))));
        assert_eq!(punches() - begun, usize::try_from(BLOCKS).unwrap());
        let mut read = vec![0xff; 4096];
        for (block, expected) in (0..=BLOCKS).map(|b| (b, if b < BLOCKS { 0 } else { 0x22 })) {
            let buf = GuestBuf::new(read.as_mut_ptr(), read.len());
            let at = leaf.place(SectorRange::new(Sector(block * 8), 8).unwrap()).0.unwrap();
            // SAFETY: see above.
            assert_eq!(unsafe { leaf.read(at, &[buf], false) }.unwrap(), 4096);
            assert!(read.iter().all(|byte| *byte == expected), "block {block}");
        }
    }
}
