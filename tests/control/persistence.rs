//! What was attached is there again: after a stop, after kill -9, and in peace
//! with what the configuration names.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::errors::served;
use crate::common::http::Control;
use crate::common::scene::{ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root, wait_until};

fn state_file(dir: &Path) -> PathBuf {
    dir.join("state/attached.toml")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

fn hang_up(daemon: &Daemon) {
    daemon.signal(rustix::process::Signal::HUP);
}

#[test]
fn what_was_attached_is_served_again_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let vm = json!({"name": "web2", "root": "debian", "size": "32MiB", "queues": 2});
    control.post("/v1/vms", &vm).expect(201);
    Client::connect(&daemon.socket("web1")).write(0, &[1; 4096]);
    Client::connect(&daemon.socket("web2")).write(0, &[2; 4096]);
    daemon.stop();
    let text = std::fs::read_to_string(state_file(dir.path())).unwrap();
    assert!(text.contains("version = 1"), "{text}");
    assert!(text.contains("size = \"32MiB\""), "readable: {text}");

    let daemon = Daemon::start(dir.path(), &[]);
    let web2 = daemon.control().get("/v1/vms/web2").expect(200);
    assert_eq!((&web2["queues"], &web2["origin"]), (&json!(2), &json!("api")));
    assert!(Client::connect(&daemon.socket("web1")).read(0, 4096) == [1; 4096]);
    let mut client = Client::connect(&daemon.socket("web2"));
    assert_eq!(client.capacity, 32 << 20);
    assert!(client.read(0, 4096) == [2; 4096]);
    client.write(8192, &[3; 4096]);
    daemon.kill();

    let daemon = Daemon::start(dir.path(), &[]);
    assert!(Client::connect(&daemon.socket("web2")).read(8192, 4096) == [3; 4096]);
    let control = daemon.control();
    control.delete("/v1/vms/web1?force=true").expect(204);
    control.delete("/v1/vms/web2?force=true").expect(204);
    control.delete("/v1/roots/debian").expect(204);
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &[]);
    assert_eq!(daemon.control().get("/v1/vms").expect(200), json!([]));
    assert_eq!(daemon.control().get("/v1/roots").expect(200), json!([]));
    daemon.stop();
}

/// Attaches VMs one after another until the daemon is gone; the names of those
/// that were answered for.
fn attach_until_the_end(control: &Control, round: usize) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        let name = format!("vm{round}-{number}");
        let body = json!({"name": name, "root": "debian"}).to_string();
        let request = format!(
            "POST /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = control.try_raw(request.as_bytes());
        match answer {
            Some(bytes) if bytes.starts_with(b"HTTP/1.1 201") => answered.push(name),
            _ => break,
        }
    }
    answered
}

#[test]
fn a_kill_in_the_middle_of_an_attach_loses_no_vm_that_was_answered_for() {
    const KILLS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let mut attached: Vec<String> = Vec::new();
    let mut daemon = Daemon::start(dir.path(), &[]);
    daemon.control().post("/v1/roots", &json!({"name": "debian", "path": root})).expect(201);
    for round in 0..KILLS {
        let control = daemon.control();
        let attacher = std::thread::spawn(move || attach_until_the_end(&control, round));
        // Not before the first is under way, or in other rounds, so that some are
        // answered for on a busy machine too, the second or third; then at another
        // moment each time.
        let leaf = daemon.leaf(&format!("vm{round}-{}", round % 3));
        wait_until("an attach begins", || leaf.exists());
        let moment = Instant::now() + Duration::from_micros(731 * round as u64);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        daemon.kill();
        attached.extend(attacher.join().unwrap());
        daemon = Daemon::start(dir.path(), &[]);
        let list = daemon.control().get("/v1/vms").expect(200);
        let there = names(&list);
        for name in &attached {
            assert!(there.contains(&name.as_str()), "{name} of {there:?} is lost");
        }
        for vm in list.as_array().unwrap() {
            assert_eq!(vm["state"], "serving", "{vm}");
        }
    }
    assert!(!attached.is_empty());
    // One that was cut off can be attached anew, whatever it left behind.
    let last = format!("vm{}-9999", KILLS - 1);
    daemon.control().post("/v1/vms", &json!({"name": last})).expect(201);
    let mut client = Client::connect(&daemon.socket(&attached[0]));
    assert!(client.read(0, 4096) == root_content(0, 8));
    drop(client);
    daemon.stop();
}

