//! Draws the model.
//!
//! Colours are the terminal's own sixteen, so that they fit light and dark
//! ones; every colour repeats what a word or number says. With `NO_COLOR` set
//! there are none (<https://no-color.org>).

mod detail;
mod fit;
mod host;
mod list;
mod problems;

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph};

use super::format;
use super::model::{Model, SortKey};

/// What stands for the leaf, the cache and what must be waited for.
const LEAF: Color = Color::Green;
const CACHE: Color = Color::Blue;
const WAIT: Color = Color::Yellow;
const ALARM: Color = Color::Red;

/// How long a reading may take before it is said.
const OVERDUE: Duration = Duration::from_secs(1);

/// Words that explain numbers.
fn soft() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Rows that the host's part takes.
fn host_rows(model: &Model) -> u16 {
    let reactors = model.stats().map_or(1, |stats| stats.reactors.len());
    // More reactors than rows are summed up (host.rs).
    u16::try_from(reactors.clamp(4, 6)).unwrap_or(4) + 2
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let detail_rows = if model.shows_detail { detail::ROWS } else { 0 };
    let others = 2 + host::room_rows(model) + host_rows(model) + list::ROWS_WANTED + detail_rows;
    let problem_rows = problems::rows(model, frame.area().height.saturating_sub(others));
    let [title, room, top, list, failures, details, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(host::room_rows(model)),
        Constraint::Length(host_rows(model)),
        Constraint::Min(4),
        Constraint::Length(problem_rows),
        Constraint::Length(detail_rows),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, model);
    host::draw_room(frame, room, model);
    host::draw(frame, top, model);
    list::draw(frame, list, model);
    problems::draw(frame, failures, model);
    if model.shows_detail {
        detail::draw(frame, details, model);
    }
    draw_keys(frame, keys, model);
    if model.shows_help {
        draw_help(frame);
    }
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        for cell in &mut frame.buffer_mut().content {
            cell.set_fg(Color::Reset).set_bg(Color::Reset);
        }
    }
}

fn panel(title: &str) -> Block<'_> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(soft())
        .title(Span::styled(format!(" {title} "), Style::new().bold()))
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let mut spans = vec![Span::styled(" leafblk", Style::new().fg(LEAF).bold())];
    if let Some(stats) = model.stats() {
        let connected = stats.vms.iter().filter(|vm| vm.connected).count();
        spans.push(format!(" {}", stats.version).into());
        spans.push(Span::styled("   up ", soft()));
        spans.push(format::duration(stats.uptime_seconds).into());
        spans.push(Span::styled("   VMs connected ", soft()));
        spans.push(format!("{connected} of {}", stats.vms.len()).into());
    }
    frame.render_widget(Line::from(spans), area);
    let overdue = model.waiting.filter(|waiting| *waiting >= OVERDUE);
    let alarm = |text: String| Line::styled(text, Style::new().fg(ALARM).bold());
    let right = match (overdue, &model.error, model.is_paused()) {
        (Some(waiting), ..) => alarm(format!("no answer for {} s ", waiting.as_secs())),
        (None, Some(error), _) => alarm(format!("{error} ")),
        (None, None, true) => Line::styled("paused ", Style::new().fg(WAIT).bold()),
        (None, None, false) => {
            Line::styled(format!("every {:.1} s ", model.interval().as_secs_f64()), soft())
        }
    };
    let width = u16::try_from(right.width()).unwrap_or(u16::MAX).min(area.width);
    let place = Rect { x: area.right() - width, width, ..area };
    frame.render_widget(Clear, place);
    frame.render_widget(right, place);
}

fn key<'a>(name: &'a str, what: &'a str) -> [Span<'a>; 3] {
    [
        Span::styled(format!(" {name} "), Style::new().reversed()),
        Span::raw(format!(" {what}")),
        Span::raw("  "),
    ]
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let line = if model.is_typing {
        Line::from(vec![
            Span::styled(" filter ", Style::new().reversed()),
            Span::raw(format!(" {}", model.filter)),
            Span::styled("▏", Style::new().fg(CACHE)),
            Span::styled("  Enter keeps it, Esc gives it up", soft()),
        ])
    } else {
        let filter = if model.filter.is_empty() { "filter" } else { &model.filter };
        // Those that the help names, too, go first where there is no room.
        let keys = [
            ("q", "leave"),
            ("?", "all keys"),
            ("Enter", "detail"),
            ("/", filter),
            ("s", "sort by next"),
            ("r", "turn round"),
            ("p", "pause"),
        ];
        let mut room = usize::from(area.width);
        let mut spans = Vec::new();
        for (name, what) in keys {
            let key = key(name, what);
            let Some(rest) = room.checked_sub(key.iter().map(Span::width).sum()) else {
                break;
            };
            room = rest;
            spans.extend(key);
        }
        Line::from(spans)
    };
    frame.render_widget(line, area);
}

fn draw_help(frame: &mut Frame<'_>) {
    let sorts = SortKey::ALL.map(|sort| (sort.letter().to_string(), sort.explained()));
    let mut lines: Vec<Line<'_>> = [
        ("↑ ↓ j k", "choose a VM; PgUp, PgDn, Home, End too"),
        ("Enter", "show the chosen VM in detail, or not"),
        ("/", "filter by name or root; Esc clears it"),
        ("s S", "sort by the next column, or the one before"),
        ("r", "turn the order round"),
        ("+ -", "read more often, or less"),
        ("p Space", "pause, go on"),
        ("q Ctrl-C", "leave"),
    ]
    .into_iter()
    .map(|(keys, what)| help_line(keys, what))
    .collect();
    lines.push(Line::default());
    lines.extend(sorts.iter().map(|(letter, heading)| {
        help_line(letter, heading).spans.into_iter().collect::<Line<'_>>()
    }));
    let area = frame.area();
    let width = 62.min(area.width);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(panel("Keys")), place);
}

fn help_line<'a>(keys: &'a str, what: &'a str) -> Line<'a> {
    Line::from(vec![
        Span::styled(format!("  {keys:<10}"), Style::new().fg(CACHE).bold()),
        Span::raw(what),
    ])
}

/// A bar of `width` cells, cut into parts: share and colour, from the left.
fn bar(width: usize, parts: &[(f64, Style)]) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    let mut used = 0;
    let mut sum = 0.0;
    for (share, style) in parts {
        sum += share.clamp(0.0, 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a terminal's width"
        )]
        let mut end = ((sum * width as f64).round() as usize).min(width);
        // What is there at all is to be seen.
        if *share > 0.0 && end == used && used < width {
            end += 1;
        }
        spans.push(Span::styled("█".repeat(end.saturating_sub(used)), *style));
        used = used.max(end);
    }
    spans.push(Span::styled("░".repeat(width - used), soft()));
    spans
}

#[cfg(test)]
mod tests;
