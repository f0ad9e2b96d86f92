//! The command line that speaks to the API.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::scene::ROOT_SECTORS;
use crate::common::{Client, Daemon, make_root};

fn leafblk(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(args).current_dir(dir);
    if matches!(args[0], "vm" | "root" | "status") {
        command.arg("--runtime-dir").arg(dir.join("run"));
    }
    command.output().unwrap()
}

/// What a command that succeeds prints.
fn says(dir: &Path, args: &[&str]) -> String {
    let output = leafblk(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {stderr}");
    assert_eq!(stderr, "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one sentence of a command that fails.
fn fails(dir: &Path, args: &[&str], status: i32) -> String {
    let output = leafblk(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{args:?}");
    assert!(stderr.starts_with("leafblk: ") && stderr.lines().count() == 1, "{stderr}");
    stderr
}

/// The words of the line that begins with `first`.
fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(first));
    line.unwrap_or_else(|| panic!("no {first} in {text}")).split_whitespace().collect()
}

#[test]
fn a_host_is_run_from_the_command_line() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    // Relative paths count from where the command is given.
    let added = says(dir, &["root", "add", "debian=root.raw"]);
    assert!(added.starts_with("debian: ") && added.contains("size 2MiB"), "{added}");
    let attached = says(dir, &["vm", "attach", "web1,root=debian,size=8MiB,leaf=my.leaf"]);
    assert!(attached.contains("web1: socket") && attached.contains("my.leaf"), "{attached}");
    assert!(dir.join("my.leaf").exists());
    let list = says(dir, &["vm", "list"]);
    assert_eq!(row(&list, "NAME"), ["NAME", "STATE", "CLIENT", "ROOT", "SIZE", "LEAF", "ORIGIN"]);
    let web1 = row(&list, "web1");
    assert_eq!(web1, ["web1", "serving", "no", "debian", "8MiB", "0B", "api"]);
    let roots = says(dir, &["root", "list"]);
    assert_eq!(row(&roots, "debian")[..6], ["debian", "serving", "2MiB", "probed", "1", "api"]);

    let client = Client::connect(&daemon.socket("web1"));
    let text = fails(dir, &["vm", "detach", "web1"], 5);
    assert!(text.contains("has a client connected"), "{text}");
    let told = says(dir, &["vm", "resize", "web1", "16MiB"]);
    assert!(told.starts_with("VM web1 has 16MiB now; its client can't be told: "), "{told}");
    drop(client);
    assert_eq!(says(dir, &["vm", "flush", "web1"]), "VM web1 is flushed\n");
    let show = says(dir, &["vm", "show", "web1"]);
    assert_eq!(row(&show, "size:"), ["size:", "16MiB"]);
    assert_eq!(row(&show, "connections:"), ["connections:", "1"]);
    assert!(says(dir, &["root", "show", "debian"]).contains("fingerprint:"));
    let status = says(dir, &["status"]);
    assert_eq!(row(&status, "health:"), ["health:", "ok"]);
    assert_eq!(row(&status, "VMs:")[..3], ["VMs:", "1", "served;"]);
    let reverted = says(dir, &["vm", "revert", "web1", "--yes"]);
    assert_eq!(reverted, "VM web1 is reverted: its disk is root debian again\n");
    assert_eq!(says(dir, &["vm", "ls"]), says(dir, &["vm", "list"]));
    // As `vm rename` says that it is done.
    assert_eq!(says(dir, &["vm", "detach", "web1"]), "VM web1 is detached\n");
    let renamed = says(dir, &["vm", "attach", "web9,root=debian,leaf=my.leaf"]);
    assert!(renamed.contains("my.leaf (existing), size 16"), "{renamed}");
    assert_eq!(says(dir, &["vm", "detach", "web9"]), "VM web9 is detached\n");
    assert_eq!(says(dir, &["root", "remove", "debian"]), "root debian is removed\n");
    daemon.stop();
}

#[test]
fn json_is_what_the_api_answers() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    let control = daemon.control();
    let json = |args: &[&str]| -> Value {
        let text = says(dir, &[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(json(&["root", "add", "root.raw"]), control.get("/v1/roots/root").expect(200));
    assert_eq!(json(&["vm", "attach", "web1"])["name"], "web1");
    assert_eq!(json(&["vm", "list"]), control.get("/v1/vms").expect(200));
    assert_eq!(json(&["vm", "show", "web1"]), control.get("/v1/vms/web1").expect(200));
    assert_eq!(json(&["root", "list"]), control.get("/v1/roots").expect(200));
    assert_eq!(json(&["vm", "resize", "web1", "8MiB"])["told"], "nobody");
    assert_eq!(json(&["vm", "revert", "web1", "--yes"])["leaf_held_bytes"], 0);
    let status = json(&["status"]);
    assert_eq!(
        (&status["health"]["status"], &status["status"]["vms"]["total"]),
        (&"ok".into(), &1.into())
    );
    // Where the API's answer is empty, what was done.
    let done = |done: &str| serde_json::json!({"done": done, "vm": "web1"});
    assert_eq!(json(&["vm", "flush", "web1"]), done("flushed"));
    assert_eq!(json(&["vm", "detach", "web1"]), done("detached"));
    let removed = serde_json::json!({"done": "removed", "root": "root"});
    assert_eq!(json(&["root", "remove", "root"]), removed);
    daemon.stop();
}

#[test]
fn mistakes_name_the_cause_and_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let text = fails(dir, &["vm", "list"], 1);
    for part in ["no leafblk listens on", "run/control.sock", "leafblk serve", "--runtime-dir"] {
        assert!(text.contains(part), "{text}");
    }
    std::fs::create_dir(dir.join("run")).unwrap();
    // One that was killed leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(dir.join("run/control.sock")).unwrap());
    assert!(fails(dir, &["status"], 1).contains("refused"));
    std::fs::remove_file(dir.join("run/control.sock")).unwrap();
    make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    for (args, status, part) in [
        (&["vm", "attach", "a/b"][..], 2, "has a slash"),
        (&["vm", "attach", "x,color=red"], 2, "unknown option"),
        (&["vm", "attach", "x"], 1, "VM x has no root"),
        (&["vm", "show", "nope"], 4, "there is no VM nope"),
        (&["vm", "detach", "../roots/x"], 2, "has a slash"),
        (&["vm", "resize", "x", "4G"], 2, "write 4GiB"),
        (&["vm", "resize", "x", "4GiB"], 4, "there is no VM x"),
        (&["root", "add", "x=/nope.raw"], 1, "/nope.raw can't be read"),
        (&["root", "remove", "nope"], 4, "there is no root nope"),
        (&["vm", "lits"], 2, "did you mean list?"),
        (&["vm", "delete", "x"], 2, "leafblk vm detach NAME takes a VM away and keeps its leaf"),
        (&["vm", "rm"], 2, "leafblk vm detach NAME"),
        (&["vm", "rename", "x", "y"], 2, "leafblk vm attach NEW,root=ROOT,leaf=PATH"),
        (&["vm", "reset", "x"], 2, "leafblk vm revert NAME discards every change"),
        (&["root", "rm", "x"], 2, "leafblk root remove NAME"),
        (&["completions", "tcsh"], 2, "invalid value 'tcsh'"),
    ] {
        let text = fails(dir, args, status);
        assert!(text.contains(part), "{args:?}: {text}");
    }
    daemon.stop();
}

#[test]
fn a_leafblk_that_stands_still_is_an_error_and_nothing_to_wait_for() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("run")).unwrap();
    let socket = temp.path().join("run/control.sock");
    let _silent = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let text = fails(temp.path(), &["status"], 1);
    assert!(text.contains("has not answered within 10 s"), "{text}");
}

