//! A start that serves what it can: each root and VM that can't be served has its own
//! reason, and no other VM is kept from its disk.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, make_root};
use crate::{file, refuses, text};

/// A configuration of two good VMs and many bad ones, as they come.
struct Place {
    dir: tempfile::TempDir,
    config: PathBuf,
}

/// The VMs that can't be served, and a part of the reason each.
const BAD: [(&str, &str); 6] = [
    ("cut", "cut.leaf"),
    ("homeless", "missing/x.leaf"),
    ("late1", "root late could not be attached"),
    ("late2", "late.raw"),
    ("mapped", "mapped.map"),
    ("plugged", "is no socket"),
];

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let root = make_root(at, ROOT_SECTORS);
        fs::create_dir(at.join("state")).unwrap();
        fs::create_dir_all(at.join("run/mapped.map")).unwrap();
        file(at, "state/cut.leaf", b"no leaf");
        let plug = file(at, "precious", b"precious");
        let config = at.join("leafblk.toml");
        let vm = |name: &str, more: String| format!("[[vm]]\nname = \"{name}\"\n{more}\n");
        let on = |root: &str| format!("root = \"{root}\"");
        let text = [
            format!("[[root]]\nname = \"d\"\npath = {root:?}\n"),
            format!("[[root]]\nname = \"late\"\npath = {:?}\n", at.join("late.raw")),
            vm("web1", on("d")),
            vm("cut", on("d")),
            vm("homeless", format!("root = \"d\"\nleaf = {:?}", at.join("missing/x.leaf"))),
            vm("late1", on("late")),
            vm("late2", on("late")),
            vm("mapped", on("d")),
            vm("plugged", format!("root = \"d\"\nsocket = {plug:?}")),
            vm("web2", on("d")),
        ];
        fs::write(&config, text.concat()).unwrap();
        Self { dir, config }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn args(&self) -> [&str; 2] {
        ["--config", text(&self.config)]
    }
}

#[test]
fn a_start_serves_what_it_can_and_names_what_it_can_not() {
    let place = Place::new();
    let (daemon, mut log) = Daemon::start_logged(place.path(), &place.args());
    log.wait_for(&["root late is not served: ", "late.raw"]);
    let ready = "ready: serving 2 VMs; 6 VMs and 1 root failed";
    assert_eq!(daemon.announced.last().unwrap(), ready);
    let control = daemon.control();
    for (vm, part) in BAD {
        let info = control.get(&format!("/v1/vms/{vm}")).expect(200);
        assert_eq!((&info["state"], &info["origin"]), (&json!("failed"), &json!("configuration")));
        assert!(info["reason"].as_str().unwrap().contains(part), "{info}");
        let said = |line: &String| line.starts_with(&format!("{vm}: not served: "));
        assert!(daemon.announced.iter().any(said), "{:?}", daemon.announced);
    }
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["problems"].as_array().unwrap().len(), 7, "{health}");
    let status = control.get("/v1/status").expect(200);
    assert_eq!(status["vms"], json!({"total": 8, "serving": 2, "failed": 6}));
    let stats = control.get("/v1/stats").expect(200);
    assert_eq!(stats["failed_vms"].as_array().unwrap().len(), 6, "{stats}");
    for vm in ["web1", "web2"] {
        Client::connect(&daemon.socket(vm)).write(0, &[1; 4096]);
    }
    // Nothing was made for the others, and nothing of others was harmed.
    assert_eq!(fs::read(place.path().join("precious")).unwrap(), b"precious");
    assert!(!daemon.leaf("late1").exists() && !daemon.leaf("plugged").exists());
    assert!(!daemon.leaf("mapped").exists() && !daemon.socket("mapped").exists());

    // What is mended is served after a reload.
    fs::copy(place.path().join("root.raw"), place.path().join("late.raw")).unwrap();
    fs::remove_dir(place.path().join("run/mapped.map")).unwrap();
    let reloaded = control.post("/v1/reload", &serde_json::Value::Null).expect(409);
    let names = |list: &str| {
        let parts = reloaded[list].as_array().unwrap();
        parts.iter().map(|part| part["name"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names("added"), ["late", "late1", "late2", "mapped"]);
    assert_eq!(names("failed"), ["cut", "homeless", "plugged"]);
    Client::connect(&daemon.socket("late2")).write(0, &[2; 4096]);
    // It ends as one of which nothing failed.
    daemon.stop();
}

#[test]
fn a_strict_start_fails_by_the_first_and_a_check_names_all() {
    let place = Place::new();
    let args = place.args();
    refuses(place.path(), &args, 1, &["late.raw"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["serve", "--check", "--state-dir"]).arg(place.path().join("state"));
    command.arg("--runtime-dir").arg(place.path().join("run")).args(args);
    let checked = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8(checked.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines.iter().all(|line| line.starts_with("leafblk: ")), "{said}");
    assert!(lines[0].contains("late.raw") && lines[0].contains("(VMs on it: late1, late2)"));
    assert!(lines[1].contains("cut.leaf") && lines[2].contains("is no socket"), "{said}");
}

#[test]
fn systemd_is_told_that_it_is_ready_and_how_many_failed() {
    let place = Place::new();
    let notify = place.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(crate::common::frontend::PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--state-dir"]);
    command.arg(place.path().join("state")).arg("--runtime-dir").arg(place.path().join("run"));
    command.args(place.args()).env("NOTIFY_SOCKET", &notify);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut bytes = [0; 4096];
    let told =
        socket.recv(&mut bytes).map(|len| String::from_utf8_lossy(&bytes[..len]).into_owned());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let told = told.unwrap();
    let status = "STATUS=serving 2 VMs; 6 VMs and 1 root failed: leafblk status says why";
    assert!(told.lines().any(|line| line == "READY=1"), "{told}");
    assert!(told.lines().any(|line| line == status), "{told}");
}
