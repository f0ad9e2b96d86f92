//! `leafblk leaf info`: what a leaf is and holds.

use std::io::Write;

use serde::Serialize;

use super::list::print_json;
use super::opened::{LockedAgainst, Unclosed};
use super::rewrite::Held;
use super::view::View;
use super::{LeafPlace, State, ToolError};
use crate::config::RootEntry;
use crate::config::size::{format_amount, format_size};
use crate::leaf::header::VERSION;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Info {
    /// The leaf.
    pub leaf: LeafPlace,
    /// The root, to be told whether it is the leaf's.
    pub root: Option<RootEntry>,
    /// For programs.
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    path: String,
    format_version: u32,
    layout: &'static str,
    uuid: String,
    disk_uuid: String,
    created: String,
    virtual_size: u64,
    root: RootReport,
    changed_sectors: u64,
    changed_bytes: u64,
    allocated_bytes: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_map: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<u32>,
}

#[derive(Serialize)]
struct RootReport {
    name: String,
    length: u64,
    fingerprint: String,
}

/// Prints it.
///
/// # Errors
/// The leaf's; the root's, if one is given, above all that it is another one.
pub fn run(what: &Info, out: &mut dyn Write) -> Result<(), ToolError> {
    let view = View::open(
        &what.leaf,
        what.root.as_ref(),
        LockedAgainst::WritersIfPossible,
        Unclosed::Tell,
    )?;
    let report = report(&view)?;
    if what.json {
        return print_json(out, &report);
    }
    let state = match view.state() {
        State::Clean => "closed cleanly".to_owned(),
        State::LiveMap(map) => {
            format!("not closed cleanly; nothing is lost, the live map is {}", map.display())
        }
        State::FlushedOnly(Some(dir)) => format!(
            "not closed cleanly, and no live map in {}: shown is what was flushed",
            dir.display()
        ),
        State::FlushedOnly(None) => "not closed cleanly: shown is what was flushed".to_owned(),
        state @ State::InUse { .. } => state.user().unwrap_or_default(),
    };
    let rows = [
        ("leaf", report.path),
        ("format version", report.format_version.to_string()),
        ("layout", report.layout.to_owned()),
        ("uuid", report.uuid),
        ("disk uuid", report.disk_uuid),
        ("created", report.created),
        ("virtual size", format_size(report.virtual_size)),
        ("root", format!("{}, {}", report.root.name, format_size(report.root.length))),
        ("root fingerprint", report.root.fingerprint),
        (
            "changed",
            format!("{} sectors, {}", report.changed_sectors, format_amount(report.changed_bytes)),
        ),
        ("on disk", format_amount(report.allocated_bytes)),
        ("state", state),
    ];
    for (name, value) in rows {
        writeln!(out, "{:<18}{value}", format!("{name}:")).map_err(ToolError::Print)?;
    }
    Ok(())
}

fn report(view: &View) -> Result<Report, ToolError> {
    let header = &view.locked.header;
    let held = Held::of(view)?;
    let created = i64::try_from(header.created).unwrap_or(i64::MAX);
    let created = jiff::Timestamp::from_second(created)
        .map_or_else(|_| format!("@{}", header.created), |time| time.to_string());
    let (state, live_map) = match view.state() {
        State::Clean => ("clean", None),
        State::LiveMap(map) => ("live-map", Some(map)),
        State::FlushedOnly(_) => ("flushed-only", None),
        State::InUse { live_map, .. } => ("in-use", live_map.as_ref()),
    };
    let (vm, process) = match view.state() {
        State::InUse { vm, by, .. } => (vm.clone(), by.as_ref().map(|by| by.process)),
        State::Clean | State::LiveMap(_) | State::FlushedOnly(_) => (None, None),
    };
    Ok(Report {
        path: view.locked.path.display().to_string(),
        format_version: VERSION,
        layout: if header.table_offset.is_some() { "packed" } else { "direct" },
        uuid: uuid::Uuid::from_bytes(header.uuid).to_string(),
        disk_uuid: uuid::Uuid::from_bytes(header.disk_uuid()).to_string(),
        created,
        virtual_size: header.virtual_size,
        root: RootReport {
            name: header.root.name.clone(),
            length: header.root.len_bytes,
            fingerprint: header.root.fingerprint.iter().map(|b| format!("{b:02x}")).collect(),
        },
        changed_sectors: held.sectors,
        changed_bytes: held.sectors * 512,
        allocated_bytes: held.allocated,
        state,
        live_map: live_map.map(|map| map.display().to_string()),
        vm,
        process,
    })
}
