//! Power cuts and kills, simulated under the real leaf.
//!
//! The leaf runs on a [`disk::SimDisk`], through the same trait as on a file.
//! The disk remembers, for each 512 bytes, every content since the last sync.
//! A power cut leaves, independently for each 512 bytes, any one of them: so
//! any subset of the unsynced writes, punches and truncations, in any order and
//! torn at 512 bytes. A kill leaves all of them, and the live map. In each such
//! state the leaf is opened again and held against [`model`], the promise.
//!
//! [`exhaustive`] tries all short sequences of operations, [`random`] long ones
//! from a seed. Used by `tests/power_cuts.rs` and `examples/crashsim.rs`.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "a simulation that fails says so by panicking; each user has some of it"
)]

pub(crate) mod check;
pub(crate) mod disk;
pub(crate) mod exhaustive;
pub(crate) mod model;
pub(crate) mod ops;
pub(crate) mod random;
pub(crate) mod sparse;
pub(crate) mod states;

/// Numbers from a seed (xorshift).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Spread, as small seeds would begin alike; never 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1 | 1)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    /// True once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
