//! A frame's header: what a kill leaves behind says what the frame holds.
//!
//! | word | |
//! | --- | --- |
//! | 0 | the block, and in the top 8 bits the mask of its sectors that the frame has |
//! | 1 | the sequence number: among frames of one block, and of runs, the newest counts |
//! | 2 | 0, or of a run of zeros its blocks |
//! | 3 | 0 where the frame counts for nothing; else CRC-32C of the others and the frame's number, plus 2³² |
//!
//! Publishing clears word 3, stores the others, then word 3. A kill between any two stores
//! leaves a header that counts for nothing.

use super::memory::Memory;
use crate::slot_leaf::word::Mask;

const BLOCK_BITS: u32 = 56;
const COUNTS: u64 = 1 << 32;
/// No VM writes so often: what is beyond is not ours.
const SEQUENCE_MAX: u64 = 1 << 62;

/// What a frame holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// Sectors of one block.
    Sectors {
        /// The block.
        block: u64,
        /// Which of its sectors.
        mask: Mask,
    },
    /// No data: these blocks are zeros.
    Zeros {
        /// The first of them.
        first: u64,
        /// How many, at least 1.
        count: u64,
    },
}

/// Word 3 of a header that counts, from the others.
pub fn seal(frame: u32, words: [u64; 3]) -> u64 {
    let mut crc = crc32c::crc32c(&frame.to_le_bytes());
    for word in words {
        crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
    }
    COUNTS | u64::from(crc)
}

/// Says that the frame holds this, from now on.
pub(super) fn publish(memory: &impl Memory, frame: u32, content: Content, sequence: u64) {
    let words = match content {
        Content::Sectors { block, mask } => [block | u64::from(mask.0) << BLOCK_BITS, sequence, 0],
        Content::Zeros { first, count } => [first, sequence, count],
    };
    memory.store(frame, 3, 0);
    for (i, word) in words.into_iter().enumerate() {
        memory.store(frame, i, word);
    }
    memory.store(frame, 3, seal(frame, words));
}

/// Says that the frame counts for nothing any more.
pub(super) fn retire(memory: &impl Memory, frame: u32) {
    memory.store(frame, 3, 0);
}

/// What a frame holds, and since when, if it counts.
pub(super) fn read(memory: &impl Memory, frame: u32) -> Option<(Content, u64)> {
    let words: [u64; 3] = std::array::from_fn(|i| memory.load(frame, i));
    if memory.load(frame, 3) != seal(frame, words) {
        return None;
    }
    let [first, sequence, count] = words;
    if sequence > SEQUENCE_MAX {
        return None;
    }
    let content = if count > 0 {
        Content::Zeros { first, count }
    } else {
        let mask = Mask(u8::try_from(first >> BLOCK_BITS).unwrap_or(0));
        Content::Sectors { block: first & ((1 << BLOCK_BITS) - 1), mask }
    };
    Some((content, sequence))
}
