//! Results: the figures of a row, its target, and how they are shown.

use serde::Serialize;

use crate::util::median;

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", content = "limit", rename_all = "kebab-case")]
pub(crate) enum Target {
    /// A's figure over B's is at least this: more is better.
    RatioAtLeast(f64),
    /// A's figure over B's is at most this: less is better.
    RatioAtMost(f64),
    /// A's own figure is at most this.
    ValueAtMost(f64),
    /// Shown, not judged.
    None,
}

/// One measured quantity on both sides.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Short name, for `--only` and for scripts.
    pub id: &'static str,
    /// What a reader sees.
    pub title: String,
    /// The unit of `a` and `b`.
    pub unit: &'static str,
    /// Each repetition of the first daemon.
    pub a: Vec<f64>,
    /// Each repetition of the second daemon; empty where there is none.
    pub b: Vec<f64>,
    /// What is to be reached.
    pub target: Target,
    /// What a reader has to know beside the figures.
    pub notes: Vec<String>,
    /// Cores that other processes used just before.
    pub busy_cores: f64,
}

/// How a row ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Reached,
    NotReached,
    /// There is no target, or no figure to hold against it.
    NotJudged,
}

impl Row {
    /// A row without figures.
    pub(crate) fn new(id: &'static str, title: impl Into<String>, unit: &'static str) -> Self {
        Self {
            id,
            title: title.into(),
            unit,
            a: Vec::new(),
            b: Vec::new(),
            target: Target::None,
            notes: Vec::new(),
            busy_cores: 0.0,
        }
    }

    /// The same with a target.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// The median of A over the median of B.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (a, b) = (median(&self.a)?, median(&self.b)?);
        (b != 0.0).then(|| a / b)
    }

    /// Whether the target is reached.
    pub(crate) fn verdict(&self) -> Verdict {
        let reached = match self.target {
            Target::RatioAtLeast(limit) => self.ratio().map(|ratio| ratio >= limit),
            Target::RatioAtMost(limit) => self.ratio().map(|ratio| ratio <= limit),
            Target::ValueAtMost(limit) => median(&self.a).map(|value| value <= limit),
            Target::None => None,
        };
        match reached {
            Some(true) => Verdict::Reached,
            Some(false) => Verdict::NotReached,
            None => Verdict::NotJudged,
        }
    }

    fn cells(&self) -> [String; 6] {
        let target = match self.target {
            Target::RatioAtLeast(limit) => format!("≥ {limit}"),
            Target::RatioAtMost(limit) => format!("≤ {limit}"),
            Target::ValueAtMost(limit) => format!("≤ {limit} {}", self.unit),
            Target::None => String::new(),
        };
        let verdict = match self.verdict() {
            Verdict::Reached => "reached",
            Verdict::NotReached => "NOT reached",
            Verdict::NotJudged => "",
        };
        [
            format!("{} [{}]", self.title, self.unit),
            show(median(&self.a)),
            show(median(&self.b)),
            show(self.ratio()),
            target,
            verdict.to_owned(),
        ]
    }
}

/// A figure with about three significant digits.
fn show(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 10.0 => format!("{v:.1}"),
        Some(v) if v.abs() >= 0.1 || v == 0.0 => format!("{v:.2}"),
        Some(v) => format!("{v:.4}"),
    }
}

/// The table, as aligned text or as Markdown, with the notes below.
pub(crate) fn table(rows: &[Row], names: [&str; 2], markdown: bool) -> String {
    let head = ["what", names[0], names[1], "ratio", "target", ""].map(str::to_owned);
    let lines: Vec<[String; 6]> =
        std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let mut width = [0; 6];
    for line in &lines {
        for (width, cell) in width.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(width)
            .enumerate()
            .map(|(column, (cell, width))| {
                // Figures to the right, words to the left.
                if (1..=3).contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        if markdown {
            text += &format!("| {} |\n", cells.join(" | "));
            if number == 0 {
                text += "| --- | ---: | ---: | ---: | --- | --- |\n";
            }
        } else {
            text += cells.join("  ").trim_end();
            text += "\n";
        }
    }
    for row in rows {
        for note in &row.notes {
            text += &if markdown {
                format!("\n- {}: {note}", row.id)
            } else {
                format!("  {}: {note}\n", row.id)
            };
        }
    }
    text
}
