//! Roots that look like images of another format, and roots that are declared raw.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::{Client, Daemon};

/// A disk that has a qcow2 image's first bytes, as a guest leaves it that copies an image
/// onto its raw disk.
fn nested(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let path = dir.join("nested.raw");
    let mut content: Vec<u8> = (0..1_u32 << 18).flat_map(|i| (i * 7).to_le_bytes()).collect();
    content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    std::fs::write(&path, &content).unwrap();
    (path, content)
}

fn reads_all(daemon: &Daemon, vm: &str, content: &[u8]) {
    assert!(Client::connect(&daemon.socket(vm)).read(0, content.len()) == content);
}

fn root_command(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.current_dir(dir).arg("root").args(args).args(["--runtime-dir", "run"]);
    let output = command.output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn a_root_that_is_declared_raw_is_served_as_it_is_and_again_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (path, content) = nested(dir);
    let daemon = Daemon::start(dir, &[]);
    let control = daemon.control();
    let refused = control.post("/v1/roots", &json!({"path": path})).problem(409, "unfit");
    let line = format!("qemu-img convert -f qcow2 -O raw {} NEW.raw", path.display());
    assert!(refused.contains(&line) && refused.contains("format=raw"), "{refused}");
    for format in ["qcow2", "RAW", ""] {
        let form = json!({"path": path, "format": format});
        let refused = control.post("/v1/roots", &form).problem(422, "invalid");
        assert!(refused.contains("`raw`"), "{refused}");
    }
    assert_eq!(control.get("/v1/roots").expect(200), json!([]));

    let form = json!({"path": path, "format": "raw"});
    assert_eq!(control.post("/v1/roots", &form).expect(201)["format"], "raw");
    control.post("/v1/vms", &json!({"name": "web1"})).expect(201);
    reads_all(&daemon, "web1", &content);
    daemon.stop();
    let state = std::fs::read_to_string(dir.join("state/attached.toml")).unwrap();
    assert!(state.contains("format = \"raw\""), "{state}");

    let daemon = Daemon::start(dir, &[]);
    assert_eq!(daemon.control().get("/v1/roots/nested").expect(200)["format"], "raw");
    reads_all(&daemon, "web1", &content);
    daemon.stop();
}

#[test]
fn the_command_line_declares_a_root_raw_and_shows_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (path, content) = nested(dir);
    std::fs::write(dir.join("plain.raw"), &content[512..]).unwrap();
    let root = format!("nested={},format=raw", path.display());
    let daemon = Daemon::start(dir, &["--root", &root, "--vm", "web1"]);
    reads_all(&daemon, "web1", &content);
    let said = root_command(dir, &["add", "other=nested.raw"]);
    assert!(said.starts_with("leafblk: ") && said.contains("is a qcow2 image"), "{said}");
    let said = root_command(dir, &["add", "other=nested.raw,format=raw"]);
    assert!(said.starts_with("other: "), "{said}");
    root_command(dir, &["add", "plain.raw"]);
    let list = root_command(dir, &["list"]);
    for (name, format) in [("nested", "raw"), ("other", "raw"), ("plain", "probed")] {
        let line = list.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.split_whitespace().any(|word| word == format), "{line}");
        let show = root_command(dir, &["show", name]);
        let line = show.lines().find(|line| line.starts_with("format:")).unwrap();
        assert!(line.ends_with(format), "{line}");
    }
    assert_eq!(daemon.control().get("/v1/roots/plain").expect(200)["format"], json!(null));
    daemon.stop();
}

#[test]
fn a_reload_takes_a_declaration_without_a_new_start() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (path, content) = nested(dir);
    let config = dir.join("leafblk.toml");
    let table = |format: &str| format!("[[root]]\npath = {path:?}\n{format}[[vm]]\nname = \"w\"\n");
    std::fs::write(&config, table("format = \"raw\"\n")).unwrap();
    let args = ["--config", config.to_str().unwrap()];
    let (daemon, mut log) = Daemon::start_logged(dir, &args);
    reads_all(&daemon, "w", &content);
    // What is open is served as it is; the next opening would ask.
    for (format, shown) in [("", json!(null)), ("format = \"raw\"\n", json!("raw"))] {
        std::fs::write(&config, table(format)).unwrap();
        daemon.signal(rustix::process::Signal::HUP);
        log.wait_for(&["reloaded"]);
        assert_eq!(daemon.control().get("/v1/roots/nested").expect(200)["format"], shown);
        reads_all(&daemon, "w", &content);
    }
    daemon.stop();
}
