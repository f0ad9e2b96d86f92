//! A part that waits for a cache block: filled by itself, or by another part of any VM.
//!
//! The block is looked up once in each try, and what was found is copied: another reactor
//! may evict it in between, which ends no reference ([`crate::cache`]). Who fills a block
//! gets it before anybody can evict it. Who waited for another's fill may find it gone
//! again, and tries anew. A part that has lost it [`TRIES_MAX`] times reads the block
//! *aside*, into a buffer of the reactor's own: so each read is answered after a bounded
//! number of tries, however small the cache is.
#![expect(unsafe_code, reason = "data in guest memory, and reads by raw address")]

use std::io;

use super::budget;
use super::device::Device;
use super::step::{Failure, Step};
use crate::cache::{FillOutcome, FillStart, FillTicket, Lookup, Reader, Waiter};
use crate::disk::{BufCursor, RootPiece};
use crate::io::engine::Engine;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Tries after which a part reads its block aside.
pub(super) const TRIES_MAX: u8 = 16;

/// What a wait needs of its reactor and of the read that it is a part of.
pub(super) struct Around<'a> {
    pub(super) reader: &'a Reader,
    pub(super) engine: &'a mut Engine,
    /// The reactor's buffer, unless a part has it.
    pub(super) aside: &'a mut Option<Aside>,
    /// Where those go who waited for a fill that ends.
    pub(super) waiters: &'a mut Vec<Waiter>,
    pub(super) device: &'a Device,
    /// The read's buffers.
    pub(super) bufs: &'a [GuestBuf],
    /// Names the part, to the cache and to the io_uring.
    pub(super) name: Waiter,
}

/// A wait for a cache block.
#[derive(Debug)]
pub(super) struct BlockWait {
    piece: RootPiece,
    /// Where in the read's buffers it goes.
    cursor: BufCursor,
    /// The part's own read of the block, while it is in flight. Otherwise the part is in
    /// its device's backlog, or another fills the block.
    read: Option<BlockRead>,
    tries: u8,
}

impl BlockWait {
    pub(super) fn new(piece: RootPiece, cursor: BufCursor) -> Self {
        Self { piece, cursor, read: None, tries: 0 }
    }

    /// Copies the piece if its block is there, or sees to it that it comes.
    pub(super) fn start(&mut self, around: &mut Around<'_>) -> Step {
        let root = around.device.disk.root();
        loop {
            let found = root.cache().lookup(around.reader, self.piece.block());
            if let Some(step) = self.copy_found(found, around) {
                return step;
            }
            let Some(vacancy) = around.engine.vacancy() else {
                return Step::NoRoom;
            };
            let read = if self.tries >= TRIES_MAX
                && let Some(buffer) = around.aside.take()
            {
                let sectors = root.sectors_of(self.piece.block());
                BlockRead::new(Target::Aside(buffer.of_len(root.block_len())), sectors)
            } else {
                match root.cache().begin_fill(self.piece.block(), around.name) {
                    FillStart::Fill(ticket) => {
                        let sectors = ticket.sectors();
                        BlockRead::new(Target::Slot(ticket), sectors)
                    }
                    FillStart::Joined => {
                        self.tries = self.tries.saturating_add(1);
                        return Step::Waits(budget::PART);
                    }
                    FillStart::Ready if self.tries < TRIES_MAX => {
                        self.tries += 1;
                        continue;
                    }
                    FillStart::Ready | FillStart::NoSlot => {
                        self.tries = self.tries.saturating_add(1);
                        return Step::NoRoom;
                    }
                }
            };
            let read = self.read.insert(read);
            let (ptr, len, offset) = read.next();
            // SAFETY: the slot or buffer is the read's, which is kept here until the token
            // is reaped; the root is open as long as its disk, which the device keeps
            // while the task is in flight.
            unsafe { vacancy.read(root.root().raw_fd(), ptr, len, offset, around.name.token) };
            return Step::Waits(budget::PART);
        }
    }

