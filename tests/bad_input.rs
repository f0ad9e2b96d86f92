//! Bad input, as a person meets it: one clear sentence, status 1 (2 for a
//! mistake in the flags), and nothing made or changed. Starts are strict, but for those
//! in `partly`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "bad_input/host.rs"]
mod host;
#[path = "bad_input/late.rs"]
mod late;
#[path = "bad_input/leaf.rs"]
mod leaf;
#[path = "bad_input/partly.rs"]
mod partly;
#[path = "bad_input/socket.rs"]
mod socket;
#[path = "bad_input/unopened.rs"]
mod unopened;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::scene::ROOT_SECTORS;
use common::small_disk::SmallDisk;
use common::{Client, Daemon, make_root};

/// Everything below a directory: what kind, how long, and what is in it.
fn inventory(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { checksum(&path) } else { 0 };
        let what = format!("{:?} {} {content:08x}", meta.file_type(), meta.len());
        if meta.is_dir() {
            all.extend(inventory(&path));
            all.insert(path, "a directory".into());
        } else {
            all.insert(path, what);
        }
    }
    all
}

/// Of the file's first MiB: headers and map are there, and leaves are sparse.
fn checksum(path: &Path) -> u32 {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(1 << 20).read_to_end(&mut bytes).unwrap(),
        Err(_) => 0,
    };
    crc32c::crc32c(&bytes)
}

fn serve(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["serve", "--strict", "--cache-size", "16MiB"]);
    if !args.contains(&"--hugepages") {
        command.args(["--hugepages", "off"]);
    }
    command.arg("--state-dir").arg(dir.join("state"));
    command.arg("--runtime-dir").arg(dir.join("run")).args(args);
    command
}

/// Runs it to its end, which comes at once with the status and a sentence that
/// has all of `parts`; the sentence.
fn fails(mut command: Command, status: i32, parts: &[&str]) -> String {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if line.unwrap().starts_with("ready") {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} serves, and should say {parts:?}");
        }
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "one sentence:\n{text}");
    assert!(text.starts_with("leafblk: "), "{text}");
    assert!(!text.trim_end().ends_with('.'), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    text
}

/// As [`fails`], for `leafblk serve` in `dir`, where it leaves no trace.
fn refuses(dir: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let before = inventory(dir);
    fails(serve(dir, args), status, parts);
    assert_eq!(inventory(dir), before, "{args:?} has side effects");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn file(dir: &Path, name: &str, content: &[u8]) -> String {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    text(&path).to_owned()
}

/// A directory with a root and a leaf that was used once.
fn with_leaf() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let leaf = daemon.leaf("web1");
    let mut client = Client::connect(&daemon.socket("web1"));
    client.write(0, &[1; 4096]);
    client.flush();
    drop(client);
    daemon.stop();
    (temp, root, leaf)
}

// Roots.

#[test]
fn a_root_that_is_none_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let missing = dir.join("missing.raw");
    let vm = ["--vm", "web1"];
    let with = |root: &str, parts: &[&str]| {
        refuses(dir, &["--root", root, vm[0], vm[1]], 1, parts);
    };
    with(text(&missing), &["missing.raw", "No such file", "check the path"]);
    with(&format!("here={}", dir.display()), &["neither a file nor a block device"]);
    with(&file(dir, "ragged.raw", &[1; 1000]), &["1000 bytes", "no multiple of 512"]);
    with(&file(dir, "empty.raw", &[]), &["empty"]);
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    with(text(&fifo), &["neither a file nor a block device"]);
    with(&file(dir, "tiny.raw", &[1; 3]), &["3 bytes", "no multiple of 512"]);
    with("char=/dev/zero", &["/dev/zero", "neither a file nor a block device"]);
    let below = format!("below={}/x", file(dir, "file.raw", &[1; 512]));
    with(&below, &["Not a directory"]);
}

