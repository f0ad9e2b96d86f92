//! The paths of the API, each with its handler and its description: the
//! router and the OpenAPI document are made from the same list.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::json::{FateWord, Json, LeafWord, Name};
use super::problem::{Kind, Problem, ProblemKind};
use super::{Access, App, reload, roots, seeing, status, verification, vms};
use crate::web;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "leafblk control API",
        description = "Attach and detach VMs and roots of a running leafblk, and see how it is. \
                       Served as HTTP/1.1 over the Unix socket RUNTIME/control.sock; every error \
                       is a problem document (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "host", description = "The process as a whole"),
        (name = "roots", description = "Read-only images that VMs share"),
        (name = "vms", description = "VMs, each with its leaf and its socket")
    ),
    components(schemas(Problem, LeafWord, FateWord))
)]
struct Description;

/// The paths, and their description.
fn paths() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status::status))
        .routes(routes!(status::version))
        .routes(routes!(status::health))
        .routes(routes!(reload::reload))
        .routes(routes!(roots::list, roots::add))
        .routes(routes!(roots::show, roots::remove))
        .routes(routes!(verification::begin, verification::show, verification::call_off))
        .routes(routes!(vms::list, vms::attach))
        .routes(routes!(vms::show, vms::detach))
        .routes(routes!(vms::new_leaf))
        .routes(routes!(vms::accept_leaf))
        .routes(routes!(vms::revert))
        .routes(routes!(vms::resize))
        .routes(routes!(vms::flush))
        .merge(looks())
        .routes(routes!(problems))
        .routes(routes!(problem))
        .routes(routes!(openapi))
}

/// Those of them that are for looking at again and again, and say nothing of
/// where files are.
fn looks() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(seeing::stats))
        .routes(routes!(seeing::map))
        .routes(routes!(seeing::metrics))
}

/// The API's router for a listener with such access.
pub fn build(app: &App, access: Access) -> Router {
    let router = match access {
        Access::Full => Router::from(paths()),
        Access::ReadOnly => Router::from(looks()).merge(web::files()),
    };
    let router = router
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app.at_door(access));
    match access {
        Access::Full => router,
        Access::ReadOnly => web::protect(router.layer(middleware::from_fn(only_looks))),
    }
}

/// The OpenAPI document, as docs/openapi.json has it.
pub fn document() -> Document {
    paths().split_for_parts().1
}

async fn only_looks(request: Request, next: Next) -> Response {
    match *request.method() {
        Method::GET | Method::HEAD => next.run(request).await,
        _ => Kind::ReadOnly
            .because("this port is for looking only; use the control socket to change something")
            .into_response(),
    }
}

async fn no_such_path(request: Request) -> Problem {
    let path = request.uri().path();
    Kind::NotFound.because(format!("there is no path {path}; /v1/openapi.json has all of them"))
}

async fn wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Kind::MethodNotAllowed
        .because(format!("{path} takes no {method}; /v1/openapi.json says what it takes"))
}

/// List the kinds of problems
#[utoipa::path(get, path = "/v1/problems", tag = "host", responses(
    (status = 200, description = "All kinds", body = [ProblemKind]),
))]
async fn problems() -> Json<Vec<ProblemKind>> {
    Json(Kind::ALL.into_iter().map(ProblemKind::from).collect())
}

/// Describe a kind of problem
#[utoipa::path(get, path = "/v1/problems/{name}", tag = "host",
    params(("name" = String, Path, description = "The last part of a problem's type")),
    responses(
        (status = 200, description = "The kind", body = ProblemKind),
        (status = 400, description = "The name can't be read", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "There is no such kind", body = Problem,
            content_type = "application/problem+json"),
    ))]
async fn problem(Name(name): Name) -> Result<Json<ProblemKind>, Problem> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.about().0 == name);
    kind.map(|kind| Json(kind.into())).ok_or_else(|| {
        Kind::NotFound.because(format!("there is no kind of problem {name}; /v1/problems has all"))
    })
}

/// Get this description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "host", responses(
    (status = 200, description = "An OpenAPI 3.1 document", body = Object),
))]
async fn openapi() -> Result<Response, Problem> {
    /// Kept as text: a [`Document`] takes over a megabyte. Made when it is first
    /// asked for, which most hosts never do.
    static TEXT: LazyLock<Result<String, String>> =
        LazyLock::new(|| document().to_json().map_err(|error| error.to_string()));
    match &*TEXT {
        Ok(text) => Ok(([(CONTENT_TYPE, "application/json")], text.as_str()).into_response()),
        Err(why) => Err(Kind::Failed.because(format!("the description can't be made: {why}"))),
    }
}
