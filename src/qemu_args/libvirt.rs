//! A VM as a libvirt domain (formatdomain.html of libvirt 9.0, "vhostuser" disks).

use super::{Endpoint, Form, Options, PathError, QUEUE_SIZE_SUGGESTED, utf8};

/// A whole domain with the VM's disk, for `virsh define`.
pub(super) fn domain(endpoint: &Endpoint) -> Result<Options, PathError> {
    let socket = text(endpoint)?;
    let (vm, queues) = (&endpoint.vm, endpoint.queues);
    let arch = std::env::consts::ARCH;
    let machine = if arch == "x86_64" { "q35" } else { "virt" };
    let form = Form::Domain(format!(
        "<domain type='kvm'>
  <name>{vm}</name>
  <memory unit='GiB'>1</memory>
  <vcpu>1</vcpu>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <os>
    <type arch='{arch}' machine='{machine}'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw' queues='{queues}' queue_size='{QUEUE_SIZE_SUGGESTED}'/>
      <source type='unix' path='{socket}'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'/>
  </devices>
</domain>
"
    ));
    Ok(Options {
        form,
        notes: vec![
            format!(
                "save it as {vm}.xml, then: virsh define {vm}.xml; in a domain that you have, \
                 <memoryBacking> and <disk> are what counts"
            ),
            "<access mode='shared'/> must stay: leafblk reads and writes the guest's memory".into(),
            "queue_size needs libvirt 7.8 or newer; an older one refuses it: leave it out".into(),
            "libvirt's user for QEMU (libvirt-qemu in Debian) must be in leafblk's socket-group"
                .into(),
        ],
    })
}

/// The socket's path between single quotes. XML has no way to write most control
/// characters.
fn text(endpoint: &Endpoint) -> Result<String, PathError> {
    let hypervisor = "libvirt";
    let path = utf8(&endpoint.socket, hypervisor)?;
    if path.contains(char::is_control) {
        let (path, what) = (endpoint.socket.clone(), "a control character");
        return Err(PathError { path, what, hypervisor });
    }
    let escaped = path.chars().fold(String::new(), |mut text, c| {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '\'' => text.push_str("&apos;"),
            c => text.push(c),
        }
        text
    });
    Ok(escaped)
}
