//! The VMs, one a row.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, HighlightSpacing, Row, Table};

use super::fit::cut;
use super::{ALARM, LEAF, WAIT, panel, soft};
use crate::stats::rates::VmRates;
use crate::top::format;
use crate::top::model::{Model, SortKey};

/// Rows that the list is to have: ten VMs, the headings, the frame.
pub(super) const ROWS_WANTED: u16 = 13;

/// A column: what it sorts by, its heading, and its width, both also as they are in a
/// narrow terminal.
struct Column {
    sort: Option<SortKey>,
    heading: &'static str,
    width: Constraint,
    /// Left out in a narrow terminal where there is none.
    narrow: Option<(&'static str, Constraint)>,
    is_text: bool,
    value: fn(&VmRates) -> Text<'static>,
}

impl Column {
    fn shape(&self, narrow: bool) -> Option<(&'static str, Constraint)> {
        if narrow { self.narrow } else { Some((self.heading, self.width)) }
    }
}

/// A terminal with fewer columns is narrow. 80 leave a name 14.
const NARROW: u16 = 122;
/// Characters of a name in a narrow terminal of 80 columns, its mark aside.
const NAME_WIDTH: u16 = 14;

fn plain(text: String) -> Text<'static> {
    Text::from(text)
}

/// Zero and nothing are there, but don't ask for a look.
fn number(text: String, value: f64) -> Text<'static> {
    let style = if value == 0.0 { soft() } else { Style::new() };
    Text::styled(text, style)
}

const COLUMNS: [Column; 12] = [
    Column {
        sort: Some(SortKey::Name),
        heading: "VM",
        width: Constraint::Fill(3),
        narrow: Some(("VM", Constraint::Fill(1))),
        is_text: true,
        value: name,
    },
    Column {
        sort: Some(SortKey::Root),
        heading: "root",
        width: Constraint::Fill(2),
        narrow: None,
        is_text: true,
        value: |vm| Text::styled(vm.root.clone(), soft()),
    },
    Column {
        sort: Some(SortKey::Iops),
        heading: "IOPS",
        width: Constraint::Length(7),
        narrow: Some(("IOPS", Constraint::Length(6))),
        is_text: false,
        value: |vm| number(format::count(vm.iops), vm.iops),
    },
    Column {
        sort: Some(SortKey::Read),
        heading: "read MB/s",
        width: Constraint::Length(10),
        narrow: Some(("rd MB", Constraint::Length(6))),
        is_text: false,
        value: |vm| number(format::megabytes(vm.read_bytes), vm.read_bytes),
    },
    Column {
        sort: Some(SortKey::Written),
        heading: "write MB/s",
        width: Constraint::Length(11),
        narrow: Some(("wr MB", Constraint::Length(6))),
        is_text: false,
        value: |vm| number(format::megabytes(vm.written_bytes), vm.written_bytes),
    },
    Column {
        sort: None,
        heading: "p50",
        width: Constraint::Length(8),
        narrow: None,
        is_text: false,
        value: |vm| number(format::micros(vm.p50_us), vm.p50_us.unwrap_or(0.0)),
    },
    Column {
        sort: Some(SortKey::P99),
        heading: "p99",
        width: Constraint::Length(8),
        narrow: Some(("p99", Constraint::Length(7))),
        is_text: false,
        value: |vm| number(format::micros(vm.p99_us), vm.p99_us.unwrap_or(0.0)),
    },
    Column {
        sort: Some(SortKey::FlushP99),
        heading: "flush p99",
        width: Constraint::Length(10),
        narrow: Some(("fl p99", Constraint::Length(7))),
        is_text: false,
        value: |vm| number(format::micros(vm.flush_p99_us), vm.flush_p99_us.unwrap_or(0.0)),
    },
    Column {
        sort: Some(SortKey::Errors),
        heading: "errors/s",
        width: Constraint::Length(9),
        narrow: Some(("err/s", Constraint::Length(6))),
        is_text: false,
        value: errors,
    },
    Column {
        sort: Some(SortKey::Hits),
        heading: "hits",
        width: Constraint::Length(8),
        narrow: Some(("hits", Constraint::Length(6))),
        is_text: false,
        value: hits,
    },
    Column {
        sort: Some(SortKey::Leaf),
        heading: "leaf",
        width: Constraint::Length(9),
        narrow: Some(("leaf", Constraint::Length(8))),
        is_text: false,
        value: |vm| match vm.leaf_held_bytes {
            Some(bytes) => plain(format::bytes(bytes as f64)),
            None => Text::styled("none", soft()),
        },
    },
    Column {
        sort: Some(SortKey::Growth),
        heading: "growth/s",
        width: Constraint::Length(10),
        narrow: None,
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
    let name = Span::styled(vm.name.clone(), if vm.connected { Style::new() } else { soft() });
    Text::from(Line::from(vec![Span::styled(mark, style), name]))
}

fn errors(vm: &VmRates) -> Text<'static> {
    match format::count(vm.errors) {
        none if vm.errors == 0.0 => Text::styled(none, soft()),
        some => Text::styled(some, Style::new().fg(ALARM).bold()),
    }
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
    let columns: Vec<_> = COLUMNS
        .iter()
        .filter_map(|column| column.shape(narrow).map(|(heading, width)| (column, heading, width)))
        .collect();
    let aligned = |column: &Column, text: Text<'static>| {
        Cell::from(text.alignment(if column.is_text { Alignment::Left } else { Alignment::Right }))
    };
    let vms = model.vms();
    // What the other columns leave of the terminal's width.
    let name_width = usize::from(if narrow {
        NAME_WIDTH + area.width.saturating_sub(80)
    } else {
        NAME_WIDTH + 4 + area.width.saturating_sub(NARROW) / 2
    });
    let rows = vms.iter().map(|vm| {
        let vm = VmRates {
            name: cut(&vm.name, name_width),
            root: cut(&vm.root, name_width / 2),
            ..VmRates::clone(vm)
        };
        Row::new(columns.iter().map(|(column, ..)| aligned(column, (column.value)(&vm))))
    });
    let headings = columns.iter().map(|(column, heading, _)| {
        let sorted = column.sort == Some(model.sort);
        let arrow = match (sorted, model.reversed) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        let style = if sorted { Style::new().bold() } else { soft() };
        aligned(column, Text::styled(format!("{heading}{arrow}"), style))
    });
    let all = model.stats().map_or(0, |stats| stats.vms.len());
    let title = match (model.stats(), model.filter.is_empty()) {
        (None, _) => "VMs, waiting for the first reading".to_owned(),
        (Some(_), true) => format!("VMs ({all})"),
        (Some(_), false) => format!("VMs ({} of {all} fit \"{}\")", vms.len(), model.filter),
    };
    let table = Table::new(rows, columns.iter().map(|(.., width)| *width))
        .header(Row::new(headings))
        .column_spacing(1)
        .row_highlight_style(Style::new().reversed())
        .highlight_spacing(HighlightSpacing::Never)
        .block(panel(&title));
    let chosen = model.chosen();
    model.table.select(chosen);
    frame.render_stateful_widget(table, area, &mut model.table);
}
