//! Defaults, and the rules that look at more than one setting: what turns
//! [`Settings`] into a [`Config`].
//!
//! Looks at the file system only to tell whether two paths are one file, and
//! changes nothing there.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::limits::{
    CACHE_BLOCK_DEFAULT_BYTES, CACHE_BLOCK_MAX_BYTES, CACHE_BLOCK_MIN_BYTES, CACHE_SIZE_MAX_BYTES,
    CACHE_SIZE_MIN_BYTES, CACHE_SIZE_UNIT_BYTES, CONTROL_SOCKET_NAME, DISK_SIZE_MAX_BYTES,
    PATH_LEN_MAX, POLL_US_DEFAULT, POLL_US_MAX, QUEUES_DEFAULT, QUEUES_MAX, REACTORS_MAX,
    ROOTS_MAX, SOCKET_PATH_LEN_MAX, VMS_MAX,
};
use super::name::NameOf;
use super::nearest;
use super::paths::{PathClaim, PathUses};
use super::serial::Serial;
use super::settings::{ControlSocket, RootEntry, Settings, VmEntry};
use super::size::format_size;
use super::{Config, ControlConfig, Directories, RootConfig, UsageError, VmConfig};
use crate::units::{BlockSize, SECTOR_SIZE};

/// The queues that a VM may have, in words.
pub(super) fn queues_range() -> String {
    format!("from 1 to {QUEUES_MAX}")
}

/// The logical blocks that a disk may have, in words.
pub(super) fn block_sizes() -> String {
    BlockSize::ALL.map(|size| size.to_bytes().to_string()).join(" or ")
}

pub(super) fn resolve(settings: &Settings, env: &Environment) -> Result<Config, UsageError> {
    check_count(NameOf::Vm, settings.vms.len(), VMS_MAX)?;
    check_count(NameOf::Root, settings.roots.len(), ROOTS_MAX)?;
    // Sources have made their paths absolute; what is left counts from here.
    let settings = &settings.clone().with_base(&env.working_dir);
    let directories =
        Directories { state: state_dir(settings, env)?, runtime: runtime_dir(settings, env)? };
    let roots = settings.roots.iter().map(root).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<&str> = roots.iter().map(|root| root.name.as_str()).collect();
    let vms = settings
        .vms
        .iter()
        .map(|entry| vm(entry, &names, &directories))
        .collect::<Result<Vec<_>, _>>()?;
    let control = control(settings, env)?;
    check_paths(&roots, &vms, control.as_ref())?;
    Ok(Config {
        state_dir: directories.state,
        runtime_dir: directories.runtime,
        roots,
        vms,
        cache_size_bytes: cache_size(settings, env)?,
        cache_block_bytes: cache_block(settings)?,
        hugepages: settings.hugepages.unwrap_or_default(),
        keep_cache: settings.keep_cache.unwrap_or(false),
        reactors: reactors(settings, env)?,
        poll_us: poll_us(settings)?,
        socket_group: settings.socket_group.clone(),
        control,
        http_port: http_port(settings)?,
        has_file: settings.has_file,
        log: log_filter(settings)?,
    })
}

pub(super) fn root(entry: &RootEntry) -> Result<RootConfig, UsageError> {
    let path = file_path(format!("root {}:", entry.name), &entry.path)?;
    Ok(RootConfig { name: entry.name.clone(), path, format: entry.format })
}

pub(super) fn vm(
    entry: &VmEntry,
    roots: &[&str],
    directories: &Directories,
) -> Result<VmConfig, UsageError> {
    let size = disk_size(entry)?;
    if let Some(bytes) = size {
        check_blocks(&entry.name, bytes, block_size(entry)?)?;
    }
    Ok(VmConfig {
        name: entry.name.clone(),
        root: vm_root(entry, roots)?,
        size,
        leaf: vm_leaf(entry, &directories.state)?,
        socket: vm_socket(entry, &directories.runtime)?,
        queues: vm_queues(entry)?,
        serial: vm_serial(entry)?,
        block_size: block_size(entry)?,
        readonly: entry.readonly,
        ephemeral: entry.ephemeral,
    })
}

