//! The answers that many operations may give, for the API's description.

use utoipa::IntoResponses;

use super::problem::Problem;

/// Any request may have to wait for its turn for too long.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "leafblk is stopping or too busy",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes an answer; problem.rs makes it")]
pub(super) struct Unavailable(Problem);

/// Work on files that failed.
#[derive(IntoResponses)]
#[response(status = 500, description = "It failed", content_type = "application/problem+json")]
#[expect(dead_code, reason = "describes an answer; problem.rs makes it")]
pub(super) struct Failed(Problem);

/// A path that names a VM.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers; problem.rs makes them")]
pub(super) enum NoSuchVm {
    #[response(
        status = 400,
        description = "The name can't be read",
        content_type = "application/problem+json"
    )]
    BadName(Problem),
    #[response(
        status = 404,
        description = "There is no such VM",
        content_type = "application/problem+json"
    )]
    NoSuch(Problem),
}

/// A path that names a root.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers; problem.rs makes them")]
pub(super) enum NoSuchRoot {
    #[response(
        status = 400,
        description = "The name can't be read",
        content_type = "application/problem+json"
    )]
    BadName(Problem),
    #[response(
        status = 404,
        description = "There is no such root",
        content_type = "application/problem+json"
    )]
    NoSuch(Problem),
}

/// A body that names a root.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "There is no such root",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes an answer; problem.rs makes it")]
pub(super) struct NoSuchRootInBody(Problem);

/// A query.
#[derive(IntoResponses)]
#[response(
    status = 400,
    description = "The name or the query can't be read",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes an answer; problem.rs makes it")]
pub(super) struct BadQuery(Problem);

/// A body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers; problem.rs makes them")]
pub(super) enum BadBody {
    #[response(
        status = 400,
        description = "The name can't be read, or the body is no JSON",
        content_type = "application/problem+json"
    )]
    NoJson(Problem),
    #[response(
        status = 408,
        description = "The body came too slowly",
        content_type = "application/problem+json"
    )]
    TooSlow(Problem),
    #[response(
        status = 413,
        description = "The body is too large",
        content_type = "application/problem+json"
    )]
    TooLarge(Problem),
    #[response(
        status = 422,
        description = "The body breaks a rule of its schema",
        content_type = "application/problem+json"
    )]
    Invalid(Problem),
}
