//! `/v1/vms`.

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::json::{Force, Json, JsonBody, Name};
use super::problem::Problem;
use crate::config::forms::{Size, SizeForm, VmForm};
use crate::daemon::{self, VmView};
use crate::disk::{Counters, Disk};
use crate::metrics::Operation;
use crate::units::SECTOR_SIZE;
use crate::vhost_user;

/// A VM.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Who wanted it.
    pub origin: Origin,
    /// What is being done to it.
    pub state: State,
    /// Why it could not be attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The name of its root.
    pub root: String,
    /// Size of its disk; null while that is not known.
    pub size_bytes: Option<u64>,
    /// Its leaf.
    pub leaf: String,
    /// Its vhost-user socket.
    pub socket: String,
    /// Its virtqueues.
    pub queues: u16,
    /// The guest may not write.
    pub readonly: bool,
    /// The leaf is thrown away when it is detached.
    pub ephemeral: bool,
    /// Whether a client (its hypervisor) is connected.
    pub connected: bool,
    /// Clients that have connected since it was attached or reset.
    pub connections: u64,
    /// The reactor that serves it.
    pub reactor: Option<usize>,
    /// Bytes that its leaf holds: what this VM has changed.
    pub leaf_held_bytes: Option<u64>,
    /// Bytes that its leaf occupies on its disk.
    pub leaf_allocated_bytes: Option<u64>,
    /// Writing its leaf to disk has failed: nothing is accepted any more.
    pub poisoned: bool,
    /// What it did since it was attached or reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<VmCounters>,
}

/// Who wanted a VM or a root.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file or a flag.
    Configuration,
    /// This API.
    Api,
}

impl From<daemon::Origin> for Origin {
    fn from(origin: daemon::Origin) -> Self {
        match origin {
            daemon::Origin::Configuration => Self::Configuration,
            daemon::Origin::Api => Self::Api,
        }
    }
}

/// What is being done to a VM or a root.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being attached.
    Attaching,
    /// In use.
    Serving,
    /// Being detached or reset.
    Changing,
    /// Wanted, but it could not be attached: `reason` says why.
    Failed,
}

impl State {
    /// The state, and the reason where it is failed.
    pub(super) fn of(state: daemon::State) -> (Self, Option<String>) {
        match state {
            daemon::State::Attaching => (Self::Attaching, None),
            daemon::State::Serving => (Self::Serving, None),
            daemon::State::Changing => (Self::Changing, None),
            daemon::State::Failed(reason) => (Self::Failed, Some(reason)),
        }
    }
}

/// What a VM did.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct VmCounters {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard requests.
    pub discards: u64,
    /// Write-zeroes requests.
    pub write_zeroes: u64,
    /// What went wrong: requests that failed, and devices that were stopped.
    pub errors: u64,
    /// Bytes read from its leaf.
    pub read_bytes_leaf: u64,
    /// Bytes read from the cache.
    pub read_bytes_cache: u64,
    /// Bytes read from the root.
    pub read_bytes_root: u64,
    /// Bytes that were zeros without being read.
    pub read_bytes_zero: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

impl From<&Counters> for VmCounters {
    fn from(counters: &Counters) -> Self {
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_SIZE);
        let requests = |operation| counters.latency(operation).count();
        Self {
            reads: requests(Operation::Read),
            writes: requests(Operation::Write),
            flushes: requests(Operation::Flush),
            discards: requests(Operation::Discard),
            write_zeroes: requests(Operation::WriteZeroes),
            errors: counters.all_errors(),
            read_bytes_leaf: bytes(counters.read_sectors_leaf.get()),
            read_bytes_cache: bytes(counters.read_sectors_cache.get()),
            read_bytes_root: bytes(counters.read_sectors_root.get()),
            read_bytes_zero: bytes(counters.read_sectors_zero.get()),
            written_bytes: bytes(counters.written_sectors.get()),
        }
    }
}

impl From<VmView> for VmInfo {
    fn from(view: VmView) -> Self {
        let VmView { config, origin, state, vm, reactor } = view;
        let (state, reason) = State::of(state);
        let disk: Option<&Disk> = vm.as_ref().map(|vm| &**vm.disk());
        let leaf = disk.and_then(|disk| disk.leaf());
        Self {
            name: config.name,
            origin: origin.into(),
            state,
            reason,
            root: config.root,
            size_bytes: disk.map(|disk| disk.sectors() * SECTOR_SIZE).or(config.size),
            leaf: config.leaf.to_string_lossy().into(),
            socket: config.socket.to_string_lossy().into(),
            queues: config.queues,
            readonly: disk.map_or(config.readonly, Disk::is_read_only),
            ephemeral: config.ephemeral,
            connected: vm.as_ref().is_some_and(|vm| vm.link().is_connected()),
            connections: disk.map_or(0, |disk| disk.counters().connections.get()),
            reactor,
            leaf_held_bytes: leaf.map(|leaf| leaf.present_sectors() * SECTOR_SIZE),
            leaf_allocated_bytes: leaf.and_then(|leaf| leaf.allocated_bytes().ok()),
            poisoned: leaf.is_some_and(|leaf| leaf.is_poisoned()),
            counters: disk.map(|disk| VmCounters::from(disk.counters())),
        }
    }
}

/// A new size.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// The size of the disk, not less than it is now.
    #[schema(value_type = Size)]
    pub size: SizeForm,
}

/// What a resize did.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ResizeResult {
    /// The VM afterwards.
    pub vm: VmInfo,
    /// Who was told of the new size.
    pub told: Told,
}

/// Who was told of a new size.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The client, which tells its guest.
    Client,
    /// Nobody: no client is connected.
    Nobody,
    /// Nobody: the client can't be told. It sees the size when it connects
    /// again.
    NotPossible,
}

