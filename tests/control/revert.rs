//! A disk that is its root again, and the guests that must not see it become so.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::errors::served;
use crate::common::http::Control;
use crate::common::scene::{Neighbour, root_content};
use crate::common::terminal::terminal;
use crate::common::{Client, Daemon, wait_until};

/// Where a hypervisor's process finds the socket.
const SOCKET: &str = "LEAFBLK_REVERT_SOCKET";

/// A hypervisor as a process of its own, until it is dropped.
struct Hypervisor {
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Hypervisor {
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "revert::a_hypervisor_of_another_process", "--nocapture"])
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    /// What its guest does next: whether it read the root, or something else, or nothing.
    fn says(&mut self) -> String {
        let words = ["the root", "something else", "no disk"];
        let line = self.said.find(|line| words.contains(&line.as_ref().unwrap().as_str()));
        line.expect("it ended").unwrap()
    }

    /// Has it connect again.
    fn again(&mut self) -> String {
        self.child.stdin.as_mut().unwrap().write_all(b"again\n").unwrap();
        self.says()
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a [`Hypervisor`] does, and nothing where this is no process of one: it reads, then
/// writes, and connects again for each line that it gets.
#[test]
fn a_hypervisor_of_another_process() {
    let Ok(socket) = std::env::var(SOCKET) else {
        return;
    };
    let mut lines = std::io::stdin().lines();
    loop {
        let client = Client::try_connect(Path::new(&socket));
        let said = client.ok().map(|mut client| {
            let is_root = client.read(0, 65536) == root_content(0, 128);
            client.write(0, &[1; 65536]);
            // It stays connected for as long as it runs.
            std::mem::forget(client);
            if is_root { "the root" } else { "something else" }
        });
        println!("\n{}", said.unwrap_or("no disk"));
        if lines.next().is_none() {
            return;
        }
    }
}

fn problems(control: &Control) -> String {
    control.get("/v1/vms/web1").expect(200)["problems"].to_string()
}

#[test]
fn a_revert_under_a_guest_keeps_that_one_out_and_lets_the_next_one_in() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    control.post("/v1/vms", &json!({"name": "neighbour"})).expect(201);
    let neighbour = Neighbour::start(&daemon.socket("neighbour"));
    neighbour.goes_on(1);
    control.post("/v1/vms/web1/resize", &json!({"size": "16MiB"})).expect(200);
    let mut first = Hypervisor::start(&daemon.socket("web1"));
    assert_eq!(first.says(), "the root");
    control.post("/v1/vms/web1/revert", &Value::Null).problem(409, "connected");
    assert_eq!(control.get("/v1/vms/web1").expect(200)["leaf_held_bytes"], 65536);
    let vm = control.post("/v1/vms/web1/revert?force=true", &Value::Null).expect(200);
    assert_eq!((&vm["leaf_held_bytes"], &vm["size"]), (&json!(0), &json!(16 << 20)));
    assert_eq!(first.again(), "no disk");
    let pid = first.child.id();
    let why = format!("process {pid} still has the disk as it was before the revert of the leaf");
    assert!(problems(&control).contains(&why), "{}", problems(&control));
    assert_eq!(control.get("/v1/health").expect(200)["status"], "degraded");

    let mut next = Hypervisor::start(&daemon.socket("web1"));
    assert_eq!(next.says(), "the root");
    assert_eq!(problems(&control), "[]");
    drop(next);
    wait_until("its socket is free", || {
        control.get("/v1/vms/web1").expect(200)["connected"] == false
    });
    // The leaf is the next one's: what comes now is as good as any.
    assert_eq!(first.again(), "something else");
    drop(first);
    neighbour.goes_on(20);
    neighbour.stop();
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &[]);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(0, 4096) == [1; 4096]);
    assert!(client.read(65536, 4096) == root_content(128, 8));
    drop(client);
    daemon.stop();
}

/// The command, with its own control socket.
fn revert(daemon: &Daemon, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    command.args(["vm", "revert", "web1", "--runtime-dir"]).arg(daemon.dir.join("run"));
    command.args(more);
    command
}

fn held(control: &Control) -> u64 {
    control.get("/v1/vms/web1").expect(200)["leaf_held_bytes"].as_u64().unwrap()
}

#[test]
fn nothing_is_discarded_before_somebody_has_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let write = || {
        let mut client = Client::connect(&daemon.socket("web1"));
        client.write(0, &[1; 65536]);
        client
    };
    let client = write();
    for more in [&["--yes"][..], &[]] {
        let output = revert(&daemon, more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("has a client connected") && said.contains("--force"), "{said}");
    }
    drop(client);
    let disconnected = || control.get("/v1/vms/web1").expect(200)["connected"] == false;
    wait_until("its socket is free", disconnected);
    // Where there is nobody to ask.
    let output = revert(&daemon, &[]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["everything that VM web1 has written", "web1.leaf", "is lost", "add --yes"] {
        assert!(said.contains(part), "{said}");
    }
    // Who is asked and doesn't say yes.
    for answer in ["n\n", "\n", "yep\n", "\u{4}"] {
        let (said, status) = asked(&daemon, answer);
        assert!(said.contains("Revert VM web1? [y/N]"), "{said}");
        assert!(said.contains("nothing was changed") && status == Some(1), "{said}");
        assert_eq!(held(&control), 65536);
    }
    let (said, status) = asked(&daemon, "y\n");
    assert!(said.contains("VM web1 is reverted: its disk is root debian again"), "{said}");
    assert_eq!((status, held(&control)), (Some(0), 0));

    let client = write();
    let output = revert(&daemon, &["--yes", "--force"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("warning: VM web1 has a client"), "{said}");
    assert_eq!(held(&control), 0);
    drop(client);
    daemon.stop();
}

/// What a terminal shows that is asked and answers so; and the exit status.
fn asked(daemon: &Daemon, answer: &str) -> (String, Option<i32>) {
    let (mut ours, theirs) = terminal();
    let [stdin, stdout, stderr] = [(); 3].map(|()| theirs.try_clone().unwrap());
    let mut command = revert(daemon, &[]);
    let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    drop((command, theirs));
    let mut said = Vec::new();
    let mut bytes = [0; 4096];
    let mut is_answered = false;
    // The terminal ends with EIO.
    while let Ok(count @ 1..) = ours.read(&mut bytes) {
        said.extend(&bytes[..count]);
        if !is_answered && String::from_utf8_lossy(&said).contains("[y/N]") {
            ours.write_all(answer.as_bytes()).unwrap();
            is_answered = true;
        }
    }
    (String::from_utf8(said).unwrap(), child.wait().unwrap().code())
}
