use super::*;

fn endpoint(vm: &str, socket: &str) -> Endpoint {
    Endpoint { vm: vm.into(), socket: socket.into(), queues: 2 }
}

fn text(hypervisor: Hypervisor, vm: &str, socket: &str) -> String {
    options(hypervisor, &endpoint(vm, socket)).unwrap().text()
}

/// What a POSIX shell makes of the text.
fn words(text: &str) -> Vec<String> {
    let script = format!("printf '%s\\n' {text}");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn qemu_gets_shared_memory_a_reconnecting_chardev_and_the_queues() {
    assert_eq!(
        words(&text(Hypervisor::Qemu, "web1", "/run/leafblk/web1.sock")),
        [
            "-m",
            "1G",
            "-object",
            "memory-backend-memfd,id=leafblk-mem,size=1G,share=on",
            "-machine",
            "memory-backend=leafblk-mem",
            "-chardev",
            "socket,id=leafblk-web1,path=/run/leafblk/web1.sock,reconnect=1",
            "-device",
            "vhost-user-blk-pci,chardev=leafblk-web1,num-queues=2,queue-size=256",
        ]
    );
}

#[test]
fn odd_paths_survive_the_shell_and_the_hypervisors_syntax() {
    let path = "/tmp/it's a, $x `y`.sock";
    let qemu = words(&text(Hypervisor::Qemu, "w", path));
    assert!(
        qemu.contains(&format!("socket,id=leafblk-w,path={},reconnect=1", path.replace(',', ",,"))),
        "{qemu:?}"
    );
    let ch = words(&text(Hypervisor::CloudHypervisor, "w", path));
    assert_eq!(ch[3], format!("vhost_user=on,socket=\"{path}\",num_queues=2,queue_size=256"));
}

#[test]
fn cloud_hypervisor_gets_shared_memory_and_the_disk() {
    assert_eq!(
        words(&text(Hypervisor::CloudHypervisor, "w", "/s")),
        [
            "--memory",
            "size=1G,shared=on",
            "--disk",
            "vhost_user=on,socket=/s,num_queues=2,queue_size=256",
        ]
    );
}

#[test]
fn firecracker_gets_json_with_an_identifier_that_it_takes() {
    let text = text(Hypervisor::Firecracker, "web-1.a", "/tmp/\"q\"\\\n.sock");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["drive_id"], "web_1_a");
    assert_eq!(json["socket"], "/tmp/\"q\"\\\n.sock");
    assert_eq!(json["cache_type"], "Writeback");
}

#[test]
fn libvirt_gets_a_domain_with_shared_memory_and_a_socket_that_reconnects() {
    let xml = text(Hypervisor::Libvirt, "web1", "/run/it's <a> & b.sock");
    for part in [
        "<name>web1</name>",
        "<access mode='shared'/>",
        "queues='2' queue_size='256'/>",
        "path='/run/it&apos;s &lt;a&gt; &amp; b.sock'>",
        "<reconnect enabled='yes' timeout='1'/>",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let error = options(Hypervisor::Libvirt, &endpoint("w", "/a\u{1}")).unwrap_err();
    assert!(error.to_string().contains("a control character, which libvirt"), "{error}");
}

#[test]
fn json_has_the_arguments_as_a_shell_would_make_them_of_the_text() {
    let endpoint = endpoint("w", "/tmp/it's a, $x `y`.sock");
    for hypervisor in [Hypervisor::Qemu, Hypervisor::CloudHypervisor] {
        let options = options(hypervisor, &endpoint).unwrap();
        let json = options.to_json(&endpoint);
        assert_eq!(json["argv"], serde_json::json!(words(&options.text())));
    }
}

#[test]
fn a_path_that_a_syntax_cannot_carry_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    for bad in ["/a\"b", "/a[b", "/a]b"] {
        let error = options(Hypervisor::CloudHypervisor, &endpoint("w", bad)).unwrap_err();
        assert!(error.to_string().contains("Cloud Hypervisor does not take"), "{error}");
    }
    let mut bytes = endpoint("w", "");
    bytes.socket = std::ffi::OsString::from_vec(b"/\xff".to_vec()).into();
    for hypervisor in [
        Hypervisor::Qemu,
        Hypervisor::CloudHypervisor,
        Hypervisor::Firecracker,
        Hypervisor::Libvirt,
    ] {
        let error = options(hypervisor, &bytes).unwrap_err();
        assert!(error.to_string().contains("no UTF-8"), "{error}");
    }
}

#[test]
fn an_unknown_hypervisor_is_refused_with_the_choices() {
    let text = "xen".parse::<Hypervisor>().unwrap_err().to_string();
    assert_eq!(text, "for: \"xen\" is unknown; use qemu, cloud-hypervisor, firecracker or libvirt");
}
