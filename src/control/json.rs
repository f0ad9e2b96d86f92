//! What requests bring and answers carry: JSON bodies, names, queries. Each
//! mistake in them ends as a problem document.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{Kind, Problem};
use crate::daemon::{LeafChoice, LeafFate};

/// An answer in JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(mut bytes) => {
                // A line, for terminals.
                bytes.push(b'\n');
                let kind = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, kind)], bytes).into_response()
            }
            Err(error) => {
                // Our own types: only a bug could make one unwritable.
                let (_, status, title) = Kind::Failed.about();
                log::error!("an answer can't be written as JSON: {error}");
                (status, title).into_response()
            }
        }
    }
}

/// A JSON body, read within the server's bounds of size and time. Its
/// Content-Type is not looked at, so that plain `curl -d` works.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let bytes = read_body(request.into_body(), app).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Kind::Invalid
                .because(format!("the body doesn't fit ({error}); docs/control.md has the keys")),
            _ => Kind::BadRequest
                .because(format!("the body is no JSON ({error}); send one JSON object")),
        })
    }
}

async fn read_body(body: Body, app: &App) -> Result<Vec<u8>, Problem> {
    let bounds = app.bounds();
    let whole = Limited::new(body, bounds.body_bytes_max).collect();
    let collected = tokio::time::timeout(bounds.body_time_max, whole).await.map_err(|_| {
        let seconds = bounds.body_time_max.as_secs_f32();
        Kind::Timeout.because(format!("the body is not there after {seconds} s; send it at once"))
    })?;
    match collected {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let most = bounds.body_bytes_max;
            Err(Kind::BodyTooLarge.because(format!("a body has at most {most} bytes; send less")))
        }
        Err(error) => Err(Kind::BadRequest.because(format!("the body can't be read: {error}"))),
    }
}

/// The name in a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|error| Kind::BadRequest.because(error))
    }
}

/// Which leaf a VM is to have: `?leaf=new`, `?leaf=accept` or nothing.
pub(super) struct Leaf(pub(super) LeafChoice);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafForm {
    #[serde(default)]
    leaf: Option<LeafWord>,
}

/// Which leaf an attached VM is to have.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LeafChoice)]
pub(super) enum LeafWord {
    /// A new one; none may be there.
    New,
    /// The one that is there, though the VM had another.
    Accept,
}

impl<S: Send + Sync> FromRequestParts<S> for Leaf {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let form = Query::<LeafForm>::from_request_parts(parts, state).await;
        let word = form.map(|Query(form)| form.leaf).map_err(|error| {
            Kind::BadRequest
                .because(format!("{error}; the query is leaf=new, leaf=accept or nothing"))
        })?;
        Ok(Self(match word {
            Some(LeafWord::New) => LeafChoice::New,
            Some(LeafWord::Accept) => LeafChoice::Accept,
            None => LeafChoice::Remembered,
        }))
    }
}

/// Whether `?force=true` was said.
pub(super) struct Force(pub(super) bool);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForceForm {
    #[serde(default)]
    force: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Force {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let form = Query::<ForceForm>::from_request_parts(parts, state).await;
        form.map(|Query(form)| Self(form.force)).map_err(|error| {
            Kind::BadRequest.because(format!("{error}; the query is force=true or nothing"))
        })
    }
}

/// How a VM is detached: `?force=true`, `?leaf=delete`, both or nothing.
pub(super) struct Detach {
    pub(super) force: bool,
    pub(super) leaf: LeafFate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetachForm {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    leaf: Option<FateWord>,
}

/// What becomes of the leaf of a VM that is detached.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LeafFate)]
pub(super) enum FateWord {
    /// It is deleted.
    Delete,
}

impl<S: Send + Sync> FromRequestParts<S> for Detach {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let form = Query::<DetachForm>::from_request_parts(parts, state).await;
        let Query(DetachForm { force, leaf }) = form.map_err(|error| {
            Kind::BadRequest
                .because(format!("{error}; the query is force=true, leaf=delete, both or nothing"))
        })?;
        let leaf = leaf.map_or(LeafFate::Keep, |FateWord::Delete| LeafFate::Delete);
        Ok(Self { force, leaf })
    }
}

/// Whether `?renew=true` was said.
pub(super) struct Renew(pub(super) bool);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewForm {
    #[serde(default)]
    renew: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Renew {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let form = Query::<RenewForm>::from_request_parts(parts, state).await;
        form.map(|Query(form)| Self(form.renew)).map_err(|error| {
            Kind::BadRequest.because(format!("{error}; the query is renew=true or nothing"))
        })
    }
}
