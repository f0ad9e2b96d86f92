//! `leafblk leaf map`: where each part of the disk comes from, as
//! `qemu-img map` shows it.

use std::io::{BufWriter, Write};

use serde::Serialize;

use super::list::JsonArray;
use super::opened::{LockedAgainst, Unclosed};
use super::view::{Extent, Source, View};
use super::{LeafPlace, State, ToolError};
use crate::config::RootEntry;
use crate::units::SectorRange;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Map {
    /// The leaf.
    pub leaf: LeafPlace,
    /// Its root, to be told of its holes.
    pub root: Option<RootEntry>,
    /// For programs.
    pub json: bool,
}

/// The keys of `qemu-img map --output=json`, and where the extent is from.
#[derive(Serialize)]
struct Row {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    from: &'static str,
}

/// Prints the extents; returns a remark where they may not be all, or not of one instant.
///
/// # Errors
/// The leaf's and the root's.
pub fn run(what: &Map, out: &mut dyn Write) -> Result<Option<String>, ToolError> {
    let view = View::open(
        &what.leaf,
        what.root.as_ref(),
        LockedAgainst::WritersIfPossible,
        Unclosed::Tell,
    )?;
    let out = BufWriter::new(out);
    let root = match &what.root {
        Some(entry) => entry.path.display().to_string(),
        None => format!("root {}", view.locked.header.root.name),
    };
    if what.json {
        let mut rows = JsonArray::new(out);
        each_extent(&view, |extent| rows.row(&row(&view, extent)))?;
        rows.end()?;
    } else {
        print_table(&view, &root, out)?;
    }
    Ok(match view.state() {
        State::Clean | State::LiveMap(_) => None,
        State::FlushedOnly(Some(dir)) => Some(format!(
            "{} was not closed cleanly and no live map is in {}: this is what was flushed",
            view.locked.path.display(),
            dir.display()
        )),
        State::FlushedOnly(None) => None,
        State::InUse { .. } => {
            view.state().user().map(|user| format!("{} is {user}", view.locked.path.display()))
        }
    })
}

/// Whether `next` comes right after `last` in the same source too.
fn follows(view: &View, last: Extent, next: Extent) -> bool {
    let place = |sector| view.leaf.place_of(sector);
    let end = |range: SectorRange| Some(place(range.start())? + range.byte_len());
    last.source == next.source
        && (last.source != Source::Leaf || place(next.range.start()) == end(last.range))
}

/// Neighbours from one source as one.
fn each_extent(
    view: &View,
    mut each: impl FnMut(Extent) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let mut extents = view.extents();
    let mut open: Option<Extent> = None;
    while let Some(next) = extents.next()? {
        open = Some(match open {
            Some(last) if follows(view, last, next) => Extent {
                range: SectorRange::new(
                    last.range.start(),
                    last.range.count() + next.range.count(),
                )
                .unwrap_or(next.range),
                source: last.source,
            },
            Some(last) => {
                each(last)?;
                next
            }
            None => next,
        });
    }
    open.map_or(Ok(()), each)
}

fn row(view: &View, extent: Extent) -> Row {
    let start = extent.range.byte_offset();
    let (depth, present, offset, from) = match extent.source {
        Source::Leaf => (0, true, view.leaf.place_of(extent.range.start()), "leaf"),
        Source::LeafZero => (0, true, None, "zero"),
        Source::Root | Source::RootZero => (1, true, Some(start), "root"),
        Source::Beyond => (0, false, None, "zero"),
    };
    let zero = extent.source.is_zero();
    let length = extent.range.byte_len();
    Row { start, length, depth, present, zero, data: !zero, compressed: false, offset, from }
}

fn print_table(view: &View, root: &str, mut out: impl Write) -> Result<(), ToolError> {
    let leaf = view.locked.path.display().to_string();
    let mut line = |cells: [&str; 5]| {
        let [offset, length, from, mapped, file] = cells;
        let text = format!("{offset:<15} {length:<15} {from:<5} {mapped:<15} {file}");
        writeln!(out, "{}", text.trim_end()).map_err(ToolError::Print)
    };
    line(["Offset", "Length", "From", "Mapped to", "File"])?;
    each_extent(view, |extent| {
        let row = row(view, extent);
        let mapped = row.offset.map(|offset| format!("{offset:#x}")).unwrap_or_default();
        let file = match row.from {
            "leaf" => leaf.as_str(),
            "root" => root,
            _ => "",
        };
        line([&format!("{:#x}", row.start), &format!("{:#x}", row.length), row.from, &mapped, file])
    })?;
    out.flush().map_err(ToolError::Print)
}
