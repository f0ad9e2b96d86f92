use std::path::{Path, PathBuf};

use super::*;

fn env() -> Environment {
    Environment {
        is_root: true,
        xdg_state_home: None,
        xdg_runtime_dir: None,
        leafblk_socket: None,
        home: Some("/home/u".into()),
        working_dir: "/nowhere".into(),
        cpus: 8,
        memory_bytes: 64 << 30,
    }
}

fn settings(roots: &[&str], vms: &[&str]) -> Settings {
    Settings {
        roots: roots.iter().map(|t| RootEntry::parse(t).unwrap()).collect(),
        vms: vms.iter().map(|t| VmEntry::parse(t).unwrap()).collect(),
        ..Settings::default()
    }
}

fn sentence(settings: &Settings) -> String {
    Config::resolve(settings, &env()).unwrap_err().to_string()
}

#[test]
fn defaults_fill_what_nobody_said() {
    let config = Config::resolve(&settings(&["d.raw"], &["w"]), &env()).unwrap();
    assert_eq!(
        config,
        Config {
            state_dir: "/var/lib/leafblk".into(),
            runtime_dir: "/run/leafblk".into(),
            roots: vec![RootConfig {
                name: "d".into(),
                path: "/nowhere/d.raw".into(),
                format: None
            }],
            vms: vec![VmConfig {
                name: "w".into(),
                root: "d".into(),
                size: None,
                leaf: "/var/lib/leafblk/w.leaf".into(),
                socket: "/run/leafblk/w.sock".into(),
                queues: 1,
                serial: serial::Serial::of_name("w"),
                block_size: BlockSize::Sector,
                readonly: false,
                ephemeral: false,
            }],
            cache_size_bytes: 1 << 30,
            cache_block_bytes: 64 << 10,
            hugepages: HugepagesMode::Auto,
            reactors: 4,
            keep_cache: false,
            poll_us: 50,
            socket_group: None,
            http_port: None,
            has_file: false,
            control: Some(ControlConfig {
                socket: "/run/leafblk/control.sock".into(),
                group: None,
            }),
            log: None,
        }
    );
}

#[test]
fn the_control_socket_can_be_elsewhere_or_nowhere() {
    let with = |text: &str| {
        let mut settings = settings(&[], &[]);
        settings.control_socket = Some(ControlSocket::from(text.to_owned()));
        Config::resolve(&settings, &env()).map(|config| config.control)
    };
    assert_eq!(with("off").unwrap(), None);
    assert_eq!(with("x/c.sock").unwrap().unwrap().socket, Path::new("/nowhere/x/c.sock"));
    assert_eq!(with("./off").unwrap().unwrap().socket, Path::new("/nowhere/off"));
    let text = with(&"s".repeat(120)).unwrap_err().to_string();
    assert!(text.contains("of the control API has"), "{text}");
    let mut clash = settings(&["d.raw"], &["w,socket=/run/leafblk/control.sock"]);
    assert!(sentence(&clash).contains("both the control socket and the socket of VM w"));
    clash.control_socket = Some(ControlSocket::Off);
    Config::resolve(&clash, &env()).unwrap();
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let mut loud = settings(&[], &[]);
    loud.log = Some("leafblk=loud".into());
    let text = sentence(&loud);
    assert!(text.contains("log is \"leafblk=loud\"; it must be levels such as"), "{text}");
}

#[test]
fn one_vm_is_resolved_among_the_roots_there_are() {
    let directories = Directories { state: "/s".into(), runtime: "/r".into() };
    let resolve = |text: &str| {
        let roots = ["a", "b"].into_iter();
        VmConfig::resolve(&VmEntry::parse(text).unwrap(), roots, &directories)
    };
    let vm = resolve("w,root=b").unwrap();
    assert_eq!(
        (vm.leaf.as_path(), vm.socket.as_path()),
        (Path::new("/s/w.leaf"), Path::new("/r/w.sock"))
    );
    assert!(resolve("w").unwrap_err().to_string().contains("there are 2"));
    let text = resolve("w,root=a,leaf=x.leaf").unwrap_err().to_string();
    assert!(text.contains("VM w: leaf x.leaf is not absolute"), "{text}");
    let root = RootEntry::parse("d=images/d.raw").unwrap();
    assert!(RootConfig::resolve(&root).is_err());
}

#[test]
fn a_user_has_the_xdg_directories() {
    let mut env =
        Environment { is_root: false, xdg_runtime_dir: Some("/run/user/9".into()), ..env() };
    let settings = settings(&["d.raw"], &["w"]);
    let config = Config::resolve(&settings, &env).unwrap();
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/leafblk"));
    assert_eq!(config.runtime_dir, Path::new("/run/user/9/leafblk"));

    env.xdg_state_home = Some("/x".into());
    let config = Config::resolve(&settings, &env).unwrap();
    assert_eq!(config.state_dir, Path::new("/x/leafblk"));

    env.xdg_runtime_dir = None;
    let text = Config::resolve(&settings, &env).unwrap_err().to_string();
    assert_eq!(
        text,
        "XDG_RUNTIME_DIR is not set, so there is no default runtime directory; set it or pass \
         --runtime-dir DIR"
    );
    env.home = None;
    env.xdg_state_home = None;
    let text = Config::resolve(&settings, &env).unwrap_err().to_string();
    assert!(text.contains("HOME is not set") && text.contains("--state-dir"), "{text}");
}

