//! What leafblk counts: counters that cost the data path next to nothing.
//!
//! Owns the kinds of counters ([`Counter`], [`Gauge`], [`Histogram`]), the
//! operations that they are kept by and the clock of latencies. Who counts owns
//! the counters: a disk its [`crate::disk::Counters`], a reactor its
//! [`crate::reactor::ReactorCounters`].
//!
//! Every counter has one writer, the reactor, so that counting is a load, an
//! add and a store in a cache line that nobody else writes. Whoever shows them
//! reads them from outside whenever it likes: each number is right, two of them
//! may be a few requests apart.

pub mod clock;
mod counter;
mod histogram;
mod operation;

pub use counter::{Counter, Gauge};
pub use histogram::{BUCKETS, Histogram, bound_us, bucket_of};
pub use operation::{OPERATIONS, Operation, Tally};
