//! `leafblk status`: a running leafblk at a glance.

use bytesize::ByteSize;
use clap::Args;
use serde_json::json;

use super::control::{ControlArgs, details};
use crate::config::Environment;
use crate::control::{CachePages, Counts, Health, HealthState, Status};
use crate::error::Error;

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
        let status = client.get("/v1/status").map_err(Error::failure)?;
        let health_answer = client.get("/v1/health").map_err(Error::failure)?;
        let health: Health = client.read(health_answer.clone()).map_err(Error::failure)?;
        let both = json!({ "status": status, "health": health_answer });
        self.control.show(&both, || {
            let status: Status = client.read(status.clone()).map_err(Error::failure)?;
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
        ("process", format!("{}, up {}", status.pid, duration(status.uptime_s))),
        ("VMs", format!("{}; {} with a client", counts(status.vms), status.vms_connected)),
        ("roots", counts(status.roots)),
        (
            "cache",
            format!(
                "{} of {} in {pages}, blocks of {}",
                ByteSize::b(cache.used_bytes),
                ByteSize::b(cache.size_bytes),
                ByteSize::b(cache.block_bytes.into())
            ),
        ),
        ("reactors", status.reactors.to_string()),
        ("leaves", status.state_dir.clone()),
        ("sockets", status.runtime_dir.clone()),
    ];
    rows.extend(health.problems.iter().map(|problem| ("problem", problem.clone())));
    details(&rows)
}

fn counts(counts: Counts) -> String {
    match counts.failed {
        0 => format!("{} served", counts.serving),
        failed => format!("{} served, {failed} failed", counts.serving),
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in
            [(59, "59 s"), (61, "1 min"), (3_700, "1 h 1 min"), (100_000, "1 d 3 h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
