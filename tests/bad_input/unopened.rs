//! A FIFO, a socket or a character device in the place of a file: refused, and not
//! opened for a moment, wherever the name came from.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::scene::ROOT_SECTORS;
use crate::common::unopened::{Unopened, WaitingWriter};
use crate::common::{Daemon, make_root};
use crate::{fails, refuses, serve, text, with_leaf};

/// What is no file, at three names that a test gives.
struct Traps {
    fifo: WaitingWriter,
    others: [Unopened; 2],
    _listener: UnixListener,
}

impl Traps {
    const NAMES: [&str; 3] = ["fifo", "socket", "device"];

    fn set(dir: &Path) -> Self {
        let [fifo, socket, device] = Self::NAMES.map(|name| dir.join(name));
        let fifo = WaitingWriter::at(&fifo);
        let listener = UnixListener::bind(&socket).unwrap();
        symlink("/dev/full", &device).unwrap();
        let others = [&socket, &device].map(|path| Unopened::watch(path));
        Self { fifo, others, _listener: listener }
    }

    #[track_caller]
    fn check(&self) {
        self.fifo.check();
        assert!(self.others.iter().all(|other| !other.was_opened()));
    }
}

#[test]
fn flags_and_files_that_name_no_file_are_refused_and_nothing_is_opened() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let traps = Traps::set(dir);
    for name in Traps::NAMES {
        let trap = dir.join(name);
        let kind = if name == "device" { "a character device" } else { name };
        let kind = if name == "fifo" { "a FIFO" } else { kind };
        let as_root = format!("trap={}", text(&trap));
        refuses(dir, &["--root", &as_root, "--vm", "web1"], 1, &["root ", text(&trap), kind]);
        let as_leaf = format!("web1,leaf={}", text(&trap));
        refuses(dir, &["--root", text(&root), "--vm", &as_leaf], 1, &[text(&trap), "not a leaf"]);
        let config = dir.join("leafblk.toml");
        let tables = [
            format!("[[root]]\nname = \"r\"\npath = {trap:?}\n[[vm]]\nname = \"w\"\n"),
            format!("[[root]]\npath = {root:?}\n[[vm]]\nname = \"w\"\nleaf = {trap:?}\n"),
        ];
        for table in tables {
            fs::write(&config, &table).unwrap();
            refuses(dir, &["--config", text(&config)], 1, &[text(&trap)]);
            refuses(dir, &["--config", text(&config), "--check"], 1, &[text(&trap)]);
        }
        for directory in ["--runtime-dir", "--state-dir"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
            command.args(["serve", "--root", text(&root), "--vm", "web1"]);
            let other = if directory == "--state-dir" { "--runtime-dir" } else { "--state-dir" };
            command.args([directory, text(&trap), other, text(&dir.join("other"))]);
            fails(command, 1, &[text(&trap), "directory"]);
            fs::remove_dir(dir.join("other")).ok();
        }
        traps.check();
    }
}

#[test]
fn requests_that_name_no_file_are_refused_and_nothing_is_opened() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &["--root", text(&root)]);
    let control = daemon.control();
    let traps = Traps::set(dir);
    for name in Traps::NAMES {
        let trap = dir.join(name);
        let refused = control.post("/v1/roots", &json!({"name": "trap", "path": trap}));
        let said = refused.problem(409, "unfit");
        assert!(said.contains(text(&trap)) && said.contains("was not opened"), "{said}");
        let refused = control.post("/v1/vms", &json!({"name": "web1", "leaf": trap}));
        let said = refused.problem(409, "unfit");
        assert!(said.contains(text(&trap)) && said.contains("not a leaf"), "{said}");
        traps.check();
    }
    daemon.stop();
}

/// The names that a daemon gives its own files, when something else has them.
#[test]
fn what_is_no_file_in_the_place_of_the_daemons_own_is_not_opened() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (run, state) = (dir.join("run"), dir.join("state"));
    fs::create_dir(&run).unwrap();
    fs::create_dir(&state).unwrap();
    let root = make_root(dir, ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1"];
    for path in [
        state.join("attached.toml"),
        state.join("attached.toml.lock"),
        run.join("web1.sock.lock"),
        run.join("control.sock.lock"),
    ] {
        let trap = WaitingWriter::at(&path);
        refuses(dir, &args, 1, &[text(&path), "a FIFO"]);
        trap.check();
        drop(trap);
        fs::remove_file(&path).unwrap();
    }
    let record = run.join("web1.vm.toml");
    let trap = WaitingWriter::at(&record);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["qemu-args", "web1", "--runtime-dir", text(&run)]);
    fails(command, 1, &[text(&record), "a FIFO"]);
    trap.check();
}

#[test]
fn a_fifo_in_the_place_of_a_live_map_or_a_kept_cache_is_not_opened() {
    let (temp, root, _leaf) = with_leaf();
    let dir = temp.path();
    let args = ["--root", text(&root), "--vm", "web1"];
    let map = dir.join("run/web1.map");
    fs::create_dir_all(dir.join("run")).unwrap();
    let trap = WaitingWriter::at(&map);
    fails(serve(dir, &args), 1, &[text(&map), "a FIFO"]);
    trap.check();
    drop(trap);
    fs::remove_file(&map).unwrap();

    let daemon = Daemon::start(dir, &[&args[..], &["--keep-cache"]].concat());
    let runtime = dir.join("run").canonicalize().unwrap();
    daemon.stop();
    let hash = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        runtime.as_os_str().as_encoded_bytes(),
    ));
    let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = [Path::new("/dev/shm"), &runtime].map(|dir| dir.join(format!("leafblk-{name}")));
    let kept = kept.into_iter().find(|path| path.with_extension("slots").exists()).unwrap();
    let slots = kept.with_extension("slots");
    fs::remove_file(&slots).unwrap();
    let trap = WaitingWriter::at(&slots);
    // It does without a cache that is kept, and says so.
    Daemon::start(dir, &[&args[..], &["--keep-cache"]].concat()).stop();
    trap.check();
    drop(trap);
    fs::remove_file(&slots).unwrap();
    fs::remove_file(kept.with_extension("cache")).ok();
}