    /// The read that was in flight has an answer. The second is how the fill went, if it
    /// was one and has ended.
    pub(super) fn reaped(
        &mut self,
        result: io::Result<u32>,
        around: &mut Around<'_>,
    ) -> (Step, Option<FillOutcome>) {
        let Some(mut read) = self.read.take() else {
            return (Step::Failed(Failure::Lost("a part has an answer and no read")), None);
        };
        let failure = match result {
            Ok(0) => Failure::RootEndsEarly,
            Ok(count) if read.advance(count) => return self.read_whole(read, around),
            Ok(_) => match around.engine.vacancy() {
                Some(vacancy) => {
                    let (ptr, len, offset) = read.next();
                    let fd = around.device.disk.root().root().raw_fd();
                    self.read = Some(read);
                    // SAFETY: as in `start`.
                    unsafe { vacancy.read(fd, ptr, len, offset, around.name.token) };
                    return (Step::Waits(0), None);
                }
                None => Failure::Lost("a read has ended and left no room for its rest"),
            },
            Err(error) => Failure::Root(error),
        };
        let outcome = match read.into {
            Target::Slot(ticket) => {
                ticket.finish(FillOutcome::Failed, around.waiters);
                Some(FillOutcome::Failed)
            }
            Target::Aside(buffer) => {
                *around.aside = Some(buffer);
                None
            }
        };
        (Step::Failed(failure), outcome)
    }

    /// All of the block was read.
    fn read_whole(
        &mut self,
        read: BlockRead,
        around: &mut Around<'_>,
    ) -> (Step, Option<FillOutcome>) {
        match read.into {
            Target::Slot(ticket) => {
                let found = ticket.finish_and_look(around.reader, around.waiters);
                let step = self.copy_found(found, around);
                // Of a root that was removed meanwhile nobody reads.
                let lost = Step::Failed(Failure::Lost("a root was removed under a read"));
                (step.unwrap_or(lost), Some(FillOutcome::Data))
            }
            Target::Aside(buffer) => {
                let counters = around.device.disk.counters();
                // SAFETY: as in `copy_found`.
                let copied =
                    unsafe { self.piece.copy(buffer.bytes(), around.bufs, &mut self.cursor) };
                counters.read_sectors_root.add(copied);
                *around.aside = Some(buffer);
                (self.ended(copied), None)
            }
        }
    }

    /// Copies the piece out of its block as it was found; `None` where it was not.
    fn copy_found(&mut self, found: Lookup<'_>, around: &Around<'_>) -> Option<Step> {
        let disk = &around.device.disk;
        let counter = &disk.counters().read_sectors_root;
        // SAFETY: the buffers lie in the device's memory, which is not unmapped while the
        // read is in flight.
        let copied =
            unsafe { disk.copy_found(found, self.piece, around.bufs, &mut self.cursor, counter) };
        copied.map(|copied| self.ended(copied))
    }

    fn ended(&self, copied: u64) -> Step {
        if copied < self.piece.range().count() {
            return Step::Failed(Failure::Lost("a read has fewer buffers than sectors"));
        }
        Step::Done(self.piece.range().byte_len())
    }
}

/// A read of a block that is in flight.
#[derive(Debug)]
struct BlockRead {
    into: Target,
    sectors: SectorRange,
    /// Bytes that have been read.
    done: u32,
}

#[derive(Debug)]
enum Target {
    /// A cache slot: for everybody.
    Slot(FillTicket),
    /// The reactor's buffer: for one part.
    Aside(Aside),
}

impl BlockRead {
    fn new(into: Target, sectors: SectorRange) -> Self {
        Self { into, sectors, done: 0 }
    }

    /// Bytes in all.
    fn len(&self) -> u32 {
        u32::try_from(self.sectors.byte_len()).unwrap_or(u32::MAX)
    }

    /// Where to what is still missing, how much that is, and where it is in the root.
    fn next(&mut self) -> (*mut u8, u32, u64) {
        let (done, offset) = (self.done, self.sectors.byte_offset());
        let start = match &mut self.into {
            Target::Slot(ticket) => ticket.as_mut_ptr(),
            Target::Aside(buffer) => buffer.as_mut_ptr(),
        };
        (start.wrapping_add(done as usize), self.len() - done, offset + u64::from(done))
    }

    /// So many bytes more were read; whether that is all.
    fn advance(&mut self, count: u32) -> bool {
        self.done = self.done.saturating_add(count).min(self.len());
        self.done == self.len()
    }
}

/// Memory for one block, as O_DIRECT takes it. Had when it is first used.
#[derive(Debug, Default)]
pub(super) struct Aside {
    memory: Vec<u8>,
    /// Where in it the block begins.
    start: usize,
}

impl Aside {
    const ALIGN: usize = 4096;

    /// The same with room for so many bytes.
    fn of_len(mut self, len: usize) -> Self {
        self.memory.resize(len + Self::ALIGN, 0);
        self.start = self.memory.as_ptr().align_offset(Self::ALIGN).min(Self::ALIGN);
        self
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory[self.start..].as_mut_ptr()
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}
