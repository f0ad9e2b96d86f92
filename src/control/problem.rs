//! Errors as RFC 9457 problem documents.
//!
//! A problem's `type` is a path of this API where its kind is described, its
//! `detail` the same sentence that the command line prints.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::json::Json;
use crate::config::UsageError;
use crate::config::limits::SOCKET_PATH_LEN_MAX;
use crate::daemon::{HostError, LeafProblem};
use crate::error::Refusal;

/// The path under which the kinds are described.
pub(super) const TYPES: &str = "/v1/problems";

/// The kinds' paths.
pub(super) struct ProblemType;

impl PartialSchema for ProblemType {
    fn schema() -> RefOr<Schema> {
        let paths = Kind::ALL.map(|kind| format!("{TYPES}/{}", kind.about().0));
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(paths));
        schema.description(Some("A path of this API that describes a kind of problem.")).into()
    }
}

impl ToSchema for ProblemType {}

/// What went wrong (RFC 9457).
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Problem {
    /// Which kind: a path of this API that describes it.
    #[serde(rename = "type")]
    #[schema(value_type = ProblemType)]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong here, where, and what to do next.
    pub detail: String,
}

impl Problem {
    /// What a script may do something about.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let name = self.kind.strip_prefix(TYPES)?.strip_prefix('/')?;
        Kind::ALL.into_iter().find(|kind| kind.about().0 == name)?.refusal()
    }
}

/// A kind of problem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    BadRequest,
    ReadOnly,
    NotFound,
    MethodNotAllowed,
    Timeout,
    Exists,
    Configured,
    Busy,
    NotServed,
    Served,
    UnexpectedLeaf,
    Connected,
    RootUsed,
    NoLeaf,
    SizeConfigured,
    BodyTooLarge,
    Invalid,
    Shrink,
    Unfit,
    Failed,
    Stopping,
    TooBusy,
}

impl Kind {
    pub(super) const ALL: [Self; 22] = [
        Self::BadRequest,
        Self::ReadOnly,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::Exists,
        Self::Configured,
        Self::Busy,
        Self::NotServed,
        Self::Served,
        Self::UnexpectedLeaf,
        Self::Connected,
        Self::RootUsed,
        Self::NoLeaf,
        Self::SizeConfigured,
        Self::BodyTooLarge,
        Self::Invalid,
        Self::Shrink,
        Self::Unfit,
        Self::Failed,
        Self::Stopping,
        Self::TooBusy,
    ];

