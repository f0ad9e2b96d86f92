//! One VM: its requests by kind, their latencies, where its reads came from.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::{ALARM, CACHE, LEAF, WAIT, bar, panel, soft};
use crate::metrics::Operation;
use crate::stats::VmStats;
use crate::stats::latency::quantile_us;
use crate::stats::rates::{OperationRates, VmRates};
use crate::top::format;
use crate::top::model::Model;

/// Rows that it takes.
pub(super) const ROWS: u16 = 11;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let vms = model.vms();
    let rates = model.chosen().and_then(|place| vms.get(place));
    let stats = model.stats();
    let vm = rates.zip(stats).and_then(|(rates, stats)| {
        Some((*rates, stats.vms.iter().find(|vm| vm.name == rates.name)?))
    });
    let Some((rates, vm)) = vm else {
        frame.render_widget(panel("No VM"), area);
        return;
    };
    let client = vm.client.as_ref().map_or(String::new(), |client| format!(", {client}"));
    let title = format!(
        "{}: {} on {}, {} connection{}{client}",
        vm.name,
        format::bytes(vm.size as f64),
        vm.root,
        vm.connections,
        if vm.connections == 1 { "" } else { "s" }
    );
    let block = panel(&title);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let [left, right] =
        Layout::horizontal([Constraint::Length(58), Constraint::Fill(1)]).areas(inside);
    frame.render_widget(Paragraph::new(operations(rates)), left);
    draw_right(
        frame,
        Rect { x: right.x + 2, width: right.width.saturating_sub(2), ..right },
        rates,
        vm,
    );
}

fn operations(rates: &VmRates) -> Vec<Line<'static>> {
    let heading =
        format!("{:<13}{:>8}{:>9}{:>9}{:>9}{:>10}", "", "a second", "MB/s", "p50", "p99", "errors");
    let mut lines = vec![Line::styled(heading, soft())];
    lines.extend(rates.operations.iter().map(operation));
    lines
}

fn operation(rates: &OperationRates) -> Line<'static> {
    let text = format!(
        "{:<13}{:>8}{:>9}{:>9}{:>9}",
        rates.operation.name().replace('_', " "),
        format::count(rates.iops),
        format::megabytes(rates.bytes),
        format::micros(quantile_us(&rates.latency_counts, 0.5)),
        format::micros(quantile_us(&rates.latency_counts, 0.99)),
    );
    let style = if rates.iops > 0.0 { Style::new() } else { soft() };
    let errors = if rates.errors > 0 { Style::new().fg(ALARM).bold() } else { soft() };
    Line::from(vec![
        Span::styled(text, style),
        Span::styled(format!("{:>10}", rates.errors), errors),
    ])
}

fn draw_right(frame: &mut Frame<'_>, area: Rect, rates: &VmRates, vm: &VmStats) {
    let [sources, leaf, latency] =
        Layout::vertical([Constraint::Length(3), Constraint::Length(2), Constraint::Fill(1)])
            .areas(area);
    let from = &vm.read_sectors;
    let all = from.total();
    let share = |sectors: u64| if all == 0 { 0.0 } else { sectors as f64 / all as f64 };
    let parts = [
        ("leaf", from.leaf, Style::new().fg(LEAF)),
        ("cache", from.cache, Style::new().fg(CACHE)),
        ("root", from.root, Style::new().fg(WAIT)),
        ("zero", from.zero, soft()),
    ];
    let shares: Vec<_> =
        parts.iter().map(|(_, sectors, style)| (share(*sectors), *style)).collect();
    let mut legend = Vec::new();
    for (name, sectors, style) in parts {
        legend.push(Span::styled("█ ", style));
        legend.push(Span::raw(format!("{name} {}  ", format::percent(Some(share(sectors))))));
    }
    let lines = vec![
        Line::styled(
            format!("{} read since it was attached, from", format::bytes(all as f64 * 512.0)),
            soft(),
        ),
        Line::from(bar(usize::from(sources.width), &shares)),
        Line::from(legend),
    ];
    frame.render_widget(Paragraph::new(lines), sources);
    frame.render_widget(Paragraph::new(leaf_line(vm)), leaf);
    let counts = rates.operations.iter().find(|o| o.operation == Operation::Read);
    let counts = counts.map(|o| o.latency_counts.clone()).unwrap_or_default();
    let [label, curve, scale] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(latency);
    frame.render_widget(Line::styled("latency of reads now", soft()), label);
    // Two columns a bucket.
    let wide: Vec<u64> = counts.iter().flat_map(|count| [*count, *count]).collect();
    frame.render_widget(Sparkline::default().data(wide).style(Style::new().fg(CACHE)), curve);
    frame.render_widget(
        Line::styled("1 µs      32 µs     1 ms      33 ms     1 s   8 s", soft()),
        scale,
    );
}

fn leaf_line(vm: &VmStats) -> Line<'static> {
    match &vm.leaf {
        None => Line::styled("no leaf: the root itself, read-only", soft()),
        Some(leaf) if leaf.failed => Line::styled(
            "the leaf FAILED a sync: it takes no writes until it is attached again",
            Style::new().fg(ALARM).bold(),
        ),
        Some(leaf) => Line::from(format!(
            "leaf holds {}, occupies {}, {} not yet written back",
            format::bytes(leaf.held_bytes as f64),
            format::bytes(leaf.allocated_bytes as f64),
            format::bytes(leaf.unsynced_bytes as f64),
        )),
    }
}
