//! What is shown: the last readings, which VMs in which order ([`sort`]), and
//! what keys do to that ([`keys`]).

mod keys;
mod sort;

use std::time::{Duration, Instant};

use ratatui::widgets::TableState;

pub use keys::Next;
pub use sort::SortKey;

use crate::stats::HostStats;
use crate::stats::rates::{HostRates, VmRates};

/// Readings whose sums are kept for the curves.
const HISTORY: usize = 240;

/// Sums over the VMs at one reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Requests a second.
    pub iops: f64,
    /// Bytes read a second.
    pub read_bytes: f64,
    /// Bytes written a second.
    pub written_bytes: f64,
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    interval: Duration,
    reading: Option<(HostStats, Instant)>,
    rates: Option<HostRates>,
    /// Why the last reading failed.
    pub error: Option<String>,
    /// For how long the next reading has been waited for.
    pub waiting: Option<Duration>,
    /// The sums of the last readings, the newest last.
    pub history: Vec<Sums>,
    /// What the VMs are sorted by.
    pub sort: SortKey,
    /// Whether the other way round.
    pub reversed: bool,
    /// What a VM's or its root's name has to contain.
    pub filter: String,
    /// Whether keys go to the filter.
    pub is_typing: bool,
    /// Whether the chosen VM is shown in detail.
    pub shows_detail: bool,
    /// Whether the keys are explained.
    pub shows_help: bool,
    paused: bool,
    chosen: Option<String>,
    /// Where the table is scrolled to.
    pub table: TableState,
}

impl Model {
    /// With nothing read yet.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            reading: None,
            rates: None,
            error: None,
            waiting: None,
            history: Vec::new(),
            sort: SortKey::Iops,
            reversed: false,
            filter: String::new(),
            is_typing: false,
            shows_detail: false,
            shows_help: false,
            paused: false,
            chosen: None,
            table: TableState::default(),
        }
    }

    /// Time between two readings.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether no readings are taken.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The last reading.
    pub fn stats(&self) -> Option<&HostStats> {
        self.reading.as_ref().map(|(stats, _)| stats)
    }

    /// What happened between the last two readings; zeros after the first.
    pub fn rates(&self) -> Option<&HostRates> {
        self.rates.as_ref()
    }

    /// A reading, or why there is none.
    pub fn take(&mut self, reading: Result<HostStats, String>, at: Instant) {
        let stats = match reading {
            Ok(stats) => stats,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        self.error = None;
        let (before, seconds) = match &self.reading {
            Some((before, then)) => (before, at.duration_since(*then).as_secs_f64()),
            None => (&stats, 1.0),
        };
        let rates = HostRates::between(before, &stats, seconds);
        if self.reading.is_some() {
            self.history.push(Sums {
                iops: rates.sum(|vm| vm.iops),
                read_bytes: rates.sum(|vm| vm.read_bytes),
                written_bytes: rates.sum(|vm| vm.written_bytes),
            });
            let excess = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..excess);
        }
        self.rates = Some(rates);
        self.reading = Some((stats, at));
    }

    /// The VMs that the filter lets through, sorted.
    pub fn vms(&self) -> Vec<&VmRates> {
        let Some(rates) = &self.rates else {
            return Vec::new();
        };
        let wanted = self.filter.to_lowercase();
        let fits = |name: &str| name.to_lowercase().contains(&wanted);
        let mut vms: Vec<_> =
            rates.vms.iter().filter(|vm| fits(&vm.name) || fits(&vm.root)).collect();
        vms.sort_by(|a, b| self.sort.compare(a, b));
        if self.reversed {
            vms.reverse();
        }
        vms
    }

    /// The place of the chosen VM in [`Self::vms`]; the first, if it is gone.
    pub fn chosen(&self) -> Option<usize> {
        let vms = self.vms();
        let place = vms.iter().position(|vm| Some(&vm.name) == self.chosen.as_ref());
        place.or((!vms.is_empty()).then_some(0))
    }
}

#[cfg(test)]
mod tests;
