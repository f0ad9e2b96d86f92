//! `leafblk status`: a running leafblk at a glance.

use clap::Args;
use serde_json::json;

use super::control::{ControlArgs, details, time};
use crate::config::Environment;
use crate::config::size::{format_amount, format_size};
use crate::control::{CachePages, Counts, Health, HealthState, ReloadResult, Status};
use crate::error::Error;
use crate::stats::FileSystemStats;
use crate::top::format::{self, duration};

/// `leafblk status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl StatusArgs {
    /// Prints it.
    ///
    /// # Errors
    /// Where leafblk doesn't answer, and where it is failing: then after it
    /// was printed.
    pub fn run(&self, env: &Environment) -> Result<(), Error> {
        let client = self.control.client(env)?;
        let status = client.get("/v1/status")?;
        let health_answer = client.get("/v1/health")?;
        let health: Health = client.read(health_answer.clone())?;
        let both = json!({ "status": status, "health": health_answer });
        self.control.show(&both, || {
            let status: Status = client.read(status.clone())?;
            Ok(describe(&status, &health))
        })?;
        match health.status {
            HealthState::Ok | HealthState::Degraded => Ok(()),
            HealthState::Failing => Err(Error::failure(health.problems.join("; "))),
        }
    }
}

fn describe(status: &Status, health: &Health) -> String {
    let cache = &status.cache;
    let pages = match cache.pages {
        CachePages::Hugetlb => "hugepages",
        CachePages::Transparent => "transparent huge pages",
        CachePages::Ordinary => "ordinary pages",
    };
    let state = match health.status {
        HealthState::Ok => "ok",
        HealthState::Degraded => "degraded",
        HealthState::Failing => "failing",
    };
    let mut rows = vec![
        ("health", state.to_owned()),
        ("version", status.version.clone()),
        ("process", format!("{}, up {}", status.pid, duration(status.uptime_seconds as f64))),
        ("VMs", format!("{}; {} with a client", counts(status.vms), status.vms_connected)),
        ("roots", counts(status.roots)),
        (
            "cache",
            format!(
                "{} of {} in {pages}, blocks of {}",
                format_amount(cache.used_bytes),
                format_size(cache.size_bytes),
                format_size(cache.block_bytes.into())
            ),
        ),
        ("reactors", status.reactors.to_string()),
        ("leaves", status.state_dir.clone()),
        ("sockets", status.runtime_dir.clone()),
    ];
    rows.extend(status.file_systems.iter().map(|disk| ("free space", room(disk))));
    if let Some(reload) = &status.last_reload {
        rows.push(("last reload", last_reload(reload)));
    }
    rows.extend(health.problems.iter().map(|problem| ("problem", problem.clone())));
    details(&rows)
}

fn room(disk: &FileSystemStats) -> String {
    let text =
        format!("{} ({}): {}", disk.path, disk.uses.join(", "), format::room(disk, format_amount));
    match disk.free_inodes.zip(disk.inodes) {
        Some((free, all)) => format!("{text}, {free} of {all} inodes"),
        None => text,
    }
}

fn last_reload(reload: &ReloadResult) -> String {
    let at = time(reload.at);
    match reload.failed.len() {
        0 => at,
        failed => format!("{at}, {failed} failed"),
    }
}

fn counts(counts: Counts) -> String {
    match counts.failed {
        0 => format!("{} served", counts.serving),
        failed => format!("{} served, {failed} failed", counts.serving),
    }
}
