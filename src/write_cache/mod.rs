//! A VM's write cache: acknowledged data in memory, until the leaf's file has it.
//!
//! It owns *frames* of 4 KiB in memory that outlives the process, and says of each what it
//! is: free, dirty, on its way to the file, or clean, which means that the file has the same
//! and the frame may be taken at any time. It knows neither files nor records.
//!
//! A frame's data never changes once the frame is published; newer data of a block takes
//! another frame. So what is on its way to the disk stays as it is, and a kill leaves the
//! old data or the new.

pub mod header;
pub mod memory;

use std::collections::VecDeque;

pub use header::Content;
pub use memory::{FRAME_LEN, Memory, SharedMemory};

use crate::slot_leaf::word::Mask;
use memory::{HEADER_PAGES, PIECE_PAGES};

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Of use to nobody.
    Free,
    /// Taken, and not published yet.
    Held,
    /// Published; the file doesn't have it.
    Dirty(Content),
    /// Published, and on its way to the file.
    Writing(Content),
    /// On its way to the file, with newer data in another frame.
    Outdated(Content),
    /// The file has the same.
    Clean {
        /// The block.
        block: u64,
        /// Which of its sectors.
        mask: Mask,
    },
}

/// A frame that was taken, and what it held.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The frame.
    pub frame: u32,
    /// The block that it was a clean frame of.
    pub evicted: Option<u64>,
}

/// What a process left behind in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// The frame.
    pub frame: u32,
    /// What it holds.
    pub content: Content,
    /// Since when.
    pub sequence: u64,
}

/// The frames of one VM.
#[derive(Debug)]
pub struct WriteCache<M> {
    memory: M,
    states: Vec<State>,
    free: Vec<u32>,
    /// Clean frames, the oldest first, and such as were clean once.
    clean: VecDeque<u32>,
    clean_count: usize,
    pieces_max: u32,
    sequence: u64,
    dirty: usize,
}

impl<M: Memory> WriteCache<M> {
    /// A write cache that may have so many pieces of 2 MiB. What an earlier process left in
    /// the memory is told to [`Self::left`].
    pub fn new(memory: M, pieces_max: u32) -> Self {
        let mut cache = Self {
            states: Vec::new(),
            free: Vec::new(),
            clean: VecDeque::new(),
            clean_count: 0,
            pieces_max: pieces_max.max(memory.pieces()),
            sequence: 0,
            dirty: 0,
            memory,
        };
        for piece in 0..cache.memory.pieces() {
            cache.add_piece(piece);
        }
        cache
    }

    fn add_piece(&mut self, piece: u32) {
        let frames = piece * PIECE_PAGES..(piece + 1) * PIECE_PAGES;
        self.states.resize(frames.end as usize, State::Free);
        let usable = frames.start + HEADER_PAGES..frames.end;
        self.free.extend(usable.rev());
    }

    /// What an earlier process left, in the order in which it came. Each is dirty from now
    /// on.
    pub fn left(&mut self) -> Vec<Left> {
        let mut left = Vec::new();
        let memory = &self.memory;
        self.free.retain(|frame| {
            let Some((content, sequence)) = header::read(memory, *frame) else {
                return true;
            };
            left.push(Left { frame: *frame, content, sequence });
            false
        });
        for Left { frame, content, sequence } in &left {
            self.states[*frame as usize] = State::Dirty(*content);
            self.sequence = self.sequence.max(*sequence);
        }
        self.dirty = left.len();
        left.sort_by_key(|left| left.sequence);
        left
    }

    /// What a frame is.
    pub fn state(&self, frame: u32) -> State {
        self.states[frame as usize]
    }

    /// Frames that hold what the file doesn't have.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    /// Frames that could be taken now, without asking for memory.
    pub fn available(&self) -> usize {
        self.free.len() + self.clean_count
    }

    /// Frames that there are.
    pub fn allocated(&self) -> usize {
        (self.memory.pieces() * (PIECE_PAGES - HEADER_PAGES)) as usize
    }