impl From<vhost_user::Told> for Told {
    fn from(told: vhost_user::Told) -> Self {
        match told {
            vhost_user::Told::Frontend => Self::Client,
            vhost_user::Told::Nobody => Self::Nobody,
            vhost_user::Told::NotPossible => Self::NotPossible,
        }
    }
}

/// List VMs
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses(
    (status = 200, description = "All VMs, by name", body = [VmInfo]),
))]
pub(super) async fn list(Extract(app): Extract<App>) -> Result<Json<Vec<VmInfo>>, Problem> {
    app.look(|host| Ok(host.vms().into_iter().map(VmInfo::from).collect())).await.map(Json)
}

/// Attach a VM
///
/// It is there until it is detached, also after a restart of leafblk or of the
/// host. Its leaf is created if it does not exist and used again if it does.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmForm, responses(
    (status = 201, description = "Attached", body = VmInfo,
        headers(("Location" = String, description = "The VM's path"))),
    (status = 400, description = "No JSON", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There is no such root", body = Problem,
        content_type = "application/problem+json"),
    (status = 408, description = "The body came too slowly", body = Problem,
        content_type = "application/problem+json"),
    (status = 409, description = "The name is taken, or the root is not served", body = Problem,
        content_type = "application/problem+json"),
    (status = 413, description = "The body is too large", body = Problem,
        content_type = "application/problem+json"),
    (status = 422, description = "A value breaks its rule, or doesn't fit what is on disk",
        body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "It failed", body = Problem,
        content_type = "application/problem+json"),
    (status = 503, description = "leafblk is stopping or too busy", body = Problem,
        content_type = "application/problem+json"),
))]
pub(super) async fn attach(
    Extract(app): Extract<App>,
    JsonBody(form): JsonBody<VmForm>,
) -> Result<Response, Problem> {
    let view = app.change(|host| host.attach(form.into_entry()?)).await?;
    let location = [(header::LOCATION, format!("/v1/vms/{}", view.config.name))];
    Ok((StatusCode::CREATED, location, Json(VmInfo::from(view))).into_response())
}

/// Show a VM
#[utoipa::path(get, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "The VM", body = VmInfo),
        (status = 404, description = "There is no such VM", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<VmInfo>, Problem> {
    app.look(move |host| host.vm(&name).map(VmInfo::from)).await.map(Json)
}

/// Detach a VM
///
/// What it has written is made durable, its leaf is closed (an ephemeral one is
/// thrown away) and its socket removed. A VM of the configuration comes back
/// with the next start or reload.
#[utoipa::path(delete, path = "/v1/vms/{name}", tag = "vms",
    params(
        ("name" = String, Path, description = "The VM"),
        ("force" = Option<bool>, Query, description = "Cut off a client that is connected"),
    ),
    responses(
        (status = 204, description = "Detached"),
        (status = 400, description = "The query can't be read", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "There is no such VM", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "A client is connected, or another change is under way",
            body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "It is detached, but not all went well", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "leafblk is stopping or too busy", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(super) async fn detach(
    Extract(app): Extract<App>,
    Name(name): Name,
    Force(force): Force,
) -> Result<StatusCode, Problem> {
    app.change(move |host| host.detach(&name, force)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reset a VM to its root
///
/// Every change that the VM has made is discarded.
#[utoipa::path(post, path = "/v1/vms/{name}/reset", tag = "vms",
    params(
        ("name" = String, Path, description = "The VM"),
        ("force" = Option<bool>, Query, description = "Cut off a client that is connected"),
    ),
    responses(
        (status = 200, description = "The VM, its leaf empty", body = VmInfo),
        (status = 400, description = "The query can't be read", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "There is no such VM", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "A client is connected, or the VM has no leaf",
            body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "It failed", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "leafblk is stopping or too busy", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(super) async fn reset(
    Extract(app): Extract<App>,
    Name(name): Name,
    Force(force): Force,
) -> Result<Json<VmInfo>, Problem> {
    app.change(move |host| host.reset(&name, force).map(VmInfo::from)).await.map(Json)
}

/// Make a VM's disk larger
///
/// While it runs: its guest sees the new size if its client can be told. The
/// new sectors read as the root's, and as zeros beyond its end.
#[utoipa::path(post, path = "/v1/vms/{name}/resize", tag = "vms",
    params(("name" = String, Path, description = "The VM")),
    request_body = ResizeRequest,
    responses(
        (status = 200, description = "It has that size", body = ResizeResult),
        (status = 400, description = "No JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "There is no such VM", body = Problem,
            content_type = "application/problem+json"),
        (status = 408, description = "The body came too slowly", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "It has no leaf, or its size is the configuration's",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "It would shrink, or the size can't be had",
            body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "It failed", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "leafblk is stopping or too busy", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(super) async fn resize(
    Extract(app): Extract<App>,
    Name(name): Name,
    JsonBody(request): JsonBody<ResizeRequest>,
) -> Result<Json<ResizeResult>, Problem> {
    let resized = app.change(move |host| host.resize(&name, request.size.0)).await?;
    Ok(Json(ResizeResult { vm: resized.vm.into(), told: resized.told.into() }))
}

/// Flush a VM
///
/// Everything that its guest has written is durable when this returns.
#[utoipa::path(post, path = "/v1/vms/{name}/flush", tag = "vms",
    params(("name" = String, Path, description = "The VM")),
    responses(
        (status = 204, description = "Flushed"),
        (status = 404, description = "There is no such VM", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "Another change is under way", body = Problem,
            content_type = "application/problem+json"),
        (status = 500, description = "It failed", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "leafblk is stopping or too busy", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(super) async fn flush(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.change(move |host| host.flush(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