/// The rules of a VM's single values.
pub(super) fn vm_values(entry: &VmEntry) -> Result<(), UsageError> {
    vm_queues(entry)?;
    vm_serial(entry)?;
    block_size(entry)?;
    disk_size(entry)?;
    if let Some(path) = &entry.leaf {
        file_path(format!("VM {}: leaf", entry.name), path)?;
    }
    if let Some(path) = &entry.socket {
        file_path(format!("VM {}: socket", entry.name), path)?;
        if path.to_string_lossy().chars().count() > SOCKET_PATH_LEN_MAX {
            check_socket_len(path, true, || format!("VM {}", entry.name), "socket=")?;
        }
    }
    Ok(())
}

fn control(settings: &Settings, env: &Environment) -> Result<Option<ControlConfig>, UsageError> {
    let socket = control_socket(settings, env)?;
    Ok(socket.map(|socket| ControlConfig { socket, group: settings.control_group.clone() }))
}

pub(super) fn control_socket(
    settings: &Settings,
    env: &Environment,
) -> Result<Option<PathBuf>, UsageError> {
    let path = match &settings.control_socket {
        Some(ControlSocket::Off) => return Ok(None),
        Some(ControlSocket::At(path)) => {
            file_path("control-socket".into(), &env.working_dir.join(path))?
        }
        None => runtime_dir(settings, env)?.join(CONTROL_SOCKET_NAME),
    };
    let of = || "the control API".into();
    check_socket_len(&path, settings.control_socket.is_some(), of, "--control-socket")?;
    Ok(Some(path))
}

fn log_filter(settings: &Settings) -> Result<Option<String>, UsageError> {
    if let Some(text) = &settings.log {
        check_log("log", text)?;
    }
    Ok(settings.log.clone())
}

/// Whether `text`, the value of `setting`, chooses something to log.
///
/// # Errors
/// [`UsageError::Range`].
pub fn check_log(setting: &str, text: &str) -> Result<(), UsageError> {
    crate::logging::check_filter(text).map_err(|reason| UsageError::Range {
        setting: setting.into(),
        value: format!("{text:?}"),
        rule: format!("levels such as debug or leafblk::cache=trace,info ({reason})"),
    })
}

fn check_count(of: NameOf, count: usize, max: usize) -> Result<(), UsageError> {
    if count > max {
        return Err(UsageError::TooMany { of, count, max });
    }
    Ok(())
}

pub(super) fn state_dir(settings: &Settings, env: &Environment) -> Result<PathBuf, UsageError> {
    match &settings.state_dir {
        Some(dir) => directory("state-dir", dir, env),
        None => env.default_state_dir(),
    }
}

pub(super) fn runtime_dir(settings: &Settings, env: &Environment) -> Result<PathBuf, UsageError> {
    match &settings.runtime_dir {
        Some(dir) => directory("runtime-dir", dir, env),
        None => env.default_runtime_dir(),
    }
}

fn directory(setting: &str, path: &Path, env: &Environment) -> Result<PathBuf, UsageError> {
    if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(UsageError::Path { setting: setting.into(), path: path.into() });
    }
    Ok(tidy(&env.working_dir.join(path)))
}

/// `path` is absolute already, or empty.
pub(super) fn file_path(setting: String, path: &Path) -> Result<PathBuf, UsageError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let last = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if matches!(last, b"" | b"." | b"..") || bytes.contains(&0) {
        return Err(UsageError::Path { setting, path: path.into() });
    }
    let length = path.to_string_lossy().chars().count();
    if length > PATH_LEN_MAX {
        return Err(UsageError::PathLong { setting, length });
    }
    Ok(tidy(path))
}

/// Without `.` and doubled slashes. `..` stays: after a symbolic link it is not
/// what it looks like.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

