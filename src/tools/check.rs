//! `leafblk leaf check`: header, map, data that the map doesn't name, root.
//!
//! Repairs only what can't cost content: a damaged copy of the header is
//! written again from the good one, bits past the disk's end are cleared, and
//! data that no bit names, which means nothing, is given back. For the last it
//! must be known what the leaf holds: the live map, where one is left, is taken
//! over first, as a daemon would.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use super::extents::Extents;
use super::list::print_json;
use super::opened::{Locked, LockedAgainst, Unclosed};
use super::view::check_root;
use super::{LeafPlace, State, ToolError, open_root};
use crate::config::RootEntry;
use crate::config::size::format_amount;
use crate::leaf::header::{Header, HeaderError};
use crate::leaf::{Leaf, map_len_bytes, offline, table_len_bytes};
use crate::units::{Sector, SectorRange};

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Check {
    /// The leaf.
    pub leaf: LeafPlace,
    /// The root that it should be on.
    pub root: Option<RootEntry>,
    /// Mend what is safe to mend.
    pub repair: bool,
    /// For programs.
    pub json: bool,
}

/// File systems give space back in blocks; smaller leftovers can't be.
const BLOCK: u64 = 4096;
/// Leftover ranges that one run finds and mends; the next one finds more.
const LEFTOVERS_MAX: usize = 1 << 20;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    detail: String,
    repaired: bool,
}

#[derive(Serialize)]
struct Report {
    path: String,
    state: &'static str,
    findings: Vec<Finding>,
}

/// Prints what was found; whether nothing is left to complain of.
///
/// # Errors
/// Where the leaf can't be checked: no header is whole, it is cut short, in
/// use; the root can't be read.
pub fn run(what: &Check, out: &mut dyn Write) -> Result<bool, ToolError> {
    let unclosed = if what.repair { Unclosed::Refuse } else { Unclosed::Tell };
    let against = if what.repair { LockedAgainst::All } else { LockedAgainst::Writers };
    let locked = Locked::new(&what.leaf, against, unclosed)?;
    let mut findings = Vec::new();
    if let Some(entry) = &what.root {
        let root = open_root(entry)?;
        if let Err(e) = check_root(&locked, root.identity()) {
            findings.push(Finding { what: "root", detail: e.to_string(), repaired: false });
        }
    }
    // A leaf on another root is not touched.
    let repair = what.repair && findings.is_empty();
    examine(&locked, repair, &mut findings)?;
    let report = Report {
        path: locked.path.display().to_string(),
        state: match &locked.state {
            State::Clean => "clean",
            State::LiveMap(_) => "live-map",
            State::FlushedOnly(_) => "flushed-only",
            State::InUse { .. } => "in-use",
        },
        findings,
    };
    print(&report, &locked.state, repair, what.json, out)?;
    Ok(report.findings.iter().all(|finding| finding.repaired))
}