#[test]
fn a_small_host_gives_a_quarter_of_its_memory_and_one_reactor() {
    let env = Environment { cpus: 1, memory_bytes: (1 << 30) + 12345, ..env() };
    let config = Config::resolve(&settings(&["d.raw"], &["w"]), &env).unwrap();
    assert_eq!(config.cache_size_bytes, 256 << 20);
    assert_eq!(config.reactors, 1);
}

#[test]
fn every_number_has_its_range_and_the_edges_are_inside() {
    type Set = fn(&mut Settings, u64);
    let cases: [(Set, &[u64], &[u64], &str); 7] = [
        (
            |s, v| s.cache_size_bytes = Some(v),
            &[16 << 20, 18 << 20, 16 << 40],
            &[0, 14 << 20, (16 << 20) + 4096, (16 << 40) + (2 << 20), u64::MAX],
            "it must be a multiple of 2MiB from 16MiB to 16TiB",
        ),
        (
            |s, v| s.cache_block_bytes = Some(v),
            &[4 << 10, 64 << 10, 2 << 20],
            &[0, 2 << 10, 5000, 4 << 20, 1 << 32],
            "it must be a power of two from 4KiB to 2MiB",
        ),
        (|s, v| s.reactors = Some(v), &[1, 64], &[0, 65, u64::MAX], "it must be from 1 to 64"),
        (
            |s, v| s.poll_us = Some(v),
            &[0, 10_000],
            &[10_001, 1 << 32],
            "it must be from 0 (sleep at once) to 10000 microseconds",
        ),
        (|s, v| s.vms[0].queues = Some(v), &[1, 64], &[0, 65, 65_537], "it must be from 1 to 64"),
        (
            |s, v| s.vms[0].block_size = Some(v),
            &[512, 4096],
            &[0, 1, 1024, 8192, u64::MAX],
            "VM w: block-size is",
        ),
        (
            |s, v| s.vms[0].size = Some(v),
            &[512, 1 << 50],
            &[0, 511, 513, (1 << 50) + 512, 1 << 60],
            "it must be a multiple of 512 bytes, up to 1024TiB",
        ),
    ];
    for (set, inside, outside, rule) in cases {
        let mut settings = settings(&["d.raw"], &["w"]);
        for value in inside {
            set(&mut settings, *value);
            Config::resolve(&settings, &env()).unwrap();
        }
        for value in outside {
            set(&mut settings, *value);
            let text = sentence(&settings);
            assert!(text.contains(rule), "{value}: {text}");
        }
    }
}

