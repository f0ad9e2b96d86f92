//! `/v1/roots`.

use std::fmt::Write;

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
use crate::daemon::RootView;

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
    /// Its size; null while that is not known.
    pub size_bytes: Option<u64>,
    /// By which leaves recognise it: SHA-256 over its length and samples.
    pub fingerprint: Option<String>,
    /// Whether it is read past the page cache.
    pub direct: bool,
    /// The VMs that have it.
    pub vms: Vec<String>,
}

impl From<RootView> for RootInfo {
    fn from(view: RootView) -> Self {
        let RootView { config, origin, state, root, users } = view;
        let (state, reason) = State::of(state);
        let root = root.as_ref().map(|root| root.root());
        Self {
            name: config.name,
            origin: origin.into(),
            state,
            reason,
            path: config.path.to_string_lossy().into(),
            size_bytes: root.map(|root| root.len_bytes()),
            fingerprint: root.map(|root| hex(&root.identity().fingerprint)),
            direct: root.is_some_and(|root| root.is_direct()),
            vms: users,
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
    app.look(|host| Ok(host.roots().into_iter().map(RootInfo::from).collect())).await.map(Json)
}

/// Add a root
///
/// It is there until it is removed, also after a restart of leafblk or of the
/// host.
#[utoipa::path(post, path = "/v1/roots", tag = "roots", request_body = RootForm, responses(
    (status = 201, description = "Added", body = RootInfo,
        headers(("Location" = String, description = "The root's path"))),
    BadBody,
    (status = 409, description = "The name is taken", body = Problem,
        content_type = "application/problem+json"),
    (status = 422, description = "A value breaks its rule, or the image can't be used",
        body = Problem, content_type = "application/problem+json"),
    Failed,
    Unavailable,
))]
pub(super) async fn add(
    Extract(app): Extract<App>,
    JsonBody(form): JsonBody<RootForm>,
) -> Result<Response, Problem> {
    let view = app.change(|host| host.add_root(&form.into_entry()?)).await?;
    let location = [(header::LOCATION, format!("/v1/roots/{}", view.config.name))];
    Ok((StatusCode::CREATED, location, Json(RootInfo::from(view))).into_response())
}

/// Show a root
#[utoipa::path(get, path = "/v1/roots/{name}", tag = "roots",
    params(("name" = String, Path, description = "The root")),
    responses(
        (status = 200, description = "The root", body = RootInfo),
        NoSuchRoot,
        Unavailable,
    ))]
pub(super) async fn show(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<RootInfo>, Problem> {
    app.look(move |host| host.root(&name).map(RootInfo::from)).await.map(Json)
}

/// Remove a root
///
/// Refused while a VM has it. A root of the configuration comes back with the
/// next start or reload.
#[utoipa::path(delete, path = "/v1/roots/{name}", tag = "roots",
    params(("name" = String, Path, description = "The root")),
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
