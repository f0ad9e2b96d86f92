//! What counting adds to a turn of a queue: `cargo bench --bench counting`.
//!
//! The same calls as the reactor's, on one thread: a reading of the clock, the
//! tally of each request, the histogram. The least of many short runs, so that
//! other load on the machine doesn't show. For instructions run the binary under
//! `valgrind --tool=callgrind` with the argument `once`.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::hint::black_box;
use std::time::Instant;

use leafblk::disk::Counters;
use leafblk::metrics::clock::Clock;
use leafblk::metrics::{Counter, Operation, Tally};

/// Turns in one run, and runs.
const TURNS: u32 = 1000;
const RUNS: u32 = 3000;

fn turns(counters: &Counters, busy: &Counter, clock: Clock, requests: u32) {
    let mut tally = Tally::default();
    let mut last = clock.now();
    for _ in 0..TURNS {
        for _ in 0..requests {
            counters.cache_hits.add(1);
            black_box(&mut tally).note(black_box(Operation::Read));
        }
        let begun = std::mem::replace(&mut last, clock.now());
        let nanos = clock.nanos(begun, last);
        busy.add(nanos);
        counters.answered(&mut tally, nanos);
    }
}

fn main() {
    let (counters, busy) = (Counters::default(), Counter::default());
    let clock = Clock::shared();
    if std::env::args().any(|arg| arg == "once") {
        turns(&counters, &busy, clock, 1);
        return;
    }
    for requests in [1, 8, 32] {
        let least = (0..RUNS)
            .map(|_| {
                let begun = Instant::now();
                turns(&counters, &busy, clock, requests);
                begun.elapsed()
            })
            .min()
            .unwrap_or_default();
        let nanos = least.as_nanos() as f64 / f64::from(TURNS);
        println!(
            "{requests:>2} requests a turn: {nanos:5.1} ns a turn, {:4.1} ns a request",
            nanos / f64::from(requests)
        );
    }
}
