//! Bad input, as a person meets it: one clear sentence, status 1 (2 for a
//! mistake in the flags), and nothing made or changed.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "bad_input/late.rs"]
mod late;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::scene::{ROOT_SECTORS, root_content};
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
    command.arg("serve").args(["--cache-size", "16MiB"]);
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
    fails(command, 1, &["root.raw", "Permission denied", "check the path"]);
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
    let parts = ["root.qcow2", "is a qcow2 image", "qemu-img convert -O raw"];
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

// Leaves.

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

/// Damages a leaf, which is then refused.
fn damaged_leaf(parts: &[&str], damage: impl FnOnce(&fs::File)) {
    let (temp, root, leaf) = with_leaf();
    damage(&fs::File::options().read(true).write(true).open(&leaf).unwrap());
    refuses(temp.path(), &["--root", text(&root), "--vm", "web1"], 1, parts);
}

/// Changes both copies of the header, and their sums.
fn edit_header(leaf: &fs::File, at: usize, with: &[u8]) {
    for copy in 0..2 {
        let mut bytes = [0; 4096];
        leaf.read_exact_at(&mut bytes, copy * 4096).unwrap();
        bytes[at..at + with.len()].copy_from_slice(with);
        let sum = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..].copy_from_slice(&sum.to_le_bytes());
        leaf.write_all_at(&bytes, copy * 4096).unwrap();
    }
}

#[test]
fn a_leaf_cut_short_is_refused() {
    damaged_leaf(&["web1.leaf", "cut short"], |leaf| {
        leaf.set_len(leaf.metadata().unwrap().len() - 512).unwrap();
    });
    damaged_leaf(&["web1.leaf", "cut short"], |leaf| leaf.set_len(8192).unwrap());
}

#[test]
fn a_leaf_with_a_damaged_header_is_refused() {
    damaged_leaf(&["web1.leaf", "damaged header"], |leaf| {
        leaf.write_all_at(&[0xff; 16], 100).unwrap();
        leaf.write_all_at(&[0xff; 16], 4096 + 100).unwrap();
    });
    damaged_leaf(&["web1.leaf"], |leaf| leaf.set_len(0).unwrap());
    damaged_leaf(&["web1.leaf"], |leaf| leaf.set_len(100).unwrap());
    damaged_leaf(&["web1.leaf", "not a leaf"], |leaf| {
        leaf.write_all_at(&[0; 8192], 0).unwrap();
    });
}

#[test]
fn something_else_in_the_place_of_a_leaf_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let fifo = temp.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let text_file = temp.path().join("text");
    fs::write(&text_file, "precious").unwrap();
    for path in [fifo.as_path(), temp.path(), text_file.as_path(), Path::new("/dev/null")] {
        let vm = format!("web1,leaf={}", path.display());
        refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 1, &[text(path)]);
    }
    let vm = format!("web1,leaf={}", root.display());
    let parts = ["root.raw", "the leaf of VM web1"];
    refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 2, &parts);
}

#[test]
fn one_damaged_copy_of_a_leafs_header_does_no_harm() {
    for copy in 0..2 {
        let (temp, root, leaf) = with_leaf();
        let file = fs::File::options().write(true).open(&leaf).unwrap();
        file.write_all_at(&[0xff; 4096], copy * 4096).unwrap();
        let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
        assert!(Client::connect(&daemon.socket("web1")).read(0, 4096) == [1; 4096]);
        daemon.stop();
    }
}

#[test]
fn a_leaf_of_a_newer_format_is_refused() {
    damaged_leaf(&["web1.leaf", "version 77", "newer leafblk"], |leaf| {
        edit_header(leaf, 8, &77u32.to_le_bytes());
    });
}

#[test]
fn a_leaf_of_another_root_is_refused() {
    let (temp, _, _) = with_leaf();
    let other = file(temp.path(), "other.raw", &vec![9; ROOT_SECTORS as usize * 512]);
    let parts = ["web1.leaf", "another root", "recorded", "given", "--root"];
    refuses(temp.path(), &["--root", &other, "--vm", "web1"], 1, &parts);
}

#[test]
fn a_leaf_that_is_larger_than_asked_for_or_cannot_grow_is_refused() {
    let (temp, root, _) = with_leaf();
    let args = |vm| ["--root", text(&root), "--vm", vm];
    Daemon::start(temp.path(), &args("web1,size=4MiB")).stop();
    refuses(temp.path(), &args("web1,size=3MiB"), 1, &["web1.leaf", "leave size out"]);
    let read_only = "web1,size=8MiB,readonly";
    refuses(temp.path(), &args(read_only), 1, &["web1.leaf", "leave size out"]);
    refuses(temp.path(), &args("web1,size=1024TiB"), 1, &["web1.leaf", "can't grow to"]);
    let args = ["--root", text(&root), "--vm", "web2,size=1MiB"];
    refuses(temp.path(), &args, 1, &["web2", "less than"]);
}

#[test]
fn a_read_only_vm_without_a_leaf_has_its_roots_size_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = |vm| ["--root", text(&root), "--vm", vm];
    let parts = ["VM web1", "readonly and has no leaf", "2097152 bytes", "leave size out"];
    refuses(temp.path(), &args("web1,readonly,size=8GiB"), 1, &parts);
    let check = [&args("web1,readonly,size=8GiB")[..], &["--check"]].concat();
    refuses(temp.path(), &check, 1, &parts);
    let daemon = Daemon::start(temp.path(), &args("web1,readonly,size=2MiB"));
    let client = Client::open(&daemon.socket("web1"), true).unwrap();
    assert_eq!(client.capacity, ROOT_SECTORS * 512);
    drop(client);
    daemon.stop();
}