fn examine(locked: &Locked, repair: bool, findings: &mut Vec<Finding>) -> Result<(), ToolError> {
    let read_error = |source| ToolError::Read { path: locked.path.clone(), source };
    let write_error = |source| ToolError::Write { path: locked.path.clone(), source };
    // First of all that the file is as long as it says.
    drop(locked.read()?);
    let copies = offline::header_copies(&locked.file).map_err(read_error)?;
    for (i, copy) in copies.iter().enumerate() {
        let detail = match copy {
            Ok(_) => continue,
            Err(HeaderError::Magic) => format!("copy {i} is no header"),
            Err(HeaderError::Damaged) => format!("copy {i} is damaged"),
            // Refused before: newer software has used the leaf.
            Err(HeaderError::Version(_) | HeaderError::Features(_)) => continue,
        };
        findings.push(Finding { what: "header", detail, repaired: repair });
    }
    let header = &locked.header;
    if let Some(count) = bits_past_end(&locked.file, header, repair).map_err(read_error)? {
        let detail = format!("{count} bits are set past the disk's end");
        findings.push(Finding { what: "map", detail, repaired: repair });
    }
    let mut found = leftovers(&locked.file, header, &locked.read()?).map_err(read_error)?;
    if repair {
        // Writes a damaged copy of the header anew, and takes a live map over; that
        // also clears slots of a packed leaf that are nobody's.
        locked.change(|_| Ok(()))?;
        let whole =
            offline::header_copies(&locked.file).map_err(read_error)?.iter().all(Result::is_ok);
        let of_header = findings.iter_mut().filter(|finding| finding.what == "header");
        of_header.for_each(|finding| finding.repaired = whole);
    }
    let leaf = locked.read()?;
    match shared_slots(&leaf) {
        0 => {}
        count => findings.push(Finding {
            what: "block table",
            detail: format!(
                "{count} blocks are where another one is; restore the leaf from a copy"
            ),
            repaired: false,
        }),
    }
    let leftovers = leftovers(&locked.file, header, &leaf).map_err(read_error)?;
    if !leftovers.is_empty() {
        found.clone_from(&leftovers);
    }
    // Without the live map, what looks left over may be acknowledged data.
    if let Some(detail) = describe(&found) {
        let known = !matches!(locked.state, State::FlushedOnly(_)) || repair;
        if repair {
            punch(&locked.file, &leftovers).map_err(write_error)?;
        }
        let detail =
            if known { detail } else { format!("{detail}, or what the missing live map names") };
        let repaired = repair && leftovers.len() < LEFTOVERS_MAX;
        findings.push(Finding { what: "leftover data", detail, repaired });
    }
    Ok(())
}

/// How many bits are set past the disk's end; clears them if asked to. `None`
/// for none.
fn bits_past_end(file: &File, header: &Header, clear: bool) -> io::Result<Option<u64>> {
    let sectors = header.virtual_size / 512;
    let last = sectors / 8;
    let map_len = map_len_bytes(header.virtual_size);
    let mut tail = vec![0; usize::try_from(map_len - last).unwrap_or(0)];
    file.read_exact_at(&mut tail, header.map_offset + last)?;
    let mut count = 0;
    for (i, byte) in tail.iter_mut().enumerate() {
        // Of the first byte, the low bits are still the disk's.
        let kept = if i == 0 { (1u8 << (sectors % 8)) - 1 } else { 0 };
        count += u64::from((*byte & !kept).count_ones());
        *byte &= kept;
    }
    if count > 0 && clear {
        file.write_all_at(&tail, header.map_offset + last)?;
        file.sync_data()?;
    }
    Ok((count > 0).then_some(count))
}

/// Parts of the file that have space and no meaning, as offsets.
fn leftovers(file: &File, header: &Header, leaf: &Leaf) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut extents = Extents::new(file);
    let map_end = header.map_offset + map_len_bytes(header.virtual_size);
    let data_end = header.data_offset + header.virtual_size;
    // The room for a longer map, and what lies behind the disk.
    if let Some(table) = header.table_offset {
        each_data(&mut extents, map_end..table, |data| add(&mut found, data))?;
        let table_end = table + table_len_bytes(header.virtual_size);
        each_data(&mut extents, table_end..header.data_offset, |data| add(&mut found, data))?;
        leftover_slots(&mut extents, header.data_offset..file.metadata()?.len(), leaf, &mut found)?;
        return Ok(found);
    }
    each_data(&mut extents, map_end..header.data_offset, |data| add(&mut found, data))?;
    each_data(&mut extents, header.data_offset..data_end, |data| {
        let sector = |offset: u64| (offset - header.data_offset) / 512;
        let (first, last) = (sector(data.start), sector(data.end));
        let mut rest = SectorRange::new(Sector(first), last - first).unwrap_or_default();
        while !rest.is_empty() {
            let (held, count) = leaf.next_run(rest);
            let (run, more) = rest.split_at(count);
            if !held {
                let start = (header.data_offset + run.byte_offset()).next_multiple_of(BLOCK);
                let end = header.data_offset + run.end().to_bytes();
                let end = if end == data_end { end } else { end / BLOCK * BLOCK };
                add(&mut found, start..end);
            }
            rest = more;
        }
    })?;
    each_data(&mut extents, data_end..file.metadata()?.len(), |data| {
        add(&mut found, data.start.next_multiple_of(BLOCK)..data.end);
    })?;
    Ok(found)
}

