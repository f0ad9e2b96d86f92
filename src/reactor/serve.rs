//! From a popped chain to its answer: at once, or as a task.
#![expect(unsafe_code, reason = "status bytes and data in guest memory")]

use std::time::Instant;

use super::completion::Completion;
use super::device::{Device, Queue};
use super::pace::{Surroundings, WritePace};
use super::run::Runner;
use super::task::{Answered, Job, Read, Task};
use crate::disk::lanes::Work;
use crate::disk::{Activity, BufCursor};
use crate::leaf::LeafError;
use crate::logging::internal;
use crate::metrics::Operation;
use crate::metrics::clock::Stamp;
use crate::request::{Command, ID_LEN, RequestError, Status};
use crate::units::SectorRange;
use crate::virtqueue::Chain;

/// Chains that one queue gets served before the next queue's turn.
const TURN_CHAINS: usize = 64;
/// Chains after which the driver is shown the first of a turn. A driver that
/// sleeps wakes while the others are served: it takes longer than they do.
const FIRST_PUBLISH: usize = 4;
/// Chains after which it is shown more: a driver that polls has something to do
/// meanwhile. Eight used elements are one cache line.
const PUBLISH: usize = 8;
/// Why a device ends whose frontend truncated the guest's memory.
pub(super) const MEMORY_GONE: &str = "the frontend took away memory that was in use";

impl Runner {
    /// A turn of a device: of its queues, one after the other, as far as it
    /// goes; whether there was anything.
    pub(super) fn serve_device(&mut self, slot: usize) -> bool {
        // Taken out for the turn, so that serving can use the rest of `self`.
        let Some(mut device) = self.devices[slot].take() else {
            return false;
        };
        let mut worked = false;
        let mut left = self.turn_cost();
        if device.memory_settles_at.is_some() {
            device.end_patience(Instant::now());
        }
        if device.is_served() {
            let count = device.queues.len();
            let mut queue = device.next_queue;
            for _ in 0..count {
                queue = if queue < count { queue } else { 0 };
                if let Some(cost) = self.serve_queue(&mut device, slot, queue, left) {
                    (left, worked) = (left.saturating_sub(cost), true);
                }
                queue += 1;
                // The next one's turn is the first then.
                if left == 0 {
                    break;
                }
            }
            device.next_queue = queue;
            if worked && device.is_faulted() {
                device.break_with(&MEMORY_GONE);
            }
        }
        device.worked |= worked;
        self.devices[slot] = Some(device);
        if worked {
            self.use_up_turn(slot, left);
            // What a queue that stops waits for may have been answered at once.
            self.settle_if_waiting(slot);
        }
        worked
    }

    /// Serves chains of a queue until they have cost `most`; what they cost, if
    /// there were any.
    fn serve_queue(
        &mut self,
        device: &mut Device,
        slot: usize,
        index: usize,
        most: u64,
    ) -> Option<u64> {
        if !device.queues[index].as_ref().is_some_and(Queue::has_work) {
            return None;
        }
        let queue = u16::try_from(index).ok()?;
        let mut batch = self.batch.take().unwrap_or_default();
        let (mut served, mut cost) = (0, 0);
        let mut until_publish = FIRST_PUBLISH;
        while served < TURN_CHAINS && cost < most {
            let count = batch.fill(device, index, most - cost);
            batch.parse(device, &self.reader);
            for at in 0..count {
                batch.fetch_ahead(at);
                let Some((chain, completion, command)) = batch.take(at, queue) else { break };
                self.execute(device, slot, completion, chain, command);
                until_publish -= 1;
                if until_publish == 0 {
                    until_publish = PUBLISH;
                    self.publish_queue(device, index);
                }
            }
            served += count;
            cost += batch.cost();
            if !batch.is_full() {
                break;
            }
        }
        self.batch = Some(batch);
        self.publish_queue(device, index);
        device.break_if_a_call_waits();
        // After the driver was shown the answers: it need not wait for this.
        let nanos = self.lap();
        device.disk.counters().answered(&mut self.tally, nanos);
        Some(cost)
    }

    /// Shows the driver what was given back of a queue since the last time.
    fn publish_queue(&self, device: &mut Device, index: usize) {
        if let Some(queue) = device.queues[index].as_mut().filter(|q| q.unpublished) {
            queue.publish(&self.counters);
        }
    }

