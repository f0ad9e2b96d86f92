//! Settings as one source gave them, before defaults and rules that look at
//! more than one of them.
//!
//! Both sources (flags, the TOML file) end up as [`Settings`]; a flag wins
//! over the file, and a VM or root of a flag replaces the one of the same name
//! in the file as a whole.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::HugepagesMode;
use super::RootConfig;
use super::RootFormat;
use super::UsageError;
use super::name::{NameOf, check_name};
use super::size::parse_size;

/// What one source says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where leaves are.
    pub state_dir: Option<PathBuf>,
    /// Where sockets are.
    pub runtime_dir: Option<PathBuf>,
    /// The root images, in the order given.
    pub roots: Vec<RootEntry>,
    /// The VMs, in the order given.
    pub vms: Vec<VmEntry>,
    /// Bytes of the cache arena.
    pub cache_size_bytes: Option<u64>,
    /// Bytes of a cache block.
    pub cache_block_bytes: Option<u64>,
    /// Which pages the arena is made of.
    pub hugepages: Option<HugepagesMode>,
    /// The cache outlives the process.
    pub keep_cache: Option<bool>,
    /// Reactor threads.
    pub reactors: Option<u64>,
    /// Polling after the last work, in microseconds.
    pub poll_us: Option<u64>,
    /// The group that may connect to the VMs' sockets.
    pub socket_group: Option<String>,
    /// Where the control socket is, or that there is none.
    pub control_socket: Option<ControlSocket>,
    /// The group that may use the control socket.
    pub control_group: Option<String>,
    /// The loopback port for looking.
    pub http_port: Option<u64>,
    /// Some of it is from a file, which lasts from one start to the next.
    pub has_file: bool,
    /// What is logged, in env_logger's syntax.
    pub log: Option<String>,
}

/// Where the control API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlSocket {
    /// Nowhere.
    Off,
    /// At this path, as given.
    At(PathBuf),
}

impl From<String> for ControlSocket {
    /// `off`, or a path (`./off` for a file of that name).
    fn from(text: String) -> Self {
        if text == "off" { Self::Off } else { Self::At(text.into()) }
    }
}

/// One root image; its name is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootEntry {
    /// The name that VMs use.
    pub name: String,
    /// The image, as given.
    pub path: PathBuf,
    /// What it is, where that is declared.
    pub format: Option<RootFormat>,
}

/// One VM; its name is checked, nothing else is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmEntry {
    /// The VM's name.
    pub name: String,
    /// The root's name; may be left out where there is one root.
    pub root: Option<String>,
    /// Bytes of the virtual disk; the root's size if left out.
    pub size: Option<u64>,
    /// The leaf file, as given.
    pub leaf: Option<PathBuf>,
    /// The socket, as given.
    pub socket: Option<PathBuf>,
    /// Virtqueues.
    pub queues: Option<u64>,
    /// The disk's serial number, as given.
    pub serial: Option<String>,
    /// Bytes of a logical block.
    pub block_size: Option<u64>,
    /// The guest may not write.
    pub readonly: bool,
    /// The leaf is thrown away when the VM is detached.
    pub ephemeral: bool,
}

impl RootEntry {
    /// A root with its name, or with the stem of its file's name.
    ///
    /// # Errors
    /// [`UsageError`] for a name that is none, given or made.
    pub fn new(name: Option<String>, path: PathBuf) -> Result<Self, UsageError> {
        if let Some(name) = name {
            check_name(NameOf::Root, &name)?;
            return Ok(Self { name, path, format: None });
        }
        let stem =
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        match check_name(NameOf::Root, &stem) {
            Ok(()) => Ok(Self { name: stem, path, format: None }),
            Err(_) => Err(UsageError::RootNeedsName { path, stem }),
        }
    }

    /// Parses the value of `--root`: `NAME=PATH` or `PATH`, and `,format=raw` after it
    /// or not.
    ///
    /// What stands before the first `=` is a name, unless it begins as a path does:
    /// `--root ./a=b.raw` is one, as are `/a=b.raw` and `../a=b.raw`. Any other comma is
    /// the path's.
    ///
    /// # Errors
    /// [`UsageError`] as [`RootEntry::new`], for an empty path, or for another format.
    pub fn parse(text: &str) -> Result<Self, UsageError> {
        let (image, format) = match text.rsplit_once(",format=") {
            Some((image, format)) if !format.contains(['/', ',']) => (image, Some(format)),
            _ => (text, None),
        };
        let is_path = ["/", "./", "../"].iter().any(|start| image.starts_with(start));
        let (name, path) = match image.split_once('=') {
            Some((name, path)) if !is_path => (Some(name.to_owned()), path),
            _ => (None, image),
        };
        if path.is_empty() {
            return Err(UsageError::RootWithoutPath { text: text.into() });
        }
        let entry = Self::new(name, PathBuf::from(path))?;
        let format = match format {
            None => None,
            Some("raw") => Some(RootFormat::Raw),
            Some(other) => {
                return Err(UsageError::Choice {
                    setting: format!("root {}: format", entry.name),
                    value: other.into(),
                    choices: "raw, or make a raw image of it: qemu-img convert -O raw",
                });
            }
        };
        Ok(Self { format, ..entry })
    }
}

impl From<&RootConfig> for RootEntry {
    fn from(config: &RootConfig) -> Self {
        let RootConfig { name, path, format } = config.clone();
        Self { name, path, format }
    }
}

