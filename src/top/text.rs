//! The same values as plain text, for pipes: `leafblk top --once`.

use std::fmt::Write;

use super::format;
use super::model::Model;

const HEADINGS: [&str; 13] = [
    "VM",
    "ROOT",
    "STATE",
    "IOPS",
    "READ MB/S",
    "WRITE MB/S",
    "P50",
    "P99",
    "FLUSH P99",
    "ERRORS/S",
    "HITS",
    "LEAF",
    "GROWTH/S",
];

/// The host in three lines, then a table of the VMs that the model shows, then
/// what could not be attached, and what fails.
pub fn once(model: &Model) -> String {
    let mut text = String::new();
    if let (Some(stats), Some(rates)) = (model.stats(), model.rates()) {
        let cache = &stats.cache;
        let _ = writeln!(
            text,
            "leafblk {}, up {}; cache {} of {}, hits {}, {} fills/s, {} evictions/s",
            stats.version,
            format::duration(stats.uptime_seconds),
            format::bytes(cache.used_bytes as f64),
            format::bytes(cache.size_bytes as f64),
            format::percent(rates.hit_ratio),
            format::count(rates.fills),
            format::count(rates.evictions),
        );
        let reactors: Vec<_> = rates
            .reactors
            .iter()
            .map(|r| {
                let (busy, polling) = (Some(r.busy), Some(r.polling));
                let (busy, polling) = (format::percent(busy), format::percent(polling));
                format!("reactor {}: {busy} busy, {polling} polling", r.reactor)
            })
            .collect();
        let _ = writeln!(text, "{}", reactors.join("; "));
        let disks = &stats.file_systems;
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| format!("{} {}", disk.path, format::room(disk, format::whole_bytes)))
            .collect();
        if !disks.is_empty() {
            let _ = writeln!(text, "free: {}", disks.join("; "));
        }
    }
    let rows: Vec<[String; 13]> = model
        .vms()
        .into_iter()
        .map(|vm| {
            let state = match (vm.failed, vm.connected) {
                (true, _) => "failed",
                (false, true) => "connected",
                (false, false) => "waiting",
            };
            [
                vm.name.clone(),
                vm.root.clone(),
                state.into(),
                format::count(vm.iops),
                format::megabytes(vm.read_bytes),
                format::megabytes(vm.written_bytes),
                format::micros(vm.p50_us),
                format::micros(vm.p99_us),
                format::micros(vm.flush_p99_us),
                format::count(vm.errors),
                format::percent(vm.hit_ratio),
                vm.leaf_held_bytes.map_or("none".into(), |bytes| format::bytes(bytes as f64)),
                format::bytes(vm.leaf_growth),
            ]
        })
        .collect();
    let headings = HEADINGS.map(str::to_owned);
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|i| {
            let cells = rows.iter().chain([&headings]).map(|row| row[i].chars().count());
            cells.max().unwrap_or(0)
        })
        .collect();
    for row in [&headings].into_iter().chain(&rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if i == 0 { "" } else { "  " };
            let _ = match i {
                0..=2 => write!(line, "{gap}{cell:<width$}"),
                _ => write!(line, "{gap}{cell:>width$}"),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if let Some(stats) = model.stats() {
        let roots = stats.failed_roots.iter().map(|failed| ("root", failed));
        let vms = stats.failed_vms.iter().map(|failed| ("VM", failed));
        for (what, failed) in roots.chain(vms) {
            let _ = writeln!(text, "{what} {} is not served: {}", failed.name, failed.reason);
        }
        for it in &stats.failing {
            let _ = writeln!(text, "{} {}: {}", it.part, it.name, it.problem);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::stats::sample;

    #[test]
    fn columns_line_up_and_numbers_are_to_the_right() {
        let mut model = Model::new(Duration::from_secs(1));
        let now = Instant::now();
        model.take(Ok(sample::host(3)), now);
        let mut after = sample::host(3);
        after.vms[1].operations[0].requests += 12_345;
        model.take(Ok(after), now + Duration::from_secs(1));
        let text = once(&model);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3 + 1 + 3);
        assert!(lines[0].contains("cache 256 MiB of 1.00 GiB"), "{text}");
        assert!(lines[1].starts_with("reactor 0: 0 % busy"), "{text}");
        assert_eq!(lines[2], "free: /run 4.00 GiB of 8.00 GiB; /var 512 GiB of 1.00 TiB");
        assert!(lines[4].starts_with("web2  debian  connected  12.3k "), "{text}");
        let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
        assert_eq!(end(lines[3], "IOPS"), end(lines[4], "12.3k"));
        assert!(lines[6].contains("waiting"), "the third is not connected: {text}");
    }

    #[test]
    fn what_is_not_served_follows_the_table() {
        let mut model = Model::new(Duration::from_secs(1));
        model.take(Ok(sample::host_with_failures(1)), Instant::now());
        let text = once(&model);
        let last: Vec<_> = text.lines().rev().take(3).collect();
        assert_eq!(last[0], "VM web1: its writes fail: no space left");
        let last = &last[1..];
        assert_eq!(last[0], "VM db1 is not served: root late could not be attached");
        assert_eq!(last[1], "root late is not served: late.raw can't be read");
    }
}
