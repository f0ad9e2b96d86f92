//! From a popped chain to its answer: at once, or as a task.
#![expect(unsafe_code, reason = "status bytes and data in guest memory")]

use super::device::{Device, WRITE_BACK_BYTES};
use super::run::Runner;
use super::task::{PartKind, TASK_PARTS_MAX, TaskKind};
use crate::cache::{FillOutcome, FillStart, Lookup, Waiter};
use crate::disk::lanes::Work;
use crate::disk::{BufCursor, Piece};
use crate::leaf::LeafError;
use crate::request::{self, Command, ID_LEN, ParsedRequest, Ranges, RequestError, Status};
use crate::units::SectorRange;
use crate::virtqueue::Chain;
use crate::{disk, reactor::mailbox::Mail};

/// Chains that one queue gets served before the next queue's turn.
const TURN_CHAINS: usize = 64;
/// Bytes after which a turn ends early.
const TURN_BYTES: u64 = 1 << 20;
/// Sectors that one read of a leaf asks the disk for.
const LEAF_READ_SECTORS: u64 = 1024;
/// Why a device ends whose frontend truncated the guest's memory.
pub(super) const MEMORY_GONE: &str = "the frontend took away memory that was in use";

/// Who asked, and where the answer goes.
#[derive(Clone, Copy)]
struct Asker {
    /// The device's place.
    slot: usize,
    queue: u16,
    head: u16,
    /// The status byte, or null.
    status: *mut u8,
    /// Bytes that the answer writes, status included.
    used_len: u32,
}

impl Asker {
    fn new(slot: usize, queue: u16, head: u16, parsed: &ParsedRequest) -> Self {
        let used_len = u32::try_from(parsed.data_len + 1).unwrap_or(u32::MAX);
        let used_len = if parsed.status.is_null() { 0 } else { used_len };
        Self { slot, queue, head, status: parsed.status, used_len }
    }
}

impl Runner {
    /// A turn of each of a device's queues; whether there was anything.
    pub(super) fn serve_device(&mut self, slot: usize) -> bool {
        // Taken out for the turn, so that serving can use the rest of `self`.
        let Some(mut device) = self.devices[slot].take() else {
            return false;
        };
        let mut worked = false;
        if device.is_served() {
            for queue in 0..device.queues.len() {
                worked |= self.serve_queue(&mut device, slot, queue);
            }
            if worked && device.memory.is_faulted() {
                device.break_with(&MEMORY_GONE);
            }
        }
        device.worked |= worked;
        self.devices[slot] = Some(device);
        worked
    }

