//! Reads that wait: a task goes on part by part, each for a cache block or for
//! the leaf's disk, until its chain can be given back.
#![expect(unsafe_code, reason = "data in guest memory, and reads by raw address")]

use super::mailbox::Mail;
use super::run::Runner;
use super::serve::{MEMORY_GONE, is_memory_gone};
use super::task::{PartKind, TASK_PARTS_MAX};
use crate::cache::{FillOutcome, FillStart, Lookup, Waiter};
use crate::disk::{self, Piece};
use crate::request::Status;

/// Sectors that one read of a leaf asks the disk for.
const LEAF_READ_SECTORS: u64 = 1024;

impl Runner {
    /// Goes on with a read until it must wait, or is done.
    pub(super) fn advance(&mut self, id: u32) {
        loop {
            let task = self.tasks.get(id);
            let Some(device) = self.devices[task.slot].as_deref() else {
                return;
            };
            task.scheduled = true;
            if task.rest.is_empty() || task.failed || task.pending >= TASK_PARTS_MAX {
                break;
            }
            let before = task.rest.count();
            // SAFETY: the buffers lie in the device's memory, which is not
            // unmapped while this task is in flight.
            task.rest = unsafe {
                device.disk.read_now(&self.reader, task.rest, &task.bufs, &mut task.cursor)
            };
            if task.rest.count() < before {
                // It made progress: others first, then the rest of it.
                if !task.rest.is_empty() {
                    self.runnable.push(id);
                    return;
                }
                break;
            }
            let range = match device.disk.piece(task.rest) {
                Piece::Root(range) | Piece::Zero(range) => {
                    device.disk.counters().cache_misses.add(1);
                    (range, PartKind::Block(None, 0))
                }
                Piece::Leaf(range) => (range.split_at(LEAF_READ_SECTORS).0, PartKind::Leaf),
            };
            let (range, kind) = range;
            let part_id = self.parts.take();
            let part = self.parts.get(part_id);
            (part.task, part.range, part.cursor) = (id, range, task.cursor);
            part.bufs.clear();
            #[expect(clippy::cast_possible_truncation, reason = "a block, or LEAF_READ_SECTORS")]
            let len = range.byte_len() as usize;
            match kind {
                PartKind::Leaf => task.cursor.take(&task.bufs, len, &mut part.bufs),
                _ => task.cursor.skip(&task.bufs, len),
            }
            part.kind = kind;
            task.rest = task.rest.split_at(range.count()).1;
            task.pending += 1;
            self.start_part(part_id);
        }
        let task = self.tasks.get(id);
        task.scheduled = false;
        if task.pending == 0 && (task.failed || task.rest.is_empty()) {
            let status = if task.failed { Status::IoError } else { Status::Ok };
            self.complete(id, status);
        }
    }

    /// Gets a part what it waits for, or puts it off until there is room.
    pub(super) fn start_part(&mut self, id: u32) {
        if let PartKind::Leaf = self.parts.get(id).kind {
            self.start_leaf_part(id);
            return;
        }
        loop {
            let part = self.parts.get(id);
            let task = self.tasks.get(part.task);
            let Some(device) = self.devices[task.slot].as_deref() else {
                return;
            };
            let root = device.disk.root();
            let block = root.block_of(part.range.start());
            match root.cache().lookup(&self.reader, block) {
                Lookup::Hit(_) | Lookup::Zero => {
                    let mut cursor = part.cursor;
                    // SAFETY: as in `advance`.
                    unsafe {
                        device.disk.read_filled(&self.reader, part.range, &task.bufs, &mut cursor);
                    }
                    return self.part_done(id, true);
                }
                Lookup::Miss => {}
            }
            if !self.engine.has_room() {
                return self.stalled.push(id);
            }
            match root.cache().begin_fill(block, Waiter { reactor: self.index, token: id }) {
                FillStart::Ready => {}
                FillStart::Joined => return,
                FillStart::NoSlot => return self.stalled.push(id),
                FillStart::Fill(ticket) => {
                    part.kind = PartKind::Block(Some(ticket), 0);
                    return self.read_block(id);
                }
            }
        }
    }

    /// Reads what is missing of the block that a part fills.
    fn read_block(&mut self, id: u32) {
        let part = self.parts.get(id);
        let task = self.tasks.get(part.task);
        let Some(device) = self.devices[task.slot].as_deref() else {
            return;
        };
        let PartKind::Block(Some(ticket), done) = &part.kind else {
            return;
        };
        let (sectors, done) = (ticket.sectors(), *done);
        let len = u32::try_from(sectors.byte_len()).unwrap_or(0) - done;
        let ptr = ticket.as_mut_ptr().wrapping_add(done as usize);
        let offset = sectors.byte_offset() + u64::from(done);
        // SAFETY: the ticket owns the slot and is kept in the part until the
        // token is reaped; the root is open as long as its disk, which the
        // device keeps while the task is in flight.
        unsafe {
            self.engine.read(device.disk.root().root().raw_fd(), ptr, len, offset, u64::from(id))
        };
    }