#[test]
fn a_root_that_may_not_be_read_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = file(dir, "root.raw", &[1; 4096]);
    let mut command = serve(dir, &["--root", &root, "--vm", "web1"]);
    if rustix::process::getuid().is_root() {
        // Nobody is refused what root is given; and nobody must get at the
        // program, wherever it was built.
        let program = dir.join("leafblk");
        // By cp(1): a file that this process had open for writing may be busy.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_leafblk")).arg(&program).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let mut as_nobody = Command::new(&program);
        as_nobody.args(command.get_args()).current_dir("/").uid(65534).gid(65534);
        command = as_nobody;
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o000)).unwrap();
    let parts = ["root.raw", "Permission denied", "leafblk runs as the user", "setfacl -m u:"];
    fails(command, 1, &parts);
    assert!(!dir.join("run").exists() && !dir.join("state").exists());
}

fn needs(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stderr(Stdio::piped()).stdout(Stdio::piped()).stdin(Stdio::piped());
    let there = Command::new(program).arg("--version").output().is_ok();
    assert!(there, "{program} is not installed; install the package qemu-utils and run this again");
    command
}

#[test]
fn a_qcow2_root_is_refused_with_the_command_that_converts_it() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root.qcow2");
    let made =
        needs("qemu-img").args(["create", "-f", "qcow2"]).arg(&root).arg("1M").output().unwrap();
    assert!(made.status.success());
    let parts = ["root.qcow2", "is a qcow2 image", "qemu-img convert -f qcow2 -O raw"];
    refuses(temp.path(), &["--root", text(&root), "--vm", "web1"], 1, &parts);
}

/// A qemu-io that has the image open for writing until it is dropped.
struct QemuWriter(Child);

impl QemuWriter {
    fn open(image: &Path) -> Self {
        let mut child = needs("qemu-io").args(["-f", "raw"]).arg(image).spawn().unwrap();
        // Its answer to a command tells that it has opened the image.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "{line}");
        Self(child)
    }
}

impl Drop for QemuWriter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_root_that_qemu_writes_to_is_refused_until_it_is_closed() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let writer = QemuWriter::open(&root);
    let args = ["--root", text(&root), "--vm", "web1"];
    refuses(temp.path(), &args, 1, &["root.raw", "open for writing", "QEMU"]);
    drop(writer);
    Daemon::start(temp.path(), &args).stop();
}

#[test]
fn qemu_may_read_a_root_in_use_and_not_write_it() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let before = fs::read(&root).unwrap();
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let write = ["-f", "raw", "-c", "write -P 7 0 512"];
    let output = needs("qemu-io").args(write).arg(&root).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("lock"), "{said}");
    let read = ["-r", "-f", "raw", "-c", "read 0 512"];
    let output = needs("qemu-io").args(read).arg(&root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = needs("qemu-img").args(["resize", "-f", "raw"]).arg(&root).arg("64M").output();
    assert!(!output.unwrap().status.success());
    daemon.stop();
    assert!(fs::read(&root).unwrap() == before);
}

// Flags.