    /// Its name in paths, its status, its words.
    pub(super) const fn about(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BadRequest => {
                ("bad-request", StatusCode::BAD_REQUEST, "The request can't be read")
            }
            Self::ReadOnly => {
                ("read-only", StatusCode::FORBIDDEN, "Nothing can be changed through this port")
            }
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "This can't be done to that path",
            ),
            Self::Timeout => {
                ("timeout", StatusCode::REQUEST_TIMEOUT, "The request took too long to come")
            }
            Self::Exists => ("exists", StatusCode::CONFLICT, "The name is taken"),
            Self::Configured => {
                ("configured", StatusCode::CONFLICT, "The name is the configuration's")
            }
            Self::Busy => ("busy", StatusCode::CONFLICT, "Another change is under way"),
            Self::NotServed => ("not-served", StatusCode::CONFLICT, "It could not be attached"),
            Self::Served => ("served", StatusCode::CONFLICT, "The VM is served"),
            Self::UnexpectedLeaf => (
                "unexpected-leaf",
                StatusCode::CONFLICT,
                "The leaf is not the one that is expected",
            ),
            Self::Connected => ("connected", StatusCode::CONFLICT, "A client is connected"),
            Self::RootUsed => ("root-used", StatusCode::CONFLICT, "VMs have this root"),
            Self::NoLeaf => ("no-leaf", StatusCode::CONFLICT, "The VM has nothing to write to"),
            Self::SizeConfigured => {
                ("size-configured", StatusCode::CONFLICT, "The size is the configuration's")
            }
            Self::BodyTooLarge => {
                ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large")
            }
            Self::Invalid => {
                ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "A value breaks its rule")
            }
            Self::Shrink => ("shrink", StatusCode::CONFLICT, "A disk can only grow"),
            Self::Unfit => {
                ("unfit", StatusCode::CONFLICT, "It doesn't fit the files and VMs that there are")
            }
            Self::Failed => ("failed", StatusCode::INTERNAL_SERVER_ERROR, "The work failed"),
            Self::Stopping => ("stopping", StatusCode::SERVICE_UNAVAILABLE, "leafblk is stopping"),
            Self::TooBusy => {
                ("too-busy", StatusCode::SERVICE_UNAVAILABLE, "Too many requests are under way")
            }
        }
    }

    /// What a script may do something about.
    const fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Exists | Self::Configured => Some(Refusal::Exists),
            Self::NotFound => Some(Refusal::Absent),
            Self::Busy | Self::Connected | Self::RootUsed | Self::TooBusy | Self::Stopping => {
                Some(Refusal::Busy)
            }
            Self::BadRequest
            | Self::ReadOnly
            | Self::MethodNotAllowed
            | Self::Timeout
            | Self::NotServed
            | Self::Served
            | Self::UnexpectedLeaf
            | Self::NoLeaf
            | Self::SizeConfigured
            | Self::BodyTooLarge
            | Self::Invalid
            | Self::Shrink
            | Self::Unfit
            | Self::Failed => None,
        }
    }

    /// What a rule says that was broken: by the request alone, as the description of
    /// the API has it (422), or by the request on this host (404, 409).
    fn of_usage(error: &UsageError) -> Self {
        match error {
            UsageError::UnknownRoot { .. } => Self::NotFound,
            UsageError::ReservedName { .. } => Self::Exists,
            UsageError::SocketPathLong { path, is_given, .. } => {
                // The description counts characters, a socket's address bytes.
                let is_long = path.to_string_lossy().chars().count() > SOCKET_PATH_LEN_MAX;
                if *is_given && is_long { Self::Invalid } else { Self::Unfit }
            }
            UsageError::RootNeeded { .. }
            | UsageError::NoRoot { .. }
            | UsageError::RootNeedsName { .. }
            | UsageError::TooMany { .. }
            | UsageError::PathShared { .. }
            | UsageError::NoWholeBlocks { .. } => Self::Unfit,
            UsageError::CommandLine(_)
            | UsageError::File { .. }
            | UsageError::Name { .. }
            | UsageError::Serial { .. }
            | UsageError::RootWithoutPath { .. }
            | UsageError::Size { .. }
            | UsageError::Number { .. }
            | UsageError::Range { .. }
            | UsageError::Choice { .. }
            | UsageError::VmOption { .. }
            | UsageError::VmOptionTwice { .. }
            | UsageError::VmOptionEmpty { .. }
            | UsageError::Twice { .. }
            | UsageError::Path { .. }
            | UsageError::PathLong { .. }
            | UsageError::RelativePath { .. }
            | UsageError::NoDefaultDir { .. }
            | UsageError::NoWorkingDir { .. } => Self::Invalid,
        }
    }

    /// The problem of this kind with its detail.
    pub(super) fn because(self, detail: impl ToString) -> Problem {
        let (name, status, title) = self.about();
        Problem {
            kind: format!("{TYPES}/{name}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.to_string(),
        }
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let kind = match &error {
            HostError::Invalid(error) => Kind::of_usage(error),
            HostError::NoSuch { .. } => Kind::NotFound,
            HostError::Exists { .. } => Kind::Exists,
            HostError::OfConfiguration { .. } => Kind::Configured,
            HostError::Busy { .. } => Kind::Busy,
            HostError::NotServed { .. } => Kind::NotServed,
            HostError::Served { .. } => Kind::Served,
            HostError::Leaf(problem) => match **problem {
                LeafProblem::Missing { .. }
                | LeafProblem::Undecided { .. }
                | LeafProblem::Another { .. }
                | LeafProblem::NotNew { .. }
                | LeafProblem::NotThere { .. }
                | LeafProblem::Copy { .. }
                | LeafProblem::Exchanged { .. } => Kind::UnexpectedLeaf,
                LeafProblem::Fleeting { .. } => Kind::Unfit,
            },
            HostError::Connected { .. } => Kind::Connected,
            HostError::RootUsed { .. } => Kind::RootUsed,
            HostError::NoLeaf { .. } => Kind::NoLeaf,
            HostError::Shrink { .. } => Kind::Shrink,
            HostError::SizeOfConfiguration { .. } => Kind::SizeConfigured,
            HostError::Unfit(_) => Kind::Unfit,
            HostError::Failed(_) => Kind::Failed,
            HostError::ReloadsWait => Kind::TooBusy,
            HostError::Stopping => Kind::Stopping,
        };
        kind.because(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// A kind of problem, described.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ProblemKind {
    /// Its path: the `type` of its problems.
    #[serde(rename = "type")]
    #[schema(value_type = ProblemType)]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status of its problems.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
}

impl From<Kind> for ProblemKind {
    fn from(kind: Kind) -> Self {
        let Problem { kind, title, status, .. } = kind.because("");
        Self { kind, title, status }
    }
}