#[test]
fn a_script_says_the_same_again_and_tells_the_ends_apart() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    let add = ["root", "add", "debian=root.raw"];
    let added = says(dir, &add);
    let text = fails(dir, &add, 3);
    assert!(text.contains("there is a root debian already"), "{text}");
    assert_eq!(says(dir, &[&add[..], &["--if-absent"]].concat()), added);
    let other = fails(dir, &["root", "add", "debian=other.raw", "--if-absent"], 3);
    assert!(other.contains("whose path is") && other.contains("and not"), "{other}");

    let attach = ["vm", "attach", "web1,root=debian,size=8MiB", "web2", "web3,queues=2"];
    let attached = says(dir, &attach);
    assert_eq!(attached.lines().count(), 3);
    let again = leafblk(dir, &attach);
    assert_eq!(again.status.code(), Some(3));
    assert_eq!(String::from_utf8(again.stderr).unwrap().lines().count(), 3);
    assert_eq!(says(dir, &[&attach[..], &["--if-absent"]].concat()), attached);
    for (vm, how) in [
        ("web1,size=16MiB", "size is "),
        ("web2,root=v2", "root is debian and not v2"),
        ("web2,queues=2", "queues is 1 and not 2"),
        ("web3", "queues is 2 and not 1"),
        ("web2,leaf=other.leaf", "leaf is "),
        ("web2,socket=other.sock", "socket is "),
        ("web2,serial=x", "serial is web2 and not x"),
        ("web2,block-size=4096", "block-size is 512 and not 4096"),
        ("web2,readonly", "readonly is false and not true"),
        ("web2,ephemeral", "ephemeral is false and not true"),
    ] {
        let text = fails(dir, &["vm", "attach", vm, "--if-absent"], 3);
        assert!(text.contains("already, whose") && text.contains(how), "{vm}: {text}");
    }

    assert_eq!(says(dir, &["vm", "list", "-q"]), "web1\nweb2\nweb3\n");
    assert_eq!(says(dir, &["root", "list", "--quiet"]), "debian\n");
    let shown = says(dir, &["vm", "show", "web1", "web3", "--json"]);
    let shown = serde_json::Deserializer::from_str(&shown).into_iter::<Value>();
    let names: Vec<_> = shown.map(|vm| vm.unwrap()["name"].clone()).collect();
    assert_eq!(names, ["web1", "web3"]);

    fails(dir, &["root", "remove", "debian"], 5);
    let client = Client::connect(&daemon.socket("web2"));
    fails(dir, &["vm", "detach", "web2", "--if-exists"], 5);
    // Nothing is done where one is no name.
    fails(dir, &["vm", "detach", "web1", "a/b"], 2);
    // Each is tried, and one that isn't there keeps nobody from the others.
    let several = leafblk(dir, &["vm", "detach", "web1", "nope", "web2", "web3"]);
    assert_eq!(several.status.code(), Some(1), "absent and busy");
    let said = String::from_utf8(several.stderr).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(several.stdout, b"VM web1 is detached\nVM web3 is detached\n");
    fails(dir, &["vm", "detach", "web1"], 4);
    let gone = says(dir, &["vm", "detach", "web1", "web3", "--if-exists"]);
    assert_eq!(gone, "VM web1 is absent\nVM web3 is absent\n");
    drop(client);

    let error = |args: &[&str], status: i32, word: &str| {
        let output = leafblk(dir, &[args, &["--json"]].concat());
        assert_eq!((output.status.code(), &*output.stdout), (Some(status), &b""[..]), "{args:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((&error["error"], &error["exit_status"]), (&word.into(), &status.into()));
        error["detail"].as_str().unwrap().to_owned()
    };
    assert!(error(&["vm", "show", "nope"], 4, "absent").starts_with("there is no VM nope"));
    assert!(error(&["vm", "attach", "web2"], 3, "exists").contains("a VM web2 already"));
    assert!(error(&["vm", "lits"], 2, "usage").contains("did you mean list?"));
    assert!(error(&["vm", "attach", "x/y"], 2, "usage").contains("has a slash"));
    assert!(error(&["root", "add", "x=nope.raw"], 1, "failed").contains("can't be read"));
    for (args, status) in [(&["vm", "--help"][..], "3  exists"), (&["root", "-h"], "5  busy")] {
        let output = Command::new(env!("CARGO_BIN_EXE_leafblk")).args(args).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains(status), "{args:?}");
    }
    daemon.stop();
}

