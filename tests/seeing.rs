//! What a daemon lets others see: its metrics, its port, `top`, the page.
//!
//! Tests that need another program (Prometheus, tmux, Chromium) are ignored by
//! a plain `cargo test`; `tests/seeing.sh` installs those and runs them.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "seeing/in_chromium.rs"]
mod in_chromium;
#[path = "seeing/in_prometheus.rs"]
mod in_prometheus;
#[path = "seeing/in_tmux.rs"]
mod in_tmux;
#[path = "seeing/port.rs"]
mod port;
#[path = "seeing/values.rs"]
mod values;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::http::{Answer, Control, read_answer};
use common::{Daemon, make_root};

const MIB: u64 = 1 << 20;
/// 64 MiB, of which [`common::root_sector`] has sectors 4096 to 8191 zero.
const ROOT_SECTORS: u64 = 128 * 1024;
/// For what other programs do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with the VMs `web1` and `web2` on one root, and its port.
struct Host {
    daemon: Daemon,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Host {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_root(dir.path(), ROOT_SECTORS);
        // Free a moment ago: the daemon takes no port that nobody named.
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self::start_in(dir, port)
    }

    fn start_in(dir: tempfile::TempDir, port: u16) -> Self {
        let root = format!("base={}", dir.path().join("root.raw").display());
        let port_text = port.to_string();
        let args = [
            "--root",
            &root,
            "--vm",
            "web1,size=128MiB",
            "--vm",
            "web2",
            "--http-port",
            &port_text,
        ];
        let daemon = Daemon::start(dir.path(), &args);
        Self { daemon, port, _dir: dir }
    }

    /// Started again, with a root `late` and a VM `extra` on it that were
    /// attached before and can't be had.
    fn with_failures() -> Self {
        let host = Self::start();
        let (control, late) = (host.control(), host.daemon.dir.join("late.raw"));
        std::fs::copy(host.daemon.dir.join("root.raw"), &late).unwrap();
        control.post("/v1/roots", &serde_json::json!({"name": "late", "path": late})).expect(201);
        control.post("/v1/vms", &serde_json::json!({"name": "extra", "root": "late"})).expect(201);
        let Self { daemon, port, _dir: dir } = host;
        daemon.stop();
        std::fs::remove_file(late).unwrap();
        Self::start_in(dir, port)
    }

    fn control(&self) -> Control {
        Control::at(&self.daemon.dir.join("run/control.sock"))
    }

    fn stats(&self) -> serde_json::Value {
        self.control().get("/v1/stats").expect(200)
    }

    /// Sends a request to the port: its line and headers, without line ends.
    fn over_tcp(&self, lines: &[&str]) -> Answer {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = lines.join("\r\n");
        write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
        read_answer(stream)
    }
}

/// Waits until `look` finds something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} doesn't come");
        // Other programs need the CPU to get there.
        std::thread::yield_now();
    }
}
