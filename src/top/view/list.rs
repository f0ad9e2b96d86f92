//! The VMs, one a row.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, HighlightSpacing, Row, Table};

use super::{ALARM, LEAF, WAIT, panel, soft};
use crate::stats::rates::VmRates;
use crate::top::format;
use crate::top::model::{Model, SortKey};

/// A column: what it sorts by, its width, and whether it is kept in an
/// 80-column terminal.
struct Column {
    sort: Option<SortKey>,
    heading: &'static str,
    width: Constraint,
    is_text: bool,
    value: fn(&VmRates) -> Text<'static>,
}

const NARROW: u16 = 104;

fn plain(text: String) -> Text<'static> {
    Text::from(text)
}

/// Zero and nothing are there, but don't ask for a look.
fn number(text: String, value: f64) -> Text<'static> {
    let style = if value == 0.0 { soft() } else { Style::new() };
    Text::styled(text, style)
}

const COLUMNS: [Column; 10] = [
    Column {
        sort: Some(SortKey::Name),
        heading: "VM",
        width: Constraint::Fill(3),
        is_text: true,
        value: name,
    },
    Column {
        sort: Some(SortKey::Root),
        heading: "root",
        width: Constraint::Fill(2),
        is_text: true,
        value: |vm| Text::styled(vm.root.clone(), soft()),
    },
    Column {
        sort: Some(SortKey::Iops),
        heading: "IOPS",
        width: Constraint::Length(7),
        is_text: false,
        value: |vm| number(format::count(vm.iops), vm.iops),
    },
    Column {
        sort: Some(SortKey::Read),
        heading: "read MB/s",
        width: Constraint::Length(10),
        is_text: false,
        value: |vm| number(format::megabytes(vm.read_bytes), vm.read_bytes),
    },
    Column {
        sort: Some(SortKey::Written),
        heading: "write MB/s",
        width: Constraint::Length(11),
        is_text: false,
        value: |vm| number(format::megabytes(vm.written_bytes), vm.written_bytes),
    },
    Column {
        sort: None,
        heading: "p50",
        width: Constraint::Length(8),
        is_text: false,
        value: |vm| number(format::micros(vm.p50_us), vm.p50_us.unwrap_or(0.0)),
    },
    Column {
        sort: Some(SortKey::P99),
        heading: "p99",
        width: Constraint::Length(8),
        is_text: false,
        value: |vm| number(format::micros(vm.p99_us), vm.p99_us.unwrap_or(0.0)),
    },
    Column {
        sort: Some(SortKey::Hits),
        heading: "hits",
        width: Constraint::Length(8),
        is_text: false,
        value: hits,
    },
    Column {
        sort: Some(SortKey::Leaf),
        heading: "leaf",
        width: Constraint::Length(9),
        is_text: false,
        value: |vm| match vm.leaf_bytes {
            Some(bytes) => plain(format::bytes(bytes as f64)),
            None => Text::styled("none", soft()),
        },
    },
    Column {
        sort: Some(SortKey::Growth),
        heading: "growth/s",
        width: Constraint::Length(10),
        is_text: false,
        value: growth,
    },
];

fn name(vm: &VmRates) -> Text<'static> {
    let (mark, style) = match (vm.failed, vm.connected) {
        (true, _) => ("✗ ", Style::new().fg(ALARM).bold()),
        (false, true) => ("● ", Style::new().fg(LEAF)),
        (false, false) => ("○ ", soft()),
    };
    let name = Span::styled(vm.vm.clone(), if vm.connected { Style::new() } else { soft() });
    let mut spans = vec![Span::styled(mark, style), name];
    if vm.errors > 0.0 {
        let text = format!(" {} errors/s", format::count(vm.errors));
        spans.push(Span::styled(text, Style::new().fg(ALARM)));
    }
    Text::from(Line::from(spans))
}

fn hits(vm: &VmRates) -> Text<'static> {
    let text = format::percent(vm.hit_ratio);
    match vm.hit_ratio {
        None => Text::styled(text, soft()),
        Some(ratio) if ratio < 0.9 => Text::styled(text, Style::new().fg(WAIT)),
        Some(_) => plain(text),
    }
}

fn growth(vm: &VmRates) -> Text<'static> {
    if vm.leaf_growth > 0.0 {
        Text::styled(format!("+{}", format::bytes(vm.leaf_growth)), Style::new().fg(LEAF))
    } else {
        Text::styled("–", soft())
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &mut Model) {
    let narrow = area.width < NARROW;
    let is_kept =
        |column: &&Column| !narrow || !matches!(column.heading, "root" | "p50" | "growth/s");
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_kept).collect();
    let aligned = |column: &Column, text: Text<'static>| {
        Cell::from(text.alignment(if column.is_text { Alignment::Left } else { Alignment::Right }))
    };
    let vms = model.vms();
    let rows = vms
        .iter()
        .map(|vm| Row::new(columns.iter().map(|column| aligned(column, (column.value)(vm)))));
    let headings = columns.iter().map(|column| {
        let sorted = column.sort == Some(model.sort);
        let arrow = match (sorted, model.reversed) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        let style = if sorted { Style::new().bold() } else { soft() };
        aligned(column, Text::styled(format!("{}{arrow}", column.heading), style))
    });
    let all = model.stats().map_or(0, |stats| stats.vms.len());
    let title = match (model.stats(), model.filter.is_empty()) {
        (None, _) => "VMs, waiting for the first reading".to_owned(),
        (Some(_), true) => format!("VMs ({all})"),
        (Some(_), false) => format!("VMs ({} of {all} fit \"{}\")", vms.len(), model.filter),
    };
    let table = Table::new(rows, columns.iter().map(|column| column.width))
        .header(Row::new(headings))
        .column_spacing(1)
        .row_highlight_style(Style::new().reversed())
        .highlight_spacing(HighlightSpacing::Never)
        .block(panel(&title));
    let chosen = model.chosen();
    model.table.select(chosen);
    frame.render_stateful_widget(table, area, &mut model.table);
}
