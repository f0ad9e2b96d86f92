//! The hypervisor options that `leafblk qemu-args` prints.
//!
//! Knows each hypervisor's syntax and the shell's quoting; knows nothing of
//! how a VM's endpoint was found.

use std::path::Path;

use crate::config::limits::QUEUE_SIZE_SUGGESTED;
use crate::config::{Endpoint, UsageError};

/// A hypervisor whose options are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hypervisor {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
}

impl std::str::FromStr for Hypervisor {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text {
            "qemu" => Ok(Self::Qemu),
            "cloud-hypervisor" => Ok(Self::CloudHypervisor),
            "firecracker" => Ok(Self::Firecracker),
            _ => Err(UsageError::Choice {
                setting: "for".into(),
                value: text.into(),
                choices: "qemu, cloud-hypervisor or firecracker",
            }),
        }
    }
}

/// What to paste, and what to know about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The options as a shell reads them, ends in a newline.
    pub text: String,
    /// Remarks, one sentence each.
    pub notes: Vec<String>,
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
    }
}

fn qemu(endpoint: &Endpoint) -> Result<Options, PathError> {
    // QEMU's option syntax writes a comma in a value as two.
    let path = utf8(&endpoint.socket, "QEMU")?.replace(',', ",,");
    let id = format!("leafblk-{}", endpoint.vm);
    let queues = endpoint.queues;
    let lines = [
        "-m 1G".to_owned(),
        "-object memory-backend-memfd,id=leafblk-mem,size=1G,share=on".to_owned(),
        "-machine memory-backend=leafblk-mem".to_owned(),
        format!("-chardev {}", quote(&format!("socket,id={id},path={path},reconnect-ms=1000"))),
        format!(
            "-device vhost-user-blk-pci,chardev={id},num-queues={queues},\
             queue-size={QUEUE_SIZE_SUGGESTED}"
        ),
    ];
    Ok(Options {
        text: lines.join(" \\\n") + "\n",
        notes: vec![
            "1G is the guest's memory: change both places together; share=on must stay, leafblk \
             reads and writes there"
                .into(),
            "several disks share the -m, -object and -machine lines; give those once".into(),
            "QEMU before 9.2 has reconnect=1 (seconds) instead of reconnect-ms=1000".into(),
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
        text: format!("--memory size=1G,shared=on \\\n--disk {}\n", quote(&disk)),
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
    let text = format!(
        "{{\n  \"drive_id\": \"{id}\",\n  \"is_root_device\": true,\n  \
         \"cache_type\": \"Writeback\",\n  \"socket\": {}\n}}\n",
        json_string(path)
    );
    Ok(Options {
        text,
        notes: vec![
            format!(
                "this is the body of PUT /drives/{id}, or an entry of \"drives\" in the file of \
                 --config-file"
            ),
            "cache_type must stay Writeback: with Unsafe, Firecracker hides flush from the guest"
                .into(),
            "Firecracker uses one queue and does not reconnect when leafblk restarts".into(),
        ],
    })
}

fn utf8<'a>(path: &'a Path, hypervisor: &'static str) -> Result<&'a str, PathError> {
    path.to_str().ok_or_else(|| PathError {
        path: path.into(),
        what: "bytes that are no UTF-8",
        hypervisor,
    })
}

/// `text` as one word of a POSIX shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests;
