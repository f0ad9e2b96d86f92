//! The hypervisor options that `leafblk qemu-args` prints.
//!
//! Knows each hypervisor's syntax and the shell's quoting; knows nothing of
//! how a VM's endpoint was found.

mod libvirt;

use std::path::Path;

use serde_json::{Value, json};

use crate::config::limits::QUEUE_SIZE_SUGGESTED;
use crate::config::{Endpoint, UsageError};
use crate::shell::quote;

/// A hypervisor whose options are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hypervisor {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// libvirt, which runs QEMU.
    Libvirt,
}

impl std::str::FromStr for Hypervisor {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text {
            "qemu" => Ok(Self::Qemu),
            "cloud-hypervisor" => Ok(Self::CloudHypervisor),
            "firecracker" => Ok(Self::Firecracker),
            "libvirt" => Ok(Self::Libvirt),
            _ => Err(UsageError::Choice {
                setting: "for".into(),
                value: text.into(),
                choices: "qemu, cloud-hypervisor, firecracker or libvirt",
            }),
        }
    }
}

/// What to give to a hypervisor, and what to know about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    form: Form,
    /// Remarks, one sentence each.
    pub notes: Vec<String>,
}

/// How a hypervisor takes its options.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Form {
    /// Arguments of its command, those of one option together.
    Arguments(Vec<[String; 2]>),
    /// The JSON body of Firecracker's PUT /drives/ID.
    Drive(Value),
    /// A libvirt domain, as XML.
    Domain(String),
}

impl Options {
    /// What to paste: arguments as a POSIX shell reads them, or the document. Ends
    /// in a newline.
    pub fn text(&self) -> String {
        match &self.form {
            Form::Arguments(options) => {
                let lines = options.iter().map(|[flag, value]| format!("{flag} {}", quote(value)));
                lines.collect::<Vec<_>>().join(" \\\n") + "\n"
            }
            Form::Drive(drive) => format!("{drive:#}\n"),
            Form::Domain(xml) => xml.clone(),
        }
    }

    /// The same for programs: the VM, its socket and queues, `notes`, and one of
    /// `argv` (an array of arguments, which no shell need read), `drive` (an object)
    /// and `domain` (XML as a string).
    pub fn to_json(&self, endpoint: &Endpoint) -> Value {
        let (key, value) = match &self.form {
            Form::Arguments(options) => ("argv", json!(options.concat())),
            Form::Drive(drive) => ("drive", drive.clone()),
            Form::Domain(xml) => ("domain", json!(xml)),
        };
        json!({
            "vm": endpoint.vm, "socket": endpoint.socket.to_string_lossy(),
            "queues": endpoint.queues, key: value, "notes": self.notes,
        })
    }
}

/// A socket path that the hypervisor's syntax cannot carry.
#[derive(Debug, thiserror::Error)]
#[error("the socket path {path:?} has {what}, which {hypervisor} does not take; choose another")]
pub struct PathError {
    path: std::path::PathBuf,
    what: &'static str,
    hypervisor: &'static str,
}

/// The options for `endpoint`.
///
/// # Errors
/// [`PathError`] for a socket path that cannot be written in that syntax.
pub fn options(hypervisor: Hypervisor, endpoint: &Endpoint) -> Result<Options, PathError> {
    match hypervisor {
        Hypervisor::Qemu => qemu(endpoint),
        Hypervisor::CloudHypervisor => cloud_hypervisor(endpoint),
        Hypervisor::Firecracker => firecracker(endpoint),
        Hypervisor::Libvirt => libvirt::domain(endpoint),
    }
}

fn qemu(endpoint: &Endpoint) -> Result<Options, PathError> {
    // QEMU's option syntax writes a comma in a value as two.
    let path = utf8(&endpoint.socket, "QEMU")?.replace(',', ",,");
    let id = format!("leafblk-{}", endpoint.vm);
    let queues = endpoint.queues;
    let disk = format!(
        "vhost-user-blk-pci,chardev={id},num-queues={queues},queue-size={QUEUE_SIZE_SUGGESTED}"
    );
    Ok(Options {
        form: Form::Arguments(vec![
            ["-m".into(), "1G".into()],
            ["-object".into(), "memory-backend-memfd,id=leafblk-mem,size=1G,share=on".into()],
            ["-machine".into(), "memory-backend=leafblk-mem".into()],
            // In seconds, which every QEMU takes; reconnect-ms came with 9.2.
            ["-chardev".into(), format!("socket,id={id},path={path},reconnect=1")],
            ["-device".into(), disk],
        ]),
        notes: vec![
            "1G is the guest's memory: change both places together; share=on must stay, leafblk \
             reads and writes there"
                .into(),
            "several disks share the -m, -object and -machine lines; give those once".into(),
            "QEMU 9.2 and newer can wait less between two tries: reconnect-ms=100 instead of \
             reconnect=1"
                .into(),
        ],
    })
}

fn cloud_hypervisor(endpoint: &Endpoint) -> Result<Options, PathError> {
    let hypervisor = "Cloud Hypervisor";
    let mut path = utf8(&endpoint.socket, hypervisor)?.to_owned();
    // Its option parser takes a comma between double quotes, and counts
    // brackets even there.
    if path.contains(['"', '[', ']']) {
        return Err(PathError {
            path: endpoint.socket.clone(),
            what: "a double quote or a square bracket",
            hypervisor,
        });
    }
    if path.contains(',') {
        path = format!("\"{path}\"");
    }
    let queues = endpoint.queues;
    let disk = format!(
        "vhost_user=on,socket={path},num_queues={queues},queue_size={QUEUE_SIZE_SUGGESTED}"
    );
    Ok(Options {
        form: Form::Arguments(vec![
            ["--memory".into(), "size=1G,shared=on".into()],
            ["--disk".into(), disk],
        ]),
        notes: vec![
            "1G is the guest's memory; shared=on must stay, leafblk reads and writes there".into(),
            "several disks follow one --disk, separated by spaces".into(),
            format!("--cpus boot=N must be at least num_queues, here {queues}"),
        ],
    })
}

fn firecracker(endpoint: &Endpoint) -> Result<Options, PathError> {
    let path = utf8(&endpoint.socket, "Firecracker")?;
    // Firecracker's identifiers have no dots and dashes.
    let id: String =
        endpoint.vm.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Ok(Options {
        notes: vec![
            format!(
                "this is the body of PUT /drives/{id}, or an entry of \"drives\" in the file of \
                 --config-file"
            ),
            "cache_type must stay Writeback: with Unsafe, Firecracker hides flush from the guest"
                .into(),
            "Firecracker uses one queue and does not reconnect when leafblk restarts".into(),
        ],
        form: Form::Drive(json!({
            "drive_id": id, "is_root_device": true, "cache_type": "Writeback", "socket": path,
        })),
    })
}

fn utf8<'a>(path: &'a Path, hypervisor: &'static str) -> Result<&'a str, PathError> {
    path.to_str().ok_or_else(|| PathError {
        path: path.into(),
        what: "bytes that are no UTF-8",
        hypervisor,
    })
}

#[cfg(test)]
mod tests;
