//! Looks for a power cut or a kill that breaks the leaf's promise, for as long
//! as it is told: random sequences of operations on a simulated disk, each from
//! a seed of its own. With `--depth`, all short sequences first.
//!
//!     cargo run --release --example crashsim -- --seed 1 --minutes 10
//!
//! A failure is printed with its seed and its operations; `--seed N --runs 1`
//! shows it again. Exit status 1 then.
#![expect(clippy::print_stdout, reason = "a program that reports")]

#[path = "../tests/crashsim/mod.rs"]
mod crashsim;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use crashsim::check::Report;
use crashsim::disk::Lie;
use crashsim::{exhaustive, random};
use leafblk::leaf::Layout;

#[derive(Parser)]
#[command(about = "Simulates power cuts and kills under a leaf and checks its promise")]
struct Args {
    /// The first seed; the next runs have the numbers after it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to go on
    #[arg(long, default_value_t = 1.0, conflicts_with = "runs")]
    minutes: f64,
    /// How many runs, instead of a time
    #[arg(long)]
    runs: Option<u64>,
    /// All sequences of up to so many operations first
    #[arg(long, default_value_t = 0)]
    depth: u32,
}

fn main() -> ExitCode {
    match search(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn search(args: &Args) -> Result<(), String> {
    let begun = Instant::now();
    if args.depth > 0 {
        for layout in [Layout::Direct, Layout::Packed] {
            let report = exhaustive::run(args.depth, layout, Lie::Honest)?;
            let (depth, seconds) = (args.depth, begun.elapsed().as_secs_f64());
            println!("{layout:?}, up to {depth} operations: {report}; {seconds:.0} s");
        }
    }
    let begun = Instant::now();
    let limit = Duration::try_from_secs_f64(args.minutes * 60.0).map_err(|e| e.to_string())?;
    let mut report = Report::default();
    let mut seed = args.seed;
    let mut said = begun;
    loop {
        let over = match args.runs {
            Some(runs) => report.runs >= runs,
            None => begun.elapsed() >= limit,
        };
        if over || said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            let seconds = begun.elapsed().as_secs_f64();
            println!("seeds {} to {}: {report}; {seconds:.0} s", args.seed, seed.saturating_sub(1));
        }
        if over {
            return Ok(());
        }
        report += random::run(seed, Lie::Honest)?;
        seed += 1;
    }
}
