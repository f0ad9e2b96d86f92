//! Reads that could not be answered at once: a task for each, that goes on when
//! it is its device's turn ([`super::backlog`]), a step at a time, until its chain
//! can be given back.
#![expect(unsafe_code, reason = "data in guest memory")]

use super::backlog::{Next, Place};
use super::block_wait::BlockWait;
use super::budget;
use super::device::Device;
use super::leaf_wait::LeafWait;
use super::run::Runner;
use super::slab::{Lists, Slab};
use super::task::{Job, Part, Read, TASK_PARTS_MAX, Task, Wait};
use crate::disk::Missing;
use crate::logging::internal;
use crate::request::Status;
use crate::units::SectorRange;

/// Sectors that one read of a leaf asks the disk for. What the page cache has of
/// them the kernel copies while the read is submitted.
const LEAF_READ_SECTORS: u64 = 1024;
/// Sectors that one part copies from a cache block, 256 KiB: blocks can be larger.
const BLOCK_READ_SECTORS: u64 = 512;

impl Runner {
    /// A read that waits begins.
    pub(super) fn begin_read(&mut self, device: &mut Device, slot: usize, id: u32) {
        device.backlog.add_task(id);
        self.rounds.add(slot, &mut device.backlog);
    }

    /// Answers a read that has nothing more to do and to wait for.
    pub(super) fn end_read_if_over(&mut self, id: u32) {
        let is_over = self.tasks.get(id).and_then(|task| task.read()).is_some_and(|r| r.is_over());
        if !is_over {
            return;
        }
        if let Some(task) = self.tasks.remove(id)
            && let Job::Read(read, completion) = task.job
        {
            self.lists.give_back(read.bufs);
            let status = if read.failed { Status::IoError } else { Status::Ok };
            self.complete(task.slot, task.started, completion, status);
        }
    }

    /// Goes on with reads that could not be answered at once, a step of one
    /// device after the other, until the turn is over or nobody can go on;
    /// whether anything was done.
    pub(super) fn run_deferred(&mut self) -> bool {
        let mut left = self.turn_cost();
        // Turns in a row that were of no use.
        let (mut worked, mut useless) = (false, 0);
        while left > 0
            && useless < self.rounds.len()
            && let Some(slot) = self.rounds.next()
        {
            let cost = self.go_on(slot);
            useless = if cost.is_some() { 0 } else { useless + 1 };
            worked |= cost.is_some();
            left = left.saturating_sub(cost.unwrap_or(0));
            if let Some(device) = self.devices[slot].as_deref_mut() {
                self.rounds.ended(slot, &mut device.backlog, cost.is_some());
            }
        }
        worked
    }

    /// Goes on with a device's reads in what is `left` of its turn, and asks the disk
    /// for what they lack: it reads while others have their turns, which may take
    /// longer than the disk does (docs/BENCHMARKS.md, 64 boots at once).
    pub(super) fn use_up_turn(&mut self, slot: usize, mut left: u64) {
        while left > 0
            && let Some(cost) = self.step(slot)
        {
            left = left.saturating_sub(cost);
        }
        if let Some(device) = self.devices[slot].as_deref_mut() {
            self.rounds.add(slot, &mut device.backlog);
        }
        self.submit();
    }

    /// A turn of one device; what it cost, or `None` if it could not go on.
    fn go_on(&mut self, slot: usize) -> Option<u64> {
        self.devices[slot].as_deref_mut()?.backlog.turn_began();
        self.step(slot)
    }

    /// A step of one device; the result is as for [`Self::go_on`].
    fn step(&mut self, slot: usize) -> Option<u64> {
        match self.devices[slot].as_deref_mut()?.backlog.take()? {
            Next::Part(id) => self.start_part(id),
            Next::Task(id) => self.advance(id),
        }
    }

    /// Goes on with a task until it must wait, is done, or others are to have
    /// their turn. The result is as for [`Self::go_on`].
    fn advance(&mut self, id: u32) -> Option<u64> {
        let mut cost = 0;
        loop {
            let Self { tasks, devices, reader, engine, lists, parts, .. } = self;
            let Some((read, device)) = read_of(tasks, devices, id) else {
                internal::note(format_args!("task {id} is no read of a device"));
                return Some(budget::PART);
            };
            if !read.goes_on() || read.pending >= TASK_PARTS_MAX {
                break;
            }
            if cost >= budget::STEP {
                device.backlog.add_task(id);
                return Some(cost);
            }
            let before = read.rest.count();
            let (most, rest) = (budget::STEP / 512, read.rest);
            // SAFETY: the buffers lie in the device's memory, which is not
            // unmapped while this task is in flight.
            let stopped = unsafe {
                device.disk.read_some_now(most, reader, rest, &read.bufs, &mut read.cursor)
            };
            read.rest = stopped.rest;
            if read.rest.count() < before {
                // Few sectors may have come in many pieces.
                cost += budget::STEP;
                continue;
            }
            let Some(missing) = stopped.missing else {
                internal::note(format_args!("a read has fewer buffers than sectors"));
                read.failed = true;
                break;
            };
            let Some(place) = device.backlog.take_place(engine.room()) else {
                device.backlog.put_back_task(id);
                return (cost > 0).then_some(cost);
            };
            if matches!(missing, Missing::Root(_)) {
                device.disk.counters().cache_misses.add(1);
            }
            let part = parts.insert(part_of(id, read, missing, place, lists));
            match self.start_part(part) {
                Some(more) => cost += more,
                // It is tried again, and the task goes on when it is done.
                None => break,
            }
        }
        if let Some(read) = self.tasks.get(id).and_then(|task| task.read()) {
            read.scheduled = false;
        }
        self.end_read_if_over(id);
        Some(cost.max(1))
    }
}

/// A task's read and its device.
fn read_of<'a>(
    tasks: &'a mut Slab<Task>,
    devices: &'a mut [Option<Box<Device>>],
    id: u32,
) -> Option<(&'a mut Read, &'a mut Device)> {
    let task = tasks.get(id)?;
    let device = devices.get_mut(task.slot)?.as_deref_mut()?;
    Some((task.read()?, device))
}

/// Makes a part of task `id`, of what its read must wait for next.
fn part_of(id: u32, read: &mut Read, missing: Missing, place: Place, lists: &mut Lists) -> Part {
    #[expect(clippy::cast_possible_truncation, reason = "at most LEAF_READ_SECTORS")]
    let len = |range: SectorRange| range.byte_len() as usize;
    let (range, wait) = match missing {
        Missing::Root(piece) => {
            let (piece, cursor) = (piece.first(BLOCK_READ_SECTORS), read.cursor);
            read.cursor.skip(&read.bufs, len(piece.range()));
            (piece.range(), Wait::Block(BlockWait::new(piece, cursor)))
        }
        Missing::Leaf(piece) => {
            let (piece, mut bufs) = (piece.first(LEAF_READ_SECTORS), lists.take());
            read.cursor.take(&read.bufs, len(piece.range()), &mut bufs);
            (piece.range(), Wait::Leaf(LeafWait::new(piece, bufs)))
        }
    };
    read.rest = read.rest.split_at(range.count()).1;
    read.pending += 1;
    Part { task: id, place, wait }
}