#[test]
fn a_disk_that_no_leaf_can_have_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1,size=2048TiB"];
    let parts = ["VM web1: size is 2048TiB", "up to 1024TiB"];
    refuses(temp.path(), &args, 2, &parts);
    refuses(temp.path(), &[&args[..], &["--check"]].concat(), 2, &parts);
    // A root of that size; few file systems have such files.
    let disk = SmallDisk::mount("1M");
    let root = disk.path().join("large.raw");
    fs::File::create(&root).unwrap().set_len((1 << 50) + 512).unwrap();
    let args = ["--root", text(&root), "--vm", "web1"];
    let parts = ["VM web1", "root large has 1125899906843136 bytes", "at most 1024TiB"];
    refuses(temp.path(), &args, 1, &parts);
    refuses(temp.path(), &[&args[..], &["--check"]].concat(), 1, &parts);
}

#[test]
fn a_check_finds_what_a_start_would_and_changes_nothing_beside_a_daemon() {
    let (temp, root, _) = with_leaf();
    let dir = temp.path();
    let before = inventory(dir);
    let check = |vm| [&["--root", text(&root), "--vm", vm][..], &["--check"]].concat();
    let says_right = |vm| {
        let output = serve(dir, &check(vm)).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.starts_with("the configuration is right: 1 root, 1 VM;"), "{said}");
    };
    says_right("web1,size=4MiB");
    says_right("new");
    refuses(dir, &check("web1,size=1MiB"), 1, &["web1", "less than"]);
    refuses(dir, &["--root", "/missing.raw", "--check"], 1, &["/missing.raw"]);
    refuses(dir, &["--socket-group", "nobody-has-it", "--check"], 1, &["no group nobody-has-it"]);
    refuses(dir, &["--reactors", "0", "--check"], 2, &["reactors"]);
    assert_eq!(inventory(dir), before);
    let daemon = Daemon::start(dir, &["--root", text(&root), "--vm", "web1"]);
    let client = Client::connect(&daemon.socket("web1"));
    says_right("web1");
    drop(client);
    daemon.stop();
}

#[test]
fn a_leaf_in_use_is_refused_and_its_user_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let leaf = format!("other,leaf={}", daemon.leaf("web1").display());
    refuses(temp.path(), &["--root", text(&root), "--vm", &leaf], 1, &["web1.leaf", "in use"]);
    Client::connect(&daemon.socket("web1")).write(0, &[1; 512]);
    daemon.stop();
}

#[test]
fn two_vms_on_one_leaf_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "a,leaf=/tmp/x.leaf", "--vm", "b,leaf=/tmp/x.leaf"];
    refuses(temp.path(), &args, 2, &["/tmp/x.leaf", "VM a", "VM b"]);
}

// Sockets.

#[test]
fn a_live_socket_is_refused_and_its_owner_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let daemon = Daemon::start(temp.path(), &["--root", text(&root), "--vm", "web1"]);
    let leaf = format!("web1,leaf={}", temp.path().join("other.leaf").display());
    let parts = ["web1.sock", "another process listens"];
    refuses(temp.path(), &["--root", text(&root), "--vm", &leaf], 1, &parts);
    assert!(Client::connect(&daemon.socket("web1")).read(0, 512) == root_content(0, 1));
    daemon.stop();
}

#[test]
fn a_stale_socket_is_replaced_with_one_for_its_owner_only() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let args = ["--root", text(&root), "--vm", "web1"];
    let daemon = Daemon::start(temp.path(), &args);
    let socket = daemon.socket("web1");
    daemon.kill();
    let meta = fs::symlink_metadata(&socket).expect("kill -9 leaves the socket's file");
    assert!(meta.file_type().is_socket());
    let daemon = Daemon::start(temp.path(), &args);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Client::connect(&socket).read(0, 512) == root_content(0, 1));
    daemon.stop();
    assert!(!socket.exists(), "it goes with the daemon");
}

#[test]
fn a_group_is_let_in_where_it_is_asked_for_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), 64);
    let args = ["--root", text(&root), "--vm", "web1", "--socket-group"];
    let unknown = [&args[..], &["no-such-group-here"]].concat();
    refuses(dir.path(), &unknown, 1, &["there is no group no-such-group-here", "socket-group"]);
    // A group that everybody is a member of: one's own.
    let own = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let daemon = Daemon::start(dir.path(), &[&args[..], &[&own.name]].concat());
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket("web1")), 0o660);
    assert_eq!(mode(&dir.path().join("run")), 0o710);
    let mut client = Client::connect(&daemon.socket("web1"));
    client.read(0, 512);
    drop(client);
    daemon.stop();
}

#[test]
fn a_file_in_the_place_of_a_socket_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let precious = file(temp.path(), "precious", b"data");
    let vm = format!("web1,socket={precious}");
    refuses(temp.path(), &["--root", text(&root), "--vm", &vm], 1, &["precious", "no socket"]);
}

#[test]
fn a_socket_of_another_program_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = make_root(temp.path(), ROOT_SECTORS);
    let socket = temp.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let vm = format!("web1,socket={}", socket.display());
    refuses(
        temp.path(),
        &["--root", text(&root), "--vm", &vm],
        1,
        &["other.sock", "another process listens"],
    );
    drop(UnixStream::connect(&socket).unwrap());
    drop(listener);
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
