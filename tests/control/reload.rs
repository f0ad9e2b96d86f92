//! A reload that answers: `leafblk reload` and `POST /v1/reload`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::scene::{Log, ROOT_SECTORS};
use crate::common::{Client, Daemon, make_root};

/// A daemon with a configuration file.
struct Place {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = make_root(dir.path(), ROOT_SECTORS);
        Self { dir, root }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file: `head`, the root `d`, and these VMs with more lines each.
    fn write(&self, head: &str, vms: &[(&str, &str)]) {
        let vm = |(name, more): &(&str, &str)| {
            format!("[[vm]]\nname = \"{name}\"\nroot = \"d\"\n{more}\n")
        };
        let vms: String = vms.iter().map(vm).collect();
        let root = &self.root;
        let text = format!("{head}\n[[root]]\nname = \"d\"\npath = {root:?}\n{vms}");
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.path().join("leafblk.toml")
    }

    fn start(&self) -> (Daemon, Log) {
        Daemon::start_logged(self.path(), &["--config", self.file().to_str().unwrap()])
    }

    fn reload(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.arg("reload").arg("--runtime-dir").arg(self.path().join("run")).args(args);
        command.output().unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn named(parts: &Value) -> Vec<String> {
    let part = |part: &Value| {
        format!("{} {}", part["part"].as_str().unwrap(), part["name"].as_str().unwrap())
    };
    parts.as_array().unwrap().iter().map(part).collect()
}

/// A series without labels.
fn metric(daemon: &Daemon, name: &str) -> Option<f64> {
    let answer = daemon.control().get("/metrics");
    let line = text(&answer.body).lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().parse().unwrap())
}

const SUCCESSFUL: &str = "leafblk_last_reload_successful ";

#[test]
fn a_reload_says_what_it_has_changed_and_what_is_pending() {
    let place = Place::new();
    place.write("", &[("goes", ""), ("busy", ""), ("grows", "size = \"8MiB\""), ("other", "")]);
    let (daemon, _log) = place.start();
    assert_eq!(metric(&daemon, SUCCESSFUL), None, "none yet");
    daemon.control().post("/v1/vms", &json!({"name": "mine"})).expect(201);
    let _client = Client::connect(&daemon.socket("busy"));
    let nothing = place.reload(&[]);
    assert_eq!(text(&nothing.stdout), "nothing has changed\n");
    place.write(
        "reactors = 7\nlog = \"debug\"",
        &[("grows", "size = \"16MiB\""), ("other", "queues = 2"), ("mine", "")],
    );
    let done = place.reload(&[]);
    assert_eq!(text(&done.stderr), "");
    assert_eq!(done.status.code(), Some(0));
    let said = text(&done.stdout);
    for line in [
        "removed: VM goes",
        "changed: VM grows: its disk has 16MiB now",
        "changed: VM mine: it came through the API, and is the configuration's now",
        "changed: setting log: it takes effect from now on",
        "pending: VM busy: it is not in the configuration any more, but has a client",
        "pending: VM other: it has other settings now",
        "pending: setting reactors: it has changed; that takes effect at the next start",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "{line} is not in\n{said}");
    }
    assert_eq!(said.lines().count(), 7, "{said}");
    assert_eq!(metric(&daemon, SUCCESSFUL), Some(1.0));
    let at = metric(&daemon, "leafblk_last_reload_timestamp_seconds ").unwrap();
    let status = daemon.control().get("/v1/status").expect(200);
    assert_eq!(status["last_reload"]["at"].as_f64(), Some(at));
    assert_eq!(daemon.control().get("/v1/health").expect(200)["status"], "ok");
    daemon.stop();
}