/// Slots that are no block's, or of a block of which nothing is held.
fn leftover_slots(
    extents: &mut Extents<'_>,
    data: Range<u64>,
    leaf: &Leaf,
    found: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let mut held = Vec::new();
    leaf.each_slot(|block, offset| {
        let block = SectorRange::new(block, BLOCK / 512).unwrap_or_default();
        if !leaf.is_absent(block) {
            held.push(offset);
        }
    });
    held.sort_unstable();
    let mut held = held.into_iter().peekable();
    each_data(extents, data, |data| {
        let mut at = data.start / BLOCK * BLOCK;
        while at < data.end {
            while held.next_if(|offset| *offset < at).is_some() {}
            let next = held.peek().copied().unwrap_or(u64::MAX).min(data.end);
            add(found, at..next);
            at = next.saturating_add(BLOCK).max(at + BLOCK);
            if next == data.end {
                break;
            }
        }
    })
}

/// How many blocks have a slot that is another's too.
fn shared_slots(leaf: &Leaf) -> usize {
    let mut slots = Vec::new();
    leaf.each_slot(|_, offset| slots.push(offset));
    slots.sort_unstable();
    slots.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

fn add(found: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.start < range.end && found.len() < LEFTOVERS_MAX {
        found.push(range);
    }
}

fn each_data(
    extents: &mut Extents<'_>,
    within: Range<u64>,
    mut each: impl FnMut(Range<u64>),
) -> io::Result<()> {
    let mut at = within.start;
    while at < within.end {
        let (is_data, until) = extents.at(at, within.end)?;
        if is_data {
            each(at..until);
        }
        at = until;
    }
    Ok(())
}

fn describe(leftovers: &[Range<u64>]) -> Option<String> {
    let bytes: u64 = leftovers.iter().map(|range| range.end - range.start).sum();
    let first = leftovers.first()?;
    Some(format!(
        "{} that no bit names, in {} places from offset {:#x} on",
        format_amount(bytes),
        leftovers.len(),
        first.start
    ))
}

fn punch(file: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for range in ranges {
        let len = range.end - range.start;
        rustix::io::retry_on_intr(|| fallocate(file, flags, range.start, len))?;
    }
    file.sync_all()
}

fn print(
    report: &Report,
    state: &State,
    repair: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    if json {
        return print_json(out, report);
    }
    let mut line = |text: String| writeln!(out, "{text}").map_err(ToolError::Print);
    for finding in &report.findings {
        let end = if finding.repaired { " (repaired)" } else { "" };
        line(format!("{}: {}{end}", finding.what, finding.detail))?;
    }
    let state = match state {
        State::Clean => "closed cleanly",
        State::LiveMap(_) if repair => "its live map was taken over",
        State::LiveMap(_) => "not closed cleanly, its live map is there",
        State::FlushedOnly(_) if repair => "its live map was given up",
        State::FlushedOnly(Some(_)) => "not closed cleanly, its live map is not there",
        State::FlushedOnly(None) => "not closed cleanly, no live map was looked for",
        State::InUse { .. } => "in use",
    };
    let left = report.findings.iter().filter(|finding| !finding.repaired).count();
    let verdict = match (report.findings.len(), left) {
        (0, _) => "no errors".to_owned(),
        (found, 0) => format!("{found} found and repaired"),
        (found, left) => {
            let hint = if repair { "" } else { "; --repair mends what is safe" };
            format!("{found} found, {left} not repaired{hint}")
        }
    };
    line(format!("{}: {verdict}; {state}", report.path))
}
