use proptest::prelude::*;

use super::*;

fn vm(text: &str) -> VmEntry {
    VmEntry::parse(text).unwrap()
}

fn vm_error(text: &str) -> String {
    VmEntry::parse(text).unwrap_err().to_string()
}

#[test]
fn a_vm_with_every_option_parses() {
    assert_eq!(
        vm(
            "web1,root=debian,size=20GiB,leaf=a/b.leaf,socket=/s,queues=2,serial=a b,block-size=4096,readonly,ephemeral"
        ),
        VmEntry {
            name: "web1".into(),
            root: Some("debian".into()),
            size: Some(20 << 30),
            leaf: Some("a/b.leaf".into()),
            socket: Some("/s".into()),
            queues: Some(2),
            serial: Some("a b".into()),
            block_size: Some(4096),
            readonly: true,
            ephemeral: true,
        }
    );
}

#[test]
fn a_vm_may_be_just_its_name() {
    assert_eq!(vm("web1"), VmEntry { name: "web1".into(), ..VmEntry::default() });
}

#[test]
fn a_path_may_have_an_equals_sign() {
    assert_eq!(vm("w,leaf=/a=b").leaf, Some("/a=b".into()));
}

#[test]
fn each_mistake_in_a_vm_is_named() {
    for (text, part) in [
        ("", "VM name \"\" is empty"),
        ("root=x", "has the character '='"),
        ("a/b,root=x", "has a slash"),
        ("control", "reserved"),
        ("w,", "unknown option \"\""),
        ("w,rot=x", "unknown option \"rot=x\""),
        ("w,readonly=yes", "unknown option \"readonly=yes\""),
        ("w,root", "unknown option \"root\""),
        ("w,root=", "gives root no value"),
        ("w,size=", "gives size no value"),
        ("w,root=a,root=b", "gives root twice"),
        ("w,ephemeral,ephemeral", "gives ephemeral twice"),
        ("w,size=4G", "VM w: size: \"4G\" leaves open"),
        ("w,queues=two", "VM w: queues: \"two\" is no whole number; give one from 1 to 64"),
        (
            "w,block-size=4KiB",
            "VM w: block-size: \"4KiB\" is no whole number; give one 512 or 4096",
        ),
        ("w,serial=", "gives serial no value"),
        ("w,serial=a,serial=a", "gives serial twice"),
        ("w,queues=-1", "VM w: queues: \"-1\" is no whole number"),
    ] {
        let sentence = vm_error(text);
        assert!(sentence.contains(part), "{text}: {sentence}");
    }
}

#[test]
fn a_root_has_its_name_or_its_files_stem() {
    for (text, name, path) in [
        ("debian=d.raw", "debian", "d.raw"),
        ("/images/debian-12.5.raw", "debian-12.5", "/images/debian-12.5.raw"),
        ("./a=b/c.raw", "c", "./a=b/c.raw"),
        ("../a=b/c.raw", "c", "../a=b/c.raw"),
        ("r=/a=b.raw", "r", "/a=b.raw"),
        ("r=/a,b.raw", "r", "/a,b.raw"),
        ("r=/a,format=b/c.raw", "r", "/a,format=b/c.raw"),
    ] {
        let root = RootEntry::parse(text).unwrap();
        assert_eq!((root.name.as_str(), root.path.to_str().unwrap()), (name, path));
        assert_eq!(root.format, None);
        let declared = RootEntry::parse(&format!("{text},format=raw")).unwrap();
        assert_eq!(declared, RootEntry { format: Some(RootFormat::Raw), ..root });
    }
}

#[test]
fn each_mistake_in_a_root_is_named() {
    for (text, part) in [
        ("", "has no path"),
        ("debian=", "has no path"),
        ("=d.raw", "root name \"\" is empty"),
        ("a b=d.raw", "has the character ' '"),
        ("my image.raw", "makes none (\"my image\"); name it: --root NAME=my image.raw"),
        ("./a=b.raw", "makes none (\"a=b\")"),
        ("/", "makes none"),
        ("d=/d.raw,format=qcow2", "root d: format: \"qcow2\" is unknown; use raw"),
        ("d=/d.raw,format=", "root d: format: \"\" is unknown; use raw"),
        ("d=,format=raw", "has no path"),
    ] {
        let sentence = RootEntry::parse(text).unwrap_err().to_string();
        assert!(sentence.contains(part), "{text}: {sentence}");
    }
}

#[test]
fn a_flag_replaces_the_files_entry_of_the_same_name() {
    let file = Settings {
        state_dir: Some("/file".into()),
        vms: vec![vm("a,queues=4,readonly"), vm("b")],
        roots: vec![RootEntry::parse("r=/1").unwrap()],
        reactors: Some(1),
        keep_cache: Some(true),
        poll_us: Some(1),
        ..Settings::default()
    };
    let flags = Settings {
        vms: vec![vm("a,size=512"), vm("c")],
        roots: vec![RootEntry::parse("r=/2").unwrap()],
        reactors: Some(2),
        ..Settings::default()
    };
    let merged = file.overridden_by(flags);
    assert_eq!(merged.vms, [vm("b"), vm("a,size=512"), vm("c")]);
    assert_eq!(merged.roots, [RootEntry::parse("r=/2").unwrap()]);
    assert_eq!((merged.reactors, merged.poll_us), (Some(2), Some(1)));
    assert_eq!(merged.state_dir, Some("/file".into()));
}

#[test]
fn one_source_may_not_name_two_things_alike() {
    let mut settings = Settings { vms: vec![vm("a"), vm("a,queues=2")], ..Settings::default() };
    let text = settings.check_unique().unwrap_err().to_string();
    assert_eq!(text, "VM a is given twice; give each VM its own name");
    settings.vms.pop();
    settings.roots.push(RootEntry::parse("a=/a").unwrap());
    settings.check_unique().unwrap();
}

#[test]
fn relative_paths_count_from_the_base_and_empty_ones_stay_empty() {
    let settings = Settings {
        state_dir: Some("s".into()),
        runtime_dir: Some("".into()),
        vms: vec![vm("a,leaf=x,socket=/y")],
        ..Settings::default()
    }
    .with_base(Path::new("/base"));
    assert_eq!(settings.state_dir, Some("/base/s".into()));
    assert_eq!(settings.runtime_dir, Some("".into()));
    assert_eq!(settings.vms[0].leaf, Some("/base/x".into()));
    assert_eq!(settings.vms[0].socket, Some("/y".into()));
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC*") {
        let _ = VmEntry::parse(&text);
        let _ = RootEntry::parse(&text);
    }

    #[test]
    fn texts_near_the_syntax_parse_or_are_one_sentence(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("root=a"), Just("size=4GiB"), Just("size=9999999999TiB"), Just("queues=0"),
                Just("leaf="), Just("socket=/s"), Just("readonly"), Just("="), Just("é"), Just(""),
            ],
            0..5,
        ),
    ) {
        match VmEntry::parse(&format!("w,{}", parts.join(","))) {
            Ok(entry) => prop_assert_eq!(entry.name, "w"),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
