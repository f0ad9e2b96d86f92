//! A root that was written to between the samples of its fingerprint: who hears of it,
//! and `root verify`.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::errors::served;
use crate::common::http::Control;
use crate::common::scene::{Log, ROOT_SECTORS};
use crate::common::terminal::terminal;
use crate::common::{Daemon, make_root, wait_until};

/// A place that no sample has (docs/leaf-format.md).
fn unsampled() -> u64 {
    let len = ROOT_SECTORS * 512;
    let sampled = |at: u64| (1..=64).any(|i| len * i / 65 / 4096 * 4096 == at);
    let places = ((1 << 20)..len - (64 << 10)).step_by(4096);
    places.into_iter().find(|at| !sampled(*at)).unwrap()
}

/// Changes a byte, as a file system does that is mounted for writing for a moment.
fn write_between_the_samples(root: &Path) {
    let file = File::options().read(true).write(true).open(root).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, unsampled()).unwrap();
    file.write_all_at(&[byte[0] ^ 1], unsampled()).unwrap();
}

fn modified(root: &Path) -> SystemTime {
    root.metadata().unwrap().modified().unwrap()
}

fn set_modified(root: &Path, time: SystemTime) {
    File::options().write(true).open(root).unwrap().set_modified(time).unwrap();
}

fn leafblk(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(args).arg("--runtime-dir").arg(dir.join("run")).output().unwrap()
}

/// What `root verify` prints, which succeeds.
fn verified(dir: &Path, args: &[&str]) -> String {
    let output = leafblk(dir, &[&["root", "verify", "debian"], args].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "quiet in a pipe: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn shown(control: &Control) -> Value {
    control.get("/v1/roots/debian").expect(200)
}

/// That nothing is wrong with the root.
fn is_well(control: &Control) {
    let root = shown(control);
    assert_eq!((&root["changed"], &root["problems"]), (&json!(false), &json!([])), "{root}");
    assert_eq!(control.get("/v1/health").expect(200)["status"], "ok");
}

/// Started again in the same directory.
fn again(daemon: Daemon, dir: &Path) -> (Daemon, Log) {
    daemon.stop();
    Daemon::start_logged(dir, &[])
}

fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("coreutils are there");
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn a_root_that_was_written_between_its_samples_is_named_wherever_one_looks() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let root = dir.path().join("root.raw");
    is_well(&control);
    write_between_the_samples(&root);
    let problem = shown(&control)["problems"][0].as_str().unwrap().to_owned();
    for part in ["its file has changed since", "mtime was", "leafblk root verify debian"] {
        assert!(problem.contains(part), "{problem}");
    }
    assert!(!problem.contains("inode") && !problem.contains("size was"), "{problem}");
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    let sentence = format!("root debian: {problem} (VMs on it: web1)");
    assert_eq!(health["problems"], json!([sentence]));
    for args in [["root", "list"], ["status", "--json"]] {
        let text = String::from_utf8(leafblk(dir.path(), &args).stdout).unwrap();
        assert!(text.contains(&problem.replace('"', "\\\"")), "{args:?}: {text}");
    }
    wait_until("the metric", || {
        let text = String::from_utf8(control.get("/metrics").body).unwrap();
        text.contains("\nleafblk_root_changed{root=\"debian\"} 1\n")
    });
    // A reading of the samples finds nothing, so a start goes on, and warns.
    let fingerprint = shown(&control)["fingerprint"].clone();
    let (daemon, mut log) = again(daemon, dir.path());
    log.wait_for(&["warning: root debian: its file has changed since"]);
    assert_eq!(shown(&control)["fingerprint"], fingerprint);
    assert_eq!(shown(&control)["changed"], true);
    let mut check = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    check.args(["serve", "--check", "--state-dir"]).arg(dir.path().join("state"));
    let check = check.arg("--runtime-dir").arg(dir.path().join("run")).output().unwrap();
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(said.contains("warning: root debian: its file has changed since"), "{said}");
    assert!(check.status.success(), "{said}");
    // It was meant: from now on it is what it should be.
    let said = verified(dir.path(), &[]);
    assert!(said.contains(&sha256sum(&root)) && said.contains("is recorded"), "{said}");
    is_well(&control);
    let (daemon, _log) = again(daemon, dir.path());
    is_well(&control);
    daemon.stop();
}

#[test]
fn verify_records_a_digest_and_finds_a_changed_byte_outside_the_samples_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let root = dir.path().join("root.raw");
    assert_eq!(shown(&control)["digest"], Value::Null);
    assert!(verified(dir.path(), &[]).contains("is recorded"));
    let digest = sha256sum(&root);
    assert_eq!(shown(&control)["digest"], digest.as_str());
    assert!(shown(&control)["verified_at"].as_u64() > Some(1_700_000_000));
    assert!(verified(dir.path(), &[]).contains("is what was recorded"));
    // With its time set back, as restores and rsync do it: the other one tells.
    let time = modified(&root);
    write_between_the_samples(&root);
    set_modified(&root, time);
    let problem = shown(&control)["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("ctime was") && !problem.contains("mtime was"), "{problem}");
    assert!(problem.contains("holds all of it against the digest of"), "{problem}");
    let (daemon, _log) = again(daemon, dir.path());
    let output = leafblk(dir.path(), &["root", "verify", "debian"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["leafblk: root debian is not what it was on", &digest, &sha256sum(&root)] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.lines().count() == 1 && output.stdout.is_empty(), "{said}");
    assert_eq!(shown(&control)["digest"], digest.as_str(), "what was recorded stays");
    assert_eq!(shown(&control)["changed"], true);
    // The byte as it was: proven to be the same, whatever the file says of itself.
    write_between_the_samples(&root);
    assert!(verified(dir.path(), &[]).contains("is what was recorded"));
    is_well(&control);
    // Another one on purpose.
    write_between_the_samples(&root);
    let said = verified(dir.path(), &["--renew", "--json"]);
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&answer["outcome"], &answer["digest"]),
        (&json!("recorded"), &json!(sha256sum(&root)))
    );
    is_well(&control);
    daemon.stop();
}

