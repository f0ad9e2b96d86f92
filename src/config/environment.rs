//! What the configuration takes from its surroundings: user, directories,
//! CPUs, memory. A plain value, so that the rules are pure and testable.

use std::env;
use std::path::{Path, PathBuf};
use std::thread;

use super::UsageError;
use super::limits::{
    CACHE_SIZE_DEFAULT_BYTES, CACHE_SIZE_MIN_BYTES, CACHE_SIZE_UNIT_BYTES, REACTORS_DEFAULT_MAX,
};

/// The runtime directory of root, and of the packaged service.
const SYSTEM_RUNTIME_DIR: &str = "/run/leafblk";

/// The surroundings of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Whether the user is root: system directories instead of XDG ones.
    pub is_root: bool,
    /// `$XDG_STATE_HOME`, if it is an absolute path.
    pub xdg_state_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`, if it is an absolute path.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `$LEAFBLK_SOCKET`: the control socket of the leafblk that commands ask.
    pub leafblk_socket: Option<PathBuf>,
    /// `$HOME`, if it is an absolute path.
    pub home: Option<PathBuf>,
    /// Where relative paths of flags count from.
    pub working_dir: PathBuf,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The host's memory in bytes.
    pub memory_bytes: u64,
}

impl Environment {
    /// The surroundings of this process.
    ///
    /// # Errors
    /// [`UsageError::NoWorkingDir`].
    pub fn current() -> Result<Self, UsageError> {
        let info = rustix::system::sysinfo();
        Ok(Self {
            is_root: rustix::process::geteuid().is_root(),
            xdg_state_home: absolute_variable("XDG_STATE_HOME"),
            xdg_runtime_dir: absolute_variable("XDG_RUNTIME_DIR"),
            leafblk_socket: env::var_os("LEAFBLK_SOCKET")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            home: absolute_variable("HOME"),
            working_dir: env::current_dir()
                .map_err(|source| UsageError::NoWorkingDir { source })?,
            cpus: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: info.totalram.saturating_mul(info.mem_unit.into()),
        })
    }

    /// Where leaves are by default.
    ///
    /// # Errors
    /// [`UsageError::NoDefaultDir`] where neither XDG_STATE_HOME nor HOME is set.
    pub fn default_state_dir(&self) -> Result<PathBuf, UsageError> {
        if self.is_root {
            return Ok("/var/lib/leafblk".into());
        }
        match (&self.xdg_state_home, &self.home) {
            (Some(state), _) => Ok(state.join("leafblk")),
            (None, Some(home)) => Ok(home.join(".local/state/leafblk")),
            (None, None) => Err(UsageError::NoDefaultDir {
                variable: "HOME",
                what: "state directory",
                flag: "--state-dir",
            }),
        }
    }

    /// Where sockets are by default.
    ///
    /// # Errors
    /// [`UsageError::NoDefaultDir`] where XDG_RUNTIME_DIR is not set.
    pub fn default_runtime_dir(&self) -> Result<PathBuf, UsageError> {
        if self.is_root {
            return Ok(SYSTEM_RUNTIME_DIR.into());
        }
        let dir = self.xdg_runtime_dir.as_ref();
        dir.map(|dir| dir.join("leafblk")).ok_or(UsageError::NoDefaultDir {
            variable: "XDG_RUNTIME_DIR",
            what: "runtime directory",
            flag: "--runtime-dir",
        })
    }

    /// Where a leafblk that runs may have its sockets: this user's own, then the packaged
    /// service.
    pub fn runtime_dirs_served(&self) -> Vec<PathBuf> {
        let own = self.default_runtime_dir().ok();
        let own = own.filter(|own| own != Path::new(SYSTEM_RUNTIME_DIR));
        own.into_iter().chain([SYSTEM_RUNTIME_DIR.into()]).collect()
    }

    /// 1 GiB, or a quarter of the memory where that is less.
    pub fn default_cache_size_bytes(&self) -> u64 {
        let quarter = self.memory_bytes / 4;
        let whole = quarter - quarter % CACHE_SIZE_UNIT_BYTES;
        whole.clamp(CACHE_SIZE_MIN_BYTES, CACHE_SIZE_DEFAULT_BYTES)
    }

    /// Half the CPUs, at least 1, at most 4.
    pub fn default_reactors(&self) -> usize {
        (self.cpus / 2).clamp(1, REACTORS_DEFAULT_MAX)
    }
}

/// XDG says that relative paths in its variables are to be ignored.
fn absolute_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(name)?);
    path.is_absolute().then_some(path)
}
