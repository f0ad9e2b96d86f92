//! With Debian's `prometheus` package: promtool, and a Prometheus that scrapes.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Host, PATIENCE, wait_for};
use crate::common::http::read_answer;
use crate::common::{Client, Op};

const ALERTS: &str = include_str!("../../docs/alerts.yaml");
const ALERTS_TEST: &str = include_str!("alerts_test.yaml");
const DASHBOARD: &str = include_str!("../../docs/grafana-dashboard.json");

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

/// Title and query of each target of each panel.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().unwrap();
            let text = text.replace("$__rate_interval", "10s");
            let text = text.replace("$instance", ".*").replace("$vm", ".*");
            assert!(!text.contains('$'), "a variable that nobody sets: {text}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), text));
        }
    }
    queries
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_loads() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert_eq!(dashboard["uid"], "leafblk");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has another's id");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let kind = panel["type"].as_str().unwrap();
        assert!(["stat", "timeseries", "heatmap"].contains(&kind), "{title}: {kind}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        let names: BTreeSet<_> = targets.iter().map(|t| t["refId"].as_str().unwrap()).collect();
        assert_eq!(names.len(), targets.len(), "{title} has one refId twice");
        for source in targets.iter().chain([panel]) {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance", "vm"]);
    assert!(queries().len() > 25);
}

/// A daemon whose VM has done something of every kind.
fn busy_host() -> (Host, Client) {
    let host = Host::start();
    let mut client = Client::connect(&host.daemon.socket("web1"));
    load(&mut client);
    (host, client)
}

fn load(client: &mut Client) {
    for i in 0..50 {
        client.read(i * 65536, 4096);
        client.write(i * 65536, &[3; 4096]);
    }
    client.flush();
    assert_eq!(client.run(Op::Discard, 0, 65536), 0);
    assert_eq!(client.run(Op::Zero, 1 << 20, 65536), 0);
}

#[test]
#[ignore = "needs promtool: run tests/seeing.sh"]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let (host, _client) = busy_host();
    let text = host.control().get("/metrics").body;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(&text).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    // That promtool reads what it is given at all.
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"leafblk_"));
    assert!(lines.count() > 200);
}

/// A Prometheus that scrapes the host's port, until it is dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// With these alert rules.
    fn start(of: &Host, rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [alerts.yaml]\nscrape_configs:\n- job_name: leafblk\n  \
             static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
            of.port
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        std::fs::write(dir.path().join("alerts.yaml"), rules).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, _dir: dir }
    }

    /// The answer to a query, once it listens.
    fn query(&self, query: &str) -> Option<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // 1.0: an answer without chunks.
        write!(stream, "GET /api/v1/query?query={encoded} HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let answer = read_answer(stream);
        // Until it has read its own data.
        if answer.status == 503 {
            return None;
        }
        assert_eq!(answer.status, 200, "{query}: {}", String::from_utf8_lossy(&answer.body));
        Some(answer.json())
    }
}

#[test]
#[ignore = "needs prometheus: run tests/seeing.sh"]
fn every_query_of_the_dashboard_has_an_answer_from_a_real_prometheus() {
    let (host, mut client) = busy_host();
    let prometheus = Prometheus::start(&host, ALERTS);
    let queries = queries();
    let mut missing: Vec<_> = queries.iter().collect();
    wait_for("an answer to each query", || {
        load(&mut client);
        missing.retain(|(_, query)| {
            let answer = prometheus.query(query);
            answer.is_none_or(|answer| answer["data"]["result"].as_array().unwrap().is_empty())
        });
        missing.is_empty().then_some(())
    });
    // What was scraped is what is there.
    let found = prometheus.query("leafblk_vm_info").unwrap();
    let vms = found["data"]["result"].as_array().unwrap();
    assert_eq!(vms.len(), 2, "{vms:?}");
    let up = prometheus.query("up{job=\"leafblk\"}").unwrap();
    assert_eq!(up["data"]["result"][0]["value"][1], "1");
}

/// The names of the alerts.
fn alerts() -> Vec<&'static str> {
    ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn the_alerts_are_about_metrics_that_there_are_and_each_is_tested() {
    let page = include_str!("../../docs/observability.md");
    let names = regex::Regex::new(r"\b(leafblk|process)_[a-z0-9_]+\b").unwrap();
    let mut metrics = BTreeSet::new();
    for name in names.find_iter(ALERTS).map(|found| found.as_str()) {
        let family = name.trim_end_matches("_bucket");
        assert!(page.contains(&format!("| `{family}` |")), "there is no metric {name}");
        metrics.insert(name);
    }
    assert!(metrics.len() > 15, "{metrics:?}");
    let fires = |alert: &&str| ALERTS_TEST.contains(&format!("{{alertname=\"{alert}\""));
    let untested: Vec<_> = alerts().into_iter().filter(|alert| !fires(alert)).collect();
    assert!(untested.is_empty() && alerts().len() > 15, "{untested:?}");
}

#[test]
#[ignore = "needs promtool: run tests/seeing.sh"]
fn promtool_has_each_alert_fire_and_none_for_a_host_that_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let promtool = |args: &[&str]| {
        let output = Command::new("promtool").args(args).current_dir(&dir).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said.into_owned())
    };
    std::fs::write(dir.path().join("alerts.yaml"), ALERTS).unwrap();
    std::fs::write(dir.path().join("test.yaml"), ALERTS_TEST).unwrap();
    let (is_right, said) = promtool(&["check", "rules", "alerts.yaml"]);
    assert!(is_right && said.contains(&format!("{} rules found", alerts().len())), "{said}");
    let (is_right, said) = promtool(&["test", "rules", "test.yaml"]);
    assert!(is_right, "{said}");
    // It notices a rule that doesn't fire.
    let other = ALERTS.replace("leafblk_vm_failing > 0", "leafblk_vm_failing > 1");
    std::fs::write(dir.path().join("alerts.yaml"), other).unwrap();
    let (is_right, said) = promtool(&["test", "rules", "test.yaml"]);
    assert!(!is_right && said.contains("LeafblkVmFailing"), "{said}");
}

#[test]
#[ignore = "needs prometheus: run tests/seeing.sh"]
fn what_is_not_served_and_a_reload_that_failed_fire_in_a_real_prometheus() {
    let host = Host::with_failures();
    // Its reload fails: the root is still missing.
    host.control().post("/v1/reload", &Value::Null).expect(409);
    // Nobody waits for minutes here.
    let at_once = regex::Regex::new(r"for: \d+m").unwrap().replace_all(ALERTS, "for: 0s");
    let prometheus = Prometheus::start(&host, &at_once);
    let mut expected = vec!["LeafblkVmNotServed", "LeafblkRootNotServed", "LeafblkReloadFailed"];
    let quiet = BTreeSet::from(["LeafblkDown", "LeafblkVmFailing", "LeafblkDescriptorsLow"]);
    wait_for("each alert", || {
        let answer = prometheus.query("ALERTS{alertstate=\"firing\"}")?;
        let alerts = answer["data"]["result"].as_array().unwrap().clone();
        for alert in &alerts {
            let name = alert["metric"]["alertname"].as_str().unwrap();
            expected.retain(|expected| *expected != name);
            assert!(!quiet.contains(name), "{alert}");
        }
        expected.is_empty().then_some(())
    });
    let answer = prometheus.query("ALERTS{alertname=\"LeafblkVmNotServed\"}").unwrap();
    let labels = &answer["data"]["result"][0]["metric"];
    assert_eq!(labels["instance"], format!("127.0.0.1:{}", host.port));
    assert_eq!(labels["severity"], "critical");
}