#[test]
fn a_kill_in_the_middle_of_a_start_forgets_nothing() {
    const VMS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    for number in 0..VMS {
        control.post("/v1/vms", &json!({"name": format!("vm{number}")})).expect(201);
    }
    daemon.stop();
    let before = std::fs::read(state_file(dir.path())).unwrap();
    let socket = dir.path().join("run/vm7.sock");
    for _ in 0..6 {
        let _ = std::fs::remove_file(&socket);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_leafblk"))
            .args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--state-dir"])
            .arg(dir.path().join("state"))
            .arg("--runtime-dir")
            .arg(dir.path().join("run"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Some are attached again by then, and some are not.
        wait_until("the start is under way", || socket.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(std::fs::read(state_file(dir.path())).unwrap() == before);
    }
    let daemon = Daemon::start(dir.path(), &[]);
    assert_eq!(names(&daemon.control().get("/v1/vms").expect(200)).len(), VMS + 1);
    daemon.stop();
}

#[test]
fn a_vm_of_the_configuration_wins_over_an_attached_one() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    control.post("/v1/vms", &json!({"name": "web2"})).expect(201);
    // One whose root will not be there either.
    let image = dir.path().join("root.raw");
    control.post("/v1/roots", &json!({"name": "gone", "path": image})).expect(201);
    control.post("/v1/vms", &json!({"name": "web3", "root": "gone"})).expect(201);
    daemon.stop();
    let text = std::fs::read_to_string(state_file(dir.path())).unwrap();
    let without = text.replace(&format!("[[root]]\nname = \"gone\"\npath = {image:?}\n"), "");
    assert!(without.len() < text.len(), "{text}");
    std::fs::write(state_file(dir.path()), without).unwrap();
    let root = format!("debian={}", dir.path().join("root.raw").display());
    let args = ["--root", &root, "--vm", "web1,queues=4", "--vm", "web3,queues=3"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    log.wait_for(&["root debian was attached through the API and is in the configuration now"]);
    log.wait_for(&["VM web1 was attached through the API and is in the configuration now"]);
    let control = daemon.control();
    let web1 = control.get("/v1/vms/web1").expect(200);
    assert_eq!((&web1["origin"], &web1["queues"]), (&json!("configuration"), &json!(4)));
    assert_eq!(control.get("/v1/vms/web3").expect(200)["queues"], 3);
    assert_eq!(control.get("/v1/vms/web2").expect(200)["origin"], "api");
    let text = std::fs::read_to_string(state_file(dir.path())).unwrap();
    assert!(text.contains("web2") && !text.contains("web1") && !text.contains("web3"), "{text}");
    daemon.stop();
}

#[test]
fn a_vm_of_the_configuration_is_detached_until_the_next_reload_or_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap(), "--vm", "web1"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    let control = daemon.control();
    control.delete("/v1/vms/web1").expect(204);
    assert_eq!(control.get("/v1/vms").expect(200), json!([]));
    let again = control.post("/v1/vms", &json!({"name": "web1"})).problem(409, "configured");
    assert!(again.contains("run leafblk reload"), "{again}");
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(0, 4096) == root_content(0, 8));
    drop(client);
    control.delete("/v1/vms/web1?force=true").expect(204);
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &args);
    assert_eq!(daemon.control().get("/v1/vms/web1").expect(200)["state"], "serving");
    daemon.stop();
}

