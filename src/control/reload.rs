//! `/v1/reload`.

use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::json::Json;
use super::problem::Problem;
use super::responses::Unavailable;
use crate::daemon::{Reloaded, ReloadedPart};

/// How a reload of the configuration went.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ReloadResult {
    /// When it was done, in seconds since 1970.
    pub at: u64,
    /// Whether nothing failed.
    pub successful: bool,
    /// Roots and VMs that are served now, and were not before.
    pub added: Vec<ReloadPart>,
    /// Roots and VMs that are not there any more.
    pub removed: Vec<ReloadPart>,
    /// What is another way now.
    pub changed: Vec<ReloadPart>,
    /// What the configuration says and is not so yet: what has to happen first, such as a
    /// restart.
    pub pending: Vec<ReloadPart>,
    /// What the configuration says and can't be had, with the reason.
    pub failed: Vec<ReloadPart>,
}

/// A part of the configuration.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ReloadPart {
    /// What it is: `root`, `VM`, `setting`, `state directory`; `configuration` for all of
    /// it.
    pub part: String,
    /// Its name; empty where there is only one.
    pub name: String,
    /// What there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// All of that in a sentence.
    pub sentence: String,
}

impl From<&ReloadedPart> for ReloadPart {
    fn from(part: &ReloadedPart) -> Self {
        Self {
            part: part.subject.to_string(),
            name: part.name.clone(),
            detail: part.detail.clone(),
            sentence: part.to_string(),
        }
    }
}

impl From<&Reloaded> for ReloadResult {
    fn from(reloaded: &Reloaded) -> Self {
        let parts = |parts: &[ReloadedPart]| parts.iter().map(ReloadPart::from).collect();
        Self {
            at: reloaded.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            successful: reloaded.is_successful(),
            added: parts(&reloaded.added),
            removed: parts(&reloaded.removed),
            changed: parts(&reloaded.changed),
            pending: parts(&reloaded.pending),
            failed: parts(&reloaded.failed),
        }
    }
}

/// Reload the configuration
///
/// Reads the configuration file again, with the flags that leafblk was started with, as
/// SIGHUP does, and answers when that is done. A file with a mistake changes nothing.
#[utoipa::path(post, path = "/v1/reload", tag = "host", responses(
    (status = 200, description = "Nothing failed", body = ReloadResult),
    (status = 409, description = "Something failed: `failed` says what and why; the rest is as \
        the configuration says", body = ReloadResult),
    Unavailable,
))]
pub(super) async fn reload(State(app): State<App>) -> Result<Response, Problem> {
    let result = app.change(|host| Ok(ReloadResult::from(&*host.request_reload()?))).await?;
    let status = if result.successful { StatusCode::OK } else { StatusCode::CONFLICT };
    Ok((status, Json(result)).into_response())
}