    fn execute(
        &mut self,
        device: &mut Device,
        slot: usize,
        completion: Completion,
        chain: &mut Chain,
        command: Result<Command, RequestError>,
    ) {
        let counters = device.disk.counters();
        let operation = completion.operation();
        let status = match command {
            Ok(Command::Read(range)) => {
                let mut cursor = BufCursor::default();
                // SAFETY: the chain's buffers lie in the device's memory,
                // which stays mapped while it is attached; `parse` took the
                // range's length from them.
                let rest = unsafe {
                    device.disk.read_now(&self.reader, range, &chain.writable, &mut cursor)
                };
                if !rest.is_empty() {
                    let bufs = std::mem::replace(&mut chain.writable, self.lists.take());
                    let read =
                        Read { bufs, rest, cursor, pending: 0, failed: false, scheduled: true };
                    let task = self.new_task(device, slot, Job::Read(read, completion));
                    return self.begin_read(device, slot, task);
                }
                Status::Ok
            }
            Ok(Command::Write(range)) => {
                counters.written_sectors.add(range.count());
                return self.write(device, slot, completion, chain, range);
            }
            Ok(Command::Flush) => match device.disk.leaf() {
                Some(leaf) if !device.disk.is_read_only() && !leaf.is_flushed() => {
                    let gives_way = !self.is_alone() && WritePace::is_long(leaf.unsynced_bytes());
                    device.pace.flush_began();
                    return self.hand_over(device, slot, completion, Work::Flush { gives_way });
                }
                _ => Status::Ok,
            },
            Ok(Command::GetId) => {
                let id: [u8; ID_LEN] = device.disk.serial().to_bytes();
                // SAFETY: as above; the cursor stops at the buffers' end.
                unsafe { BufCursor::default().write(&chain.writable, &id) };
                Status::Ok
            }
            Ok(Command::Discard(ranges) | Command::WriteZeroes(ranges)) => {
                let sectors = ranges.as_slice().iter().map(|range| range.count()).sum();
                match operation {
                    Operation::Discard => counters.discarded_sectors.add(sectors),
                    _ => counters.zeroed_sectors.add(sectors),
                }
                if !ranges.as_slice().is_empty() {
                    return self.hand_over(device, slot, completion, Work::Zero(ranges));
                }
                Status::Ok
            }
            Err(error) => {
                note_refusal(device, &error);
                error.status().unwrap_or(Status::IoError)
            }
        };
        self.answer(device, completion, status);
    }

    /// Answers a request in the turn that took it.
    #[inline]
    fn answer(&mut self, device: &mut Device, completion: Completion, status: Status) {
        self.tally.note(completion.operation());
        completion.complete(device, status);
    }

    /// Writes at once where that will be quick; otherwise through the lane.
    fn write(
        &mut self,
        device: &mut Device,
        slot: usize,
        completion: Completion,
        chain: &mut Chain,
        range: SectorRange,
    ) {
        if range.is_empty() {
            return self.answer(device, completion, Status::Ok);
        }
        let alone = self.is_alone();
        let leaf = device.disk.leaf();
        let around = Surroundings {
            unsynced: leaf.map_or(0, |leaf| leaf.unsynced_bytes()),
            alone,
            writing_map: leaf.is_some_and(|leaf| leaf.is_writing_map()),
        };
        if !device.pace.is_inline(range.start().0, range.count(), around) {
            let bufs = std::mem::replace(&mut chain.readable, self.lists.take());
            return self.hand_over(device, slot, completion, Work::Write(range, bufs));
        }
        let begun = Instant::now();
        // SAFETY: the chain's buffers lie in the device's memory, and `parse`
        // took the range's length from them.
        let result = unsafe { device.disk.write_now(range, &chain.readable) };
        device.pace.wrote(begun, alone, &mut self.waits);
        match result {
            Ok(()) if device.agreed.write_back => {
                device.disk.failures().succeeded(Activity::Write);
                self.pace_write_back(device, slot);
                self.answer(device, completion, Status::Ok);
            }
            Ok(()) => {
                self.hand_over(device, slot, completion, Work::Flush { gives_way: false });
            }
            Err(error) => {
                if let Some(error) = error {
                    note_error(device, Activity::Write, &error);
                }
                self.answer(device, completion, Status::IoError);
            }
        }
    }

    /// Whether the device that is served is the only busy one.
    fn is_alone(&self) -> bool {
        self.hot.len() == 1
    }

    /// Asks for write-back when enough has been written.
    fn pace_write_back(&mut self, device: &mut Device, slot: usize) {
        let Some(leaf) = device.disk.leaf() else {
            return;
        };
        if !device.pace.wants_write_back(leaf.unsynced_bytes()) {
            return;
        }
        let Some(lanes) = &device.lanes else { return };
        let started = self.clock.begun();
        let task = self.tasks.insert(Task { slot, started, job: Job::WriteBack });
        device.in_flight += 1;
        device.pace.write_back_began();
        // SAFETY: no buffers.
        unsafe { lanes.submit(Work::WriteBack, false, task) };
    }

    /// A request that is answered later.
    fn new_task(&mut self, device: &mut Device, slot: usize, job: Job) -> u32 {
        self.counters.deferred.add(1);
        device.in_flight += 1;
        if let Some(queue) = job.queue().and_then(|queue| device.queues[queue].as_mut()) {
            queue.in_flight += 1;
        }
        self.tasks.insert(Task { slot, started: self.clock.begun(), job })
    }

