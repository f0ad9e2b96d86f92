//! The validated, immutable configuration of one process.
//!
//! Owns the flags' and the file's meaning, every limit and default, and the
//! sentences for mistakes. Knows nothing of images, leaves or sockets beyond
//! their paths, and has no side effect: what needs a look at a file's content
//! (is `size` at least the root's?) is the daemon's to check.
//!
//! Invariants of a [`Config`]: every name obeys
//! [`name`]; every VM's root exists in `roots`; paths are absolute, and no two
//! uses share one; every number is within [`limits`].

use std::path::{Path, PathBuf};

mod environment;
mod error;
pub mod file;
pub mod forms;
pub mod limits;
pub mod name;
pub mod nearest;
pub mod paths;
mod resolve;
pub mod schemas;
pub mod serial;
mod settings;
pub mod size;

pub use environment::Environment;
pub use error::UsageError;
pub use resolve::{check_blocks, check_disk_size, check_log};
use serial::Serial;

use crate::units::BlockSize;
pub use settings::{ControlSocket, RootEntry, Settings, VmEntry};

pub use crate::root::RootFormat;

/// Which pages the cache arena is made of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HugepagesMode {
    /// Hugepages where there are enough, else transparent ones and a warning.
    #[default]
    Auto,
    /// Hugepages, or the start fails.
    On,
    /// No hugetlb pages.
    Off,
}

impl std::str::FromStr for HugepagesMode {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(UsageError::Choice {
                setting: "hugepages".into(),
                value: text.into(),
                choices: "auto, on or off",
            }),
        }
    }
}

/// One root image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootConfig {
    /// The name that VMs use.
    pub name: String,
    /// The image; absolute.
    pub path: PathBuf,
    /// What it is, where that is declared.
    pub format: Option<RootFormat>,
}

/// One VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmConfig {
    /// The VM's name.
    pub name: String,
    /// The name of a root in [`Config::roots`].
    pub root: String,
    /// Bytes of the virtual disk, a multiple of `block_size`; `None` for the root's
    /// size. Whether it is at least the root's size is not checked here.
    pub size: Option<u64>,
    /// The leaf file; absolute.
    pub leaf: PathBuf,
    /// The socket; absolute and at most 107 bytes long.
    pub socket: PathBuf,
    /// Virtqueues, 1 to 64.
    pub queues: u16,
    /// What the guest reads as the disk's serial number.
    pub serial: Serial,
    /// What the guest addresses the disk by; divides `size`.
    pub block_size: BlockSize,
    /// The guest may not write.
    pub readonly: bool,
    /// The leaf is thrown away when the VM is detached.
    pub ephemeral: bool,
}

/// Everything that `leafblk serve` was told, with defaults filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where leaves are by default; absolute, need not exist.
    pub state_dir: PathBuf,
    /// Where sockets are by default; absolute, need not exist.
    pub runtime_dir: PathBuf,
    /// The root images, names unique.
    pub roots: Vec<RootConfig>,
    /// The VMs, names unique.
    pub vms: Vec<VmConfig>,
    /// Bytes of the cache arena, a multiple of 2 MiB.
    pub cache_size_bytes: u64,
    /// Bytes of a cache block, a power of two from 4 KiB to 2 MiB.
    pub cache_block_bytes: u32,
    /// Which pages the arena is made of.
    pub hugepages: HugepagesMode,
    /// The cache outlives the process, for the next start.
    pub keep_cache: bool,
    /// Reactor threads, at least one.
    pub reactors: usize,
    /// How long a reactor may poll after its last work, in microseconds; 0
    /// sleeps at once.
    pub poll_us: u32,
    /// The group that may connect to the VMs' sockets beside their owner.
    pub socket_group: Option<String>,
    /// The control API; `None` where it is switched off.
    pub control: Option<ControlConfig>,
    /// The port on 127.0.0.1 for looking, if there is to be one.
    pub http_port: Option<u16>,
    /// Some of it is from a file, which lasts from one start to the next.
    pub has_file: bool,
    /// What is logged, in env_logger's syntax; `None` for the default.
    pub log: Option<String>,
}

/// How the control API is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ControlConfig {
    /// Its socket; absolute.
    pub socket: PathBuf,
    /// The group that may use it beside its owner.
    pub group: Option<String>,
}

