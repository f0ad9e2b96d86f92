//! What could not be attached: VMs and roots, one a row, each with the reason.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{ALARM, panel, soft};
use crate::top::model::Model;

/// Rows of text at most; the last one says how many more there are.
const LINES_MAX: usize = 5;

/// Rows that it takes: none where all is served.
pub(super) fn rows(model: &Model) -> u16 {
    let count = model.stats().map_or(0, |stats| stats.failed_vms.len() + stats.failed_roots.len());
    let lines = u16::try_from(count.min(LINES_MAX)).unwrap_or(0);
    if lines == 0 { 0 } else { lines + 2 }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let Some(stats) = model.stats().filter(|_| rows(model) > 0) else {
        return;
    };
    let roots = stats.failed_roots.iter().map(|failed| ("root", failed));
    let vms = stats.failed_vms.iter().map(|failed| ("VM", failed));
    let mut lines: Vec<Line<'_>> = roots
        .chain(vms)
        .map(|(what, failed)| {
            let name = format!("✗ {what} {}", failed.name);
            let reason = Span::styled(format!("  {}", failed.reason), soft());
            Line::from(vec![Span::styled(name, Style::new().fg(ALARM).bold()), reason])
        })
        .collect();
    let title = format!("Not served ({})", lines.len());
    if lines.len() > LINES_MAX {
        let more = lines.len() - (LINES_MAX - 1);
        lines.truncate(LINES_MAX - 1);
        lines.push(Line::styled(format!("and {more} more: leafblk status has all"), soft()));
    }
    frame.render_widget(Paragraph::new(lines).block(panel(&title)), area);
}
