//! `/v1/vms`.

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::json::{Force, Json, JsonBody, Name};
use super::problem::Problem;
use super::responses::{BadBody, BadQuery, Failed, NoSuchRoot, NoSuchVm, Unavailable};
use super::vm_info::{ResizeRequest, ResizeResult, VmInfo};
use crate::config::forms::VmForm;

/// List VMs
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses(
    (status = 200, description = "All VMs, by name", body = [VmInfo]),
    Unavailable,
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
    BadBody,
    NoSuchRoot,
    (status = 409, description = "The name is taken, or the root is not served", body = Problem,
        content_type = "application/problem+json"),
    (status = 422, description = "A value breaks its rule, or doesn't fit what is on disk",
        body = Problem, content_type = "application/problem+json"),
    Failed,
    Unavailable,
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
        NoSuchVm,
        Unavailable,
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
        BadQuery,
        NoSuchVm,
        (status = 409, description = "A client is connected, or another change is under way",
            body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "It is detached, but not all went well", body = Problem,
            content_type = "application/problem+json"),
        Unavailable,
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
        BadQuery,
        NoSuchVm,
        (status = 409, description = "A client is connected, or the VM has no leaf",
            body = Problem, content_type = "application/problem+json"),
        Failed,
        Unavailable,
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
        BadBody,
        NoSuchVm,
        (status = 409, description = "It has no leaf, or its size is the configuration's",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It would shrink, or the size can't be had",
            body = Problem, content_type = "application/problem+json"),
        Failed,
        Unavailable,
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
        NoSuchVm,
        (status = 409, description = "Another change is under way", body = Problem,
            content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn flush(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.change(move |host| host.flush(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
