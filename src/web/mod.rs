//! The page in a browser, and the port that it is on.
//!
//! Owns the page's files, which are part of the program, and the rules of the
//! port ([`guard`]): looking only, from this machine only, by programs and by
//! its own page, not by other pages in somebody's browser. What the page asks
//! for is the control API's.

pub mod guard;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;

/// A file of the page: its path, type and content.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 6] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
    ("/map.js", SCRIPT, include_str!("page/map.js")),
    ("/numbers.js", SCRIPT, include_str!("page/numbers.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// What a browser may do with an answer: show this page with its own scripts
/// and styles, let it ask this port, and nothing else; in no frame, and not as
/// a part of another site's page.
const SECURITY: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    // Neither a reading nor the page of an older daemon is to be kept.
    (header::CACHE_CONTROL, "no-store"),
];

/// The paths of the page.
pub fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let answer = move || async move {
            ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], content).into_response()
        };
        router.route(path, get(answer))
    })
}

/// The router for the port: each request is checked, each answer says what a
/// browser may do with it.
pub fn protect(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(guard::check)).layer(axum::middleware::map_response(
        |mut answer: axum::response::Response| async {
            for (name, value) in SECURITY {
                answer.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            answer
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_there_are_and_no_other_host() {
        let (_, _, page) = FILES[0];
        let mut found = 0;
        for attribute in ["href=\"", "src=\""] {
            for rest in page.split(attribute).skip(1) {
                let name = rest.split('"').next().unwrap();
                let path = format!("/{name}");
                assert!(FILES.iter().any(|(file, ..)| *file == path), "{name}");
                found += 1;
            }
        }
        assert_eq!(found, 4);
        for (path, _, content) in FILES {
            let others = content.replace("http://www.w3.org/2000/svg", "");
            assert!(!others.contains("://"), "{path} names another host");
        }
    }

    #[test]
    fn the_page_has_no_script_or_style_of_its_own_which_the_policy_would_refuse() {
        let (_, _, page) = FILES[0];
        for forbidden in ["<style", "style=", "onclick", "<script>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script type=\"module\" src=").count()
        );
    }
}
