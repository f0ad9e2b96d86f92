//! Progress: on a terminal, and nowhere else.

use std::io::Read;
use std::process::Stdio;

use crate::common::terminal::terminal;
use crate::scene::*;

const LONG: [&[&str]; 5] = [
    &["commit", "a.leaf", "--root", "root.raw", "--output", "new.raw"],
    &["export", "a.leaf", "--root", "root.raw", "--format", "qcow2", "--output", "new.qcow2"],
    &["diff", "a.leaf", "--root", "root.raw"],
    &["rebase", "a.leaf", "--from", "root.raw", "--root", "root.raw"],
    &["compact", "a.leaf", "--root", "root.raw"],
];

#[test]
fn long_work_shows_its_progress_on_a_terminal() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    for args in LONG {
        let (mut ours, theirs) = terminal();
        let mut command = scene.command(args);
        command.env("TERM", "xterm").stderr(theirs).stdout(Stdio::null());
        let mut child = spawn(&mut command);
        drop(command);
        let mut shown = Vec::new();
        // Ends with EIO when the command, the last on its side, has ended.
        let _ = ours.read_to_end(&mut shown);
        assert!(child.wait().unwrap().success(), "{args:?}");
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(shown.contains('[') && shown.contains('/'), "{args:?}: {shown:?}");
    }
}

#[test]
fn progress_is_quiet_in_a_pipe() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    for args in LONG {
        // Nothing on stderr, and no control character in what it says.
        let said = scene.say(args);
        assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{args:?}: {said:?}");
    }
}
