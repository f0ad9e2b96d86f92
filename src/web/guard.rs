//! Who may read from the loopback port.
//!
//! The port has no password: whoever can connect to 127.0.0.1 on this machine
//! may look. A browser on this machine can connect on behalf of any page that
//! it shows, so requests are held against what browsers say of them:
//!
//! - `Host` must be this machine's own name for itself. A page that has its
//!   own host name point at 127.0.0.1 (DNS rebinding) has that name in it. The
//!   port in it may be another, as with `ssh -L`.
//! - `Sec-Fetch-Site` and `Origin`, where they are sent, must be the page's own.
//!   Other sites may link to the page, not read or embed it.
//!
//! That nothing can be changed is the router's part.
//!
//! Programs such as curl and Prometheus send none of these headers but `Host`.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Its `Host` is none of this machine's names for itself.
    #[error(
        "this port answers to 127.0.0.1, localhost and [::1] only; use one of these in the URL"
    )]
    Host,
    /// Another site's page asks.
    #[error("another site's page may not read this one; open it by itself")]
    OtherSite,
}

impl Refusal {
    const fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::OtherSite => StatusCode::FORBIDDEN,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), format!("{self}\n")).into_response()
    }
}

/// The check, as a layer.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let authority = request.uri().authority();
    match judge(authority, request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a request may be answered. `authority` is that of a request line
/// with a whole URL in it.
///
/// # Errors
/// [`Refusal`]
fn judge(authority: Option<&Authority>, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let host = one(headers, header::HOST.as_str())
        .and_then(|host| host.parse::<Authority>().ok())
        .ok_or(Refusal::Host)?;
    if ![Some(&host), authority].into_iter().flatten().all(is_this_machine) {
        return Err(Refusal::Host);
    }
    if headers.get_all(header::ORIGIN).iter().any(|origin| {
        origin.to_str().ok().and_then(|text| text.strip_prefix("http://")) != Some(host.as_str())
    }) {
        return Err(Refusal::OtherSite);
    }
    let is_own = match one(headers, "sec-fetch-site") {
        None | Some("same-origin" | "none") => true,
        // A link from elsewhere that opens the page by itself.
        Some(_) => {
            path == "/"
                && one(headers, "sec-fetch-mode") == Some("navigate")
                && one(headers, "sec-fetch-dest") == Some("document")
        }
    };
    if is_own { Ok(()) } else { Err(Refusal::OtherSite) }
}

/// The value of a header that is there once; an empty one where it is there
/// several times or no text.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return Some("");
    }
    Some(value.to_str().unwrap_or(""))
}

fn is_this_machine(authority: &Authority) -> bool {
    let has_user = authority.as_str().contains('@');
    let host = authority.host();
    !has_user && (host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "[::1]"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    const OWN: &[(&str, &str)] = &[("host", "127.0.0.1:9750")];

    fn judged(path: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        judge(None, path, &map)
    }

    fn get(headers: &[(&str, &str)]) -> Result<(), Refusal> {
        judged("/v1/stats", headers)
    }

    #[test]
    fn curl_and_prometheus_may_read() {
        for host in ["127.0.0.1:9750", "localhost:9750", "LocalHost", "[::1]:9750", "localhost:1"] {
            assert_eq!(get(&[("host", host)]), Ok(()), "{host}");
        }
    }

    #[test]
    fn another_name_for_this_machine_is_refused() {
        for host in [
            "rebound.example:9750",
            "127.0.0.1.rebound.example",
            "localhost.rebound.example",
            "localhost@rebound.example",
            "rebound.example@127.0.0.1",
            "127.0.0.2:9750",
            "0.0.0.0:9750",
            "2130706433",
            "",
        ] {
            assert_eq!(get(&[("host", host)]), Err(Refusal::Host), "{host:?}");
        }
        assert_eq!(get(&[]), Err(Refusal::Host));
        assert_eq!(get(&[OWN[0], ("host", "rebound.example")]), Err(Refusal::Host));
    }

    #[test]
    fn a_whole_url_in_the_request_line_is_held_to_the_same() {
        let headers = HeaderMap::from_iter([(header::HOST, "localhost:9750".parse().unwrap())]);
        let other = "rebound.example:9750".parse::<Authority>().unwrap();
        let own = "localhost:9750".parse::<Authority>().unwrap();
        assert_eq!(judge(Some(&other), "/", &headers), Err(Refusal::Host));
        assert_eq!(judge(Some(&own), "/", &headers), Ok(()));
    }

    #[test]
    fn the_page_itself_may_read_and_another_sites_may_not() {
        let with = |site| get(&[OWN[0], ("sec-fetch-site", site)]);
        assert_eq!(with("same-origin"), Ok(()));
        assert_eq!(with("none"), Ok(()));
        for site in ["cross-site", "same-site", "", "elsewhere"] {
            assert_eq!(with(site), Err(Refusal::OtherSite), "{site}");
        }
        let from = |origin| get(&[OWN[0], ("origin", origin)]);
        assert_eq!(from("http://127.0.0.1:9750"), Ok(()));
        for origin in
            ["http://other.example", "http://127.0.0.1:8000", "null", "https://127.0.0.1:9750"]
        {
            assert_eq!(from(origin), Err(Refusal::OtherSite), "{origin}");
        }
    }

    #[test]
    fn another_site_may_link_to_the_page_but_not_frame_it() {
        let open = |path, mode, dest| {
            let from = ("sec-fetch-site", "cross-site");
            let headers = [OWN[0], from, ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
            judged(path, &headers)
        };
        assert_eq!(open("/", "navigate", "document"), Ok(()));
        for (path, mode, dest) in [
            ("/", "navigate", "iframe"),
            ("/", "no-cors", "script"),
            ("/v1/stats", "navigate", "document"),
        ] {
            assert_eq!(open(path, mode, dest), Err(Refusal::OtherSite), "{path} {mode} {dest}");
        }
    }
}