fn vm_root(vm: &VmEntry, roots: &[&str]) -> Result<String, UsageError> {
    let names = || roots.iter().copied();
    match (&vm.root, roots) {
        (Some(root), _) if names().any(|name| name == root) => Ok(root.clone()),
        (Some(root), _) => Err(UsageError::UnknownRoot {
            vm: vm.name.clone(),
            root: root.clone(),
            known: if roots.is_empty() {
                format!("add --root {root}=PATH or a [[root]] table")
            } else {
                format!("the roots are {}{}", list(names()), nearest::hint(root, names()))
            },
        }),
        (None, []) => Err(UsageError::NoRoot { vm: vm.name.clone() }),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(UsageError::RootNeeded {
            vm: vm.name.clone(),
            count: roots.len(),
            known: list(names()),
        }),
    }
}

/// The first few of `names`, for a sentence.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.collect();
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

fn disk_size(vm: &VmEntry) -> Result<Option<u64>, UsageError> {
    vm.size.map(|bytes| check_disk_size(&vm.name, bytes).map(|()| bytes)).transpose()
}

/// Whether the disk of the VM `name` may have so many bytes.
///
/// # Errors
/// [`UsageError::Range`].
pub fn check_disk_size(name: &str, bytes: u64) -> Result<(), UsageError> {
    if bytes == 0 || bytes > DISK_SIZE_MAX_BYTES || !bytes.is_multiple_of(SECTOR_SIZE) {
        let most = format_size(DISK_SIZE_MAX_BYTES);
        return Err(UsageError::Range {
            setting: format!("VM {name}: size"),
            value: format_size(bytes),
            rule: format!("a multiple of {SECTOR_SIZE} bytes, up to {most}"),
        });
    }
    Ok(())
}

/// Whether so many bytes are whole blocks.
///
/// # Errors
/// [`UsageError::NoWholeBlocks`].
pub fn check_blocks(name: &str, bytes: u64, block: BlockSize) -> Result<(), UsageError> {
    if !block.divides(bytes / SECTOR_SIZE) {
        let block = block.to_bytes();
        return Err(UsageError::NoWholeBlocks { vm: name.into(), size: bytes, block });
    }
    Ok(())
}

fn block_size(vm: &VmEntry) -> Result<BlockSize, UsageError> {
    let Some(bytes) = vm.block_size else {
        return Ok(BlockSize::default());
    };
    BlockSize::from_bytes(bytes).ok_or_else(|| UsageError::Range {
        setting: format!("VM {}: block-size", vm.name),
        value: bytes.to_string(),
        rule: block_sizes(),
    })
}

fn vm_leaf(vm: &VmEntry, state_dir: &Path) -> Result<PathBuf, UsageError> {
    match &vm.leaf {
        Some(path) => file_path(format!("VM {}: leaf", vm.name), path),
        None => Ok(state_dir.join(format!("{}.leaf", vm.name))),
    }
}

pub(super) fn vm_socket(vm: &VmEntry, runtime_dir: &Path) -> Result<PathBuf, UsageError> {
    let path = match &vm.socket {
        Some(path) => file_path(format!("VM {}: socket", vm.name), path)?,
        None => runtime_dir.join(format!("{}.sock", vm.name)),
    };
    check_socket_len(&path, vm.socket.is_some(), || format!("VM {}", vm.name), "socket=")?;
    Ok(path)
}

fn check_socket_len(
    path: &Path,
    is_given: bool,
    of: impl FnOnce() -> String,
    setting: &'static str,
) -> Result<(), UsageError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_LEN_MAX {
        return Err(UsageError::SocketPathLong {
            of: of(),
            setting,
            path: path.into(),
            is_given,
            length,
        });
    }
    Ok(())
}

pub(super) fn vm_queues(vm: &VmEntry) -> Result<u16, UsageError> {
    let queues = vm.queues.unwrap_or(QUEUES_DEFAULT.into());
    in_range(queues, 1, u64::from(QUEUES_MAX))
        .and_then(|queues| u16::try_from(queues).ok())
        .ok_or_else(|| UsageError::Range {
            setting: format!("VM {}: queues", vm.name),
            value: queues.to_string(),
            rule: queues_range(),
        })
}

