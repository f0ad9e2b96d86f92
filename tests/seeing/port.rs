//! The loopback port: what it has, and whom it turns away.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use super::Host;
use crate::common::make_root;

const HOST: &str = "Host: 127.0.0.1:9750";

#[test]
fn the_page_its_files_and_the_values_are_there() {
    let host = Host::start();
    for (path, kind, has) in [
        ("/", "text/html; charset=utf-8", "<title>leafblk</title>"),
        ("/page.js", "text/javascript; charset=utf-8", "v1/stats"),
        ("/map.js", "text/javascript; charset=utf-8", "drawGrid"),
        ("/numbers.js", "text/javascript; charset=utf-8", "quantile"),
        ("/page.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/v1/stats", "application/json", "\"web2\""),
        ("/v1/vms/web1/map?cells=8", "application/json", "\"uncached\""),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "leafblk_build_info"),
    ] {
        let answer = host.over_tcp(&[&format!("GET {path} HTTP/1.1"), HOST]);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some(kind), "{path}");
        assert!(String::from_utf8(answer.body.clone()).unwrap().contains(has), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; "), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
    assert_eq!(host.over_tcp(&["GET /../etc/passwd HTTP/1.1", HOST]).status, 404);
}

#[test]
fn another_host_name_another_site_and_a_change_are_refused() {
    let host = Host::start();
    let status = |lines: &[&str]| host.over_tcp(lines).status;
    for path in ["/", "/v1/stats", "/metrics", "/v1/vms/web1/map", "/nothing"] {
        let get = format!("GET {path} HTTP/1.1");
        assert_eq!(status(&[&get, "Host: rebound.example:9750"]), 421, "{path}");
        assert_eq!(status(&[&get, HOST, "Sec-Fetch-Site: cross-site"]), 403, "{path}");
        assert_eq!(status(&[&get, HOST, "Origin: http://other.example"]), 403, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/v1/vms", "/v1/vms/web1", "/v1/stats", "/"] {
            let line = format!("{method} {path} HTTP/1.1");
            host.over_tcp(&[&line, HOST, "Content-Length: 0"]).problem(403, "read-only");
        }
    }
    // Neither is what says where files are.
    for path in ["/v1/vms", "/v1/vms/web1", "/v1/roots", "/v1/status", "/v1/health"] {
        assert_eq!(status(&[&format!("GET {path} HTTP/1.1"), HOST]), 404, "{path}");
    }
    let stats = host.over_tcp(&["GET /v1/stats HTTP/1.1", HOST]).body;
    let dir = host.daemon.dir.to_str().unwrap();
    assert!(!String::from_utf8(stats).unwrap().contains(dir), "no paths");
    assert_eq!(host.stats()["vms"].as_array().unwrap().len(), 2, "both are still there");
}

#[test]
fn the_port_is_on_the_loopback_address_only() {
    let host = Host::start();
    // Every address that this machine has, 127.0.0.1 aside.
    let others = Command::new("hostname").arg("-I").output().unwrap().stdout;
    let others = String::from_utf8(others).unwrap();
    let others = others.split_whitespace().chain(["127.0.0.2"]);
    for address in others.filter_map(|text| text.parse::<Ipv4Addr>().ok()) {
        assert!(TcpStream::connect((address, host.port)).is_err(), "{address}");
    }
}

#[test]
fn a_port_that_is_taken_or_impossible_is_an_error_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), 2048);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (port, status, says) in [
        (port.as_str(), 1, "--http-port"),
        ("0", 2, "from 1 to 65535"),
        ("65536", 2, "from 1 to 65535"),
        ("http", 2, "from 1 to 65535"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_leafblk"))
            .args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--vm", "web1"])
            .args(["--http-port", port])
            .arg("--root")
            .arg(&root)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--runtime-dir")
            .arg(dir.path().join("run"))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{port}: {said}");
        assert!(said.contains(says), "{port}: {said}");
        assert!(!dir.path().join("state/web1.leaf").exists(), "nothing is made before");
    }
}