    fn serve_queue(&mut self, device: &mut Device, slot: usize, index: usize) -> bool {
        let ready = |d: &Device| {
            d.queues[index].as_ref().is_some_and(|q| q.is_served() && q.ring.has_available())
        };
        if !ready(device) {
            return false;
        }
        let Ok(queue) = u16::try_from(index) else {
            return false;
        };
        let [mut current, mut next] = std::mem::take(&mut self.chains);
        // One request ahead: while this one's data is copied, the next one's
        // comes from memory.
        let mut waiting = None;
        let mut bytes = 0;
        for _ in 0..TURN_CHAINS {
            let Some(ring) = device.queues[index].as_mut().map(|q| &mut q.ring) else {
                break;
            };
            match ring.pop(&device.memory, &mut next) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    device.disk.counters().errors.add(1);
                    // A ring that is gone reads as zeros: name the cause.
                    if device.memory.is_faulted() {
                        device.break_with(&MEMORY_GONE);
                    }
                    device.break_with(&e);
                    break;
                }
            }
            let parsed = request::parse(&mut next, &device.limits);
            if let Ok(Command::Read(range)) = &parsed.command {
                device.disk.prefetch(&self.reader, *range);
                bytes += range.byte_len();
            }
            if let Some(previous) = waiting.replace(parsed) {
                let asker = Asker::new(slot, queue, current.head, &previous);
                self.execute(device, asker, &mut current, previous.command);
            }
            std::mem::swap(&mut current, &mut next);
            if bytes >= TURN_BYTES {
                break;
            }
        }
        if let Some(last) = waiting {
            let asker = Asker::new(slot, queue, current.head, &last);
            self.execute(device, asker, &mut current, last.command);
        }
        self.chains = [current, next];
        if let Some(queue) = device.queues[index].as_mut().filter(|q| q.unpublished) {
            queue.publish();
        }
        true
    }

    fn execute(
        &mut self,
        device: &mut Device,
        asker: Asker,
        chain: &mut Chain,
        command: Result<Command, RequestError>,
    ) {
        let counters = device.disk.counters();
        let status = match command {
            Ok(Command::Read(range)) => {
                counters.reads.add(1);
                let mut cursor = BufCursor::default();
                // SAFETY: the chain's buffers lie in the device's memory,
                // which stays mapped while it is attached; `parse` took the
                // range's length from them.
                let rest = unsafe {
                    device.disk.read_now(&self.reader, range, &chain.writable, &mut cursor)
                };
                if rest.is_empty() {
                    Status::Ok
                } else {
                    let task = self.new_task(device, asker, TaskKind::Read);
                    let entry = self.tasks.get(task);
                    std::mem::swap(&mut entry.bufs, &mut chain.writable);
                    (entry.rest, entry.cursor, entry.scheduled) = (rest, cursor, true);
                    self.runnable.push(task);
                    return;
                }
            }
            Ok(Command::Write(range)) => {
                counters.writes.add(1);
                counters.written_sectors.add(range.count());
                match self.write(device, asker, chain, range) {
                    Some(status) => status,
                    None => return,
                }
            }
            Ok(Command::Flush) => {
                counters.flushes.add(1);
                match device.disk.leaf() {
                    Some(leaf) if !device.disk.is_read_only() && !leaf.is_flushed() => {
                        self.hand_over(device, asker, Work::Flush);
                        return;
                    }
                    _ => Status::Ok,
                }
            }
            Ok(Command::GetId) => {
                let mut id = [0; ID_LEN];
                let name = device.disk.name().as_bytes();
                let len = name.len().min(ID_LEN);
                id[..len].copy_from_slice(&name[..len]);
                // SAFETY: as above; the cursor stops at the buffers' end.
                unsafe { BufCursor::default().write(&chain.writable, &id) };
                Status::Ok
            }
            Ok(Command::Discard(ranges) | Command::WriteZeroes(ranges)) => {
                counters.discards.add(1);
                if self.zero(device, asker, ranges) {
                    return;
                }
                Status::Ok
            }
            Err(error) => {
                counters.errors.add(1);
                log::debug!("VM {}: {error}", device.disk.name());
                error.status().unwrap_or(Status::IoError)
            }
        };
        finish_in(device, asker, status);
    }

    /// Whether there is anything to zero, and so a task.
    fn zero(&mut self, device: &mut Device, asker: Asker, ranges: Box<Ranges>) -> bool {
        let any = !ranges.as_slice().is_empty();
        if any {
            self.hand_over(device, asker, Work::Zero(ranges));
        }
        any
    }

    /// Writes at once where that will be quick; otherwise through the lane.
    fn write(
        &mut self,
        device: &mut Device,
        asker: Asker,
        chain: &mut Chain,
        range: SectorRange,
    ) -> Option<Status> {
        if range.is_empty() {
            return Some(Status::Ok);
        }
        let unsynced = device.disk.leaf().map_or(0, |leaf| leaf.unsynced_bytes());
        if !device.pace.is_inline(range.start().0, range.count(), unsynced) {
            let bufs = std::mem::take(&mut chain.readable);
            self.hand_over(device, asker, Work::Write(range, bufs));
            return None;
        }
        let begun = device.pace.begin();
        // SAFETY: the chain's buffers lie in the device's memory, and `parse`
        // took the range's length from them.
        let result = unsafe { device.disk.write_now(range, &chain.readable) };
        device.pace.wrote(&begun);
        match result {
            Ok(()) if device.write_back => {}
            Ok(()) => {
                self.hand_over(device, asker, Work::Flush);
                return None;
            }
            Err(error) => {
                if let Some(error) = error {
                    note_error(device, &error);
                }
                return Some(Status::IoError);
            }
        }
        self.pace_write_back(device, asker.slot);
        Some(Status::Ok)
    }

    /// Asks for write-back when enough has been written.
    fn pace_write_back(&mut self, device: &mut Device, slot: usize) {
        let Some(leaf) = device.disk.leaf() else {
            return;
        };
        if device.pace.write_back_running || leaf.unsynced_bytes() < WRITE_BACK_BYTES {
            return;
        }
        let Some(lanes) = &device.lanes else { return };
        let task = self.tasks.take();
        let entry = self.tasks.get(task);
        (entry.kind, entry.slot) = (TaskKind::WriteBack, slot);
        device.in_flight += 1;
        device.pace.write_back_running = true;
        // SAFETY: no buffers.
        unsafe { lanes.submit(Work::WriteBack, false, task) };
    }

    fn new_task(&mut self, device: &mut Device, asker: Asker, kind: TaskKind) -> u32 {
        let id = self.tasks.take();
        let task = self.tasks.get(id);
        task.kind = kind;
        (task.slot, task.queue, task.head) = (asker.slot, asker.queue, asker.head);
        (task.status, task.used_len) = (asker.status, asker.used_len);
        (task.pending, task.failed, task.scheduled) = (0, false, false);
        device.in_flight += 1;
        if let Some(queue) = device.queues[usize::from(asker.queue)].as_mut() {
            queue.in_flight += 1;
        }
        id
    }

    fn hand_over(&mut self, device: &mut Device, asker: Asker, work: Work) {
        let task = self.new_task(device, asker, TaskKind::Lane);
        let then_flush = !device.write_back && !matches!(work, Work::Flush);
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
        let task = self.tasks.get(id);
        let (kind, slot) = (task.kind, task.slot);
        if bufs.capacity() > task.bufs.capacity() {
            task.bufs = bufs;
        }
        if let Err(error) = &result
            && let Some(device) = self.devices[slot].as_deref_mut()
        {
            note_error(device, error);
        }
        if kind == TaskKind::WriteBack {
            self.tasks.get(id).kind = TaskKind::Free;
            self.tasks.give_back(id);
            if let Some(device) = self.devices[slot].as_deref_mut() {
                device.in_flight -= 1;
                device.pace.write_back_running = false;
            }
            self.settle_if_waiting(slot);
            return;
        }
        self.complete(id, if result.is_ok() { Status::Ok } else { Status::IoError });
        if let Some(mut device) = self.devices[slot].take() {
            self.pace_write_back(&mut device, slot);
            self.devices[slot] = Some(device);
        }
    }

    /// Ends a task: its chain goes back, once.
    fn complete(&mut self, id: u32, status: Status) {
        let task = self.tasks.get(id);
        debug_assert!(task.kind != TaskKind::Free && task.pending == 0);
        task.kind = TaskKind::Free;
        task.bufs.clear();
        let (slot, queue, head) = (task.slot, task.queue, task.head);
        let (place, used_len) = (task.status, task.used_len);
        let asker = Asker { slot, queue, head, status: place, used_len };
        self.tasks.give_back(id);
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return;
        };
        device.in_flight -= 1;
        if let Some(entry) = device.queues[usize::from(queue)].as_mut() {
            entry.in_flight -= 1;
            if !entry.unpublished {
                self.unpublished.push((slot, queue));
            }
        }
        finish_in(device, asker, status);
        if device.memory.is_faulted() {
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
                Piece::Root(range) | Piece::Zero(range) => (range, PartKind::Block(None, 0)),
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
        if !ok && let Some(device) = self.devices[task.slot].as_deref() {
            device.disk.counters().errors.add(1);
        }
        if !task.scheduled && (task.pending == 0 || !task.rest.is_empty()) {
            task.scheduled = true;
            self.runnable.push(task_id);
        }
    }
}

/// Gives a chain back with its status.
#[inline]
fn finish_in(device: &mut Device, asker: Asker, status: Status) {
    if !asker.status.is_null() {
        // SAFETY: the byte is the chain's last writable one, in the device's
        // memory, which is mapped while a request is in flight.
        unsafe { asker.status.write_volatile(status as u8) };
    }
    if let Some(queue) = device.queues[usize::from(asker.queue)].as_mut() {
        queue.ring.add_used(asker.head, asker.used_len);
        queue.unpublished = true;
    }
}

fn note_error(device: &mut Device, error: &LeafError) {
    device.disk.counters().errors.add(1);
    match error {
        LeafError::Io { source, .. } if is_memory_gone(source) => device.break_with(&MEMORY_GONE),
        _ => disk::log_seldom(&format_args!("VM {}: {error}", device.disk.name())),
    }
}

/// Whether a system call found no memory behind a guest's buffer. Buffers were
/// checked to lie in a mapping, so its file must have been cut short.
fn is_memory_gone(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}
