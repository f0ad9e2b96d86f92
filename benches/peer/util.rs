//! Small things that every part uses: errors, randomness, medians, counts.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// An error that a person reads; the benchmark handles none of them.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// A result with [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Puts what was being done in front of an error.
pub(crate) trait Context<T> {
    /// The error with `what: ` in front.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::from(format!("{}: {error}", what())))
    }
}

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes SIGINT and SIGTERM an error of [`check_signals`], so that daemons,
/// files and hugepages go as after any other error. A second one kills.
pub(crate) fn stop_on_signals() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(flag))
            .context(|| "cannot catch signals".to_owned())?;
        signal_hook::flag::register(signal, Arc::clone(flag))
            .context(|| "cannot catch signals".to_owned())?;
    }
    Ok(())
}

/// An error once a signal has come.
pub(crate) fn check_signals() -> Result<()> {
    match STOP.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::from("stopped by a signal")),
        _ => Ok(()),
    }
}

/// A `u64` that counts something in memory. The benchmark runs on 64-bit hosts.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length or index as `u64`.
pub(crate) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A count as `f64`: exact below 2⁵³, and nothing here counts further.
#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}

/// SplitMix64's finaliser: turns a counter into well-mixed bits.
#[inline]
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A small, fast, seeded generator (SplitMix64), so that runs repeat.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A generator with its own sequence for each seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    #[inline]
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which is not 0. Its bias is below 2⁻³².
    #[inline]
    pub(crate) const fn below(&mut self, limit: u64) -> u64 {
        ((self.next() as u128 * limit as u128) >> 64) as u64
    }
}

/// The numbers below `count` in random order.
pub(crate) fn permutation(count: u64, seed: u64) -> Vec<u32> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let mut order: Vec<u32> = (0..count).collect();
    let mut rng = Rng::new(seed);
    for last in (1..order.len()).rev() {
        order.swap(last, to_usize(rng.below(to_u64(last) + 1)));
    }
    order
}

/// The median, or `None` of nothing. The mean of the two in the middle when even.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The value that `percent` of the sorted `values` do not exceed.
pub(crate) fn percentile(sorted: &[u64], percent: u64) -> Option<u64> {
    let last = to_u64(sorted.len().checked_sub(1)?);
    // Nearest rank, upwards: a p99 of few values is their worst.
    sorted.get(to_usize((last * percent).div_ceil(100))).copied()
}
