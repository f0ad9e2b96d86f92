//! `leafblk leaf diff`: where two leaves, or a leaf and its root, differ in
//! content.

use std::io::{BufWriter, Write};

use serde::Serialize;

use super::list::JsonArray;
use super::opened::{Locked, LockedAgainst, Unclosed};
use super::pieces::{Buffer, PIECE_SECTORS};
use super::progress::Progress;
use super::root_reader::{RootPart, RootReader, read_root};
use super::view::{ExtentsOfView, View};
use super::{LeafPlace, ToolError, counted, open_root};
use crate::config::RootEntry;
use crate::config::size::format_amount;
use crate::root::Root;
use crate::units::{Sector, SectorRange};

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Diff {
    /// A leaf.
    pub a: LeafPlace,
    /// Another one; its root if `None`.
    pub b: Option<LeafPlace>,
    /// Their roots, in any order.
    pub roots: Vec<RootEntry>,
    /// For programs.
    pub json: bool,
}

/// How they compare.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Difference {
    /// Ranges that were printed.
    pub ranges: u64,
    /// Sectors in them.
    pub sectors: u64,
}

#[derive(Serialize)]
struct Row {
    start: u64,
    length: u64,
}

/// Prints the ranges that differ. What lies beyond the end of the shorter disk
/// counts as zeros there.
///
/// # Errors
/// The leaves' and the roots'; [`ToolError::NoRootFits`].
pub fn run(what: &Diff, out: &mut dyn Write) -> Result<Difference, ToolError> {
    let a = open(&what.a, &what.roots)?;
    let b = what.b.as_ref().map(|b| open(b, &what.roots)).transpose()?;
    let roots = [&a, b.as_ref().unwrap_or(&a)].map(|view| view.root.as_ref());
    let [Some(root_a), Some(root_b)] = roots else {
        return Err(no_root(&a.locked));
    };
    let mut sides = [Side::new(Some(&a), root_a), Side::new(b.as_ref(), root_b)];
    let mut found = Ranges::default();
    if what.json {
        let mut rows = JsonArray::new(BufWriter::new(out));
        compare(&mut sides, &mut found, |row| rows.row(&row))?;
        rows.end()?;
        return Ok(found.total());
    }
    let mut out = BufWriter::new(out);
    let mut head = Some(format!("{:<15} {}\n", "Offset", "Length"));
    compare(&mut sides, &mut found, |row| {
        let head = head.take().unwrap_or_default();
        writeln!(out, "{head}{:<15} {:#x}", format!("{:#x}", row.start), row.length)
            .map_err(ToolError::Print)
    })?;
    let difference = found.total();
    let b_name = match &what.b {
        Some(b) => b.path.display().to_string(),
        None => format!("its root {}", a.locked.header.root.name),
    };
    let a_name = what.a.path.display();
    let text = if difference.ranges == 0 {
        format!("{a_name} and {b_name} have the same content")
    } else {
        format!(
            "{a_name} and {b_name} differ in {}: {} ({})",
            counted(difference.ranges, "range"),
            counted(difference.sectors, "sector"),
            format_amount(difference.sectors * 512)
        )
    };
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(ToolError::Print)?;
    Ok(difference)
}

fn open(place: &LeafPlace, roots: &[RootEntry]) -> Result<View, ToolError> {
    let locked = Locked::new(place, LockedAgainst::Writers, Unclosed::Refuse)?;
    for entry in roots {
        let root = open_root(entry)?;
        if locked.header.root.same_content(root.identity()) {
            return View::of(locked, Some(root));
        }
    }
    Err(no_root(&locked))
}

fn no_root(locked: &Locked) -> ToolError {
    ToolError::NoRootFits { path: locked.path.clone(), recorded: locked.header.root.to_string() }
}

/// A disk that is compared: a leaf on its root, or a root.
struct Side<'a> {
    view: Option<(&'a View, ExtentsOfView<'a>)>,
    root: &'a Root,
    reader: RootReader<'a>,
}

