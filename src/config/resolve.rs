//! Defaults, and the rules that look at more than one setting: what turns
//! [`Settings`] into a [`Config`].
//!
//! Looks at the file system only to tell whether two paths are one file, and
//! changes nothing there.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::environment::Environment;
use super::limits::{
    CACHE_BLOCK_DEFAULT_BYTES, CACHE_BLOCK_MAX_BYTES, CACHE_BLOCK_MIN_BYTES, CACHE_SIZE_MAX_BYTES,
    CACHE_SIZE_MIN_BYTES, CACHE_SIZE_UNIT_BYTES, DISK_SIZE_MAX_BYTES, POLL_US_DEFAULT, POLL_US_MAX,
    QUEUES_DEFAULT, QUEUES_MAX, REACTORS_MAX, ROOTS_MAX, SOCKET_PATH_LEN_MAX, VMS_MAX,
};
use super::name::NameOf;
use super::settings::{Settings, VmEntry};
use super::size::format_size;
use super::{Config, RootConfig, UsageError, VmConfig};
use crate::units::SECTOR_SIZE;

/// The queues that a VM may have, in words.
pub(super) fn queues_range() -> String {
    format!("from 1 to {QUEUES_MAX}")
}

pub(super) fn resolve(settings: &Settings, env: &Environment) -> Result<Config, UsageError> {
    if settings.vms.is_empty() {
        return Err(UsageError::NoVm);
    }
    check_count(NameOf::Vm, settings.vms.len(), VMS_MAX)?;
    check_count(NameOf::Root, settings.roots.len(), ROOTS_MAX)?;
    let state_dir = state_dir(settings, env)?;
    let runtime_dir = runtime_dir(settings, env)?;
    let roots = settings
        .roots
        .iter()
        .map(|root| {
            Ok(RootConfig {
                name: root.name.clone(),
                path: file_path(format!("root {}:", root.name), &root.path, env)?,
            })
        })
        .collect::<Result<Vec<_>, UsageError>>()?;
    let vms = settings
        .vms
        .iter()
        .map(|vm| {
            Ok(VmConfig {
                name: vm.name.clone(),
                root: vm_root(vm, &roots)?,
                size: disk_size(vm)?,
                leaf: vm_leaf(vm, &state_dir, env)?,
                socket: vm_socket(vm, &runtime_dir, env)?,
                queues: vm_queues(vm)?,
                readonly: vm.readonly,
                ephemeral: vm.ephemeral,
            })
        })
        .collect::<Result<Vec<_>, UsageError>>()?;
    check_paths(&roots, &vms)?;
    Ok(Config {
        state_dir,
        runtime_dir,
        roots,
        vms,
        cache_size_bytes: cache_size(settings, env)?,
        cache_block_bytes: cache_block(settings)?,
        hugepages: settings.hugepages.unwrap_or_default(),
        keep_cache: settings.keep_cache.unwrap_or(false),
        reactors: reactors(settings, env)?,
        poll_us: poll_us(settings)?,
    })
}

fn check_count(of: NameOf, count: usize, max: usize) -> Result<(), UsageError> {
    if count > max {
        return Err(UsageError::TooMany { of, count, max });
    }
    Ok(())
}

fn state_dir(settings: &Settings, env: &Environment) -> Result<PathBuf, UsageError> {
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

fn file_path(setting: String, path: &Path, env: &Environment) -> Result<PathBuf, UsageError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if path.file_name().is_none() || bytes.contains(&0) || bytes.ends_with(b"/") {
        return Err(UsageError::Path { setting, path: path.into() });
    }
    Ok(tidy(&env.working_dir.join(path)))
}

/// Without `.` and doubled slashes. `..` stays: after a symbolic link it is not
/// what it looks like.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

fn vm_root(vm: &VmEntry, roots: &[RootConfig]) -> Result<String, UsageError> {
    let names = || roots.iter().map(|root| root.name.as_str());
    match (&vm.root, roots) {
        (Some(root), _) if names().any(|name| name == root) => Ok(root.clone()),
        (Some(root), _) => Err(UsageError::UnknownRoot {
            vm: vm.name.clone(),
            root: root.clone(),
            known: if roots.is_empty() {
                format!("add --root {root}=PATH or a [[root]] table")
            } else {
                format!("the roots are {}", list(names()))
            },
        }),
        (None, []) => Err(UsageError::NoRoot { vm: vm.name.clone() }),
        (None, [only]) => Ok(only.name.clone()),
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
    let Some(bytes) = vm.size else {
        return Ok(None);
    };
    if bytes == 0 || bytes > DISK_SIZE_MAX_BYTES || !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(UsageError::Range {
            setting: format!("VM {}: size", vm.name),
            value: format_size(bytes),
            rule: format!(
                "a multiple of {SECTOR_SIZE} bytes, up to {}",
                format_size(DISK_SIZE_MAX_BYTES)
            ),
        });
    }
    Ok(Some(bytes))
}

fn vm_leaf(vm: &VmEntry, state_dir: &Path, env: &Environment) -> Result<PathBuf, UsageError> {
    match &vm.leaf {
        Some(path) => file_path(format!("VM {}: leaf", vm.name), path, env),
        None => Ok(state_dir.join(format!("{}.leaf", vm.name))),
    }
}

pub(super) fn vm_socket(
    vm: &VmEntry,
    runtime_dir: &Path,
    env: &Environment,
) -> Result<PathBuf, UsageError> {
    let path = match &vm.socket {
        Some(path) => file_path(format!("VM {}: socket", vm.name), path, env)?,
        None => runtime_dir.join(format!("{}.sock", vm.name)),
    };
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_LEN_MAX {
        return Err(UsageError::SocketPathLong { vm: vm.name.clone(), path, length });
    }
    Ok(path)
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
fn check_paths(roots: &[RootConfig], vms: &[VmConfig]) -> Result<(), UsageError> {
    let mut uses: HashMap<PathBuf, String> = HashMap::new();
    for root in roots {
        uses.insert(identity(&root.path), format!("root {}", root.name));
    }
    for vm in vms {
        for (path, second) in [
            (&vm.leaf, format!("the leaf of VM {}", vm.name)),
            (&vm.socket, format!("the socket of VM {}", vm.name)),
        ] {
            let id = identity(path);
            if let Some(first) = uses.get(&id) {
                return Err(UsageError::PathShared {
                    path: path.clone(),
                    first: first.clone(),
                    second,
                });
            }
            uses.insert(id, second);
        }
    }
    Ok(())
}

/// The same for every spelling of one file, as far as the file system tells.
fn identity(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => without_dot_dot(path),
    }
}

/// Takes `..` at face value: right where nothing exists yet.
fn without_dot_dot(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
