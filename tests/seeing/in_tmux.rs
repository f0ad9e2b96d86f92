//! `leafblk top` in a real terminal: tmux's.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Host, wait_for};
use crate::common::Client;

/// A tmux server of the test's own, with a shell in one pane of 140 × 40.
struct Terminal {
    server: String,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

impl Terminal {
    fn open() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let server = format!("leafblk-test-{}-{number}", std::process::id());
        let terminal = Self { server };
        let shell = "env -i PATH=\"$PATH\" TERM=\"$TERM\" LANG=C.UTF-8 PS1='ready> ' sh";
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "140", "-y", "40", shell]);
        terminal.shows("ready>");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        // -u: the terminal takes UTF-8, whatever the locale of the tests.
        let output = Command::new("tmux").args(["-u", "-L", &self.server]).args(args).output();
        let output = output.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen satisfies.
    fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let end = std::time::Instant::now() + super::PATIENCE;
        loop {
            if fits(&last) {
                return last;
            }
            assert!(std::time::Instant::now() < end, "{what} is never seen in\n{last}");
            last = self.screen();
        }
    }

    fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    fn types(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn runs(&self, line: &str) {
        self.types(&["-l", line]);
        self.types(&["Enter"]);
    }

    fn asked(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).trim().to_owned()
    }

    /// The terminal's modes, as stty(1) has them.
    fn modes(&self) -> String {
        self.types(&["-l", "clear; stty -g; echo done"]);
        self.types(&["Enter"]);
        let screen = self.until("the modes", |s| s.lines().any(|line| line == "done"));
        screen.lines().find(|line| line.matches(':').count() > 5).unwrap().to_owned()
    }

    /// Starts top; what follows it in the shell says how it ended.
    fn starts_top(&self, host: &Host, more: &str) {
        let socket = host.daemon.dir.join("run/control.sock");
        let program = env!("CARGO_BIN_EXE_leafblk");
        self.runs(&format!(
            "{program} top --interval 0.2 --socket {} {more}; echo ended with $?",
            socket.display()
        ));
        self.shows("VMs (2)");
        assert_eq!(self.asked("#{alternate_on} #{cursor_flag}"), "1 0");
    }

    /// Starts top; its process.
    fn starts_top_and_tells_its_pid(&self, host: &Host) -> rustix::process::Pid {
        let pid_file = host.daemon.dir.join("top.pid");
        let program = env!("CARGO_BIN_EXE_leafblk");
        let socket = host.daemon.dir.join("run/control.sock");
        self.runs(&format!(
            "sh -c 'echo $$ > {}; exec {program} top --socket {}'; echo ended with $?",
            pid_file.display(),
            socket.display()
        ));
        self.shows("VMs (2)");
        let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        rustix::process::Pid::from_raw(pid).unwrap()
    }

    /// Top has ended, and everything is as it was before.
    fn is_as_before(&self, modes: &str) {
        self.shows("ended with 0");
        assert_eq!(self.asked("#{alternate_on} #{cursor_flag} #{mouse_any_flag}"), "0 1 0");
        assert_eq!(self.modes(), modes);
    }
}

fn row<'a>(screen: &'a str, vm: &str) -> &'a str {
    screen.lines().find(|line| line.contains(&format!(" {vm} "))).unwrap_or("")
}