#[test]
fn what_cannot_be_had_again_is_shown_as_failed_and_tried_again_at_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = served(dir.path());
    daemon.stop();
    let (image, aside) = (dir.path().join("root.raw"), dir.path().join("aside"));
    std::fs::rename(&image, &aside).unwrap();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &[]);
    log.wait_for(&["VM web1, attached through the API, is not served"]);
    let control = daemon.control();
    let root = control.get("/v1/roots/debian").expect(200);
    assert_eq!(root["state"], "failed");
    assert!(root["reason"].as_str().unwrap().contains("root.raw"), "{root}");
    assert_eq!(control.get("/v1/vms/web1").expect(200)["state"], "failed");
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["problems"].as_array().unwrap().len(), 2, "{health}");
    control.post("/v1/vms/web1/flush", &Value::Null).problem(409, "not-served");

    std::fs::rename(&aside, &image).unwrap();
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    assert_eq!(control.get("/v1/vms/web1").expect(200)["state"], "serving");
    // All is served. A new name is a change of the file, which is said.
    let problems = control.get("/v1/health").expect(200)["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    assert!(problems[0].as_str().unwrap().contains("ctime was"), "{problems}");
    daemon.stop();

    std::fs::rename(&image, &aside).unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let control = daemon.control();
    control.delete("/v1/roots/debian").problem(409, "root-used");
    control.delete("/v1/vms/web1").expect(204);
    control.delete("/v1/roots/debian").expect(204);
    daemon.stop();
    let text = std::fs::read_to_string(state_file(dir.path())).unwrap();
    assert!(!text.contains("web1") && !text.contains("debian"), "{text}");
}

#[test]
fn what_a_reload_cannot_have_is_shown_as_failed_and_tried_again_at_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let (file, image, leaf) =
        (dir.path().join("leafblk.toml"), dir.path().join("late.raw"), dir.path().join("my.leaf"));
    let base = format!("[[root]]\nname = \"d\"\npath = {root:?}\n");
    std::fs::write(&file, &base).unwrap();
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &["--config", file.to_str().unwrap()]);
    let control = daemon.control();
    std::fs::write(&leaf, "no leaf").unwrap();
    let more = format!(
        "{base}[[root]]\nname = \"late\"\npath = {image:?}\n\
         [[vm]]\nname = \"a\"\nroot = \"late\"\n[[vm]]\nname = \"b\"\nroot = \"d\"\nleaf = {leaf:?}\n"
    );
    std::fs::write(&file, &more).unwrap();
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    for (path, part) in [
        ("/v1/roots/late", "late.raw"),
        ("/v1/vms/a", "root late could not be"),
        ("/v1/vms/b", "my.leaf"),
    ] {
        let info = control.get(path).expect(200);
        assert_eq!((&info["state"], &info["origin"]), (&json!("failed"), &json!("configuration")));
        assert!(info["reason"].as_str().unwrap().contains(part), "{info}");
    }
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["problems"].as_array().unwrap().len(), 3, "{health}");
    // They are the configuration's: nothing of them is kept.
    let kept = std::fs::read_to_string(state_file(dir.path())).unwrap();
    assert!(!kept.contains("[["), "{kept}");

    std::fs::copy(&root, &image).unwrap();
    std::fs::remove_file(&leaf).unwrap();
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    assert_eq!(control.get("/v1/health").expect(200)["status"], "ok");
    assert_eq!(names(&control.get("/v1/vms").expect(200)), ["a", "b"]);

    // One that is gone from the file is forgotten, failed or not.
    std::fs::write(dir.path().join("state/c.leaf"), "no leaf").unwrap();
    std::fs::write(&file, format!("{base}[[vm]]\nname = \"c\"\nroot = \"d\"\n")).unwrap();
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    assert_eq!(control.get("/v1/vms/c").expect(200)["state"], "failed");
    std::fs::write(&file, &base).unwrap();
    hang_up(&daemon);
    log.wait_for(&["reloaded the configuration"]);
    assert_eq!(control.get("/v1/vms").expect(200), json!([]));
    daemon.stop();
}

#[test]
fn a_vm_whose_root_has_left_the_configuration_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap()];
    let daemon = Daemon::start(dir.path(), &args);
    daemon.control().post("/v1/vms", &json!({"name": "web1"})).expect(201);
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &[]);
    let web1 = daemon.control().get("/v1/vms/web1").expect(200);
    assert_eq!(web1["state"], "failed");
    assert!(web1["reason"].as_str().unwrap().contains("root \"root\", which is not given"));
    // What else is attached doesn't make the daemon forget it.
    daemon.control().post("/v1/roots", &json!({"name": "other", "path": root})).expect(201);
    daemon.stop();
    let daemon = Daemon::start(dir.path(), &args);
    assert_eq!(daemon.control().get("/v1/vms/web1").expect(200)["state"], "serving");
    daemon.stop();
}

