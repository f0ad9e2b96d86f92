//! `/v1/stats`, `/v1/vms/{name}/map`, `/metrics`: what the host does, to be
//! looked at again and again.

use std::time::{Duration, SystemTime};

use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::json::{Json, Name};
use super::problem::{Kind, Problem};
use super::responses::{NoSuchVm, Unavailable};
use super::{Access, App};
use crate::config::name::NameOf;
use crate::config::schemas::VmName;
use crate::daemon::file_systems::{FileSystemView, RoomAnswer};
use crate::daemon::problems::{self, HostProblem};
use crate::daemon::{Host, HostError, Reloaded, RootView, State as Life, VmView};
use crate::disk::{CELLS_MAX, DiskMap};
use crate::logging::internal;
use crate::stats::{
    CacheStats, ClientStats, Failed, FailingPart, FileSystemStats, HostStats, ProcessStats,
    ReactorStats, ReloadStats, RootStats, StateCounts, VmStats, exposition,
};
use crate::vhost_user::Peer;

/// How old it may be what is known of roots' files: these values are asked for again and
/// again.
const ROOT_AGE: Duration = Duration::from_secs(5);

/// Cells of a map where no number is asked for.
const CELLS_DEFAULT: u32 = 1024;

impl HostStats {
    /// The values at this moment, for those who have such access. VMs and roots
    /// that are not served are counted, and have no values.
    fn of(host: &Host, access: Access) -> Self {
        let (vms, roots) = (host.vms(), host.roots());
        let served = vms.iter().filter_map(|view| view.vm.as_ref());
        let reactors = host.reactors().iter().enumerate();
        let of_root = |view: &RootView| {
            let (root, changed) = (view.root.as_ref()?, view.is_changed());
            Some(RootStats::read(root.root(), view.users.len(), changed))
        };
        let vm_states = vms.iter().map(|view| (&view.config.name, &view.state));
        let root_states = roots.iter().map(|view| (&view.config.name, &view.state));
        let file_systems = host.file_systems(&vms);
        host.look_at_roots(&roots, ROOT_AGE);
        let reload = host.last_reload();
        let is_failing = |view: &VmView| !view.problems().is_empty();
        let of_vm = |view: &VmView| {
            let (vm, reactor) = (view.vm.as_ref()?, view.reactor?);
            let (failing, lost) = (is_failing(view), vm.lost_leaf().is_some());
            let client = vm.link().peer().map(ClientStats::from);
            Some(VmStats { client, ..VmStats::read(vm.disk(), reactor, failing, lost) })
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: host.started().0.elapsed().as_secs_f64(),
            internal_errors: internal::count(),
            process: ProcessStats::read(),
            runtime_dir_in_memory: host.has_runtime_dir_in_memory(),
            last_reload: reload.as_deref().map(ReloadStats::from),
            cache: CacheStats::read(host.cache(), served.map(|vm| &**vm.disk())),
            reactors: reactors.map(|(i, mail)| ReactorStats::read(i, mail.counters())).collect(),
            roots: roots.iter().filter_map(of_root).collect(),
            vms: vms.iter().filter_map(of_vm).collect(),
            vm_states: count(vm_states.clone()),
            root_states: count(root_states.clone()),
            failed_vms: failed(vm_states, "vm", access),
            failed_roots: failed(root_states, "root", access),
            failing: failing(
                problems::failing(&roots, &vms, &file_systems, reload.as_deref()),
                access,
            ),
            file_systems: file_systems.iter().map(FileSystemStats::from).collect(),
        }
    }
}

/// What has a problem though it is served.
fn failing(found: Vec<HostProblem>, access: Access) -> Vec<FailingPart> {
    let parts = found.into_iter().map(|found| {
        let HostProblem { subject, name, sentence } = found;
        let problem = match access {
            Access::Full => sentence,
            // It names files, and whoever has an account may read this.
            Access::ReadOnly => "leafblk status says what is wrong".into(),
        };
        FailingPart { part: subject.to_string(), name, problem }
    });
    parts.collect()
}

impl From<&Reloaded> for ReloadStats {
    fn from(reloaded: &Reloaded) -> Self {
        let at = reloaded.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { at: at.as_secs(), successful: reloaded.is_successful() }
    }
}

impl From<Peer> for ClientStats {
    fn from(peer: Peer) -> Self {
        let Peer { pid, command } = peer;
        Self { pid, command }
    }
}

