//! What is wrong: VMs and roots that could not be attached, and what is served and
//! fails, one a row, each with the reason.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::fit::cut;
use super::{ALARM, panel, soft};
use crate::stats::HostStats;
use crate::top::model::Model;

/// Rows of text at most; the last one says how many more there are.
const LINES_MAX: usize = 5;

fn count(stats: &HostStats) -> usize {
    stats.failed_vms.len() + stats.failed_roots.len() + stats.failing.len()
}

/// Rows of the frame.
const FRAME: u16 = 2;

/// Rows that it takes of `room`: none where all is well, one without a frame where
/// there is no room for more.
pub(super) fn rows(model: &Model, room: u16) -> u16 {
    let lines = u16::try_from(model.stats().map_or(0, count).min(LINES_MAX)).unwrap_or(0);
    match (lines, (lines + FRAME).min(room)) {
        (0, _) => 0,
        (_, rows) if rows > FRAME => rows,
        _ => 1,
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let Some(stats) = model.stats().filter(|stats| count(stats) > 0) else {
        return;
    };
    let roots = stats.failed_roots.iter().map(|failed| ("root", failed));
    let vms = stats.failed_vms.iter().map(|failed| ("VM", failed));
    let not_served = roots.chain(vms).map(|(what, failed)| {
        (format!("✗ {what} {}", failed.name), format!("is not served: {}", failed.reason))
    });
    let failing =
        stats.failing.iter().map(|it| (format!("✗ {} {}", it.part, it.name), it.problem.clone()));
    let problems: Vec<_> = not_served.chain(failing).collect();
    let title = format!("Problems ({})", problems.len());
    let Some(height) = area.height.checked_sub(FRAME).filter(|height| *height > 0) else {
        if let Some((who, problem)) = problems.first() {
            let who = format!("{title}: {who}");
            frame.render_widget(line(&who, problem, usize::from(area.width)), area);
        }
        return;
    };
    let (width, height) = (usize::from(area.width.saturating_sub(FRAME)), usize::from(height));
    let mut lines: Vec<_> =
        problems.iter().map(|(who, problem)| line(who, problem, width)).collect();
    if lines.len() > height {
        let shown = height.saturating_sub(1);
        let more = format!("and {} more: leafblk status has all", lines.len() - shown);
        lines.truncate(shown);
        lines.push(Line::styled(cut(&more, width), soft()));
    }
    frame.render_widget(Paragraph::new(lines).block(panel(&title)), area);
}

fn line(who: &str, problem: &str, width: usize) -> Line<'static> {
    let who = cut(who, width);
    let room = width.saturating_sub(who.chars().count() + 2);
    let name = Span::styled(who, Style::new().fg(ALARM).bold());
    Line::from(vec![name, Span::styled(format!("  {}", cut(problem, room)), soft())])
}
