//! Reads that could not be answered at once: a task for each, that goes on when
//! it is its device's turn ([`super::backlog`]), a step at a time, until its chain
//! can be given back.
#![expect(unsafe_code, reason = "data in guest memory")]

use super::backlog::Next;
use super::budget;
use super::device::Device;
use super::run::Runner;
use super::task::{PartKind, TASK_PARTS_MAX};
use crate::disk::{BufCursor, Piece};
use crate::request::Status;
use crate::units::SectorRange;

/// Sectors that one read of a leaf asks the disk for. What the page cache has of
/// them the kernel copies while the read is submitted.
const LEAF_READ_SECTORS: u64 = 1024;
/// Sectors that one part copies from a cache block, 256 KiB: blocks can be larger.
const BLOCK_READ_SECTORS: u64 = 512;

impl Runner {
    /// A read that waits begins: `rest` is still to be read, to `bufs` from
    /// `cursor` on.
    pub(super) fn begin_read(
        &mut self,
        device: &mut Device,
        id: u32,
        rest: SectorRange,
        cursor: BufCursor,
    ) {
        let task = self.tasks.get(id);
        (task.rest, task.cursor, task.scheduled) = (rest, cursor, true);
        device.backlog.add_task(id);
        self.rounds.add(task.slot, &mut device.backlog);
    }

    pub(super) fn end_read(&mut self, id: u32) {
        let failed = self.tasks.get(id).failed;
        self.complete(id, if failed { Status::IoError } else { Status::Ok });
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
            let task = self.tasks.get(id);
            let device = self.devices[task.slot].as_deref_mut()?;
            if task.rest.is_empty() || task.failed || task.pending >= TASK_PARTS_MAX {
                break;
            }
            if cost >= budget::STEP {
                device.backlog.add_task(id);
                return Some(cost);
            }
            let before = task.rest.count();
            let (most, rest) = (budget::STEP / 512, task.rest);
            // SAFETY: the buffers lie in the device's memory, which is not
            // unmapped while this task is in flight.
            task.rest = unsafe {
                device.disk.read_some_now(most, &self.reader, rest, &task.bufs, &mut task.cursor)
            };
            if task.rest.count() < before {
                // Few sectors may have come in many pieces.
                cost += budget::STEP;
                continue;
            }
            if !device.backlog.has_place(self.engine.room()) {
                device.backlog.put_back_task(id);
                return (cost > 0).then_some(cost);
            }
            let (range, kind) = match device.disk.piece(task.rest) {
                // Zeroed since it was looked at.
                Piece::Zero(_) => continue,
                Piece::Root(range) => {
                    device.disk.counters().cache_misses.add(1);
                    (range.split_at(BLOCK_READ_SECTORS).0, PartKind::Block(None, 0))
                }
                Piece::Leaf(range) => (range.split_at(LEAF_READ_SECTORS).0, PartKind::Leaf),
            };
            device.backlog.part_began();
            let part = self.new_part(id, range, kind);
            match self.start_part(part) {
                Some(more) => cost += more,
                // It is tried again, and the task goes on when it is done.
                None => break,
            }
        }
        let task = self.tasks.get(id);
        task.scheduled = false;
        if task.is_over() {
            self.end_read(id);
        }
        Some(cost.max(1))
    }

    /// Makes a part of what a task must wait for next.
    fn new_part(&mut self, id: u32, range: SectorRange, kind: PartKind) -> u32 {
        let task = self.tasks.get(id);
        let part_id = self.parts.take();
        let part = self.parts.get(part_id);
        (part.task, part.range, part.cursor) = (id, range, task.cursor);
        #[expect(clippy::cast_possible_truncation, reason = "at most LEAF_READ_SECTORS")]
        let len = range.byte_len() as usize;
        match kind {
            PartKind::Leaf => task.cursor.take(&task.bufs, len, &mut part.bufs),
            _ => task.cursor.skip(&task.bufs, len),
        }
        part.kind = kind;
        task.rest = task.rest.split_at(range.count()).1;
        task.pending += 1;
        part_id
    }
}
