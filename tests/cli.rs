//! The `leafblk` command as a person or a script meets it: exit status, the
//! sentence on stderr, and that a refused command leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path().join(name), content).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs leafblk here; its directories, unless given, are `state` and `run`.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.current_dir(self.path()).env_clear().args(args);
        let sourced = matches!(args.first(), Some(&("serve" | "qemu-args")));
        let default = |flag: &str| sourced && !args.contains(&flag) && !args.contains(&"--help");
        if default("--state-dir") {
            command.args(["--state-dir", "state"]);
        }
        if default("--runtime-dir") {
            command.args(["--runtime-dir", "run"]);
        }
        command.output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn assert_refused(place: &Place, args: &[&str], status: i32, part: &str) {
    let before = place.names();
    let output = place.run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
    assert!(text.starts_with("leafblk: "), "{args:?}: {text}");
    assert!(text.contains(part), "{args:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert_eq!(stdout(&output), "", "{args:?}");
    assert_eq!(place.names(), before, "{args:?} left something behind");
}

#[test]
fn a_mistake_in_the_flags_is_one_sentence_and_status_2() {
    let place = Place::new();
    let long = format!("w,socket=/{}", "s".repeat(107));
    for (args, part) in [
        (&["serve", "--vm", "w"][..], "VM w has no root; give one with --root"),
        (&["serve", "--vm", "w"], "VM w has no root; give one with --root"),
        (&["serve", "--root", "d.raw", "--vm", "w,root=x"], "the roots are d"),
        (&["serve", "--root", "d.raw", "--root", "e.raw", "--vm", "w"], "one of d, e"),
        (&["serve", "--root", "d.raw", "--root", "d=x", "--vm", "w"], "root d is given twice"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--vm", "w"], "VM w is given twice"),
        (&["serve", "--root", "d.raw", "--vm", "a,leaf=x", "--vm", "b,leaf=./x"], "both the leaf"),
        (&["serve", "--root", "d.raw", "--vm", "a,socket=x", "--vm", "b,socket=x"], "the socket"),
        (&["serve", "--root", "d.raw", "--vm", &long], "at most 107"),
        (&["serve", "--root", "d.raw", "--vm", "a/b"], "has a slash"),
        (&["serve", "--root", "a/b=d.raw", "--vm", "w"], "has a slash"),
        (&["serve", "--root", "./a=b.raw", "--vm", "w"], "name it: --root NAME="),
        (&["serve", "--root", "d=", "--vm", "w"], "has no path"),
        (&["serve", "--root", "d.raw", "--vm", "w,size=4G"], "write 4GiB"),
        (&["serve", "--root", "d.raw", "--vm", "w,size=513"], "a multiple of 512"),
        (&["serve", "--root", "d.raw", "--vm", "w,queues=65"], "from 1 to 64"),
        (&["serve", "--root", "d.raw", "--vm", "w,color=red"], "unknown option \"color=red\""),
        (&["serve", "--root", "d.raw", "--vm", "w", "--cache-size", "1MiB"], "from 16MiB"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--cache-size", "big"], "is no size"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--cache-block", "3KiB"], "a power of two"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--hugepages", "2"], "use auto, on or off"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--reactors", "0"], "from 1 to 64"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--reactors", "x"], "no whole number"),
        (&["serve", "--root", "d.raw", "--vm", "w", "--poll-us", "10001"], "to 10000"),
        (&["serve", "--vms", "w"], "did you mean --vm?"),
        (&["serve", "w"], "unexpected argument 'w'"),
        (&["serv"], "did you mean serve?"),
        (&["qemu-args"], "NAME"),
        (&["qemu-args", "a/b"], "has a slash"),
        (&["qemu-args", "w", "--for", "xen"], "use qemu, cloud-hypervisor, firecracker or libvirt"),
        (&["serve", "--state-dir", "", "--root", "d.raw", "--vm", "w"], "state-dir"),
    ] {
        assert_refused(&place, args, 2, part);
    }
}

#[test]
fn a_mistake_in_the_file_names_the_file_and_the_line() {
    let place = Place::new();
    place.write("c.toml", "poll-us = 1\n\n[[vm]]\nname = \"w\"\nqueue = 2\n");
    assert_refused(&place, &["serve", "--config", "c.toml"], 2, "c.toml, line 5: unknown field");
    place.write("c.toml", "log = \"verbose\"\n[[root]]\npath = \"d.raw\"\n");
    assert_refused(
        &place,
        &["serve", "--config", "c.toml"],
        2,
        "verbose is no level and no module",
    );
    place.write(
        "c.toml",
        "[[root]]\nname = \"debian\"\npath = \"d.raw\"\n[[vm]]\nname = \"w\"\nroot = \"debain\"",
    );
    assert_refused(&place, &["serve", "--config", "c.toml"], 2, "did you mean debian?");
    place.write("c.toml", "cache-size = \"4 gigs\"\n");
    assert_refused(&place, &["serve", "--config", "c.toml"], 2, "c.toml, line 1");
    place.write("c.toml", "reactors = 65\n[[root]]\npath = \"d.raw\"\n[[vm]]\nname = \"w\"\n");
    assert_refused(&place, &["serve", "--config", "c.toml"], 2, "reactors is 65");
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure() {
    let place = Place::new();
    assert_refused(&place, &["serve", "--config", "none.toml"], 1, "none.toml cannot be read");
    assert_refused(&place, &["serve", "--config", "."], 1, "cannot be read");
}

#[test]
fn a_user_without_a_runtime_directory_is_told_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        let serve = ["serve", "--state-dir", "/nowhere"];
        let output = command.env_clear().args(serve).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("XDG_RUNTIME_DIR") && text.contains("--runtime-dir"), "{text}");
        return;
    }
    // Root gives up its identity to run as a user, from a copy that any user
    // may run. cp makes it: a descriptor for writing in this process would be
    // inherited by what the other tests start, and exec refuses such a file.
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = place.path().join("leafblk");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_leafblk")).arg(&binary).status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(&binary);
    let output = command
        .env_clear()
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .args(["serve", "--state-dir", "/nowhere"])
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("XDG_RUNTIME_DIR is not set"), "{text}");
    assert!(text.contains("pass --runtime-dir DIR"), "{text}");
}

