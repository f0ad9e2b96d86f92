//! The page in headless Chromium, driven through ChromeDriver's HTTP (W3C
//! WebDriver).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Host, MIB, PATIENCE, wait_for};
use crate::common::Client;

/// A browser, until it is dropped.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ask("DELETE", "", &Value::Null);
        }
        // Without a session left it has no browser left either.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    fn open(more: &[&str]) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let text = line.split("successfully on port ").nth(1)?;
            text.trim_end_matches('.').parse().ok()
        });
        let profile = tempfile::tempdir().unwrap();
        let mut args = vec![
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--disable-dev-shm-usage".into(),
            "--window-size=1280,1100".into(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let mut browser =
            Self { driver, port: port.unwrap(), session: String::new(), _profile: profile };
        let made = browser.request(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": { "args": args },
                "goog:loggingPrefs": { "browser": "ALL" },
            } } }),
        );
        browser.session = made["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .unwrap();
        let answer = read_value(stream);
        assert!(answer["value"]["error"].is_null(), "{method} {path}: {answer}");
        answer["value"].clone()
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.request(method, &format!("/session/{}{path}", self.session), body)
    }

    fn goes_to(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url }));
    }

    /// What a script's body returns.
    fn runs(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns something true, and returns that.
    fn until(&self, script: &str) -> Value {
        wait_for(script, || {
            let value = self.runs(script);
            (!matches!(value, Value::Null | Value::Bool(false))).then_some(value)
        })
    }

    /// What the console says, from warnings on.
    fn complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().unwrap().iter();
        let bad =
            entries.filter(|entry| ["WARNING", "SEVERE"].iter().any(|l| entry["level"] == *l));
        bad.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

/// ChromeDriver's answer, by its Content-Length: it keeps the connection open.
fn read_value(stream: TcpStream) -> Value {
    let mut stream = BufReader::new(stream);
    let mut len = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

const PICTURE: &str = "return document.getElementById('map').toDataURL()";

#[test]
#[ignore = "needs chromium and chromedriver: run tests/seeing.sh"]
fn the_page_shows_the_vms_and_its_map_changes_when_a_vm_writes_and_reads() {
    let host = Host::start();
    let browser = Browser::open(&[]);
    browser.goes_to(&format!("http://127.0.0.1:{}/#vm=web1", host.port));
    let names = browser.until(
        "const rows = [...document.querySelectorAll('#rows tr')];
         return rows.length > 1 && rows.map((row) => row.dataset.vm)",
    );
    assert_eq!(names, json!(["web1", "web2"]));
    browser.until("return document.getElementById('map').dataset.leafBytes === '0'");
    let title = browser.runs("return document.getElementById('detail-name').textContent");
    assert_eq!(title, "web1");
    assert_eq!(browser.runs("return document.getElementById('vms-connected').textContent"), "0");
    let empty = browser.runs(PICTURE);

    let mut client = Client::connect(&host.daemon.socket("web1"));
    for i in 0..8 {
        client.write(20 * MIB + i * MIB / 2, &vec![6; 512 << 10]);
    }
    browser.until(&format!(
        "return document.getElementById('map').dataset.leafBytes === '{}'",
        4 * MIB
    ));
    let legend = "return document.getElementById('legend-leaf').textContent === '4.00 MiB'";
    browser.until(legend);
    browser.until("return document.getElementById('vms-connected').textContent === '1'");
    // The light on what changed has faded when two pictures are the same.
    let mut last = Value::Null;
    let written = wait_for("a picture at rest", || {
        let now = browser.runs(PICTURE);
        let rests = now == last;
        last = now.clone();
        (rests && now != empty).then_some(now)
    });
    assert_ne!(written, empty);

    client.read(40 * MIB, 1 << 20);
    browser.until("return document.getElementById('legend-cached').textContent === '1.00 MiB'");
    browser.until(
        "const cells = [...document.querySelectorAll('#rows tr')][0].cells;
         return cells[8].textContent === '4.00 MiB'",
    );
    // The other VM's root is the same: what one read is cached for both.
    browser.runs("document.querySelectorAll('#rows tr')[1].click(); return true");
    browser.until("return document.getElementById('detail-name').textContent === 'web2'");
    browser.until("return document.getElementById('legend-leaf').textContent === '0 B'");
    browser.until("return document.getElementById('legend-cached').textContent === '1.00 MiB'");
    assert_eq!(browser.complaints(), [""; 0], "nothing is refused or fails");
}

#[test]
#[ignore = "needs chromium and chromedriver: run tests/seeing.sh"]
fn the_list_sorts_and_filters_and_the_page_says_when_the_daemon_is_gone() {
    let host = Host::start();
    let browser = Browser::open(&[]);
    browser.goes_to(&format!("http://localhost:{}/", host.port));
    let order = "return [...document.querySelectorAll('#rows tr')].map((r) => r.dataset.vm).join()";
    browser.until(&format!("{order} === 'web1,web2'"));
    browser.runs("document.querySelector('[data-sort=name]').click(); return true");
    browser.until(&format!("{order} === 'web2,web1'"));
    browser.runs(
        "const box = document.getElementById('filter'); box.value = 'B1';
         box.dispatchEvent(new Event('input')); return true",
    );
    browser.until(&format!("{order} === 'web1'"));
    assert!(browser.complaints().is_empty());
    host.daemon.stop();
    browser.until("return document.getElementById('state').className === 'lost'");
}

#[test]
#[ignore = "needs chromium and chromedriver: run tests/seeing.sh"]
fn another_sites_page_can_not_read_frame_or_rebind_the_port() {
    let host = Host::start();
    // A site on another port of this machine, and a name that leads here.
    let site = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let site_port = site.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in site.incoming().map_while(Result::ok) {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let page = "<!doctype html><title>other</title><body>other</body>";
            let _ = write!(
                stream.get_mut(),
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    let browser = Browser::open(&["--host-resolver-rules=MAP rebound.example 127.0.0.1"]);
    let port = host.port;
    browser.goes_to(&format!("http://rebound.example:{port}/v1/stats"));
    let text = browser.runs("return document.body.innerText");
    assert!(text.as_str().unwrap().contains("answers to 127.0.0.1"), "{text}");
    browser.goes_to(&format!("http://localhost:{site_port}/"));
    browser.runs(&format!(
        "window.results = {{}};
         const note = (name) => [() => {{ results[name] = 'had'; }}, () => {{ results[name] = 'refused'; }}];
         fetch('http://127.0.0.1:{port}/v1/stats').then(...note('read'));
         fetch('http://127.0.0.1:{port}/v1/stats', {{ mode: 'no-cors' }})
           .then((answer) => answer.text().then((text) => {{ results.blind = text.length; }}), () => {{ results.blind = 0; }});
         const add = (tag, name) => {{
           const element = document.createElement(tag);
           [element.onload, element.onerror] = note(name);
           element.src = `http://127.0.0.1:{port}/${{name}}`;
           document.body.append(element);
         }};
         add('script', 'page.js'); add('img', 'icon.svg');
         return true"
    ));
    let results = browser.until("return Object.keys(results).length === 4 && results");
    assert_eq!(
        results,
        json!({ "read": "refused", "blind": 0, "page.js": "refused", "icon.svg": "refused" })
    );
    browser.runs(&format!(
        "const frame = document.createElement('iframe'); frame.src = 'http://127.0.0.1:{port}/';
         frame.onload = () => {{ window.framed = true; }}; document.body.append(frame); return true"
    ));
    browser.until("return window.framed === true");
    // A frame that is refused holds an error page, which runs no script of ours.
    let log = browser.complaints().join("\n");
    assert!(log.contains("frame") || log.contains("403"), "{log}");
}

#[test]
#[ignore = "needs chromium and chromedriver: run tests/seeing.sh"]
fn what_is_not_served_is_on_the_page() {
    let host = Host::with_failures();
    let browser = Browser::open(&[]);
    browser.goes_to(&format!("http://localhost:{}/", host.port));
    browser.until("return document.getElementById('failed').hidden === false");
    let rows = browser.runs(
        "return [...document.querySelectorAll('#failed-rows li')].map((row) => row.textContent)",
    );
    assert_eq!(
        rows,
        json!([
            "root late is not served: leafblk root show late says why",
            "VM extra is not served: leafblk vm show extra says why"
        ])
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
#[ignore = "needs chromium and chromedriver: run tests/seeing.sh"]
fn a_link_to_no_vm_shows_the_page_all_the_same() {
    let host = Host::start();
    let browser = Browser::open(&[]);
    for link in ["#vm=%", "#vm=%ff", "#vm=nobody", "#"] {
        browser.goes_to("about:blank");
        browser.goes_to(&format!("http://localhost:{}/{link}", host.port));
        browser.until("return document.getElementById('detail-name').textContent === 'web1'");
        browser.runs("location.hash = '#vm=%'; return true");
        browser.runs("location.hash = '#vm=web2'; return true");
        browser.until("return document.getElementById('detail-name').textContent === 'web2'");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}
