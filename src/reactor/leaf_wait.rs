//! A part that waits for the leaf's disk.
#![expect(unsafe_code, reason = "reads into guest memory by raw address")]

use std::io;

use super::budget;
use super::device::Device;
use super::step::{Failure, Step};
use crate::disk::LeafPiece;
use crate::io::engine::Engine;
use crate::io::storage::BUFS_MAX;
use crate::virtqueue::GuestBuf;

/// A wait for the leaf's disk.
#[derive(Debug)]
pub(super) struct LeafWait {
    /// What is still to be read.
    piece: LeafPiece,
    /// The buffers that are still to be filled.
    bufs: Vec<GuestBuf>,
}

impl LeafWait {
    /// A wait for `piece`, which goes into `bufs`.
    pub(super) fn new(piece: LeafPiece, bufs: Vec<GuestBuf>) -> Self {
        Self { piece, bufs }
    }

    /// The list, for use again. Nothing of it is in flight.
    pub(super) fn into_bufs(self) -> Vec<GuestBuf> {
        self.bufs
    }

    /// Asks the disk; its answer comes under `token`.
    pub(super) fn start(&mut self, engine: &mut Engine, device: &Device, token: u32) -> Step {
        let Some(vacancy) = engine.vacancy() else {
            return Step::NoRoom;
        };
        let Some(fd) = device.disk.leaf().and_then(|leaf| leaf.raw_fd()) else {
            return Step::Failed(Failure::Leaf(io::ErrorKind::Unsupported.into()));
        };
        let count = u32::try_from(self.bufs.len().min(BUFS_MAX)).unwrap_or(0);
        let (bufs, offset) = (self.bufs.as_ptr().cast(), self.piece.offset());
        // SAFETY: the list is the part's own and not touched until the token
        // is reaped; its buffers lie in the device's memory, which is not
        // unmapped while the task is in flight, nor the leaf closed.
        unsafe { vacancy.readv(fd, bufs, count, offset, token) };
        Step::Waits(self.piece.range().byte_len() + budget::PART)
    }

    /// The disk has answered.
    pub(super) fn reaped(
        &mut self,
        result: io::Result<u32>,
        engine: &mut Engine,
        device: &Device,
        token: u32,
    ) -> Step {
        let count = match result {
            Ok(count) => count as usize,
            Err(error) => return Step::Failed(Failure::Leaf(error)),
        };
        // Whole sectors count; a ragged end is read again. Less than a sector is no
        // progress: an error, not a loop.
        let sectors = count as u64 / 512;
        if sectors == 0 {
            return Step::Failed(Failure::LeafEndsEarly);
        }
        self.skip(sectors);
        device.disk.counters().read_sectors_leaf.add(sectors);
        if self.piece.range().is_empty() {
            return Step::Done(0);
        }
        self.start(engine, device, token)
    }

    fn skip(&mut self, sectors: u64) {
        self.piece = self.piece.skip(sectors);
        let mut left = usize::try_from(sectors * 512).unwrap_or(usize::MAX);
        let full = self.bufs.iter().take_while(|buf| {
            let whole = buf.len() <= left;
            left -= if whole { buf.len() } else { 0 };
            whole
        });
        let full = full.count();
        self.bufs.drain(..full);
        if let Some(first) = self.bufs.first_mut() {
            *first = first.skip(left);
        }
    }
}