#[test]
fn help_and_version_go_to_stdout_with_status_0() {
    let place = Place::new();
    let output = place.run(&["--version"]);
    assert_eq!(stdout(&output), concat!("leafblk ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(output.status.success());
    for args in [&["--help"][..], &["serve", "--help"], &["qemu-args", "--help"]] {
        let output = place.run(args);
        assert!(output.status.success(), "{args:?}");
        assert!(stdout(&output).contains("Examples:"), "{args:?}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn no_command_at_all_gets_the_help_on_stderr() {
    let output = Place::new().run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: leafblk <COMMAND>"));
}

#[test]
fn the_help_of_serve_names_the_flags_that_scripts_rely_on_first() {
    let text = stdout(&Place::new().run(&["serve", "--help"]));
    let options = text.split("Options:").nth(1).unwrap();
    let options = options.split("Examples:").next().unwrap();
    let flags: Vec<&str> = options
        .lines()
        .filter_map(|line| line.split_whitespace().find(|w| w.starts_with("--")))
        .filter(|flag| options.contains(&format!("      {flag}")))
        .collect();
    assert_eq!(
        flags,
        [
            "--config",
            "--state-dir",
            "--runtime-dir",
            "--root",
            "--vm",
            "--cache-size",
            "--cache-block",
            "--hugepages",
            "--keep-cache",
            "--reactors",
            "--poll-us",
            "--socket-group",
            "--control-socket",
            "--control-group",
            "--http-port",
            "--strict",
            "--check"
        ]
    );
}

#[test]
fn a_log_variable_that_names_no_level_and_no_module_is_refused() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.current_dir(place.path()).env("LEAFBLK_LOG", "verbose");
    let root = place.path().join("d.raw");
    fs::write(&root, vec![0; 1 << 20]).unwrap();
    command.args(["serve", "--root", "d.raw", "--state-dir", "s", "--runtime-dir", "r"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("LEAFBLK_LOG is \"verbose\""), "{}", stderr(&output));
    assert!(!place.path().join("r").exists());
}

#[test]
fn qemu_args_finds_a_vm_in_flags_and_file_and_flags_win() {
    let place = Place::new();
    place.write(
        "c.toml",
        "runtime-dir = \"/r\"\n[[vm]]\nname = \"a\"\nqueues = 4\n[[vm]]\nname = \"b\"\n",
    );
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        let output = command.current_dir(place.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let file = run(&["qemu-args", "a", "--config", "c.toml"]);
    assert!(file.contains("path=/r/a.sock,") && file.contains("num-queues=4,"), "{file}");
    let flag = run(&["qemu-args", "a", "--config", "c.toml", "--vm", "a,socket=s.sock"]);
    let socket = place.path().join("s.sock");
    assert!(flag.contains(&format!("path={},", socket.display())), "{flag}");
    assert!(flag.contains("num-queues=1,"), "{flag}");
    let ch = run(&["qemu-args", "b", "--for", "cloud-hypervisor", "--config", "c.toml"]);
    assert!(ch.contains("--disk vhost_user=on,socket=/r/b.sock,num_queues=1,"), "{ch}");
}

#[test]
fn qemu_args_finds_a_served_vm_by_its_name_alone() {
    let place = Place::new();
    assert_refused(&place, &["qemu-args", "w"], 1, "no leafblk serves a VM w in");
    let endpoint =
        leafblk::config::Endpoint { vm: "w".into(), socket: "/elsewhere/w.sock".into(), queues: 7 };
    let run_dir = place.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    let _record = leafblk::daemon::record::publish(&run_dir, &endpoint, None).unwrap();
    let output = place.run(&["qemu-args", "w"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("path=/elsewhere/w.sock,") && text.contains("num-queues=7,"), "{text}");
    assert!(stderr(&output).contains("share=on must stay"));
}

#[test]
fn qemu_args_in_json_has_an_array_of_arguments_the_remarks_and_the_socket() {
    let place = Place::new();
    let args = ["qemu-args", "w", "--vm", "w,socket=/s/w.sock,queues=3"];
    let plain = stdout(&place.run(&args));
    let output = place.run(&[&args[..], &["--json"]].concat());
    assert_eq!(stderr(&output), "");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let argv = json["argv"].as_array().unwrap();
    let joined = argv.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ");
    assert_eq!(joined, plain.trim_end().replace(" \\\n", " "));
    assert_eq!((&json["socket"], &json["queues"]), (&"/s/w.sock".into(), &3.into()));
    assert!(json["notes"][0].is_string(), "{json}");
}

#[test]
fn qemu_args_works_for_a_member_of_the_sockets_group_and_tells_others_what_to_do() {
    use std::os::unix::process::CommandExt;
    const GROUP: u32 = 65533;
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "this test takes on other users and groups, and so has to run as root");
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = place.path().join("leafblk");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_leafblk")).arg(&binary).status();
    assert!(copied.unwrap().success());
    let run_dir = place.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o711)).unwrap();
    let endpoint =
        leafblk::config::Endpoint { vm: "w".into(), socket: "/w.sock".into(), queues: 1 };
    let _record = leafblk::daemon::record::publish(&run_dir, &endpoint, Some(GROUP)).unwrap();
    let run_as = |group: u32| {
        let mut command = Command::new(&binary);
        command.env_clear().uid(65534).gid(group).current_dir("/");
        command.args(["qemu-args", "w", "--runtime-dir"]).arg(&run_dir).output().unwrap()
    };
    let member = run_as(GROUP);
    assert!(member.status.success(), "{}", stderr(&member));
    assert!(stdout(&member).contains("path=/w.sock,"));
    let other = run_as(65534);
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("a member of its socket-group"), "{}", stderr(&other));
}
