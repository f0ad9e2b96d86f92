//! The fuzz targets without a fuzzer: their seeds, what once broke them, and
//! thousands of mutations of both, the same ones in each run.
//!
//! `LEAFBLK_FUZZ_MUTATIONS=100000` makes more of them,
//! `LEAFBLK_FUZZ_WRITE_SEEDS=1` writes fuzz/seeds anew. tests/fuzz.sh runs the
//! real fuzzer.
#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "the targets are a package with lints of its own, and tests fail by panicking"
)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Longest input that mutations make.
const LEN_MAX: usize = 4096;
/// Values at which arithmetic breaks.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A place in `bytes`, or its end.
    fn place(&mut self, bytes: &[u8]) -> usize {
        self.below(bytes.len() + 1)
    }

    /// One change, as fuzzers make them.
    fn change(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.place(bytes);
        let end = (at + self.below(64)).min(bytes.len());
        match self.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.next() as u8,
            2 => {
                let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                let count = (1 << self.below(4)).min(bytes.len() - at);
                bytes[at..at + count].copy_from_slice(&edge[..count]);
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = self.place(bytes);
                bytes.splice(to..to, copy);
            }
            _ => {
                let other = &others[self.below(others.len())];
                let (from, cut) = (self.place(other), self.place(bytes));
                bytes.truncate(cut);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(LEN_MAX);
    }
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

/// Every file in the target's folder: seeds, and inputs that once broke it.
fn stored(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn write_seeds(target: &str, seeds: &fuzz::Seeds) {
    std::fs::create_dir_all(directory(target)).unwrap();
    for (name, bytes) in seeds {
        std::fs::write(directory(target).join(name), bytes).unwrap();
    }
}

/// Runs one input; a panic names it.
fn run_one(run: fn(&[u8]), what: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{what} breaks it: {hex}");
    }
}

fn hold(target: &str, run: fn(&[u8]), seeds: &fuzz::Seeds, mutations: usize) {
    if std::env::var_os("LEAFBLK_FUZZ_WRITE_SEEDS").is_some() {
        write_seeds(target, seeds);
    }
    let stored = stored(target);
    for (name, bytes) in seeds {
        let path = directory(target).join(name);
        let same = stored.iter().any(|(found, content)| *found == path && content == bytes);
        assert!(same, "{} is not the seed: LEAFBLK_FUZZ_WRITE_SEEDS=1 writes it", path.display());
    }
    for (path, bytes) in &stored {
        run_one(run, &path.display().to_string(), bytes);
    }
    let asked = std::env::var("LEAFBLK_FUZZ_MUTATIONS").ok().map(|count| count.parse().unwrap());
    let bases: Vec<Vec<u8>> = stored.into_iter().map(|(_, bytes)| bytes).collect();
    let mut random = Random(0x6c65_6166_626c_6b21);
    for number in 0..asked.unwrap_or(mutations) {
        let mut input = bases[random.below(bases.len())].clone();
        for _ in 0..=random.below(8) {
            random.change(&mut input, &bases);
        }
        run_one(run, &format!("mutation {number}"), &input);
    }
}

#[test]
fn leaf_files_of_any_content_are_refused_or_keep_what_is_written() {
    hold("leaf", fuzz::leaf::run, &fuzz::leaf::seeds(), 3000);
}

#[test]
fn requests_of_any_content_are_answered_within_their_buffers() {
    hold("request", fuzz::request::run, &fuzz::request::seeds(), 10_000);
}

#[test]
fn rings_in_any_memory_touch_nothing_else_and_return_each_chain_once() {
    hold("ring", fuzz::ring::run, &fuzz::ring::seeds(), 3000);
}

#[test]
fn inflight_regions_of_any_content_bring_back_what_was_left_once() {
    hold("inflight", fuzz::inflight::run, &fuzz::inflight::seeds(), 5000);
}

#[test]
fn message_streams_of_any_content_leave_the_reactor_answering() {
    hold("messages", fuzz::messages::run, &fuzz::messages::seeds(), 1000);
}

#[test]
fn leaves_of_the_second_design_with_any_changes_open_whole_or_not_at_all() {
    hold("slot_leaf", fuzz::slot_leaf::run, &fuzz::slot_leaf::seeds(), 1000);
}
