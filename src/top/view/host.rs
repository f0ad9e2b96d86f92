//! The host's part: the load as curves, the cache, the reactors.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::{CACHE, LEAF, WAIT, bar, panel, soft};
use crate::stats::HostStats;
use crate::stats::rates::{HostRates, ReactorRates};
use crate::top::format;
use crate::top::model::{Model, Sums};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [load, cache, reactors] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(3), Constraint::Fill(4)])
            .areas(area);
    draw_load(frame, load, model);
    if let (Some(stats), Some(rates)) = (model.stats(), model.rates()) {
        draw_cache(frame, cache, stats, rates);
        draw_reactors(frame, reactors, rates);
    } else {
        frame.render_widget(panel("Cache"), cache);
        frame.render_widget(panel("Reactors"), reactors);
    }
}

fn draw_load(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let block = panel("Load");
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let now = model.history.last().copied().unwrap_or_default();
    let bytes = |sums: &Sums| sums.read_bytes + sums.written_bytes;
    let [upper, lower] = Layout::vertical([Constraint::Fill(1); 2]).areas(inside);
    let label = format!("{} IOPS", format::count(now.iops));
    draw_curve(frame, upper, label, model.history.iter().map(|sums| sums.iops).collect(), CACHE);
    let label = format!("{} MB/s", format::megabytes(bytes(&now)));
    draw_curve(frame, lower, label, model.history.iter().map(bytes).collect(), LEAF);
}

/// A number, and how it came to be: the newest at the right edge.
fn draw_curve(frame: &mut Frame<'_>, area: Rect, label: String, values: Vec<f64>, colour: Color) {
    let [text, curve] =
        Layout::horizontal([Constraint::Length(12), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Paragraph::new(Line::from(label).bold()), text);
    let room = usize::from(curve.width);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are finite and not negative"
    )]
    let heights: Vec<u64> =
        values.iter().skip(values.len().saturating_sub(room)).map(|value| *value as u64).collect();
    let shift = u16::try_from(room - heights.len()).unwrap_or(0);
    let curve = Rect { x: curve.x + shift, width: curve.width - shift, ..curve };
    frame.render_widget(Sparkline::default().data(heights).style(Style::new().fg(colour)), curve);
}

fn draw_cache(frame: &mut Frame<'_>, area: Rect, stats: &HostStats, rates: &HostRates) {
    let cache = &stats.cache;
    let block = panel("Cache");
    let inside = block.inner(area);
    let fill = cache.used_bytes as f64 / cache.size_bytes.max(1) as f64;
    let width = usize::from(inside.width).saturating_sub(8);
    let mut gauge = bar(width, &[(fill, Style::new().fg(CACHE))]);
    gauge.push(Span::raw(format!(" {:>6}", format::percent(Some(fill)))));
    let words = |name: &'static str, value: String| {
        Line::from(vec![Span::styled(format!("{name:<7}"), soft()), Span::raw(value)])
    };
    let used = format!(
        "{} of {}",
        format::bytes(cache.used_bytes as f64),
        format::bytes(cache.size_bytes as f64)
    );
    let moved = format!(
        "{} fills/s  {} evictions/s",
        format::count(rates.fills),
        format::count(rates.evictions)
    );
    let ever = (cache.hits + cache.misses) as f64;
    let ever = (ever > 0.0).then(|| cache.hits as f64 / ever);
    let hits =
        format!("{} now  {} since start", format::percent(rates.hit_ratio), format::percent(ever));
    let lines =
        vec![Line::from(gauge), words("used", used), words("hits", hits), words("moves", moved)];
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_reactors(frame: &mut Frame<'_>, area: Rect, rates: &HostRates) {
    let block = panel("Reactors");
    let inside = block.inner(area);
    let rows = usize::from(inside.height);
    let fits = rates.reactors.len() <= rows;
    let shown = if fits { rows } else { rows.saturating_sub(1) };
    let mut lines: Vec<Line<'_>> =
        rates.reactors.iter().take(shown).map(|r| reactor(r, inside.width)).collect();
    if !fits {
        let rest = &rates.reactors[shown..];
        let busy = rest.iter().map(|r| r.busy).sum::<f64>() / rest.len().max(1) as f64;
        lines.push(Line::styled(
            format!("and {} more, {} busy", rest.len(), format::percent(Some(busy))),
            soft(),
        ));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn reactor(reactor: &ReactorRates, width: u16) -> Line<'static> {
    let text = format!(
        " {:>6} busy {:>6} polling",
        format::percent(Some(reactor.busy)),
        format::percent(Some(reactor.polling)),
    );
    let more = format!(
        "  {:>5} kicks/s {:>5} calls/s",
        format::count(reactor.kicks),
        format::count(reactor.calls)
    );
    let number = format!("{:<3}", reactor.reactor);
    let fixed = number.len() + text.chars().count();
    let (width, long) = (usize::from(width), more.chars().count());
    let with_more = width >= fixed + long + 10;
    let room = width.saturating_sub(fixed + if with_more { long } else { 0 });
    let mut spans = vec![Span::styled(number, soft())];
    spans.extend(bar(
        room,
        &[(reactor.busy, Style::new().fg(CACHE)), (reactor.polling, Style::new().fg(WAIT).dim())],
    ));
    spans.push(Span::raw(text));
    if with_more {
        spans.push(Span::styled(more, soft()));
    }
    Line::from(spans)
}