#[test]
fn flags_that_make_no_sense_are_refused_with_status_2() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let root = text(&root);
    let dir = temp.path();
    for (vm, parts) in [
        ("a/b", ["a/b", "slash"]),
        ("../x", ["../x", "slash"]),
        ("", ["VM name", "is empty"]),
        (".hidden", [".hidden", "dot"]),
        ("web 1", ["web 1", "character"]),
        ("control", ["control", "reserved"]),
        ("web1,size=12XB", ["12XB", "unit"]),
        ("web1,size=many", ["many", "size"]),
        ("web1,size=1.5GiB", ["1.5GiB", "1536MiB"]),
        ("web1,size=99999999999GiB", ["99999999999GiB", "64 bits"]),
        ("web1,size=", ["size", "no value"]),
        ("web1,size=1125899906843136", ["web1", "up to 1024TiB"]),
        ("web1,size=1GiB,size=2GiB", ["size", "twice"]),
        ("web1,queues=0", ["queues", "0"]),
        ("web1,queues=x", ["queues", "x"]),
        ("web1,colour=red", ["colour", "unknown option"]),
        ("web1,root=other", ["other", "not given"]),
    ] {
        refuses(dir, &["--root", root, "--vm", vm], 2, &parts);
    }
    let vm = ["--root", root, "--vm", "web1"];
    for (flag, value, part) in [
        ("--cache-size", "big", "big"),
        ("--cache-block", "3KiB", "cache-block"),
        ("--reactors", "0", "reactors"),
        ("--reactors", "-1", "-1"),
        ("--poll-us", "soon", "soon"),
        ("--hugepages", "maybe", "maybe"),
        ("--colour", "red", "--colour"),
    ] {
        // The last of two flags counts, or two are refused: without ours.
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.arg("serve").arg("--state-dir").arg(dir.join("state"));
        command.arg("--runtime-dir").arg(dir.join("run")).args(vm).args([flag, value]);
        let before = inventory(dir);
        fails(command, 2, &[part]);
        assert_eq!(inventory(dir), before);
    }
    refuses(dir, &["--vm", "web1"], 2, &["web1", "no root"]);
    refuses(dir, &["--root", root, "--vm", "web1", "--vm", "web1"], 2, &["web1", "twice"]);
    let slash = format!("a/b=/{root}");
    refuses(dir, &["--root", &slash, "--vm", "web1"], 2, &["a/b", "has a slash"]);
    let long = format!("web1,socket=/tmp/{}", "x".repeat(120));
    refuses(dir, &["--root", root, "--vm", &long], 2, &["107"]);
}

#[test]
fn a_configuration_file_with_a_mistake_is_refused_with_its_line() {
    let temp = tempfile::tempdir().unwrap();
    let config = file(temp.path(), "leafblk.toml", b"cache-size = \"1GiB\"\nnonsense = 1\n");
    refuses(temp.path(), &["--config", &config], 2, &["leafblk.toml, line 2", "nonsense"]);
    let missing = temp.path().join("missing.toml");
    refuses(temp.path(), &["--config", text(&missing)], 1, &["missing.toml"]);
}

#[test]
fn too_few_hugepages_are_an_error_where_they_are_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    let free: u64 = free.trim().parse().unwrap();
    let size = format!("{}MiB", (free + 1024) * 2);
    let args = |mode: &'static str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.arg("serve").args(["--cache-size", &size, "--hugepages", mode]);
        command.arg("--state-dir").arg(temp.path().join("state"));
        command.arg("--runtime-dir").arg(temp.path().join("run"));
        command.args(["--root", text(&root), "--vm", "web1"]);
        command
    };
    let before = inventory(temp.path());
    fails(args("on"), 1, &["hugepages", "vm.nr_hugepages", "--hugepages auto"]);
    assert_eq!(inventory(temp.path()), before);
    // With auto it is a warning that names the same sysctl, and it serves.
    let mut child = args("auto").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ready = out.any(|line| line.starts_with("ready"));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(ready && output.status.success(), "{said}");
    assert!(said.contains("warning") && said.contains("vm.nr_hugepages"), "{said}");
}

// Full disks.

#[test]
fn a_full_disk_while_a_leaf_is_created_leaves_no_leaf() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let disk = SmallDisk::mount("1M");
    disk.fill();
    let leaf = disk.path().join("web1.leaf");
    let vm = format!("web1,leaf={}", leaf.display());
    let before = inventory(disk.path());
    let parts = ["web1.leaf", "can't be created", "No space left", "free space"];
    let args = ["--root", text(&root), "--vm", &vm];
    refuses(temp.path(), &args, 1, &parts);
    // Nor one of a VM that could have its own.
    for order in [["--vm", "other", "--vm", &vm], ["--vm", &vm, "--vm", "other"]] {
        refuses(temp.path(), &[&args[..2], &order].concat(), 1, &parts);
    }
    assert_eq!(inventory(disk.path()), before);
}
