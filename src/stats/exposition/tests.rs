use std::collections::BTreeSet;

use super::*;
use crate::stats::sample;

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.split_once(' ').is_some_and(|(s, _)| s == series));
    let line = line.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn counters_gauges_and_histograms_carry_their_values_units_and_labels() {
    let text = text(&sample::host(1));
    assert_eq!(value(&text, "leafblk_vm_requests_total{vm=\"web1\",operation=\"read\"}"), 1000.0);
    let bytes = "leafblk_vm_request_bytes_total{vm=\"web1\",operation=\"write\"}";
    assert_eq!(value(&text, bytes), 4096.0 * 50.0);
    assert_eq!(value(&text, "leafblk_vm_read_sectors_total{vm=\"web1\",source=\"leaf\"}"), 64.0);
    assert_eq!(value(&text, "leafblk_vm_reconnects_total{vm=\"web1\"}"), 2.0);
    assert_eq!(value(&text, "leafblk_vm_resubmitted_requests_total{vm=\"web1\"}"), 17.0);
    assert_eq!(value(&text, "leafblk_reactor_busy_seconds_total{reactor=\"0\"}"), 1.5);
    let series = "leafblk_vm_request_duration_seconds";
    let labels = "vm=\"web1\",operation=\"read\"";
    assert_eq!(value(&text, &format!("{series}_bucket{{{labels},le=\"0.000001\"}}")), 900.0);
    assert_eq!(value(&text, &format!("{series}_bucket{{{labels},le=\"0.000128\"}}")), 1000.0);
    assert_eq!(value(&text, &format!("{series}_bucket{{{labels},le=\"8.388608\"}}")), 1000.0);
    assert_eq!(value(&text, &format!("{series}_bucket{{{labels},le=\"+Inf\"}}")), 1000.0);
    assert_eq!(value(&text, &format!("{series}_count{{{labels}}}")), 1000.0);
    assert_eq!(value(&text, &format!("{series}_sum{{{labels}}}")), 0.0105);
}

#[test]
fn vms_and_roots_that_are_not_served_are_counted() {
    let text = text(&sample::host_with_failures(2));
    assert_eq!(value(&text, "leafblk_vms{state=\"serving\"}"), 2.0);
    assert_eq!(value(&text, "leafblk_vms{state=\"failed\"}"), 1.0);
    assert_eq!(value(&text, "leafblk_vms{state=\"attaching\"}"), 0.0);
    assert_eq!(value(&text, "leafblk_roots{state=\"failed\"}"), 1.0);
    assert!(!text.contains("db1"), "it has no values");
}

#[test]
fn without_vms_their_families_are_left_out() {
    let mut stats = sample::host(1);
    stats.vms.clear();
    let text = text(&stats);
    assert!(text.contains("leafblk_cache_hits_total "));
    assert!(!text.contains("leafblk_vm_"), "{text}");
}

#[test]
fn a_name_with_a_quote_or_a_backslash_is_escaped() {
    let mut stats = sample::host(1);
    stats.version = "a\"b\\c\nd".into();
    assert!(text(&stats).contains("leafblk_build_info{version=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

#[test]
fn the_documentation_lists_exactly_the_metrics_that_there_are() {
    let text = text(&sample::host(1));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let there: BTreeSet<_> = types.map(|line| line.split_once(' ').unwrap()).collect();
    let page = include_str!("../../../docs/observability.md");
    let documented: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|line| line.starts_with("leafblk_") || line.starts_with("process_"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let name = cells.next().unwrap().trim_end_matches('`');
            (name.to_owned(), cells.next().unwrap().to_owned())
        })
        .collect();
    let there: BTreeSet<_> =
        there.into_iter().map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    assert_eq!(documented, there);
}