#[test]
fn each_contradiction_has_its_sentence() {
    let many: Vec<String> = (0..1025).map(|n| format!("w{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (roots, vms, part) in [
        (&[][..], &["w"][..], "VM w has no root; give one with --root"),
        (&[], &["w,root=d"], "on root \"d\", which is not given; add --root d=PATH"),
        (&["d.raw"], &["w,root=x"], "on root \"x\", which is not given; the roots are d"),
        (&["d.raw", "e.raw"], &["w"], "there are 2; add root= with one of d, e"),
        (
            &["d.raw"],
            &["a,leaf=/x", "b,leaf=/y/../x"],
            "both the leaf of VM a and the leaf of VM b",
        ),
        (&["d.raw"], &["a", "b,leaf=/var/lib/./leafblk//a.leaf"], "the leaf of VM a and the leaf"),
        (&["d.raw"], &["a,socket=/x", "b,socket=/x"], "both the socket of VM a and the socket of"),
        (&["d.raw"], &["a,socket=/x,leaf=/x"], "both the leaf of VM a and the socket of VM a"),
        (&["d=/x"], &["a,leaf=/x"], "both root d and the leaf of VM a"),
        (&["d.raw"], &["a,serial=123456789012345678901"], "has 21 characters; a serial number is"),
        (
            &["d.raw"],
            &["a,size=1234567680,block-size=4096"],
            "VM a: size is 1234567680; it must be a multiple of 4096, its block-size",
        ),
        (&["d.raw"], &["a,leaf=/x/"], "is no usable path"),
        (&["d.raw"], &["a,leaf=.."], "is no usable path"),
        (&["d=/"], &["a"], "root d: \"/\" is no usable path"),
        (&["d.raw"], &many, "there are 1025 VMs; one process takes at most 1024"),
    ] {
        let text = sentence(&settings(roots, vms));
        assert!(text.contains(part), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn a_socket_path_of_107_bytes_fits_and_one_more_does_not() {
    let vm = format!("w,socket=/{}", "s".repeat(106));
    Config::resolve(&settings(&["d.raw"], &[&vm]), &env()).unwrap();
    let text = sentence(&settings(&["d.raw"], &[&format!("{vm}s")]));
    assert!(text.contains("has 108 bytes and a Unix socket takes at most 107"), "{text}");
    let mut long = settings(&["d.raw"], &["w"]);
    long.runtime_dir = Some(format!("/{}", "r".repeat(110)).into());
    assert!(sentence(&long).contains("choose a shorter --runtime-dir"));
}

#[test]
fn links_to_one_leaf_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.leaf"), "").unwrap();
    std::os::unix::fs::symlink("a.leaf", dir.path().join("b.leaf")).unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("sub", dir.path().join("link")).unwrap();
    let clash = |a: &str, b: &str| {
        let at = |name: &str, file: &str| format!("{name},leaf={}/{file}", dir.path().display());
        let settings = settings(&["d.raw"], &[&at("a", a), &at("b", b)]);
        Config::resolve(&settings, &env()).is_err()
    };
    assert!(clash("a.leaf", "b.leaf"));
    assert!(clash("sub/new.leaf", "link/new.leaf"));
    assert!(!clash("sub/new.leaf", "new.leaf"));
}

#[test]
fn empty_directories_are_refused() {
    let mut empty = settings(&["d.raw"], &["w"]);
    empty.state_dir = Some("".into());
    assert!(sentence(&empty).contains("state-dir \"\" is no usable path"));
}

#[test]
fn an_endpoint_needs_no_root() {
    let settings = settings(&[], &["w,queues=3", "v,socket=s.sock"]);
    assert_eq!(
        settings.endpoint("w", &env()).unwrap(),
        Some(Endpoint { vm: "w".into(), socket: "/run/leafblk/w.sock".into(), queues: 3 })
    );
    let v = settings.endpoint("v", &env()).unwrap().unwrap();
    assert_eq!(v.socket, Path::new("/nowhere/s.sock"));
    assert_eq!(settings.endpoint("x", &env()).unwrap(), None);
}

#[test]
fn the_documented_example_is_a_valid_file() {
    let docs = include_str!("../../docs/configuration.md");
    let (_, after) = docs.split_once("```toml\n").unwrap();
    let (example, _) = after.split_once("```").unwrap();
    let settings = file::parse(Path::new("/etc/leafblk.toml"), example).unwrap();
    let config = Config::resolve(&settings, &env()).unwrap();
    assert_eq!(config.vms.len(), 3);
    assert_eq!(config.roots[1].name, "alpine");
    assert_eq!(config.cache_size_bytes, 8 << 30);
}

#[test]
fn the_documented_limits_are_the_real_ones() {
    use limits::*;
    let docs = include_str!("../../docs/configuration.md");
    let size = size::format_size;
    for text in [
        format!(
            "a multiple of {} from {} to {}",
            size(CACHE_SIZE_UNIT_BYTES),
            size(CACHE_SIZE_MIN_BYTES),
            size(CACHE_SIZE_MAX_BYTES)
        ),
        format!("| `cache-size` | {}, or", size(CACHE_SIZE_DEFAULT_BYTES)),
        format!(
            "| `cache-block` | {} | a power of two from {} to {} |",
            size(CACHE_BLOCK_DEFAULT_BYTES.into()),
            size(CACHE_BLOCK_MIN_BYTES.into()),
            size(CACHE_BLOCK_MAX_BYTES.into())
        ),
        format!("at least 1, at most {REACTORS_DEFAULT_MAX} | from 1 to {REACTORS_MAX} |"),
        format!("| `poll-us` | {POLL_US_DEFAULT} | from 0 (sleep at once) to {POLL_US_MAX} "),
        format!("| `queues` | {QUEUES_DEFAULT} | virtqueues, from 1 to {QUEUES_MAX} |"),
        format!("up to {} |", size(DISK_SIZE_MAX_BYTES)),
        format!("1 to {} printable ASCII characters", serial::SERIAL_LEN_MAX),
        format!("Names are 1 to {NAME_LEN_MAX} "),
        format!("at most {SOCKET_PATH_LEN_MAX} bytes long"),
        format!("at most {ROOTS_MAX} roots"),
        format!("at most\n{VMS_MAX} VMs"),
    ] {
        assert!(docs.contains(&text), "docs/configuration.md lacks {text:?}");
    }
}

#[test]
fn commands_look_for_a_users_own_leafblk_and_then_for_the_service() {
    let own = Some("/run/user/9".into());
    let user = Environment { is_root: false, xdg_runtime_dir: own, ..env() };
    let (own, service) = (PathBuf::from("/run/user/9/leafblk"), PathBuf::from("/run/leafblk"));
    assert_eq!(user.runtime_dirs_served(), [own, service.clone()]);
    let without = Environment { xdg_runtime_dir: None, ..user };
    for others in [without, env()] {
        assert_eq!(others.runtime_dirs_served(), std::slice::from_ref(&service));
    }
}