    /// Frames that there may be.
    pub fn frames_max(&self) -> usize {
        (self.pieces_max * (PIECE_PAGES - HEADER_PAGES)) as usize
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The newest sequence number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Takes a frame: a free one, one of a new piece, or the oldest clean one. `None` where
    /// there is none: then some have to be written first.
    pub fn take(&mut self) -> Option<Taken> {
        if self.free.is_empty() && self.memory.pieces() < self.pieces_max {
            let piece = self.memory.pieces();
            if self.memory.grow().is_ok() {
                self.add_piece(piece);
            }
        }
        if let Some(frame) = self.free.pop() {
            self.states[frame as usize] = State::Held;
            return Some(Taken { frame, evicted: None });
        }
        while let Some(frame) = self.clean.pop_front() {
            if let State::Clean { block, .. } = self.states[frame as usize] {
                self.clean_count -= 1;
                self.states[frame as usize] = State::Held;
                return Some(Taken { frame, evicted: Some(block) });
            }
        }
        None
    }

    /// Says what a held frame holds: dirty from now on. The sequence number is newer than
    /// all before it.
    pub fn publish(&mut self, frame: u32, content: Content) -> u64 {
        assert_eq!(self.states[frame as usize], State::Held, "frame {frame} isn't held");
        self.sequence += 1;
        header::publish(&self.memory, frame, content, self.sequence);
        self.states[frame as usize] = State::Dirty(content);
        self.dirty += 1;
        self.sequence
    }

    /// A held frame is now a clean one of this block.
    pub fn keep_clean(&mut self, frame: u32, block: u64, mask: Mask) {
        assert_eq!(self.states[frame as usize], State::Held, "frame {frame} isn't held");
        self.make_clean(frame, block, mask);
    }

    fn make_clean(&mut self, frame: u32, block: u64, mask: Mask) {
        self.states[frame as usize] = State::Clean { block, mask };
        self.clean.push_back(frame);
        self.clean_count += 1;
        // Those that are clean no more are let go in time.
        if self.clean.len() > 2 * self.clean_count + 64 {
            let states = &self.states;
            self.clean.retain(|frame| matches!(states[*frame as usize], State::Clean { .. }));
        }
    }

    /// There is newer data of the frame's block, or of all of its run: it counts for nothing
    /// after a kill. It is free, unless it is on its way to the file.
    pub fn supersede(&mut self, frame: u32) {
        match self.states[frame as usize] {
            State::Dirty(_) => {
                header::retire(&self.memory, frame);
                self.dirty -= 1;
                self.release(frame);
            }
            State::Writing(content) => {
                header::retire(&self.memory, frame);
                self.states[frame as usize] = State::Outdated(content);
            }
            State::Clean { .. } => {
                self.clean_count -= 1;
                self.release(frame);
            }
            State::Held => self.release(frame),
            State::Free | State::Outdated(_) => {}
        }
    }

    fn release(&mut self, frame: u32) {
        self.states[frame as usize] = State::Free;
        self.free.push(frame);
    }

    /// The frame is on its way to the file.
    pub fn begin_writing(&mut self, frame: u32) {
        if let State::Dirty(content) = self.states[frame as usize] {
            self.states[frame as usize] = State::Writing(content);
        }
    }

    /// The file has it, durably. True if the frame still has the newest data of its block;
    /// a frame with data stays as a clean one then, which has the sectors of `mask`.
    pub fn written(&mut self, frame: u32, mask: Mask) -> bool {
        match self.states[frame as usize] {
            State::Writing(content) => {
                header::retire(&self.memory, frame);
                self.dirty -= 1;
                match content {
                    Content::Sectors { block, .. } => self.make_clean(frame, block, mask),
                    Content::Zeros { .. } => self.release(frame),
                }
                true
            }
            State::Outdated(_) => {
                self.dirty -= 1;
                self.release(frame);
                false
            }
            State::Free | State::Held | State::Dirty(_) | State::Clean { .. } => false,
        }
    }
}