#[test]
fn a_root_that_nobody_may_write_needs_no_warning_and_verify_looks_at_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    std::fs::set_permissions(&root, Permissions::from_mode(0o444)).unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    control.post("/v1/roots", &json!({"name": "debian", "path": root})).expect(201);
    verified(dir.path(), &[]);
    // As root may: by other means nobody can.
    write_between_the_samples(&root);
    is_well(&control);
    let (daemon, _log) = again(daemon, dir.path());
    is_well(&control);
    assert_eq!(leafblk(dir.path(), &["root", "verify", "debian"]).status.code(), Some(1));
    daemon.stop();
}

#[test]
fn a_copy_in_its_place_is_named_by_its_inode_also_when_the_root_was_removed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let root = dir.path().join("root.raw");
    control.delete("/v1/vms/web1").expect(204);
    control.delete("/v1/roots/debian").expect(204);
    let copy = dir.path().join("copy.raw");
    std::fs::copy(&root, &copy).unwrap();
    set_modified(&copy, modified(&root));
    std::fs::rename(&copy, &root).unwrap();
    let add = |path: &PathBuf| {
        control.post("/v1/roots", &json!({"name": "debian", "path": path})).expect(201)
    };
    let problem = add(&root)["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("inode was") && !problem.contains("mtime was"), "{problem}");
    // Another image under the name is another root.
    control.delete("/v1/roots/debian").expect(204);
    std::fs::write(&root, [7; 1 << 20]).unwrap();
    add(&root);
    is_well(&control);
    daemon.stop();
}

#[test]
fn a_verification_goes_on_by_itself_and_is_called_off_by_whoever_wants() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    // Reading it takes a minute at least.
    let huge = dir.path().join("huge.raw");
    File::create(&huge).unwrap().set_len(1 << 36).unwrap();
    control.post("/v1/roots", &json!({"name": "huge", "path": huge})).expect(201);
    let verify = |name: &str| format!("/v1/roots/{name}/verify");
    let outcome = |name: &str| control.get(&verify(name)).expect(200)["outcome"].clone();
    assert_eq!(outcome("huge"), "none");
    assert_eq!(control.post(&verify("huge"), &Value::Null).expect(202)["outcome"], "running");
    for name in ["huge", "debian"] {
        let detail = control.post(&verify(name), &Value::Null).problem(409, "busy");
        assert!(detail.contains("root huge is being verified"), "{detail}");
    }
    wait_until("progress", || {
        control.get(&verify("huge")).expect(200)["read_bytes"].as_u64() > Some(0)
    });
    let cancel = leafblk(dir.path(), &["root", "verify", "huge", "--cancel"]);
    assert!(cancel.status.success(), "{cancel:?}");
    wait_until("its end", || outcome("huge") == "called-off");
    assert_eq!(control.get("/v1/roots/huge").expect(200)["digest"], Value::Null);
    // With the root, and with leafblk, a verification ends too.
    control.post(&verify("huge"), &Value::Null).expect(202);
    control.delete("/v1/roots/huge").expect(204);
    wait_until("others' turn", || control.post(&verify("debian"), &Value::Null).status == 202);
    control.post("/v1/roots", &json!({"name": "huge", "path": huge})).expect(201);
    wait_until("its turn", || control.post(&verify("huge"), &Value::Null).status == 202);
    daemon.stop();
}

#[test]
fn ctrl_c_calls_off_what_the_command_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let huge = dir.path().join("huge.raw");
    File::create(&huge).unwrap().set_len(1 << 36).unwrap();
    control.post("/v1/roots", &json!({"name": "huge", "path": huge})).expect(201);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["root", "verify", "huge", "--runtime-dir"]).arg(dir.path().join("run"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let outcome = || control.get("/v1/roots/huge/verify").expect(200)["outcome"].clone();
    wait_until("the command", || outcome() == "running");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the verification of root huge was called off"), "{said}");
    assert_eq!(outcome(), "called-off");
    daemon.stop();
}

#[test]
fn verify_shows_its_progress_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = served(dir.path());
    let (mut ours, theirs) = terminal();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["root", "verify", "debian", "--runtime-dir"]).arg(dir.path().join("run"));
    let mut child =
        command.env("TERM", "xterm").stderr(theirs).stdout(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    // Ends with EIO when the command, the last on its side, has ended.
    let _ = ours.read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("reading the root [") && shown.contains('/'), "{shown:?}");
    daemon.stop();
}

#[test]
fn records_of_roots_that_make_no_sense_are_warned_of_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    daemon.stop();
    let records = dir.path().join("state/roots.toml");
    assert!(std::fs::read_to_string(&records).unwrap().contains("name = \"debian\""));
    std::fs::write(&records, "version = 9\n").unwrap();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &[]);
    log.wait_for(&["warning: changes of roots are not noticed", "roots.toml has version 9"]);
    is_well(&control);
    daemon.stop();
    assert_eq!(std::fs::read_to_string(&records).unwrap(), "version = 9\n");
}
