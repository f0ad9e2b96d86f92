//! `leafblk leaf list` and `leafblk leaf rm`: which leaves there are, and whose, and away
//! with those that nobody needs.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run::failure;
use super::vm_of::vm_of;
use super::{ListArgs, RemoveArgs, StateArgs};
use crate::cli::confirm::confirm;
use crate::cli::table::Table;
use crate::config::size::{format_amount, format_size};
use crate::config::{Environment, Settings, file};
use crate::daemon::leaves::{self, ListedLeaf, Unfound};
use crate::error::Error;
use crate::tools::remove::Doomed;
use crate::tools::{LeafPlace, RuntimeDir, ToolError};

impl StateArgs {
    fn directory(&self, env: &Environment) -> Result<PathBuf, Error> {
        let flags = Settings { state_dir: self.state_dir.clone(), ..Settings::default() };
        let settings = match &self.config {
            Some(path) => file::load(&env.working_dir.join(path))?.overridden_by(flags),
            None => flags,
        };
        Ok(settings.state_dir(env)?)
    }
}

/// A leaf, for programs.
#[derive(Serialize)]
struct Row {
    path: String,
    vm: Option<String>,
    vm_detached: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    root: Option<String>,
    virtual_size: Option<u64>,
    allocated_bytes: Option<u64>,
    disk_uuid: Option<String>,
    process: Option<u32>,
}

impl Row {
    fn of(leaf: ListedLeaf) -> Self {
        let mut row = Self {
            path: leaf.path.display().to_string(),
            vm: leaf.vm,
            vm_detached: leaf.detached.map(|time| time.to_string()),
            state: "free",
            reason: None,
            root: None,
            virtual_size: None,
            allocated_bytes: None,
            disk_uuid: None,
            process: None,
        };
        match leaf.found {
            Ok(found) => {
                row.state = if found.in_use.is_some() { "in-use" } else { "free" };
                row.process = found.in_use.map(|by| by.process);
                row.root = Some(found.root);
                row.virtual_size = Some(found.size_bytes);
                row.allocated_bytes = Some(found.allocated_bytes);
                row.disk_uuid = Some(found.disk.to_string());
            }
            Err(Unfound::Missing) => row.state = "missing",
            Err(Unfound::Unreadable(error)) => {
                row.state = "unreadable";
                row.reason = Some(error.to_string());
            }
        }
        row
    }

    fn cells(&self) -> [String; 6] {
        let vm = match (&self.vm, &self.vm_detached) {
            (Some(vm), Some(_)) => format!("{vm} (detached)"),
            (Some(vm), None) => vm.clone(),
            (None, _) => "-".into(),
        };
        [
            vm,
            self.state.into(),
            self.root.clone().unwrap_or("-".into()),
            self.virtual_size.map_or("-".into(), format_size),
            self.allocated_bytes.map_or("-".into(), format_amount),
            self.path.clone(),
        ]
    }
}

/// Prints the leaves of the state directory, and those that its VMs have elsewhere.
pub(super) fn list(args: &ListArgs, env: &Environment, out: &mut dyn Write) -> Result<(), Error> {
    let leaves = leaves::list(&args.state.directory(env)?)?;
    let rows: Vec<Row> = leaves.into_iter().map(Row::of).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&rows).map_err(Error::failure)? + "\n"
    } else {
        let mut table = Table::new(&["VM", "STATE", "ROOT", "SIZE", "ON DISK", "LEAF"]);
        rows.iter().for_each(|row| table.row(row.cells()));
        table.to_string()
    };
    out.write_all(text.as_bytes()).map_err(|error| Error::failure(ToolError::Print(error)))
}

/// Removes leaves, if a person agrees; what was removed, and what becomes of their VMs.
pub(super) fn remove(
    args: &RemoveArgs,
    env: &Environment,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let state_dir = args.state.directory(env)?;
    // All are looked at, and locked, before the first one goes.
    let mut doomed: Vec<Doomed> = Vec::new();
    let mut lost = Vec::new();
    for path in &args.leaves {
        let runtime_dir = RuntimeDir { given: args.runtime_dir.clone(), env: env.clone() };
        let place = LeafPlace { path: path.clone(), runtime_dir, flushed_only: false, vm_of };
        let leaf = Doomed::look(&place).map_err(failure)?;
        if doomed.iter().any(|other| other.path() == leaf.path()) {
            continue;
        }
        lost.push(leaf.content().map_err(failure)?);
        doomed.push(leaf);
    }
    let question = match &lost[..] {
        [_] => "Remove this leaf?".to_owned(),
        more => format!("Remove these {} leaves?", more.len()),
    };
    confirm(args.yes, &format!("what is lost for good is {}", lost.join("; ")), &question)?;
    for leaf in doomed {
        let (path, disk) = (leaf.path().to_owned(), leaf.disk());
        leaf.remove().map_err(failure)?;
        let said = said(&path, leaves::forget(&state_dir, &path, disk)?);
        writeln!(out, "{said}").map_err(|error| Error::failure(ToolError::Print(error)))?;
    }
    Ok(())
}

fn said(path: &Path, still_wants_it: Option<String>) -> String {
    let more = still_wants_it.map_or(String::new(), |vm| {
        format!(
            "; VM {vm} is not detached and had it: leafblk vm new-leaf {vm} gives it an empty one"
        )
    });
    format!("removed {}{more}", path.display())
}