#[test]
#[ignore = "needs tmux: run tests/seeing.sh"]
fn top_shows_the_load_and_obeys_its_keys_and_gives_the_terminal_back() {
    let host = Host::start();
    let terminal = Terminal::open();
    let modes = terminal.modes();
    terminal.starts_top(&host, "");
    let mut client = Client::connect(&host.daemon.socket("web2"));
    terminal.until("web2 connected", |screen| row(screen, "web2").contains("● web2"));
    assert!(row(&terminal.screen(), "web1").contains("○ web1"));
    // Load until it is seen: IOPS that are not zero, p99, growth of the leaf.
    let mut at = 0;
    let busy = |screen: &str| {
        let row = row(screen, "web2").to_owned();
        row.contains("µs") && row.contains('+') && row.contains("MiB")
    };
    wait_for("web2's load", || {
        for _ in 0..200 {
            client.write(at % (32 << 20), &[5; 65536]);
            client.read(at % (32 << 20), 4096);
            at += 65536;
        }
        busy(&terminal.screen()).then_some(())
    });
    // Sorted by name, then the other way round.
    let above = |screen: &str, a: &str, b: &str| screen.find(a) < screen.find(b);
    terminal.types(&["n"]);
    terminal.until("web1 above web2", |s| s.contains("VM▼") && above(s, " web1 ", " web2 "));
    terminal.types(&["r"]);
    terminal.until("web2 above web1", |s| s.contains("VM▲") && above(s, " web2 ", " web1 "));
    terminal.types(&["/"]);
    terminal.types(&["-l", "eb1"]);
    terminal.types(&["Enter"]);
    terminal.until("the filter", |s| {
        s.contains("VMs (1 of 2 fit \"eb1\")") && row(s, "web2").is_empty()
    });
    terminal.types(&["Enter"]);
    terminal.shows("web1: 128 MiB on base");
    terminal.types(&["?"]);
    terminal.shows("sort by the leaf's growth");
    terminal.types(&["?", "Escape"]);
    // tmux waits a moment after Escape, so that it isn't taken for Alt.
    terminal
        .until("the detail's end", |s| !s.contains("web1: 128 MiB") && !s.contains("sort by the"));
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.until("80 columns", |s| s.contains("IOPS") && !s.contains("p50"));
    // Wide again, for a shell that is asked for its modes in one line.
    terminal.tmux(&["resize-window", "-x", "140", "-y", "40"]);
    terminal.shows("p50");
    terminal.types(&["q"]);
    terminal.is_as_before(&modes);
}

#[test]
#[ignore = "needs tmux: run tests/seeing.sh"]
fn top_gives_the_terminal_back_after_control_c_and_after_sigterm() {
    let host = Host::start();
    let terminal = Terminal::open();
    let modes = terminal.modes();
    terminal.starts_top(&host, "");
    terminal.types(&["C-c"]);
    terminal.is_as_before(&modes);
    terminal.types(&["-l", "clear"]);
    terminal.types(&["Enter"]);
    let pid = terminal.starts_top_and_tells_its_pid(&host);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    terminal.is_as_before(&modes);
}

#[test]
#[ignore = "needs tmux: run tests/seeing.sh"]
fn top_ends_when_its_terminal_goes_away() {
    let host = Host::start();
    let terminal = Terminal::open();
    let pid = terminal.starts_top_and_tells_its_pid(&host);
    terminal.tmux(&["kill-server"]);
    wait_for("the end of top", || rustix::process::test_kill_process(pid).is_err().then_some(()));
}

#[test]
#[ignore = "needs tmux: run tests/seeing.sh"]
fn top_says_that_the_daemon_is_gone_and_sees_it_come_back() {
    let host = Host::start();
    let terminal = Terminal::open();
    terminal.starts_top(&host, "");
    let dir = host.daemon.dir.clone();
    let root = format!("base={}", dir.join("root.raw").display());
    let Host { daemon, _dir, .. } = host;
    daemon.stop();
    terminal.shows("no leafblk listens");
    let args = ["--root", &root, "--vm", "web1,size=128MiB", "--vm", "web9"];
    let _daemon = crate::common::Daemon::start(&dir, &args);
    terminal
        .until("the new VM", |screen| screen.contains("web9") && !screen.contains("no leafblk"));
    terminal.types(&["q"]);
    terminal.shows("ended with 0");
}

#[test]
#[ignore = "needs tmux: run tests/seeing.sh"]
fn top_heeds_its_keys_and_signals_while_the_daemon_stands_still() {
    use rustix::process::{Signal, kill_process};
    let host = Host::start();
    let terminal = Terminal::open();
    let modes = terminal.modes();
    terminal.starts_top(&host, "");
    kill_process(host.daemon.pid(), Signal::STOP).unwrap();
    terminal.shows("no answer for 1 s");
    terminal.types(&["?"]);
    terminal.shows("sort by the leaf's growth");
    terminal.types(&["q"]);
    terminal.is_as_before(&modes);
    kill_process(host.daemon.pid(), Signal::CONT).unwrap();
    terminal.types(&["-l", "clear"]);
    terminal.types(&["Enter"]);
    let pid = terminal.starts_top_and_tells_its_pid(&host);
    kill_process(host.daemon.pid(), Signal::STOP).unwrap();
    terminal.shows("no answer for 1 s");
    kill_process(pid, Signal::TERM).unwrap();
    terminal.is_as_before(&modes);
    kill_process(host.daemon.pid(), Signal::CONT).unwrap();
}
