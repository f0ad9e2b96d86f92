//! `/v1/roots/{name}/verify`: whether a root is what it was.

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::json::{Json, Name, Renew};
use super::problem::Problem;
use super::responses::{BadQuery, Failed, NoSuchRoot, Unavailable};
use crate::config::schemas::RootName;
use crate::daemon::verify::{Outcome, Recorded, VerificationView};

/// The verification of a root: all of it is read.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Verification {
    /// What has come of it.
    pub outcome: VerificationOutcome,
    /// Bytes read so far.
    pub read_bytes: u64,
    /// Bytes of the root.
    pub size: u64,
    /// The digest that was found: SHA-256 of the whole image.
    pub digest: Option<String>,
    /// A sentence on it.
    pub detail: String,
}

/// What has come of a verification.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerificationOutcome {
    /// None was begun since leafblk was started.
    None,
    /// It is under way.
    Running,
    /// The digest is recorded from now on.
    Recorded,
    /// The content is that of the recorded digest.
    Same,
    /// The content is not that of the recorded digest.
    Differs,
    /// It could not be done.
    Failed,
    /// It was called off.
    CalledOff,
}

impl From<Outcome> for VerificationOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::None => Self::None,
            Outcome::Running => Self::Running,
            Outcome::Recorded => Self::Recorded,
            Outcome::Same => Self::Same,
            Outcome::Differs => Self::Differs,
            Outcome::Failed => Self::Failed,
            Outcome::CalledOff => Self::CalledOff,
        }
    }
}

impl From<VerificationView> for Verification {
    fn from(view: VerificationView) -> Self {
        let VerificationView { outcome, read_bytes, size_bytes, digest, sentence } = view;
        Self { outcome: outcome.into(), read_bytes, size: size_bytes, digest, detail: sentence }
    }
}

/// Verify a root
///
/// Begins to read all of it. The digest is compared with the one that is recorded, or
/// recorded if none is. One root at a time; it goes on whoever hangs up.
#[utoipa::path(post, path = "/v1/roots/{name}/verify", tag = "roots",
    params(
        ("name" = RootName, Path, description = "The root"),
        ("renew" = Option<bool>, Query,
            description = "Record the digest that is found, whatever is recorded"),
    ),
    responses(
        (status = 202, description = "It is under way", body = Verification),
        BadQuery,
        NoSuchRoot,
        (status = 409, description = "A root is being verified, or this one is not served",
            body = Problem, content_type = "application/problem+json"),
        Failed,
        Unavailable,
    ))]
pub(super) async fn begin(
    Extract(app): Extract<App>,
    Name(name): Name,
    Renew(renew): Renew,
) -> Result<Response, Problem> {
    let recorded = if renew { Recorded::Replaced } else { Recorded::Compared };
    let view = app.change(move |host| host.verify_root(&name, recorded)).await?;
    Ok((StatusCode::ACCEPTED, Json(Verification::from(view))).into_response())
}

/// Show the verification of a root
///
/// The one that is under way, or the last since leafblk was started.
#[utoipa::path(get, path = "/v1/roots/{name}/verify", tag = "roots",
    params(("name" = RootName, Path, description = "The root")),
    responses(
        (status = 200, description = "How far it is, or how it ended", body = Verification),
        NoSuchRoot,
        (status = 409, description = "The root is not served", body = Problem,
            content_type = "application/problem+json"),
        Unavailable,
    ))]
pub(super) async fn show(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<Json<Verification>, Problem> {
    app.look(move |host| host.verification(&name).map(Verification::from)).await.map(Json)
}

/// Call the verification of a root off
///
/// If none is under way, nothing happens.
#[utoipa::path(delete, path = "/v1/roots/{name}/verify", tag = "roots",
    params(("name" = RootName, Path, description = "The root")),
    responses(
        (status = 204, description = "It ends after what it is reading"),
        NoSuchRoot,
        (status = 409, description = "The root is not served", body = Problem,
            content_type = "application/problem+json"),
        Unavailable,
    ))]
pub(super) async fn call_off(
    Extract(app): Extract<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.look(move |host| host.call_off_verification(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