fn vm_serial(vm: &VmEntry) -> Result<Serial, UsageError> {
    match &vm.serial {
        Some(text) => Serial::new(&vm.name, text),
        None => Ok(Serial::of_name(&vm.name)),
    }
}

fn in_range(value: u64, min: u64, max: u64) -> Option<u64> {
    (min..=max).contains(&value).then_some(value)
}

fn cache_size(settings: &Settings, env: &Environment) -> Result<u64, UsageError> {
    let Some(bytes) = settings.cache_size_bytes else {
        return Ok(env.default_cache_size_bytes());
    };
    in_range(bytes, CACHE_SIZE_MIN_BYTES, CACHE_SIZE_MAX_BYTES)
        .filter(|bytes| bytes.is_multiple_of(CACHE_SIZE_UNIT_BYTES))
        .ok_or_else(|| UsageError::Range {
            setting: "cache-size".into(),
            value: format_size(bytes),
            rule: format!(
                "a multiple of {} from {} to {}",
                format_size(CACHE_SIZE_UNIT_BYTES),
                format_size(CACHE_SIZE_MIN_BYTES),
                format_size(CACHE_SIZE_MAX_BYTES)
            ),
        })
}

fn cache_block(settings: &Settings) -> Result<u32, UsageError> {
    let bytes = settings.cache_block_bytes.unwrap_or(CACHE_BLOCK_DEFAULT_BYTES.into());
    in_range(bytes, CACHE_BLOCK_MIN_BYTES.into(), CACHE_BLOCK_MAX_BYTES.into())
        .filter(|bytes| bytes.is_power_of_two())
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| UsageError::Range {
            setting: "cache-block".into(),
            value: format_size(bytes),
            rule: format!(
                "a power of two from {} to {}",
                format_size(CACHE_BLOCK_MIN_BYTES.into()),
                format_size(CACHE_BLOCK_MAX_BYTES.into())
            ),
        })
}

fn reactors(settings: &Settings, env: &Environment) -> Result<usize, UsageError> {
    let Some(reactors) = settings.reactors else {
        return Ok(env.default_reactors());
    };
    usize::try_from(reactors)
        .ok()
        .filter(|reactors| (1..=REACTORS_MAX).contains(reactors))
        .ok_or_else(|| UsageError::Range {
            setting: "reactors".into(),
            value: reactors.to_string(),
            rule: format!("from 1 to {REACTORS_MAX}"),
        })
}

fn http_port(settings: &Settings) -> Result<Option<u16>, UsageError> {
    let Some(port) = settings.http_port else {
        return Ok(None);
    };
    let possible = u16::try_from(port).ok().filter(|port| *port > 0);
    possible.map(Some).ok_or_else(|| UsageError::Range {
        setting: "http-port".into(),
        value: port.to_string(),
        rule: "from 1 to 65535".into(),
    })
}

fn poll_us(settings: &Settings) -> Result<u32, UsageError> {
    let Some(poll_us) = settings.poll_us else {
        return Ok(POLL_US_DEFAULT);
    };
    u32::try_from(poll_us).ok().filter(|poll_us| *poll_us <= POLL_US_MAX).ok_or_else(|| {
        UsageError::Range {
            setting: "poll-us".into(),
            value: poll_us.to_string(),
            rule: format!("from 0 (sleep at once) to {POLL_US_MAX} microseconds"),
        }
    })
}

/// Refuses a path with two uses. Two roots may share an image.
fn check_paths(
    roots: &[RootConfig],
    vms: &[VmConfig],
    control: Option<&ControlConfig>,
) -> Result<(), UsageError> {
    let mut uses = PathUses::default();
    if let Some(control) = control {
        uses.claim(&PathClaim::of_control(&control.socket))?;
    }
    roots.iter().try_for_each(|root| uses.claim(&PathClaim::of_root(root)))?;
    vms.iter().flat_map(PathClaim::of_vm).try_for_each(|claim| uses.claim(&claim))
}