impl From<&FileSystemView> for FileSystemStats {
    fn from(view: &FileSystemView) -> Self {
        let (room, silent_seconds) = match view.room {
            RoomAnswer::Known(room) => (Some(room), None),
            RoomAnswer::Unknown(_) => (None, None),
            RoomAnswer::Silent(seconds) => (None, Some(seconds)),
        };
        let inodes = room.and_then(|room| room.inodes);
        Self {
            path: view.path.to_string_lossy().into(),
            uses: view.uses.iter().map(|used| used.name().to_owned()).collect(),
            size_bytes: room.map(|room| room.size_bytes),
            free_bytes: room.map(|room| room.free_bytes),
            inodes: inodes.map(|(all, _)| all),
            free_inodes: inodes.map(|(_, free)| free),
            silent_seconds,
        }
    }
}

fn count<'a>(states: impl Iterator<Item = (&'a String, &'a Life)>) -> StateCounts {
    let mut counts = StateCounts::default();
    for (_, state) in states {
        *match state {
            Life::Attaching => &mut counts.attaching,
            Life::Serving => &mut counts.serving,
            Life::Changing => &mut counts.changing,
            Life::Failed(_) => &mut counts.failed,
        } += 1;
    }
    counts
}

fn failed<'a>(
    states: impl Iterator<Item = (&'a String, &'a Life)>,
    what: &str,
    access: Access,
) -> Vec<Failed> {
    let failed = states.filter_map(|(name, state)| {
        let Life::Failed(reason) = state else {
            return None;
        };
        let reason = match access {
            Access::Full => reason.clone(),
            // It names files, and whoever has an account may read this.
            Access::ReadOnly => format!("leafblk {what} show {name} says why"),
        };
        Some(Failed { name: name.clone(), reason })
    });
    failed.collect()
}

/// Show what the host does
///
/// Counters since the start of the daemon, or since a VM was attached or reverted.
#[utoipa::path(get, path = "/v1/stats", tag = "host", responses(
    (status = 200, description = "All values", body = HostStats),
    Unavailable,
))]
pub(super) async fn stats(State(app): State<App>) -> Result<Json<HostStats>, Problem> {
    let access = app.access();
    app.look(move |host| Ok(HostStats::of(host, access))).await.map(Json)
}

/// Show the same for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "host", responses(
    (status = 200, description = "Prometheus's text format 0.0.4", body = String,
        content_type = "text/plain"),
    Unavailable,
))]
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let access = app.access();
    let text = app.look(move |host| Ok(exposition::text(&HostStats::of(host, access)))).await?;
    let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// How many cells a map is to have.
pub(super) struct Cells(u32);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CellsForm {
    cells: Option<u32>,
}

impl<S: Send + Sync> FromRequestParts<S> for Cells {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let form = Query::<CellsForm>::from_request_parts(parts, state).await;
        let cells = form.ok().map(|Query(form)| form.cells.unwrap_or(CELLS_DEFAULT));
        cells.filter(|cells| (1..=CELLS_MAX).contains(cells)).map(Self).ok_or_else(|| {
            let sentence = format!("the query is cells=N, from 1 to {CELLS_MAX}, or nothing");
            Kind::BadRequest.because(sentence)
        })
    }
}

/// Show where a VM's sectors would come from
///
/// The disk in cells of equal size, each with the number of its sectors that
/// the leaf holds, that are cached, that would have to be read, that are zeros.
#[utoipa::path(get, path = "/v1/vms/{name}/map", tag = "vms",
    params(
        ("name" = VmName, Path, description = "The VM"),
        ("cells" = Option<u32>, Query, description = "How many cells, 1024 if left out",
            minimum = 1, maximum = 4096),
    ),
    responses(
        (status = 200, description = "The map", body = DiskMap),
        NoSuchVm,
        (status = 400, description = "The name can't be read, or not so many cells", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "The VM is not served", body = Problem,
            content_type = "application/problem+json"),
        Unavailable,
    ))]
pub(super) async fn map(
    State(app): State<App>,
    Name(name): Name,
    Cells(cells): Cells,
) -> Result<Json<DiskMap>, Problem> {
    // One at a time: it is memory that reactors want in the CPU's cache too.
    app.look_long(move |host| make_map(host, name, cells)).await.map(Json)
}

fn make_map(host: &Host, name: String, cells: u32) -> Result<DiskMap, HostError> {
    let view = host.vm(&name)?;
    let Some(vm) = view.vm else {
        return Err(match view.state {
            Life::Failed(reason) => HostError::NotServed { of: NameOf::Vm, name, reason },
            _ => HostError::Busy { of: NameOf::Vm, name, doing: "attached" },
        });
    };
    Ok(vm.disk().map(cells))
}