    fn hand_over(&mut self, device: &mut Device, slot: usize, completion: Completion, work: Work) {
        if device.lanes.is_none() {
            // Of a read-only disk, whose changes are refused before.
            return self.answer(device, completion, Status::IoError);
        }
        let large = match &work {
            Work::Write(range, _) => Some(WritePace::is_large(range.count())),
            Work::Zero(_) => Some(true),
            Work::Flush { .. } | Work::WriteBack => None,
        };
        let then_flush = !device.agreed.write_back && large.is_some();
        let job = match large {
            Some(large) => {
                device.pace.lane_began(large);
                Job::Change { large, completion }
            }
            None => Job::Flush(completion),
        };
        let task = self.new_task(device, slot, job);
        if let Some(lanes) = &device.lanes {
            // SAFETY: the buffers lie in the device's memory, which is not
            // replaced or unmapped while this task is in flight.
            unsafe { lanes.submit(work, then_flush, task) };
        }
    }

    /// A lane's answer.
    pub(super) fn lane_done(
        &mut self,
        id: u32,
        result: Result<(), LeafError>,
        bufs: Vec<crate::virtqueue::GuestBuf>,
    ) {
        self.lists.give_back(bufs);
        if self.tasks.get(id).is_none_or(|task| task.read().is_some()) {
            return internal::note(format_args!("a lane has answered task {id}, which it hasn't"));
        }
        let Some(Task { slot, started, job }) = self.tasks.remove(id) else {
            return;
        };
        if let Some(device) = self.devices[slot].as_deref_mut() {
            let activity = match &job {
                Job::Flush(_) => Activity::Flush,
                Job::Change { large, .. } => {
                    device.pace.lane_ended(*large);
                    Activity::Write
                }
                Job::WriteBack | Job::Read(..) => Activity::Write,
            };
            match &result {
                Err(error) => note_error(device, activity, error),
                // Write-back is not what the guest waits for.
                Ok(()) if matches!(job, Job::WriteBack) => {}
                Ok(()) => device.disk.failures().succeeded(activity),
            }
        }
        let Some(completion) = job.into_completion() else {
            return self.wrote_back(slot, result.is_ok());
        };
        let status = if result.is_ok() { Status::Ok } else { Status::IoError };
        self.complete(slot, started, completion, status);
        if let Some(mut device) = self.devices[slot].take() {
            self.pace_write_back(&mut device, slot);
            self.devices[slot] = Some(device);
        }
    }

    fn wrote_back(&mut self, slot: usize, ok: bool) {
        if let Some(device) = self.devices[slot].as_deref_mut() {
            device.in_flight -= 1;
            device.pace.write_back_ended();
            if !ok {
                device.disk.counters().write_back_errors.add(1);
            }
        }
        self.settle_if_waiting(slot);
    }

    /// The request of a task that was removed goes back.
    pub(super) fn complete(
        &mut self,
        slot: usize,
        started: Stamp,
        completion: Completion,
        status: Status,
    ) {
        let Some(device) = self.devices[slot].as_deref_mut() else {
            // Dropped, which it tells of.
            return;
        };
        let (queue, operation) = (completion.queue(), completion.operation());
        device.in_flight -= 1;
        if let Some(entry) = device.queues[usize::from(queue)].as_mut() {
            entry.in_flight -= 1;
            if !entry.unpublished {
                self.unpublished.push((slot, queue));
            }
        }
        self.answered.push(Answered { slot, device: device.id, operation, started });
        completion.complete(device, status);
        if device.is_faulted() {
            device.break_with(&MEMORY_GONE);
        }
        self.settle_if_waiting(slot);
    }

    fn settle_if_waiting(&mut self, slot: usize) {
        let Some(device) = self.devices[slot].as_deref() else {
            return;
        };
        let stopping = device.queues.iter().flatten().any(|q| q.stopping.is_some());
        if stopping || !device.is_served() {
            self.settle(slot);
        }
    }
}

/// Most refusals are a driver's nonsense, and in the counters. A buffer that is in no
/// memory may be the VMM's doing.
#[cold]
fn note_refusal(device: &Device, error: &RequestError) {
    let name = device.disk.name();
    match error {
        RequestError::BufferOutside(_) => {
            device.refusals.error(format_args!("VM {name}: {error}"));
        }
        _ => log::debug!("VM {name}: {error}"),
    }
}

fn note_error(device: &mut Device, activity: Activity, error: &LeafError) {
    match error {
        LeafError::Io { source, .. } if is_memory_gone(source) => device.break_with(&MEMORY_GONE),
        _ => device.disk.leaf_failed(activity, error),
    }
}

/// Whether a system call found no memory behind a guest's buffer. Buffers were
/// checked to lie in a mapping, so its file must have been cut short.
pub(super) fn is_memory_gone(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}
