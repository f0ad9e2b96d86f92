//! `/v1/vms`.

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::json::{Detach, FateWord, Force, Json, JsonBody, Leaf, LeafWord, Name};
use super::problem::Problem;
use super::responses::{BadBody, BadQuery, Failed, NoSuchRootInBody, NoSuchVm, Unavailable};
use super::vm_info::{ResizeRequest, ResizeResult, VmInfo};
use crate::config::forms::VmForm;
use crate::config::schemas::VmName;
use crate::daemon::LeafChoice;

/// List VMs
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses(
    (status = 200, description = "All VMs, by name", body = [VmInfo]),
    Unavailable,
))]
pub(super) async fn list(Extract(app): Extract<App>) -> Result<Json<Vec<VmInfo>>, Problem> {
    let list = app.look(|host| {
        let views = host.vms();
        // What their leaves occupy.
        host.file_systems(&views);
        Ok(views.into_iter().map(VmInfo::from).collect())
    });
    list.await.map(Json)
}

/// Attach a VM
///
/// It is there until it is detached, also after a restart of leafblk or of the
/// host. Its leaf is created if it never had one and none is there; else the one that it
/// had is used again. Where that is missing, or another one is in its place, it is not
/// attached, unless `leaf` says which one is meant.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmForm, params(
    ("leaf" = Option<LeafWord>, Query, description = "Which leaf, if not the one that it had"),
), responses(
    (status = 201, description = "Attached", body = VmInfo,
        headers(("Location" = String, description = "The VM's path"))),
    BadBody,
    NoSuchRootInBody,
    (status = 409, description = "The name is taken, the root is not served, or what is asked for \
        doesn't fit the files and VMs that there are: its leaf is missing, say", body = Problem,
        content_type = "application/problem+json"),
    Failed,
    Unavailable,
))]
pub(super) async fn attach(
    Extract(app): Extract<App>,
    Leaf(choice): Leaf,
    JsonBody(form): JsonBody<VmForm>,
) -> Result<Response, Problem> {
    let view = app.change(move |host| host.attach(form.into_entry()?, choice)).await?;
    let location = [(header::LOCATION, format!("/v1/vms/{}", view.config.name))];
    Ok((StatusCode::CREATED, location, Json(VmInfo::from(view))).into_response())
}

/// Show a VM
#[utoipa::path(get, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM")),
    responses(
        (status = 200, description = "The VM", body = VmInfo),
        NoSuchVm,
        Unavailable,
    ))]
pub(super) async fn show(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<VmInfo>, Problem> {
    let show = app.look(move |host| {
        let view = host.vm(&name)?;
        host.file_systems(std::slice::from_ref(&view));
        Ok(VmInfo::from(view))
    });
    show.await.map(Json)
}

/// Detach a VM
///
/// What it has written is made durable, its leaf is closed (an ephemeral one is
/// thrown away) and its socket removed. With `leaf=delete` the leaf is deleted, for good.
/// A VM of the configuration comes back with the next start or reload.
#[utoipa::path(delete, path = "/v1/vms/{name}", tag = "vms",
    params(
        ("name" = VmName, Path, description = "The VM"),
        ("force" = Option<bool>, Query, description = "Cut off a client that is connected"),
        ("leaf" = Option<FateWord>, Query, description = "What becomes of its leaf, if it is not kept"),
    ),
    responses(
        (status = 204, description = "Detached"),
        NoSuchVm,
        BadQuery,
        (status = 409, description = "A client is connected, another change is under way, or the \
            VM has no leaf that could be deleted", body = Problem,
            content_type = "application/problem+json"),
        (status = 500, description = "It is detached, but not all went well", body = Problem,
            content_type = "application/problem+json"),
        Unavailable,
    ))]
pub(super) async fn detach(
    Extract(app): Extract<App>,
    Name(name): Name,
    Detach { force, leaf }: Detach,
) -> Result<StatusCode, Problem> {
    app.change(move |host| host.detach(&name, force, leaf)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give a failed VM a new leaf
///
/// For a VM that is not served because its leaf is missing: one is made, and the VM is
/// served.
#[utoipa::path(post, path = "/v1/vms/{name}/new-leaf", tag = "vms",
    params(("name" = VmName, Path, description = "The VM")),
    responses(
        (status = 200, description = "The VM, served with a new leaf", body = VmInfo),
        NoSuchVm,
        (status = 409, description = "It is served, a leaf is there, or another change is under way",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A file or socket can't be used that way", body = Problem,
            content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn new_leaf(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<VmInfo>, Problem> {
    choose_leaf(app, name, LeafChoice::New).await
}

/// Accept the leaf of a failed VM
///
/// For a VM that is not served because another leaf than its own is in its place: that
/// leaf is the VM's from now on, and the VM is served.
#[utoipa::path(post, path = "/v1/vms/{name}/accept-leaf", tag = "vms",
    params(("name" = VmName, Path, description = "The VM")),
    responses(
        (status = 200, description = "The VM, served with that leaf", body = VmInfo),
        NoSuchVm,
        (status = 409, description = "It is served, no leaf is there, or another change is under way",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A file or socket can't be used that way", body = Problem,
            content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn accept_leaf(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<VmInfo>, Problem> {
    choose_leaf(app, name, LeafChoice::Accept).await
}

async fn choose_leaf(app: App, name: String, choice: LeafChoice) -> Result<Json<VmInfo>, Problem> {
    app.change(move |host| host.choose_leaf(&name, choice).map(VmInfo::from)).await.map(Json)
}

/// Revert a VM's disk to its root
///
/// Every change that the VM has made is discarded. A guest that runs with the disk as it
/// was is kept out: the next client has to be one that starts its guest anew.
#[utoipa::path(post, path = "/v1/vms/{name}/revert", tag = "vms",
    params(
        ("name" = VmName, Path, description = "The VM"),
        ("force" = Option<bool>, Query, description = "Cut off a client that is connected"),
    ),
    responses(
        (status = 200, description = "The VM, its leaf empty", body = VmInfo),
        NoSuchVm,
        BadQuery,
        (status = 409, description = "A client is connected, or the VM has no leaf",
            body = Problem, content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn revert(
    Extract(app): Extract<App>,
    Name(name): Name,
    Force(force): Force,
) -> Result<Json<VmInfo>, Problem> {
    app.change(move |host| host.revert(&name, force).map(VmInfo::from)).await.map(Json)
}

/// Make a VM's disk larger
///
/// While it runs: its guest sees the new size if its client can be told. The
/// new sectors read as the root's, and as zeros beyond its end.
#[utoipa::path(post, path = "/v1/vms/{name}/resize", tag = "vms",
    params(("name" = VmName, Path, description = "The VM")),
    request_body = ResizeRequest,
    responses(
        (status = 200, description = "It has that size", body = ResizeResult),
        NoSuchVm,
        BadBody,
        (status = 409, description = "It has no leaf, its size is the configuration's, it would \
            shrink, or the size can't be had",
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
    params(("name" = VmName, Path, description = "The VM")),
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
