//! The host's part: the load as curves, the cache, the reactors.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::fit::{cut, longest};
use super::{ALARM, CACHE, LEAF, WAIT, bar, panel, soft};
use crate::stats::HostStats;
use crate::stats::rates::{HostRates, ReactorRates};
use crate::top::format;
use crate::top::model::{Model, Sums};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [load, cache, reactors] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(4), Constraint::Fill(4)])
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

/// Rows that the free space takes.
pub(super) fn room_rows(model: &Model) -> u16 {
    model.stats().is_some_and(|stats| !stats.file_systems.is_empty()).into()
}

/// The free space of each file system that is used, in a line.
pub(super) fn draw_room(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let Some(stats) = model.stats() else {
        return;
    };
    let mut spans = vec![Span::styled(" free", soft())];
    let mut width = usize::from(area.width).saturating_sub(5);
    for disk in &stats.file_systems {
        let (path, text) = (format!("   {} ", disk.path), format::room(disk, format::whole_bytes));
        let taken = path.chars().count() + text.chars().count();
        let Some(rest) = width.checked_sub(taken) else {
            spans.push(Span::raw(cut("   …", width)));
            break;
        };
        width = rest;
        spans.push(Span::styled(path, soft()));
        let alarm = Style::new().fg(ALARM).bold();
        spans.push(match disk.silent_seconds {
            Some(_) => Span::styled(text, alarm),
            None => Span::raw(text),
        });
    }
    frame.render_widget(Line::from(spans), area);
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
    let room = usize::from(inside.width).saturating_sub(7);
    let (used, size) =
        (format::bytes(cache.used_bytes as f64), format::bytes(cache.size_bytes as f64));
    let used = longest(room, [format!("{used} of {size}"), used]);
    let (fills, evictions) = (format::count(rates.fills), format::count(rates.evictions));
    let moved = longest(
        room,
        [
            format!("{fills} fills/s  {evictions} evictions/s"),
            format!("{fills} in/s  {evictions} out/s"),
            format!("{fills} in/s"),
        ],
    );
    let ever = (cache.hits + cache.misses) as f64;
    let ever = format::percent((ever > 0.0).then(|| cache.hits as f64 / ever));
    let now = format::percent(rates.hit_ratio);
    let hits = longest(room, [format!("{now} now  {ever} since start"), format!("{now} now"), now]);
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
        let more = format!("and {} more, {} busy", rest.len(), format::percent(Some(busy)));
        lines.push(Line::styled(cut(&more, usize::from(inside.width)), soft()));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn reactor(reactor: &ReactorRates, width: u16) -> Line<'static> {
    /// Cells that a bar needs to say anything.
    const BAR_MIN: usize = 6;
    let busy = format!(" {:>6} busy", format::percent(Some(reactor.busy)));
    let polling = format!("{busy} {:>6} polling", format::percent(Some(reactor.polling)));
    let all = format!(
        "{polling}  {:>5} kicks/s {:>5} calls/s",
        format::count(reactor.kicks),
        format::count(reactor.calls)
    );
    let number = format!("{:<3}", reactor.reactor);
    let room = usize::from(width).saturating_sub(number.len());
    let text = longest(room.saturating_sub(BAR_MIN), [all, polling, busy]);
    let mut spans = vec![Span::styled(number, soft())];
    spans.extend(bar(
        room.saturating_sub(text.chars().count()),
        &[(reactor.busy, Style::new().fg(CACHE)), (reactor.polling, Style::new().fg(WAIT).dim())],
    ));
    spans.push(Span::raw(text));
    Line::from(spans)
}
