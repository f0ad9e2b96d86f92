//! What the fuzz targets do with their input: real code of leafblk, and what
//! must hold whatever the input is.
//!
//! Each module has `run`, which panics where something doesn't hold, and
//! `seeds`, inputs that reach deep. `fuzz_targets/` hands `run` to libFuzzer;
//! tests/fuzz_seeds.rs runs the seeds and mutations of them with a stable
//! compiler, and holds `seeds/` against `seeds`.

pub mod inflight;
mod input;
pub mod leaf;
pub mod messages;
pub mod request;
pub mod ring;
pub mod slot_leaf;

/// Seeds by name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;
