//! The parts of reads that wait, each for a cache block or for the leaf's disk. A
//! part begins when its device has a place for it, and ends when its data is where
//! the guest wants it.
#![expect(unsafe_code, reason = "data in guest memory, and reads by raw address")]

use super::budget;
use super::mailbox::Mail;
use super::run::Runner;
use super::serve::{MEMORY_GONE, is_memory_gone};
use super::task::PartKind;
use crate::cache::{FillOutcome, FillStart, Lookup, Waiter};

impl Runner {
    /// Gets a part what it waits for, or puts it off until there is room.
    /// What it cost, or `None` if it could not be started.
    pub(super) fn start_part(&mut self, id: u32) -> Option<u64> {
        if let PartKind::Leaf = self.parts.get(id).kind {
            return self.start_leaf_part(id);
        }
        loop {
            let part = self.parts.get(id);
            let task = self.tasks.get(part.task);
            let device = self.devices[task.slot].as_deref()?;
            let root = device.disk.root();
            let block = root.block_of(part.range.start());
            match root.cache().lookup(&self.reader, block) {
                Lookup::Hit(_) | Lookup::Zero => {
                    let (mut cursor, cost) = (part.cursor, part.range.byte_len());
                    // SAFETY: the buffers lie in the device's memory, which is not
                    // unmapped while this task is in flight.
                    unsafe {
                        device.disk.read_filled(&self.reader, part.range, &task.bufs, &mut cursor);
                    }
                    self.part_done(id, true);
                    return Some(cost);
                }
                Lookup::Miss => {}
            }
            if !self.engine.has_room() {
                return self.put_off(id);
            }
            match root.cache().begin_fill(block, Waiter { reactor: self.index, token: id }) {
                FillStart::Ready => {}
                FillStart::Joined => return Some(budget::PART),
                FillStart::NoSlot => return self.put_off(id),
                FillStart::Fill(ticket) => {
                    part.kind = PartKind::Block(Some(ticket), 0);
                    self.read_block(id);
                    return Some(budget::PART);
                }
            }
        }
    }

    /// There is no room for a part: its device tries again in its next turn.
    fn put_off(&mut self, id: u32) -> Option<u64> {
        let slot = self.tasks.get(self.parts.get(id).task).slot;
        let device = self.devices[slot].as_deref_mut()?;
        device.backlog.put_back_part(id);
        self.rounds.add(slot, &mut device.backlog);
        None
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

    fn start_leaf_part(&mut self, id: u32) -> Option<u64> {
        if !self.engine.has_room() {
            return self.put_off(id);
        }
        let part = self.parts.get(id);
        let task = self.tasks.get(part.task);
        let device = self.devices[task.slot].as_deref()?;
        let cost = part.range.byte_len() + budget::PART;
        let Some((leaf, fd)) = device.disk.leaf().and_then(|l| Some((l, l.raw_fd()?))) else {
            self.part_done(id, false);
            return Some(cost);
        };
        let offset = leaf.data_offset(part.range.start());
        let count = part.bufs.len().min(crate::io::storage::BUFS_MAX);
        let count = u32::try_from(count).unwrap_or(0);
        // SAFETY: the list is the part's own and not touched until the token
        // is reaped; its buffers lie in the device's memory, which is not
        // unmapped while the task is in flight, nor the leaf closed.
        unsafe { self.engine.readv(fd, part.bufs.as_ptr().cast(), count, offset, u64::from(id)) };
        Some(cost)
    }

    /// Takes what the io_uring has done, until the turn is over; whether there
    /// was anything.
    pub(super) fn reap(&mut self) -> bool {
        let (mut any, mut left) = (false, self.turn_cost());
        while left > 0
            && let Some((token, result)) = self.engine.reap()
        {
            any = true;
            let Ok(id) = u32::try_from(token) else {
                continue;
            };
            let part = self.parts.get(id);
            let copied = match part.kind {
                PartKind::Block(..) => part.range.byte_len(),
                PartKind::Leaf | PartKind::Free => 0,
            };
            left = left.saturating_sub(budget::PART + copied);
            match part.kind {
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
                device.disk.log_error(format_args!("root {path} can't be read: {why}"));
            }
        }
        let mut waiters = std::mem::take(&mut self.waiters);
        ticket.finish(if ok { FillOutcome::Data } else { FillOutcome::Failed }, &mut waiters);
        // At once, before the block can be evicted: each fill is of use to one.
        if ok {
            self.start_part(id);
        } else {
            self.part_done(id, false);
        }
        for waiter in waiters.drain(..) {
            if waiter.reactor == self.index {
                self.filled(waiter.token, ok);
            } else if let Some(peer) = self.peers.get(usize::from(waiter.reactor)) {
                peer.post(Mail::Filled { part: waiter.token, ok });
            }
        }
        self.waiters = waiters;
    }

    /// The block that a part waits for was filled by another (and may be gone
    /// again), or could not be. It is copied when it is the device's turn: any
    /// number may have waited for one block.
    pub(super) fn filled(&mut self, part: u32, ok: bool) {
        if !ok {
            return self.part_done(part, false);
        }
        let slot = self.tasks.get(self.parts.get(part).task).slot;
        if let Some(device) = self.devices[slot].as_deref_mut() {
            device.backlog.add_part(part);
            self.rounds.add(slot, &mut device.backlog);
        }
    }

    fn leaf_read(&mut self, id: u32, result: std::io::Result<u32>) {
        let part = self.parts.get(id);
        let count = match result {
            Ok(count) if count > 0 => count as usize,
            Ok(_) => return self.leaf_ends_early(id),
            Err(e) => {
                let task = self.tasks.get(part.task);
                match self.devices[task.slot].as_deref_mut() {
                    Some(device) if is_memory_gone(&e) => device.break_with(&MEMORY_GONE),
                    Some(device) => {
                        device.disk.log_error(format_args!("its leaf can't be read: {e}"));
                    }
                    None => {}
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
            self.leaf_ends_early(id);
        } else {
            self.start_leaf_part(id);
        }
    }

    /// The leaf's file is shorter than its data: somebody else has cut it.
    fn leaf_ends_early(&mut self, id: u32) {
        let task = self.tasks.get(self.parts.get(id).task);
        if let Some(device) = self.devices[task.slot].as_deref() {
            device.disk.log_error(format_args!("its leaf can't be read: it ends early"));
        }
        self.part_done(id, false);
    }

    fn part_done(&mut self, id: u32, ok: bool) {
        let part = self.parts.get(id);
        part.kind = PartKind::Free;
        let task_id = part.task;
        self.parts.give_back(id);
        let task = self.tasks.get(task_id);
        task.pending -= 1;
        task.failed |= !ok;
        let slot = task.slot;
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return;
        };
        device.backlog.part_ended();
        let ends = !task.scheduled && task.is_over();
        if !task.scheduled && !task.failed && !task.rest.is_empty() {
            task.scheduled = true;
            device.backlog.add_task(task_id);
        }
        // Others of the device may have waited for the place.
        self.rounds.add(slot, &mut device.backlog);
        if ends {
            self.end_read(task_id);
        }
    }
}