#[test]
fn an_ephemeral_leaf_goes_with_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    control.post("/v1/vms", &json!({"name": "tmp", "ephemeral": true})).expect(201);
    assert!(daemon.leaf("tmp").exists());
    control.delete("/v1/vms/tmp").expect(204);
    assert!(!daemon.leaf("tmp").exists());
    assert!(daemon.leaf("web1").exists());
    daemon.stop();
}

#[test]
fn an_ephemeral_leaf_stays_through_restarts_and_goes_at_the_detach() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap(), "--vm", "configured,ephemeral"];
    let vms = ["configured", "attached"];
    let daemon = Daemon::start(dir.path(), &args);
    daemon.control().post("/v1/vms", &json!({"name": "attached", "ephemeral": true})).expect(201);
    // Guests that run on: their clients stay connected until the daemon ends.
    let mut guests = vms.map(|vm| Client::connect(&daemon.socket(vm)));
    for guest in &mut guests {
        guest.write(4096, &[9; 4096]);
    }
    daemon.stop();
    drop(guests);
    // The second stop comes before any of them is back.
    Daemon::start(dir.path(), &args).stop();
    let daemon = Daemon::start(dir.path(), &args);
    for vm in vms {
        let mut guest = Client::connect(&daemon.socket(vm));
        assert!(guest.read(4096, 4096) == [9; 4096], "{vm} has lost what its guest wrote");
        drop(guest);
        daemon.control().delete(&format!("/v1/vms/{vm}?force=true")).expect(204);
        assert!(!daemon.leaf(vm).exists(), "{vm} is detached");
    }
    daemon.stop();
}

#[test]
fn a_state_file_that_cannot_be_understood_stops_the_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = served(dir.path());
    daemon.stop();
    for (text, part) in [
        ("version = 7\n", "has version 7"),
        ("version = \n", "is damaged (line 1"),
        ("version = 1\n[[vm]]\nname = \"w\"\nroot = \"d\"\nqueues = 99\n", "queues is 99"),
    ] {
        std::fs::write(state_file(dir.path()), text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_leafblk"))
            .args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--state-dir"])
            .arg(dir.path().join("state"))
            .arg("--runtime-dir")
            .arg(dir.path().join("run"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(part) && stderr.contains("the state file"), "{stderr}");
        assert_eq!(std::fs::read_to_string(state_file(dir.path())).unwrap(), text);
    }
}

#[test]
fn a_reload_makes_the_configuration_true_as_far_as_that_is_possible() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let file = dir.path().join("leafblk.toml");
    let root_table = format!("[[root]]\nname = \"d\"\npath = {root:?}\n");
    let vm = |name: &str, more: &str| format!("[[vm]]\nname = \"{name}\"\nroot = \"d\"\n{more}\n");
    let write = |head: &str, tables: &[String]| {
        std::fs::write(&file, format!("{head}\n{root_table}{}", tables.concat())).unwrap();
    };
    write("", &[vm("stays", ""), vm("goes", ""), vm("busy", ""), vm("grows", "size = \"8MiB\"")]);
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &["--config", file.to_str().unwrap()]);
    let control = daemon.control();
    control.post("/v1/vms", &json!({"name": "mine"})).expect(201);
    control.post("/v1/vms", &json!({"name": "adopted"})).expect(201);
    let mut stays = Client::connect(&daemon.socket("stays"));
    let busy = Client::connect(&daemon.socket("busy"));

    let image = dir.path().join("second.raw");
    std::fs::copy(&root, &image).unwrap();
    let second = format!("[[root]]\nname = \"e\"\npath = {image:?}\n");
    write(
        "reactors = 7\nlog = \"debug\"",
        &[
            vm("stays", "queues = 2"),
            vm("grows", "size = \"16MiB\""),
            vm("adopted", ""),
            vm("new", ""),
            second,
        ],
    );
    hang_up(&daemon);
    log.wait_for(&["VM busy: it is not in the configuration any more, but has a client"]);
    log.wait_for(&["VM goes: detached"]);
    log.wait_for(&["root e: added"]);
    log.wait_for(&["VM stays: it has other settings now"]);
    // It may be one of those that have gone by another name.
    log.wait_for(&["reload: VM new: ", "as VM goes (leaf ", "goes.leaf), busy (leaf ", "left it"]);
    log.wait_for(&["setting reactors: it has changed; that takes effect at the next start"]);
    log.wait_for(&["reloaded the configuration"]);
    control.post("/v1/vms/new/new-leaf", &Value::Null).expect(200);
    let list = control.get("/v1/vms").expect(200);
    assert_eq!(names(&list), ["adopted", "busy", "grows", "mine", "new", "stays"]);
    let origin = |name: &str| control.get(&format!("/v1/vms/{name}")).expect(200)["origin"].clone();
    assert_eq!((origin("adopted"), origin("mine")), (json!("configuration"), json!("api")));
    assert_eq!(control.get("/v1/vms/grows").expect(200)["size"], 16 << 20);
    assert!(stays.read(0, 4096) == root_content(0, 8), "its client noticed nothing");
    // The log's level has changed: what is said at `debug` is there now.
    drop(busy);
    log.wait_for(&["VM busy: disconnected"]);
    wait_until("busy has no client", || {
        control.get("/v1/vms/busy").expect(200)["connected"] == json!(false)
    });
    hang_up(&daemon);
    log.wait_for(&["VM busy: detached"]);
    log.wait_for(&["reloaded the configuration"]);

    std::fs::write(&file, "nonsense").unwrap();
    hang_up(&daemon);
    log.wait_for(&["the configuration stays as it is", "leafblk.toml, line 1"]);
    assert_eq!(names(&control.get("/v1/vms").expect(200)).len(), 5);
    drop(stays);
    daemon.stop();
}