/// What is known of a piece without reading it.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Known {
    Zero,
    /// As the root has it.
    Root,
    Other,
}

impl<'a> Side<'a> {
    fn new(view: Option<&'a View>, root: &'a Root) -> Self {
        let view = view.map(|view| (view, view.extents()));
        Self { view, root, reader: RootReader::new(root) }
    }

    fn sectors(&self) -> u64 {
        self.view.as_ref().map_or(self.root.sectors(), |(view, _)| view.sectors())
    }

    /// What the first sectors of the range are, and how many.
    fn piece(&mut self, range: SectorRange) -> Result<(Known, u64), ToolError> {
        let Some(inside) = self.sectors().checked_sub(range.start().0).filter(|n| *n > 0) else {
            return Ok((Known::Zero, range.count()));
        };
        let range = range.split_at(inside).0;
        let Some((_, extents)) = &mut self.view else {
            let (part, count) = self.reader.part(range)?;
            let known = if part == RootPart::Data { Known::Root } else { Known::Zero };
            return Ok((known, count));
        };
        let extent = extents.of(range)?;
        let known = if extent.source.is_zero() {
            Known::Zero
        } else if extent.source.is_held() {
            Known::Other
        } else {
            Known::Root
        };
        Ok((known, extent.range.count()))
    }

    /// Reads a range that [`Self::piece`] was asked of.
    fn read(&self, known: Known, range: SectorRange, into: &mut [u8]) -> Result<(), ToolError> {
        match &self.view {
            _ if known == Known::Zero => {
                into.fill(0);
                Ok(())
            }
            Some((view, _)) => view.read(range, into),
            None => read_root(self.root, range, into),
        }
    }
}

/// Ranges that differ, joined where they touch.
#[derive(Debug, Default)]
struct Ranges {
    open: Option<(u64, u64)>,
    done: u64,
    sectors: u64,
}

impl Ranges {
    /// A sector that differs; a range that is complete with it.
    fn add(&mut self, sector: u64) -> Option<Row> {
        self.sectors += 1;
        match &mut self.open {
            Some((_, end)) if *end == sector => {
                *end += 1;
                None
            }
            _ => {
                let complete = self.close();
                self.open = Some((sector, sector + 1));
                complete
            }
        }
    }

    fn close(&mut self) -> Option<Row> {
        let (start, end) = self.open.take()?;
        self.done += 1;
        Some(Row { start: start * 512, length: (end - start) * 512 })
    }

    fn total(&self) -> Difference {
        Difference { ranges: self.done, sectors: self.sectors }
    }
}

fn compare(
    sides: &mut [Side<'_>; 2],
    found: &mut Ranges,
    mut print: impl FnMut(Row) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let sectors = sides[0].sectors().max(sides[1].sectors());
    let same_root = sides[0].root.identity().same_content(sides[1].root.identity());
    let progress = Progress::new("comparing", sectors * 512);
    let mut buffers = [Buffer::new(), Buffer::new()];
    let mut at = 0;
    while let Some(range) = SectorRange::new(Sector(at), sectors - at).filter(|r| !r.is_empty()) {
        let (known_a, count_a) = sides[0].piece(range)?;
        let (known_b, count_b) = sides[1].piece(range.split_at(count_a).0)?;
        let same =
            known_a == known_b && (known_a == Known::Zero || (known_a == Known::Root && same_root));
        let count = count_a.min(count_b);
        let range = range.split_at(if same { count } else { count.min(PIECE_SECTORS) }).0;
        if !same {
            let [a, b] = &mut buffers;
            let (a, b) = (a.of(range), b.of(range));
            sides[0].read(known_a, range, a)?;
            sides[1].read(known_b, range, b)?;
            for (i, (x, y)) in (0..).zip(a.chunks(512).zip(b.chunks(512))) {
                if x != y
                    && let Some(row) = found.add(at + i)
                {
                    print(row)?;
                }
            }
        }
        progress.advance(range.byte_len());
        at = range.end().0;
    }
    found.close().map_or(Ok(()), print)
}
