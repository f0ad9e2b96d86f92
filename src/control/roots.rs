//! `/v1/roots`.

use std::fmt::Write;
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::json::{Json, JsonBody, Name};
use super::problem::Problem;
use super::responses::{BadBody, Failed, NoSuchRoot, Unavailable};
use super::vm_info::{Origin, State};
use crate::config::forms::RootForm;
use crate::config::schemas::RootName;
use crate::config::{RootConfig, RootFormat};
use crate::daemon::{Host, RootView};

/// A root.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct RootInfo {
    /// Its name.
    pub name: String,
    /// Who wanted it.
    pub origin: Origin,
    /// What is being done to it.
    pub state: State,
    /// Why it could not be added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The image.
    pub path: String,
    /// What it is, where that was declared; null where its first bytes were looked at.
    pub format: Option<RootFormat>,
    /// Its size; null while that is not known.
    pub size: Option<u64>,
    /// By which leaves recognise it: SHA-256 over its length and samples.
    pub fingerprint: Option<String>,
    /// Whether it is read past the page cache.
    pub direct: bool,
    /// The VMs that have it.
    pub vms: Vec<String>,
    /// Whether its file has changed since it was recorded, though its samples have not.
    #[serde(default)]
    pub changed: bool,
    /// SHA-256 of all of it, as it was last verified; null if it was not.
    #[serde(default)]
    pub digest: Option<String>,
    /// When it was last verified and found right, in seconds since 1970.
    #[serde(default)]
    pub verified_at: Option<u64>,
    /// What is wrong with it now, a sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl From<RootView> for RootInfo {
    fn from(view: RootView) -> Self {
        let (problems, changed) = (view.problems(), view.is_changed());
        let (digest, verified_at) = view.verified().unzip();
        let RootView { config, origin, state, root, users, .. } = view;
        let (state, reason) = State::of(state);
        let root = root.as_ref().map(|root| root.root());
        Self {
            name: config.name,
            origin: origin.into(),
            state,
            reason,
            path: config.path.to_string_lossy().into(),
            format: config.format,
            size: root.map(|root| root.len_bytes()),
            fingerprint: root.map(|root| hex(&root.identity().fingerprint)),
            direct: root.is_some_and(|root| root.is_direct()),
            vms: users,
            changed,
            digest,
            verified_at,
            problems,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// List roots
#[utoipa::path(get, path = "/v1/roots", tag = "roots", responses(
    (status = 200, description = "All roots, by name", body = [RootInfo]),
    Unavailable,
))]
pub(super) async fn list(Extract(app): Extract<App>) -> Result<Json<Vec<RootInfo>>, Problem> {
    let list = app.look(|host| {
        let views = host.roots();
        host.look_at_roots(&views, Duration::ZERO);
        Ok(views.into_iter().map(RootInfo::from).collect())
    });
    list.await.map(Json)
}

/// Add a root
///
/// It is there until it is removed, also after a restart of leafblk or of the
/// host.
#[utoipa::path(post, path = "/v1/roots", tag = "roots", request_body = RootForm, responses(
    (status = 201, description = "Added", body = RootInfo,
        headers(("Location" = String, description = "The root's path"))),
    BadBody,
    (status = 409, description = "The name is taken, or the image can't be used", body = Problem,
        content_type = "application/problem+json"),
    Failed,
    Unavailable,
))]
pub(super) async fn add(
    Extract(app): Extract<App>,
    JsonBody(form): JsonBody<RootForm>,
) -> Result<Response, Problem> {
    let add = |host: &Host| {
        // First, as a path may also make no name.
        RootConfig::check(form.name.as_deref(), &form.path)?;
        host.add_root(&form.into_entry()?)
    };
    let view = app.change(add).await?;
    let location = [(header::LOCATION, format!("/v1/roots/{}", view.config.name))];
    Ok((StatusCode::CREATED, location, Json(RootInfo::from(view))).into_response())
}

/// Show a root
#[utoipa::path(get, path = "/v1/roots/{name}", tag = "roots",
    params(("name" = RootName, Path, description = "The root")),
    responses(
        (status = 200, description = "The root", body = RootInfo),
        NoSuchRoot,
        Unavailable,
    ))]
pub(super) async fn show(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<RootInfo>, Problem> {
    let show = app.look(move |host| {
        let view = host.root(&name)?;
        host.look_at_roots(std::slice::from_ref(&view), Duration::ZERO);
        Ok(RootInfo::from(view))
    });
    show.await.map(Json)
}

/// Remove a root
///
/// Refused while a VM has it. A root of the configuration comes back with the
/// next start or reload.
#[utoipa::path(delete, path = "/v1/roots/{name}", tag = "roots",
    params(("name" = RootName, Path, description = "The root")),
    responses(
        (status = 204, description = "Removed"),
        NoSuchRoot,
        (status = 409, description = "VMs have it, or another change is under way",
            body = Problem, content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn remove(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.change(move |host| host.remove_root(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