#[test]
fn a_file_with_a_mistake_fails_the_reload_and_changes_nothing() {
    let place = Place::new();
    place.write("", &[("web1", "")]);
    let (daemon, mut log) = place.start();
    let control = daemon.control();
    std::fs::write(place.file(), "nonsense = true\n").unwrap();
    let failed = place.reload(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(text(&failed.stdout), "nothing has changed\n");
    let said = text(&failed.stderr);
    assert!(said.starts_with("leafblk: configuration: ") && said.contains("line 1"), "{said}");
    log.wait_for(&["the configuration stays as it is", "leafblk.toml, line 1"]);
    assert_eq!(metric(&daemon, SUCCESSFUL), Some(0.0));
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    let problem = health["problems"][0].as_str().unwrap();
    for part in ["configuration reload: failed at ", "leafblk.toml, line 1", "run leafblk reload"] {
        assert!(problem.contains(part), "{problem}");
    }
    let status = Command::new(env!("CARGO_BIN_EXE_leafblk"))
        .args(["status", "--runtime-dir"])
        .arg(place.path().join("run"))
        .output()
        .unwrap();
    let status = text(&status.stdout);
    assert!(status.contains("last reload:") && status.contains("1 failed"), "{status}");
    assert_eq!(control.get("/v1/vms/web1").expect(200)["state"], "serving");

    // SIGHUP comes to the same.
    daemon.signal(rustix::process::Signal::HUP);
    log.wait_for(&["the configuration stays as it is"]);
    place.write("", &[("web1", ""), ("web2", "")]);
    let mended = place.reload(&["--json"]);
    assert_eq!(mended.status.code(), Some(0));
    let mended: Value = serde_json::from_slice(&mended.stdout).unwrap();
    assert_eq!(named(&mended["added"]), ["VM web2"]);
    assert_eq!(metric(&daemon, SUCCESSFUL), Some(1.0));
    assert_eq!(control.get("/v1/health").expect(200)["status"], "ok");
    daemon.stop();
}

#[test]
fn what_failed_is_named_and_the_rest_is_done() {
    let place = Place::new();
    place.write("", &[("web1", "size = \"8MiB\"")]);
    let (daemon, _log) = place.start();
    let control = daemon.control();
    std::fs::write(place.path().join("state/bad.leaf"), "no leaf").unwrap();
    place.write("", &[("web1", "size = \"4MiB\""), ("bad", ""), ("good", "")]);
    let answer = control.post("/v1/reload", &Value::Null).expect(409);
    assert_eq!(answer["successful"], false);
    assert_eq!(named(&answer["added"]), ["VM good"]);
    assert_eq!(named(&answer["failed"]), ["VM web1", "VM bad"]);
    let again = place.reload(&[]);
    assert_eq!(again.status.code(), Some(1));
    let said = text(&again.stderr);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("leafblk: VM web1: ") && said.contains("can't shrink"), "{said}");
    assert!(said.contains("leafblk: VM bad: ") && said.contains("bad.leaf"), "{said}");
    // Each is said once: the failed VM as failed, the other as what the reload could not do.
    let health = control.get("/v1/health").expect(200);
    let problems = health["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{health}");
    assert!(problems[0].as_str().unwrap().starts_with("VM bad is not served"), "{health}");
    let of_reload = problems[1].as_str().unwrap();
    assert!(of_reload.contains("VM web1: ") && !of_reload.contains("bad"), "{health}");
    daemon.stop();
}

#[test]
fn reloads_that_are_under_way_end_with_the_process() {
    let place = Place::new();
    place.write("", &[("web1", "")]);
    let (daemon, _log) = place.start();
    let control = daemon.control();
    let askers: Vec<_> = (0..12)
        .map(|_| {
            let control = control.clone();
            let request = b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            std::thread::spawn(move || control.try_raw(request))
        })
        .collect();
    // While they wait: none of them may keep it from ending.
    daemon.stop();
    for asker in askers {
        // One that came too late found nobody.
        let said = asker.join().unwrap().unwrap_or_default();
        let status = text(&said).split(' ').nth(1).unwrap_or("none");
        assert!(["200", "503", "none"].contains(&status), "{}", text(&said));
    }
}

#[test]
fn a_reload_without_a_leafblk_fails() {
    let place = Place::new();
    let failed = place.reload(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("no leafblk listens on"), "{}", text(&failed.stderr));
}
