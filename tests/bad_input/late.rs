//! Starts that fail when something is made already: it is taken back.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::scene::ROOT_SECTORS;
use crate::common::small_disk::SmallDisk;
use crate::common::{Client, Daemon, make_root};
use crate::{fails, file, inventory, refuses, serve, text, with_leaf};

#[test]
fn a_start_that_fails_takes_back_what_it_has_made() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = make_root(dir, ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1", "--vm"];
    let nowhere = dir.join("missing/x");
    let leaf = format!("web2,leaf={}", nowhere.display());
    let socket = format!("web2,socket={}", nowhere.display());
    let failing = || {
        refuses(dir, &[&args[..], &[&leaf]].concat(), 1, &["missing/x", "can't be created"]);
        refuses(dir, &[&args[..], &[&socket]].concat(), 1, &["missing/x"]);
        let control = ["web2", "--control-socket", text(&nowhere)];
        refuses(dir, &[&args[..], &control].concat(), 1, &["control API", "missing/x"]);
        let too_many = ["web2", "--hugepages", "on", "--cache-size", "1TiB"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.arg("serve").args(&args[..]).args(too_many);
        command.arg("--state-dir").arg(dir.join("state/of/leafblk"));
        command.arg("--runtime-dir").arg(dir.join("run"));
        let before = inventory(dir);
        fails(command, 1, &["hugepages"]);
        assert_eq!(inventory(dir), before);
    };
    failing();
    // Directories that were there stay, and so does what is in them.
    fs::create_dir(dir.join("run")).unwrap();
    fs::create_dir(dir.join("state")).unwrap();
    file(dir, "state/other", b"precious");
    failing();
    // A leaf that was there is not even opened.
    Daemon::start(dir, &["--root", text(&root), "--vm", "web1"]).stop();
    failing();
}

#[test]
fn a_state_directory_in_use_is_refused_and_nothing_is_left() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let before = inventory(temp.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--vm", "web2"]);
    command.arg("--root").arg(&root).arg("--state-dir").arg(temp.path().join("state"));
    command.arg("--runtime-dir").arg(temp.path().join("other/run"));
    fails(command, 1, &["state directory", "in use by another leafblk"]);
    assert_eq!(inventory(temp.path()), before);
    daemon.stop();
}

#[test]
fn a_start_that_fails_when_leaves_are_open_closes_them_and_removes_the_new_ones() {
    let (temp, root, leaf) = with_leaf();
    let dir = temp.path();
    // In the place of a live map, which is found out when a leaf is opened.
    fs::create_dir(dir.join("run/web3.map")).unwrap();
    let names = || inventory(dir).into_keys().collect::<Vec<_>>();
    let before = names();
    let args = ["--root", text(&root), "--vm", "web1", "--vm", "web2", "--vm", "web3"];
    fails(serve(dir, &args), 1, &["web3.map", "can't be made"]);
    assert_eq!(names(), before);
    let mut check = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    let check = check.args(["leaf", "check"]).arg(&leaf).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let daemon = Daemon::start(dir, &args[..6]);
    assert!(Client::connect(&daemon.socket("web1")).read(0, 4096) == [1; 4096]);
    daemon.stop();
}

#[test]
fn a_start_that_fails_keeps_no_cache_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    // The cache's files are in the runtime directory where that is a tmpfs.
    let memory = SmallDisk::mount("64M");
    fs::create_dir_all(memory.path().join("run/web2.map")).unwrap();
    let args = ["--root", text(&root), "--keep-cache", "--vm", "web1"];
    let failing = [&args[..], &["--vm", "web2"]].concat();
    refuses(memory.path(), &failing, 1, &["web2.map"]);
    // One that an earlier process left stays.
    let kept = || inventory(memory.path()).into_keys().filter(|path| is_of_cache(path)).count();
    let mut child = serve(memory.path(), &args).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(out.any(|line| line.starts_with("ready")));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(kept(), 2);
    fails(serve(memory.path(), &failing), 1, &["web2.map"]);
    assert_eq!(kept(), 2);
}

fn is_of_cache(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "cache" || ending == "slots")
}
