use proptest::prelude::*;

use super::*;
use crate::config::{RootEntry, RootFormat, VmEntry};

fn parse_text(text: &str) -> Result<Settings, UsageError> {
    parse(Path::new("/etc/x.toml"), text)
}

fn sentence(text: &str) -> String {
    parse_text(text).unwrap_err().to_string()
}

#[test]
fn every_key_reaches_its_setting() {
    let settings = parse_text(
        r#"
        state-dir = "/s"
        runtime-dir = "/r"
        cache-size = 1073741824
        cache-block = "4KiB"
        hugepages = "off"
        reactors = 3
        poll-us = 0
        control-socket = "/c"
        control-group = "kvm"
        log = "debug"
        http-port = 9470
        socket-group = "qemu"
        keep-cache = true
        [[root]]
        name = "d"
        path = "/d.raw"
        format = "raw"
        [[vm]]
        name = "w"
        root = "d"
        size = "1GiB"
        leaf = "/l, with a comma"
        socket = "/k"
        queues = 2
        serial = "of, course"
        block-size = 4096
        readonly = true
        ephemeral = true
        "#,
    )
    .unwrap();
    assert_eq!(
        settings,
        Settings {
            state_dir: Some("/s".into()),
            runtime_dir: Some("/r".into()),
            roots: vec![RootEntry {
                name: "d".into(),
                path: "/d.raw".into(),
                format: Some(RootFormat::Raw),
            }],
            vms: vec![VmEntry {
                name: "w".into(),
                root: Some("d".into()),
                size: Some(1 << 30),
                leaf: Some("/l, with a comma".into()),
                socket: Some("/k".into()),
                queues: Some(2),
                serial: Some("of, course".into()),
                block_size: Some(4096),
                readonly: true,
                ephemeral: true,
            }],
            cache_size_bytes: Some(1 << 30),
            cache_block_bytes: Some(4096),
            hugepages: Some(HugepagesMode::Off),
            reactors: Some(3),
            keep_cache: Some(true),
            poll_us: Some(0),
            socket_group: Some("qemu".into()),
            http_port: Some(9470),
            has_file: false,
            control_socket: Some(ControlSocket::At("/c".into())),
            control_group: Some("kvm".into()),
            log: Some("debug".into()),
        }
    );
}

#[test]
fn an_empty_file_says_nothing() {
    assert_eq!(parse_text("").unwrap(), Settings::default());
}

#[test]
fn each_mistake_has_its_line() {
    for (text, parts) in [
        ("\n\ncache = 1", &["line 3", "unknown field `cache`", "cache-size"][..]),
        ("[[vm]]\nname = \"a\"\nqeues = 1", &["line 3", "`qeues`", "`queues`"]),
        ("[[vm]]\nroot = \"a\"", &["line 1", "missing field `name`"]),
        ("\n[[root]]\nname = \"a\"", &["line 2", "missing field `path`"]),
        ("x\n", &["line 1"]),
        ("\ncache-size = \"4G\"", &["line 2", "\"4G\" leaves open", "4GiB"]),
        ("\n[[vm]]\nname = \"a\"\nsize = -1", &["line 4", "-1", "a size such as"]),
        ("reactors = -1", &["line 1", "-1"]),
        ("hugepages = \"maybe\"", &["line 1", "\"maybe\"", "auto, on or off"]),
        ("\nhugepages = true", &["line 2", "\"auto\"", "did you mean \"on\"?"]),
        ("hugepages = 1", &["line 1", "1", "\"auto\", \"on\" or \"off\""]),
        ("\n[root]\npath = \"a.raw\"", &["line 2", "[root]", "double brackets: [[root]]"]),
        ("[vm]\nname = \"a\"", &["line 1", "double brackets: [[vm]]"]),
        ("vm = \"web1\"", &["line 1", "[[vm]]"]),
        ("cache_size = \"4GiB\"", &["line 1", "`cache_size`", "did you mean cache-size?"]),
        ("[[vm]]\nname = \"a\"\nread-only = true", &["line 3", "did you mean readonly?"]),
        ("\n[[vm]]\nname = \"a/b\"", &["line 2", "has a slash"]),
        ("\n[[root]]\npath = \"a b.raw\"", &["line 2", "has no name"]),
        ("[[root]]\npath = \"/a\"\nformat = \"qcow2\"", &["line 3", "`qcow2`", "`raw`"]),
        ("[[vm]]\nname = \"a\"\n[[vm]]\nname = \"a\"", &["VM a is given twice"]),
        ("a = 1\na = 2", &["line 2"]),
    ] {
        let sentence = sentence(text);
        for part in parts {
            assert!(sentence.contains(part), "{text:?}: {sentence}");
        }
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}

#[test]
fn relative_paths_count_from_the_files_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    std::fs::write(&path, "state-dir = \"s\"\n[[root]]\npath = \"d.raw\"").unwrap();
    let settings = load(&path).unwrap();
    assert_eq!(settings.state_dir, Some(dir.path().join("s")));
    assert_eq!(settings.roots[0].path, dir.path().join("d.raw"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(CONFIG_FILE_MAX_BYTES + 1).unwrap();
    for path in [dir.path().join("none"), dir.path().to_owned(), large] {
        let error = load(&path).unwrap_err();
        assert_eq!(error.exit_status(), 1, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse_text(&text);
    }

    #[test]
    fn lines_are_counted_for_any_offset(text in "[a\\n]{0,20}", offset in 0_usize..40) {
        prop_assert!(line_of(&text, offset) <= 1 + text.matches('\n').count());
    }
}