#[test]
fn a_shell_completes_commands_and_the_names_that_there_are() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_root(dir, ROOT_SECTORS);
    let daemon = Daemon::start(dir, &[]);
    says(dir, &["root", "add", "debian=root.raw"]);
    says(dir, &["vm", "attach", "web1", "web2", "db"]);
    // As bash asks, by the script's own function.
    let program = env!("CARGO_BIN_EXE_leafblk");
    let complete = |words: &[&str]| -> Vec<String> {
        let script = "source <(leafblk completions bash); COMP_WORDS=(\"$@\"); \
            COMP_CWORD=$(($# - 1)); COMP_TYPE=9; \
            _clap_complete_leafblk leafblk \"${COMP_WORDS[COMP_CWORD]}\" 2>/dev/null; \
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let beside = Path::new(program).parent().unwrap();
        let path = std::env::join_paths([beside, Path::new("/usr/bin"), Path::new("/bin")]);
        let output = Command::new("bash")
            .args(["-c", script, "bash", "leafblk"])
            .args(words)
            .env("PATH", path.unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    let run = dir.join("run");
    let at = format!("--runtime-dir={}", run.display());
    assert_eq!(complete(&["vm", "show", &at, ""])[..3], ["db", "web1", "web2"]);
    assert_eq!(complete(&["vm", "detach", &at, "db", "we"]), ["web1", "web2"]);
    assert_eq!(complete(&["root", "verify", &at, "d"]), ["debian"]);
    assert_eq!(complete(&["vm", "attach", &at, "new,root=d"]), ["new,root=debian"]);
    assert!(complete(&["v"]).contains(&"vm".to_owned()));
    assert!(complete(&["vm", "re"]).contains(&"revert".to_owned()));
    assert!(complete(&["serve", "--control-g"]).contains(&"--control-group".to_owned()));
    daemon.stop();
    // Where nobody answers, nothing is completed, and nothing said.
    assert!(!complete(&["vm", "show", &at, "we"]).contains(&"web1".to_owned()));
}

#[test]
fn completions_and_man_pages_know_every_command() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for shell in ["bash", "zsh", "fish"] {
        let script = says(dir, &["completions", shell]);
        assert!(script.contains("LEAFBLK_COMPLETE"), "{shell}: {script}");
    }
    let checked = Command::new("bash")
        .arg("-c")
        .arg("source <(\"$0\" completions bash) && complete -p leafblk")
        .arg(env!("CARGO_BIN_EXE_leafblk"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    says(dir, &["man", "pages"]);
    for page in ["leafblk.1", "leafblk-serve.1", "leafblk-vm-attach.1", "leafblk-root-add.1"] {
        let text = std::fs::read_to_string(dir.join("pages").join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}: {text}");
    }
    let document: Value = serde_json::from_str(&says(dir, &["openapi"])).unwrap();
    assert!(document["paths"]["/v1/vms"].is_object());
}

#[test]
fn a_command_that_is_told_nothing_finds_the_socket_by_the_environment() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let daemon = Daemon::start(temp.path(), &[]);
    let status = |socket: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.env("LEAFBLK_SOCKET", socket).arg("status").args(args);
        let output = command.current_dir(temp.path()).output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
        (output.status.code(), said.concat())
    };
    // Relative to where the command is given, as with --socket.
    let (code, said) = status("run/control.sock", &[]);
    assert!(code == Some(0) && said.contains(&daemon.child.id().to_string()), "{said}");
    let (code, said) = status("none.sock", &[]);
    assert!(code == Some(1) && said.contains("none.sock"), "{said}");
    // What is said counts, not what is set.
    let (code, said) = status("none.sock", &["--runtime-dir", "run"]);
    assert!(code == Some(0), "{said}");
    daemon.stop();
}