    fn start_leaf_part(&mut self, id: u32) {
        if !self.engine.has_room() {
            return self.stalled.push(id);
        }
        let part = self.parts.get(id);
        let task = self.tasks.get(part.task);
        let Some(device) = self.devices[task.slot].as_deref() else {
            return;
        };
        let Some((leaf, fd)) = device.disk.leaf().and_then(|l| Some((l, l.raw_fd()?))) else {
            return self.part_done(id, false);
        };
        let offset = leaf.data_offset(part.range.start());
        let count = part.bufs.len().min(crate::io::storage::BUFS_MAX);
        let count = u32::try_from(count).unwrap_or(0);
        // SAFETY: the list is the part's own and not touched until the token
        // is reaped; its buffers lie in the device's memory, which is not
        // unmapped while the task is in flight, nor the leaf closed.
        unsafe { self.engine.readv(fd, part.bufs.as_ptr().cast(), count, offset, u64::from(id)) };
    }

    /// Takes what the io_uring has done; whether there was anything.
    pub(super) fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some((token, result)) = self.engine.reap() {
            any = true;
            let Ok(id) = u32::try_from(token) else {
                continue;
            };
            match self.parts.get(id).kind {
                PartKind::Block(..) => self.block_read(id, result),
                PartKind::Leaf => self.leaf_read(id, result),
                PartKind::Free => debug_assert!(false, "part {id} is free"),
            }
        }
        any
    }

    fn block_read(&mut self, id: u32, result: std::io::Result<u32>) {
        let part = self.parts.get(id);
        let PartKind::Block(Some(ticket), done) = &mut part.kind else {
            return;
        };
        let ok = match &result {
            Ok(0) => false,
            Ok(count) => {
                *done += count;
                if u64::from(*done) < ticket.sectors().byte_len() {
                    return self.read_block(id);
                }
                true
            }
            Err(_) => false,
        };
        let PartKind::Block(Some(ticket), _) =
            std::mem::replace(&mut part.kind, PartKind::Block(None, 0))
        else {
            return;
        };
        if !ok {
            let task = self.tasks.get(part.task);
            if let Some(device) = self.devices[task.slot].as_deref() {
                let why = result.err().map_or("it ends early".into(), |e| e.to_string());
                let path = device.disk.root().root().path().display();
                disk::log_seldom(&format_args!("root {path} can't be read: {why}"));
            }
        }
        let mut waiters = std::mem::take(&mut self.waiters);
        ticket.finish(if ok { FillOutcome::Data } else { FillOutcome::Failed }, &mut waiters);
        self.filled(id, ok);
        for waiter in waiters.drain(..) {
            if waiter.reactor == self.index {
                self.filled(waiter.token, ok);
            } else if let Some(peer) = self.peers.get(usize::from(waiter.reactor)) {
                peer.post(Mail::Filled { part: waiter.token, ok });
            }
        }
        self.waiters = waiters;
    }

    /// The block that a part waits for was filled (and may be gone again), or
    /// could not be.
    pub(super) fn filled(&mut self, part: u32, ok: bool) {
        if ok { self.start_part(part) } else { self.part_done(part, false) }
    }

    fn leaf_read(&mut self, id: u32, result: std::io::Result<u32>) {
        let part = self.parts.get(id);
        let count = match result {
            Ok(count) if count > 0 => count as usize,
            Ok(_) => return self.part_done(id, false),
            Err(e) => {
                let task = self.tasks.get(part.task);
                match self.devices[task.slot].as_deref_mut() {
                    Some(device) if is_memory_gone(&e) => device.break_with(&MEMORY_GONE),
                    _ => disk::log_seldom(&format_args!("a leaf can't be read: {e}")),
                }
                return self.part_done(id, false);
            }
        };
        // Whole sectors count; a ragged end is read again.
        let sectors = count as u64 / 512;
        let mut left = count / 512 * 512;
        part.range = part.range.split_at(sectors).1;
        let full = part.bufs.iter().take_while(|buf| {
            let whole = buf.len() <= left;
            left -= if whole { buf.len() } else { 0 };
            whole
        });
        let full = full.count();
        part.bufs.drain(..full);
        if let Some(first) = part.bufs.first_mut() {
            *first = first.skip(left);
        }
        let task = self.tasks.get(part.task);
        if let Some(device) = self.devices[task.slot].as_deref() {
            device.disk.counters().read_sectors_leaf.add(sectors);
        }
        if part.range.is_empty() {
            self.part_done(id, true);
        } else if sectors == 0 {
            // Less than a sector is no progress: an error, not a loop.
            self.part_done(id, false);
        } else {
            self.start_leaf_part(id);
        }
    }

    fn part_done(&mut self, id: u32, ok: bool) {
        let part = self.parts.get(id);
        part.kind = PartKind::Free;
        part.bufs.clear();
        let task_id = part.task;
        self.parts.give_back(id);
        let task = self.tasks.get(task_id);
        task.pending -= 1;
        task.failed |= !ok;
        if !task.scheduled && (task.pending == 0 || !task.rest.is_empty()) {
            task.scheduled = true;
            self.runnable.push(task_id);
        }
    }
}
