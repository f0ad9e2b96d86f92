//! `/v1/status`, `/v1/version`, `/v1/health`.

use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::json::Json;
use super::problem::Problem;
use super::reload::ReloadResult;
use super::responses::Unavailable;
use crate::cache::ArenaPages;
use crate::daemon::{Host, State as Life, problems};
use crate::stats::FileSystemStats;

/// How long a reactor may take to answer before it counts as stuck.
const REACTOR_ANSWER_MAX: Duration = Duration::from_secs(1);

/// The host at a glance.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Status {
    /// The version of leafblk.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started_at: u64,
    /// For how many seconds it has run.
    pub uptime_seconds: u64,
    /// Where leaves are by default.
    pub state_dir: String,
    /// Where sockets are by default.
    pub runtime_dir: String,
    /// Reactor threads.
    pub reactors: usize,
    /// The roots.
    pub roots: Counts,
    /// The VMs.
    pub vms: Counts,
    /// VMs to which a client is connected.
    pub vms_connected: usize,
    /// The cache.
    pub cache: CacheInfo,
    /// The file systems of leaves, state directory and runtime directory, by path.
    #[serde(default)]
    pub file_systems: Vec<FileSystemStats>,
    /// How the last reload went; null before the first.
    #[serde(default)]
    pub last_reload: Option<ReloadResult>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct Counts {
    /// In all.
    pub total: usize,
    /// In use.
    pub serving: usize,
    /// Wanted, but they could not be attached.
    pub failed: usize,
}

// A part of /v1/status by itself, though /v1/stats has more of the cache
// (`stats::CacheStats`): each form changes only with its own path, and neither
// with what the cache counts for itself (`cache::CacheStats`).
/// The cache that all VMs share.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub struct CacheInfo {
    /// The arena's size.
    pub size_bytes: u64,
    /// Bytes of it that hold blocks.
    pub used_bytes: u64,
    /// Bytes in a block.
    pub block_bytes: u32,
    /// What the arena is made of.
    pub pages: CachePages,
    /// Fills since the start.
    pub fills: u64,
    /// Evictions since the start.
    pub evictions: u64,
}

/// What the cache is made of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CachePages {
    /// Reserved hugepages of 2 MiB.
    Hugetlb,
    /// Transparent huge pages, where the kernel finds them.
    Transparent,
    /// Pages of the ordinary size.
    Ordinary,
}

impl From<ArenaPages> for CachePages {
    fn from(pages: ArenaPages) -> Self {
        match pages {
            ArenaPages::Hugetlb => Self::Hugetlb,
            ArenaPages::Transparent => Self::Transparent,
            ArenaPages::Ordinary => Self::Ordinary,
        }
    }
}

/// Which leafblk this is.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Version {
    /// The version of leafblk.
    pub version: String,
    /// The version of this API: the first part of its paths.
    pub api: String,
}

/// How it is.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Health {
    /// In a word.
    pub status: HealthState,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// How it is, in a word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// All is well.
    Ok,
    /// A VM, a root or a file system has a problem; the others are served.
    Degraded,
    /// A reactor doesn't answer: VMs stand still.
    Failing,
}

impl Counts {
    fn of<'a>(states: impl Iterator<Item = &'a Life>) -> Self {
        states.fold(Self::default(), |counts, state| Self {
            total: counts.total + 1,
            serving: counts.serving + usize::from(*state == Life::Serving),
            failed: counts.failed + usize::from(matches!(state, Life::Failed(_))),
        })
    }
}

impl Status {
    fn of(host: &Host) -> Self {
        let (vms, roots) = (host.vms(), host.roots());
        let connected = vms.iter().filter_map(|vm| vm.vm.as_ref());
        let (since, at) = host.started();
        let stats = host.cache().stats();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            uptime_seconds: since.elapsed().as_secs(),
            state_dir: host.state_dir().to_string_lossy().into(),
            runtime_dir: host.runtime_dir().to_string_lossy().into(),
            reactors: host.reactors().len(),
            roots: Counts::of(roots.iter().map(|root| &root.state)),
            vms: Counts::of(vms.iter().map(|vm| &vm.state)),
            vms_connected: connected.filter(|vm| vm.link().is_connected()).count(),
            cache: CacheInfo {
                size_bytes: stats.size_bytes,
                used_bytes: stats.ready_bytes,
                block_bytes: stats.block_bytes,
                pages: stats.pages.into(),
                fills: stats.fills,
                evictions: stats.evictions,
            },
            file_systems: host.file_systems(&vms).iter().map(FileSystemStats::from).collect(),
            last_reload: host.last_reload().map(|reloaded| ReloadResult::from(&*reloaded)),
        }
    }
}

impl Health {
    fn of(host: &Host) -> Self {
        let (roots, vms) = (host.roots(), host.vms());
        host.look_at_roots(&roots, Duration::ZERO);
        let (file_systems, reload) = (host.file_systems(&vms), host.last_reload());
        let failing = problems::failing(&roots, &vms, &file_systems, reload.as_deref());
        let mut problems = problems::not_served(&roots, &vms);
        problems.extend(failing.iter().map(ToString::to_string));
        let stuck = host.reactors_stuck(REACTOR_ANSWER_MAX);
        let status = match (stuck.is_empty(), problems.is_empty()) {
            (false, _) => HealthState::Failing,
            (true, false) => HealthState::Degraded,
            (true, true) => HealthState::Ok,
        };
        problems.extend(stuck.into_iter().map(|reactor| {
            format!(
                "reactor {reactor} has not answered for {} s: its VMs stand still; see the log",
                REACTOR_ANSWER_MAX.as_secs()
            )
        }));
        Self { status, problems }
    }
}

/// Show the host at a glance
#[utoipa::path(get, path = "/v1/status", tag = "host", responses(
    (status = 200, description = "The host", body = Status),
    Unavailable,
))]
pub(super) async fn status(State(app): State<App>) -> Result<Json<Status>, Problem> {
    app.look(|host| Ok(Status::of(host))).await.map(Json)
}

/// Show which leafblk this is
#[utoipa::path(get, path = "/v1/version", tag = "host", responses(
    (status = 200, description = "The version", body = Version),
))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() })
}

/// Ask whether all is well
///
/// Asks each reactor for a sign of life.
#[utoipa::path(get, path = "/v1/health", tag = "host", responses(
    (status = 200, description = "VMs are served: `ok` or `degraded`", body = Health),
    (status = 503, description = "A reactor is stuck: `failing`; or leafblk is too busy to say",
        content((Health = "application/json"), (Problem = "application/problem+json"))),
))]
pub(super) async fn health(State(app): State<App>) -> Result<Response, Problem> {
    let health = app.look(|host| Ok(Health::of(host))).await?;
    let status = match health.status {
        HealthState::Ok | HealthState::Degraded => StatusCode::OK,
        HealthState::Failing => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((status, Json(health)).into_response())
}
