//! What the process takes of its host, as the kernel counts it (proc(5)).
//!
//! By hand: Prometheus's client library has the same behind a feature that brings three
//! crates, for a line of /proc/self/stat.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::io::open::kernel_text;

/// The process; null where /proc doesn't tell.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ProcessStats {
    /// Seconds of CPU time, user and system.
    pub cpu_seconds: Option<f64>,
    /// Bytes of its address space.
    pub virtual_bytes: Option<u64>,
    /// Bytes of it in memory, without hugetlb pages.
    pub resident_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When it started, in seconds since 1970.
    pub started_at: Option<f64>,
    /// Descriptors that are open.
    pub open_descriptors: Option<u64>,
    /// Descriptors that may be; null without a limit.
    pub descriptors_max: Option<u64>,
}

impl ProcessStats {
    /// This process at this moment.
    pub fn read() -> Self {
        /// The clock's adjustments would move it.
        static STARTED_AT: OnceLock<Option<f64>> = OnceLock::new();
        let text = kernel_text("/proc/self/stat").ok();
        let stat = text.as_deref().and_then(Stat::parse);
        let tick = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as u64;
        let descriptors = std::fs::read_dir("/proc/self/fd").ok();
        // Reading the directory takes one itself.
        let open = descriptors.map(|all| (all.count() as u64).saturating_sub(1));
        Self {
            cpu_seconds: stat.map(|stat| tick(stat.cpu_ticks)),
            virtual_bytes: stat.map(|stat| stat.virtual_bytes),
            resident_bytes: stat.map(|stat| stat.resident_pages.saturating_mul(page)),
            threads: stat.map(|stat| stat.threads),
            started_at: *STARTED_AT.get_or_init(|| since_1970(tick(stat?.start_ticks))),
            open_descriptors: open,
            descriptors_max: getrlimit(Resource::Nofile).current,
        }
    }
}

/// When the host had been up for so many seconds.
fn since_1970(uptime: f64) -> Option<f64> {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(u64::try_from(up.tv_sec).ok()?, u32::try_from(up.tv_nsec).ok()?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - up.as_secs_f64() + uptime)
}

/// What is taken of /proc/self/stat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The command's name, in brackets, may have any character.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the first one here is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_taken_apart_whatever_the_command_is_called() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("77 (a) b (c) S {}\n", fields.join(" "));
        let stat = Stat {
            cpu_ticks: 14 + 15,
            threads: 20,
            start_ticks: 22,
            virtual_bytes: 23,
            resident_pages: 24,
        };
        assert_eq!(Stat::parse(&text), Some(stat));
        for broken in ["", "77 (a) S 1 2", "77 (a"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_process_is_as_it_is() {
        let before = ProcessStats::read();
        let files: Vec<_> = (0..10).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let now = ProcessStats::read();
        assert!(now.open_descriptors.unwrap() >= 10 + 3, "{now:?}");
        assert!(now.open_descriptors < now.descriptors_max, "{now:?}");
        assert!(now.virtual_bytes > now.resident_bytes && now.resident_bytes > Some(1 << 20));
        assert!(now.threads >= Some(1) && now.cpu_seconds >= before.cpu_seconds, "{now:?}");
        let at = now.started_at.unwrap();
        let age =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() - at;
        assert!((0.0..24.0 * 3600.0).contains(&age), "{age}");
        assert_eq!(now.started_at, before.started_at);
        drop(files);
    }
}
