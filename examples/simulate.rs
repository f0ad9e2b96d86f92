//! Runs a leaf, its write cache and a guest on a simulated disk, one run a seed, and checks
//! every sector (docs/second-leaf.md).
//!
//!     cargo run --release --example simulate -- --seeds 1000
//!
//! A failure is printed with its seed; `--first N --seeds 1` repeats it, step for step. Exit
//! status 1 then.
#![expect(clippy::print_stdout, reason = "a program that reports")]

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::process::ExitCode;

fn argument(name: &str, default: u64) -> u64 {
    let mut args = std::env::args();
    args.find(|arg| arg == name)
        .and_then(|_| args.next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

fn main() -> ExitCode {
    let (first, seeds) = (argument("--first", 1), argument("--seeds", 100));
    let mut report = sim::Report::default();
    for seed in first..first + seeds {
        match sim::run(seed) {
            Ok(done) => report.add(done),
            Err(why) => {
                println!("FAILED: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{seeds} seeds: {report:?}");
    ExitCode::SUCCESS
}