#[test]
fn a_reload_that_would_resize_a_disk_without_a_leaf_says_that_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let file = dir.path().join("leafblk.toml");
    let write = |size: &str| {
        let vm = format!("[[vm]]\nname = \"bare\"\nreadonly = true\n{size}\n");
        std::fs::write(&file, format!("[[root]]\npath = {root:?}\n{vm}")).unwrap();
    };
    write("");
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &["--config", file.to_str().unwrap()]);
    write("size = \"16MiB\"");
    hang_up(&daemon);
    log.wait_for(&["reload: VM bare", "has no leaf, so there is nothing to resize"]);
    log.wait_for(&["reloaded the configuration"]);
    let size_bytes = ROOT_SECTORS * 512;
    assert_eq!(daemon.control().get("/v1/vms/bare").expect(200)["size"], size_bytes);
    daemon.stop();
}

#[test]
fn a_live_map_whose_leaf_no_vm_has_is_named_in_the_log_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap(), "--vm", "web1"];
    let daemon = Daemon::start(dir.path(), &args);
    let (map, leaf) = (dir.path().join("run/web1.map"), daemon.leaf("web1"));
    Client::connect(&daemon.socket("web1")).write(0, &[7; 4096]);
    daemon.kill();
    let away = dir.path().join("away.leaf");
    for (is_there, said) in [(true, "web1.leaf;"), (false, "web1.leaf, which is not there;")] {
        if !is_there {
            // As where its file system is not mounted, or it is deleted.
            std::fs::rename(&leaf, &away).unwrap();
        }
        let (daemon, mut log) = Daemon::start_logged(dir.path(), &args[..2]);
        log.wait_for(&["web1.map", said, "remove the map if the leaf was deleted"]);
        daemon.stop();
        assert!(map.exists());
    }
    std::fs::rename(&away, &leaf).unwrap();
    let daemon = Daemon::start(dir.path(), &args);
    assert!(Client::connect(&daemon.socket("web1")).read(0, 4096) == [7; 4096]);
    daemon.stop();
    assert!(!map.exists());
}
