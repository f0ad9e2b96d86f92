//! Counters say what was done.

use std::process::Command;

use serde_json::Value;

use super::{Host, MIB, wait_for};
use crate::common::{Client, Op};

fn vm<'a>(stats: &'a Value, name: &str) -> &'a Value {
    stats["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == name).unwrap()
}

fn operation<'a>(vm: &'a Value, name: &str) -> &'a Value {
    vm["operations"].as_array().unwrap().iter().find(|o| o["operation"] == name).unwrap()
}

fn sum(list: &Value) -> u64 {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
}

/// A series of `/metrics`, such as `leafblk_vm_connected{vm="web1"}`.
fn series(host: &Host, name: &str) -> f64 {
    let answer = host.control().get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(answer.body).unwrap();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The counters are written after the answer is shown: waits until so many
/// requests are counted.
fn counted(host: &Host, name: &str, of: &str, requests: u64) -> Value {
    wait_for(&format!("request {requests} ({of}) of {name}"), || {
        let stats = host.stats();
        (operation(vm(&stats, name), of)["requests"] == requests).then_some(stats)
    })
}

#[test]
fn requests_bytes_errors_and_latencies_are_counted_by_operation() {
    let host = Host::start();
    let mut client = Client::connect(&host.daemon.socket("web1"));
    for i in 0..10 {
        client.read(i * MIB / 4, 4096);
    }
    for i in 0..5 {
        client.write(i * MIB, &[7; 8192]);
    }
    client.flush();
    assert_eq!(client.run(Op::Discard, 0, 65536), 0);
    assert_eq!(client.run(Op::Zero, MIB, 65536), 0);
    let stats = counted(&host, "web1", "write_zeroes", 1);
    let web1 = vm(&stats, "web1");
    for (name, requests) in [("read", 10), ("write", 5), ("flush", 1), ("discard", 1)] {
        let operation = operation(web1, name);
        assert_eq!(operation["requests"], requests, "{name}");
        assert_eq!(operation["errors"], 0, "{name}");
        assert_eq!(sum(&operation["latency_counts"]), requests, "{name}");
        assert!(operation["latency_sum_ns"].as_u64().unwrap() > 0, "{name}");
    }
    let from = &web1["read_sectors"];
    let read: u64 =
        ["leaf", "cache", "root", "zero"].iter().map(|k| from[k].as_u64().unwrap()).sum();
    assert_eq!(read, 10 * 8);
    assert_eq!(web1["written_sectors"], 5 * 16);
    assert_eq!((&web1["discarded_sectors"], &web1["zeroed_sectors"]), (&128.into(), &128.into()));
    let bytes = |of| {
        series(&host, &format!("leafblk_vm_request_bytes_total{{vm=\"web1\",operation=\"{of}\"}}"))
    };
    assert_eq!([bytes("read"), bytes("write"), bytes("discard")], [40960.0, 40960.0, 65536.0]);
    assert_eq!(operation(vm(&stats, "web2"), "read")["requests"], 0, "the neighbour did nothing");
}

#[test]
fn sectors_are_counted_by_where_they_came_from() {
    let host = Host::start();
    let mut client = Client::connect(&host.daemon.socket("web1"));
    let sources = |reads: u64| {
        let stats = counted(&host, "web1", "read", reads);
        let web1 = vm(&stats, "web1").clone();
        let from = &web1["read_sectors"];
        let sectors = ["leaf", "cache", "root", "zero"].map(|k| from[k].as_u64().unwrap());
        (sectors, web1["cache_hits"].as_u64().unwrap(), web1["cache_misses"].as_u64().unwrap())
    };
    client.read(0, 4096);
    assert_eq!(sources(1), ([0, 0, 8, 0], 0, 1), "the first read waits for the root");
    client.read(4096, 4096);
    assert_eq!(sources(2), ([0, 8, 8, 0], 1, 1), "its block is cached now");
    client.read(100 * MIB, 4096);
    assert_eq!(sources(3), ([0, 8, 8, 8], 1, 1), "beyond the root are zeros");
    client.write(0, &[1; 4096]);
    client.read(0, 8192);
    assert_eq!(sources(4), ([8, 16, 8, 8], 2, 1), "half is the leaf's");
    let mut other = Client::connect(&host.daemon.socket("web2"));
    other.read(8192, 4096);
    counted(&host, "web2", "read", 1);
    assert_eq!(series(&host, "leafblk_cache_hits_total"), 3.0);
    assert_eq!(series(&host, "leafblk_cache_misses_total"), 1.0);
    assert_eq!(series(&host, "leafblk_cache_fills_total"), 1.0);
}

#[test]
fn a_detached_vm_takes_its_series_along_but_not_the_caches_hits() {
    let host = Host::start();
    let control = host.control();
    control.post("/v1/vms", &serde_json::json!({ "name": "extra", "root": "base" })).expect(201);
    let mut client = Client::connect(&host.daemon.socket("extra"));
    client.read(0, 4096);
    client.read(4096, 4096);
    counted(&host, "extra", "read", 2);
    drop(client);
    wait_for("the end of its connection", || {
        (vm(&host.stats(), "extra")["connected"] == false).then_some(())
    });
    control.delete("/v1/vms/extra").expect(204);
    let text = String::from_utf8(control.get("/metrics").body).unwrap();
    assert!(!text.contains("\"extra\""), "{text}");
    assert_eq!(series(&host, "leafblk_cache_hits_total"), 1.0);
    assert_eq!(series(&host, "leafblk_cache_misses_total"), 1.0);
}

#[test]
fn connections_kicks_calls_and_the_reactors_time_are_counted() {
    let host = Host::start();
    drop(Client::connect(&host.daemon.socket("web1")));
    wait_for("the end of the first connection", || {
        (vm(&host.stats(), "web1")["connected"] == false).then_some(())
    });
    let mut client = Client::connect(&host.daemon.socket("web1"));
    assert_eq!(series(&host, "leafblk_vm_connected{vm=\"web1\"}"), 1.0);
    assert_eq!(series(&host, "leafblk_vm_reconnects_total{vm=\"web1\"}"), 1.0);
    assert_eq!(series(&host, "leafblk_vm_reconnects_total{vm=\"web2\"}"), 0.0);
    let reactors = |key: &str| -> u64 {
        let stats = host.stats();
        let list = stats["reactors"].as_array().unwrap().clone();
        list.iter().map(|reactor| reactor[key].as_u64().unwrap()).sum()
    };
    let keys = ["kicks", "calls", "busy_ns", "cpu_ns", "polls", "looks", "sleeps"];
    let before = keys.map(reactors);
    for i in 0..200 {
        client.read(i * 4096, 4096);
    }
    counted(&host, "web1", "read", 200);
    let after = wait_for("a sleep", || {
        let after = keys.map(reactors);
        (after[6] > before[6]).then_some(after)
    });
    for ((key, before), after) in keys.iter().zip(before).zip(after) {
        assert!(after > before, "{key}: {before}, then {after}");
    }
    assert!(reactors("deferred") >= 1, "the first read waited");
    assert_eq!(reactors("devices"), 1);
}

#[test]
fn a_map_shows_a_write_and_a_cached_block() {
    let host = Host::start();
    let map = || host.control().get("/v1/vms/web1/map?cells=128").expect(200);
    let before = map();
    // 128 MiB in cells of 1 MiB: 64 of the root, of which 2 to 3 are zeros
    // that nobody knows of yet, then nothing.
    assert_eq!((sum(&before["leaf"]), sum(&before["cached"])), (0, 0));
    assert_eq!(sum(&before["uncached"]), 64 * 2048);
    let mut client = Client::connect(&host.daemon.socket("web1"));
    client.write(5 * MIB, &[9; 65536]);
    client.read(7 * MIB, 4096);
    client.read(2 * MIB, 4096);
    let after = map();
    assert_eq!(after["leaf"][5], 128);
    assert_eq!(sum(&after["leaf"]), 128);
    assert_eq!(after["cached"][7], 128, "the whole block is cached");
    assert_eq!(after["zero"][2], 128, "a block found to be zeros");
    assert_eq!(after["size"], 128 * MIB);
    assert_eq!(after["sampled"], false);
}

#[test]
fn a_map_of_no_vm_or_of_no_cells_is_a_problem() {
    let host = Host::start();
    let control = host.control();
    control.get("/v1/vms/nobody/map").problem(404, "not-found");
    for query in ["cells=0", "cells=4097", "cells=-1", "cells=many", "size=5"] {
        let detail = control.get(&format!("/v1/vms/web1/map?{query}")).problem(400, "bad-request");
        assert!(detail.contains("4096"), "{query}: {detail}");
    }
    let whole = control.get("/v1/vms/web1/map").expect(200);
    assert_eq!(whole["leaf"].as_array().unwrap().len(), 1024);
}

#[test]
fn top_prints_a_table_or_json_for_pipes_and_says_so_without_a_terminal() {
    let host = Host::start();
    let socket = host.daemon.dir.join("run/control.sock");
    let top = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.arg("top").arg("--socket").arg(&socket).args(args).output().unwrap()
    };
    let once = top(&["--once", "--interval", "0.2"]);
    assert!(once.status.success(), "{once:?}");
    let text = String::from_utf8(once.stdout).unwrap();
    assert!(text.contains("reactor 0:") && text.contains("\nweb1  base"), "{text}");
    let json = top(&["--json"]);
    let stats: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(stats["vms"][1]["name"], "web2");
    let none = top(&[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(none.stdout.is_empty(), "nothing is drawn into a pipe");
    let said = String::from_utf8(none.stderr).unwrap();
    assert!(said.contains("--once") && said.lines().count() == 1, "{said}");
    let bad = top(&["--interval", "0"]);
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn vms_and_roots_that_are_not_served_are_counted_and_named_with_the_reason() {
    let host = Host::with_failures();
    assert_eq!(series(&host, "leafblk_vms{state=\"serving\"}"), 2.0);
    assert_eq!(series(&host, "leafblk_vms{state=\"failed\"}"), 1.0);
    assert_eq!(series(&host, "leafblk_roots{state=\"failed\"}"), 1.0);
    let stats = host.stats();
    assert_eq!(stats["failed_roots"][0]["name"], "late");
    assert!(stats["failed_roots"][0]["reason"].as_str().unwrap().contains("late.raw"));
    assert_eq!(stats["failed_vms"][0]["name"], "extra");
    // The port tells no paths.
    let at_port = host.over_tcp(&["GET /v1/stats HTTP/1.1", "Host: localhost"]).expect(200);
    assert_eq!(at_port["failed_vms"][0]["reason"], "leafblk vm show extra says why");
    assert_eq!(at_port["failed_roots"][0]["reason"], "leafblk root show late says why");
    let socket = host.daemon.dir.join("run/control.sock");
    let mut top = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    let once = top.args(["top", "--once", "--interval", "0.2", "--socket"]).arg(socket).output();
    let text = String::from_utf8(once.unwrap().stdout).unwrap();
    assert!(text.contains("\nroot late is not served: ") && text.contains("late.raw"), "{text}");
    assert!(text.contains("\nVM extra is not served: "), "{text}");
}

#[test]
fn what_fails_and_the_free_space_are_shown_and_the_port_tells_no_paths_of_files() {
    let host = Host::start();
    let root = host.daemon.dir.join("root.raw");
    std::fs::File::options().write(true).open(root).unwrap().set_len(0).unwrap();
    assert_ne!(Client::connect(&host.daemon.socket("web1")).run(Op::Read, 0, 4096), 0);
    for vm in ["web1", "web2"] {
        // On the same root.
        assert_eq!(series(&host, &format!("leafblk_vm_failing{{vm=\"{vm}\"}}")), 1.0);
    }
    let stats = host.stats();
    let failing = &stats["failing"];
    assert_eq!((&failing[0]["part"], &failing[0]["name"]), (&"root".into(), &"base".into()));
    assert!(failing[0]["problem"].as_str().unwrap().contains("root.raw"), "{failing}");
    let at_port = host.over_tcp(&["GET /v1/stats HTTP/1.1", "Host: localhost"]).expect(200);
    assert_eq!(at_port["failing"][0]["problem"], "leafblk status says what is wrong");
    assert!(!at_port.to_string().contains("root.raw"), "{at_port}");
    for (path, numbers) in [("state", "leaves"), ("run", "runtime")] {
        let path = host.daemon.dir.join(path);
        let space = rustix::fs::statvfs(&path).unwrap();
        let disks = stats["file_systems"].as_array().unwrap();
        let has = |used: &&Value| used["uses"].as_array().unwrap().contains(&numbers.into());
        let disk = disks.iter().find(has).unwrap_or_else(|| panic!("no {numbers} in {stats}"));
        assert!(path.starts_with(disk["path"].as_str().unwrap()), "{disk}");
        assert_eq!(disk["size_bytes"], space.f_blocks * space.f_frsize);
        let series = |what: &str| {
            series(&host, &format!("leafblk_file_system_{what}{{path={}}}", disk["path"]))
        };
        assert_eq!(series("size_bytes"), disk["size_bytes"].as_f64().unwrap());
        assert!(series("free_bytes") <= series("size_bytes"));
        assert_eq!(series("inodes"), space.f_files as f64);
        assert!(series("free_inodes") <= series("inodes"));
        assert_eq!(series("silent"), 0.0);
    }
}