impl VmEntry {
    /// Parses the value of `--vm`: `NAME`, then any of `root=ROOT`, `size=SIZE`,
    /// `leaf=PATH`, `socket=PATH`, `queues=N`, `serial=TEXT`,
    /// `block-size=512|4096`, `readonly` and `ephemeral`, each after a comma.
    ///
    /// # Errors
    /// [`UsageError`] that names the part which is wrong.
    pub fn parse(text: &str) -> Result<Self, UsageError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        check_name(NameOf::Vm, name)?;
        let mut entry = Self { name: name.to_owned(), ..Self::default() };
        for part in parts {
            entry.take_option(text, part)?;
        }
        Ok(entry)
    }

    fn take_option(&mut self, text: &str, part: &str) -> Result<(), UsageError> {
        let number = |option: &str, value: &str, range: String| {
            let setting = format!("VM {}: {option}", self.name);
            value.parse::<u64>().map_err(|_| UsageError::Number {
                setting,
                text: value.into(),
                range,
            })
        };
        let size = |value: &str| {
            parse_size(value).map_err(|reason| UsageError::Size {
                setting: format!("VM {}: size", self.name),
                text: value.into(),
                reason,
            })
        };
        match part.split_once('=') {
            None if part == "readonly" => set_flag(&mut self.readonly, text, "readonly"),
            None if part == "ephemeral" => set_flag(&mut self.ephemeral, text, "ephemeral"),
            Some(("root", value)) => set(&mut self.root, text, "root", value, |v| Ok(v.to_owned())),
            Some(("size", value)) => {
                let parsed = size(value);
                set(&mut self.size, text, "size", value, |_| parsed)
            }
            Some(("queues", value)) => {
                let parsed = number("queues", value, super::resolve::queues_range());
                set(&mut self.queues, text, "queues", value, |_| parsed)
            }
            Some(("leaf", value)) => set(&mut self.leaf, text, "leaf", value, |v| Ok(v.into())),
            Some(("socket", value)) => {
                set(&mut self.socket, text, "socket", value, |v| Ok(v.into()))
            }
            Some(("block-size", value)) => {
                let parsed = number("block-size", value, super::resolve::block_sizes());
                set(&mut self.block_size, text, "block-size", value, |_| parsed)
            }
            Some(("serial", value)) => {
                set(&mut self.serial, text, "serial", value, |v| Ok(v.to_owned()))
            }
            _ => Err(UsageError::VmOption { text: text.into(), option: part.into() }),
        }
    }
}

fn set_flag(flag: &mut bool, text: &str, option: &'static str) -> Result<(), UsageError> {
    if std::mem::replace(flag, true) {
        return Err(UsageError::VmOptionTwice { text: text.into(), option });
    }
    Ok(())
}

fn set<T>(
    slot: &mut Option<T>,
    text: &str,
    option: &'static str,
    value: &str,
    parse: impl FnOnce(&str) -> Result<T, UsageError>,
) -> Result<(), UsageError> {
    if value.is_empty() {
        return Err(UsageError::VmOptionEmpty { text: text.into(), option });
    }
    if slot.replace(parse(value)?).is_some() {
        return Err(UsageError::VmOptionTwice { text: text.into(), option });
    }
    Ok(())
}

impl Settings {
    /// Refuses two VMs or two roots of one name within this source.
    ///
    /// # Errors
    /// [`UsageError::Twice`].
    pub fn check_unique(&self) -> Result<(), UsageError> {
        let roots = self.roots.iter().map(|root| (NameOf::Root, &root.name));
        let vms = self.vms.iter().map(|vm| (NameOf::Vm, &vm.name));
        let mut seen = HashSet::new();
        for (of, name) in roots.chain(vms) {
            if !seen.insert((of == NameOf::Vm, name)) {
                return Err(UsageError::Twice { of, name: name.clone() });
            }
        }
        Ok(())
    }

    /// These settings where `flags` says nothing, `flags` where it does.
    #[must_use]
    pub fn overridden_by(mut self, flags: Self) -> Self {
        self.roots.retain(|root| flags.roots.iter().all(|flag| flag.name != root.name));
        self.vms.retain(|vm| flags.vms.iter().all(|flag| flag.name != vm.name));
        self.roots.extend(flags.roots);
        self.vms.extend(flags.vms);
        Self {
            state_dir: flags.state_dir.or(self.state_dir),
            runtime_dir: flags.runtime_dir.or(self.runtime_dir),
            roots: self.roots,
            vms: self.vms,
            cache_size_bytes: flags.cache_size_bytes.or(self.cache_size_bytes),
            cache_block_bytes: flags.cache_block_bytes.or(self.cache_block_bytes),
            hugepages: flags.hugepages.or(self.hugepages),
            keep_cache: flags.keep_cache.or(self.keep_cache),
            reactors: flags.reactors.or(self.reactors),
            poll_us: flags.poll_us.or(self.poll_us),
            socket_group: flags.socket_group.or(self.socket_group),
            control_socket: flags.control_socket.or(self.control_socket),
            control_group: flags.control_group.or(self.control_group),
            http_port: flags.http_port.or(self.http_port),
            has_file: flags.has_file || self.has_file,
            log: flags.log.or(self.log),
        }
    }

    /// Makes every path absolute, a relative one counted from `base`.
    #[must_use]
    pub fn with_base(mut self, base: &Path) -> Self {
        // An empty path stays empty, for the rules to find.
        let place = |path: &mut PathBuf| {
            if !path.as_os_str().is_empty() {
                *path = base.join(&*path);
            }
        };
        self.state_dir.as_mut().into_iter().for_each(place);
        self.runtime_dir.as_mut().into_iter().for_each(place);
        if let Some(ControlSocket::At(path)) = &mut self.control_socket {
            place(path);
        }
        self.roots.iter_mut().map(|root| &mut root.path).for_each(place);
        for vm in &mut self.vms {
            vm.leaf.as_mut().into_iter().for_each(place);
            vm.socket.as_mut().into_iter().for_each(place);
        }
        self
    }
}

#[cfg(test)]
mod tests;