/// Where leaves and sockets are that say nothing of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Directories {
    /// For leaves; absolute.
    pub state: PathBuf,
    /// For sockets; absolute.
    pub runtime: PathBuf,
}

/// Where a VM is reached: all that a hypervisor's command line needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The VM's name.
    pub vm: String,
    /// Its socket; absolute.
    pub socket: PathBuf,
    /// Its virtqueues.
    pub queues: u16,
}

impl Config {
    /// Fills in defaults and applies the rules. Reads the file system (is this
    /// the same file?) but changes nothing.
    ///
    /// # Errors
    /// The first [`UsageError`] found.
    pub fn resolve(settings: &Settings, env: &Environment) -> Result<Self, UsageError> {
        resolve::resolve(settings, env)
    }
}

impl VmConfig {
    /// Fills in defaults and applies the rules to one VM, given the names of
    /// the roots that there are. Paths must be absolute.
    ///
    /// # Errors
    /// The first [`UsageError`] found.
    pub fn resolve<'a>(
        entry: &VmEntry,
        roots: impl Iterator<Item = &'a str>,
        directories: &Directories,
    ) -> Result<Self, UsageError> {
        Self::check(entry)?;
        resolve::vm(entry, &roots.collect::<Vec<_>>(), directories)
    }

    /// Applies the rules of its single values, which hold on any host: those that
    /// [`schemas`] has. Paths must be absolute.
    ///
    /// # Errors
    /// The first [`UsageError`] found.
    pub fn check(entry: &VmEntry) -> Result<(), UsageError> {
        for (what, path) in [("leaf", &entry.leaf), ("socket", &entry.socket)] {
            let setting = format!("VM {}: {what}", entry.name);
            path.as_ref().map_or(Ok(()), |path| check_absolute(setting, path))?;
        }
        resolve::vm_values(entry)
    }
}

fn check_absolute(setting: String, path: &Path) -> Result<(), UsageError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(UsageError::RelativePath { setting, path: path.into() })
}

impl RootConfig {
    /// Applies the rules to one root, whose path must be absolute.
    ///
    /// # Errors
    /// The first [`UsageError`] found.
    pub fn resolve(entry: &RootEntry) -> Result<Self, UsageError> {
        Self::check(Some(&entry.name), &entry.path)?;
        resolve::root(entry)
    }

    /// Applies the rules that hold on any host, as [`VmConfig::check`].
    ///
    /// # Errors
    /// The first [`UsageError`] found.
    pub fn check(name: Option<&str>, path: &Path) -> Result<(), UsageError> {
        if let Some(name) = name {
            name::check_name(name::NameOf::Root, name)?;
        }
        let setting = name.map_or("root path".into(), |name| format!("root {name}: path"));
        check_absolute(setting.clone(), path)?;
        resolve::file_path(setting, path).map(drop)
    }
}

impl Settings {
    /// The control socket that these settings mean; `None` if it is off.
    ///
    /// # Errors
    /// [`UsageError`] for an unusable path or where there is no default.
    pub fn control_socket(&self, env: &Environment) -> Result<Option<PathBuf>, UsageError> {
        resolve::control_socket(self, env)
    }

    /// The runtime directory that these settings mean.
    ///
    /// # Errors
    /// [`UsageError`] for an unusable path or where there is no default.
    pub fn runtime_dir(&self, env: &Environment) -> Result<PathBuf, UsageError> {
        resolve::runtime_dir(self, env)
    }

    /// The state directory that these settings mean.
    ///
    /// # Errors
    /// [`UsageError`] for an unusable path or where there is no default.
    pub fn state_dir(&self, env: &Environment) -> Result<PathBuf, UsageError> {
        resolve::state_dir(self, env)
    }

    /// Where the VM `name` is reached, if these settings have it. Roots and
    /// other VMs are not looked at.
    ///
    /// # Errors
    /// [`UsageError`] for a mistake in that VM's settings.
    pub fn endpoint(&self, name: &str, env: &Environment) -> Result<Option<Endpoint>, UsageError> {
        let Some(at) = self.vms.iter().position(|vm| vm.name == name) else {
            return Ok(None);
        };
        let vm = &self.clone().with_base(&env.working_dir).vms[at];
        Ok(Some(Endpoint {
            vm: vm.name.clone(),
            socket: resolve::vm_socket(vm, &self.runtime_dir(env)?)?,
            queues: resolve::vm_queues(vm)?,
        }))
    }
}

#[cfg(test)]
mod tests;
