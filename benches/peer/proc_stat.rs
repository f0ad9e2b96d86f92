//! What /proc says about a daemon and about the machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::util::{Context, Error, Result, to_f64};

/// Memory that belongs to the client and not to the daemon: libblkio's rings
/// and buffers, which stand for a guest's memory.
const GUEST_MEMORY: [&str; 2] = ["libblkio-buf", "virtio-ring"];

/// A process, by id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pid: u32,
}

impl Process {
    pub(crate) const fn new(pid: u32) -> Self {
        Self { pid }
    }

    fn read(self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.pid);
        fs::read_to_string(&path).context(|| format!("cannot read {path}"))
    }

    /// User and system time of all its threads, in steps of a clock tick.
    pub(crate) fn cpu(self) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The command in parentheses may hold spaces: fields count from its end.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let tick = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        // utime and stime are fields 14 and 15 of proc_pid_stat(5).
        let (Some(user), Some(system)) = (tick(11), tick(12)) else {
            return Err(Error::from("/proc/PID/stat has no CPU times"));
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(to_f64(user + system) / to_f64(ticks_per_second)))
    }

    /// Bytes that it caused to be read from a disk.
    pub(crate) fn read_bytes(self) -> Result<u64> {
        value(&self.read("io")?, "read_bytes:")
            .ok_or_else(|| Error::from("/proc/PID/io has no read_bytes"))
    }

    /// Its proportional share of memory in bytes, without guests' memory and
    /// hugepages but with its page tables.
    pub(crate) fn memory(self) -> Result<u64> {
        let mut kib = value(&self.read("status")?, "VmPTE:").unwrap_or(0);
        let mut guest = false;
        for line in self.read("smaps")?.lines() {
            if let Some(rest) = line.strip_prefix("Pss:") {
                if !guest {
                    kib += first_number(rest).unwrap_or(0);
                }
            } else if is_mapping(line) {
                guest = GUEST_MEMORY.iter().any(|name| line.contains(name));
            }
        }
        Ok(kib << 10)
    }
}

/// Whether a line of smaps opens a mapping (`start-end perms …`).
fn is_mapping(line: &str) -> bool {
    line.split_once('-')
        .is_some_and(|(start, _)| !start.is_empty() && start.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The number after `name` at the start of a line.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)).and_then(first_number)
}

/// The bytes that the regular files in `dir` occupy.
pub(crate) fn occupied(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).context(|| format!("cannot list {}", dir.display()))? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            bytes += metadata.blocks() * 512;
        }
    }
    Ok(bytes)
}

/// The first three figures of /proc/loadavg.
pub(crate) fn load_average() -> String {
    fs::read_to_string("/proc/loadavg")
        .map(|text| text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .unwrap_or_else(|_| String::from("unknown"))
}

/// Cores that are busy now, seen over `span`. Nothing of ours runs meanwhile,
/// so it is what others use.
pub(crate) fn busy_cores(span: Duration) -> Result<f64> {
    let busy = || -> Result<u64> {
        let stat =
            fs::read_to_string("/proc/stat").context(|| "cannot read /proc/stat".to_owned())?;
        let first = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> =
            first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // All of user … steal, but for idle and iowait; guest time is in user.
        Ok(fields
            .iter()
            .enumerate()
            .take(8)
            .filter(|&(index, _)| index != 3 && index != 4)
            .map(|(_, ticks)| ticks)
            .sum())
    };
    let (before, started) = (busy()?, Instant::now());
    std::thread::sleep(span);
    let ticks = busy()?.saturating_sub(before);
    let per_second = to_f64(rustix::param::clock_ticks_per_second());
    Ok(to_f64(ticks) / per_second / started.elapsed().as_secs_f64())
}

/// The machine in one line: processor, cores, memory, kernel.
pub(crate) fn machine() -> String {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| value(&text, "MemTotal:"))
        .unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, {} GiB, Linux {}", memory >> 20, kernel.trim())
}
