//! Whether this process can have an io_uring as reactors need it; if not, why, and what
//! to do.

use std::fmt;
use std::io;

use super::engine::Engine;
use super::open::kernel_text;

/// Why there is no io_uring.
#[derive(Debug, thiserror::Error)]
pub(crate) struct NoUring {
    cause: Cause,
    source: io::Error,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cause {
    /// kernel.io_uring_disabled has this value.
    Disabled(u8),
    /// A seccomp filter, as containers bring it.
    Filtered,
    /// The kernel has none, or one without what is used.
    TooOld,
    /// Something of the kernel's is used up.
    Limits,
    /// It is not allowed, by another rule of the host.
    Forbidden,
}

/// Makes a ring as a reactor's, and lets it go.
///
/// # Errors
/// [`NoUring`], where a reactor could have none.
pub(crate) fn check() -> Result<(), NoUring> {
    match Engine::new() {
        Ok(_) => Ok(()),
        Err(source) => Err(NoUring { cause: Cause::of(&source, Host::look()), source }),
    }
}

/// What the host says that may keep a process from it.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// kernel.io_uring_disabled (Linux 6.6): 1 lets privileged processes and a group,
    /// 2 nobody.
    disabled: u8,
    /// This process has a seccomp filter (proc_pid_status(5)).
    is_filtered: bool,
}

impl Host {
    fn look() -> Self {
        let disabled = kernel_text("/proc/sys/kernel/io_uring_disabled");
        let status = kernel_text("/proc/self/status").unwrap_or_default();
        let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        Self {
            disabled: disabled.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            is_filtered: mode.is_some_and(|mode| mode.trim() == "2"),
        }
    }
}

impl Cause {
    /// Which it is, by what io_uring_setup(2) said. A filter may say what it likes;
    /// EPERM and ENOSYS are usual.
    fn of(error: &io::Error, host: Host) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Self::Limits,
            Some(libc::EPERM | libc::EACCES) if host.disabled > 0 => Self::Disabled(host.disabled),
            Some(libc::EINVAL) => Self::TooOld,
            _ if host.is_filtered => Self::Filtered,
            Some(libc::ENOSYS) => Self::TooOld,
            _ => Self::Forbidden,
        }
    }
}

impl fmt::Display for NoUring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, source } = self;
        write!(f, "leafblk can't have an io_uring ({source}): ")?;
        match cause {
            Cause::Disabled(value) => write!(
                f,
                "it is switched off on this host (kernel.io_uring_disabled={value}); set that to \
                 0, or to 1 with kernel.io_uring_group set to a group of leafblk's user"
            ),
            Cause::Filtered => f.write_str(
                "a seccomp filter blocks it, as containers have one; allow io_uring_setup, \
                 io_uring_enter and io_uring_register in the container's seccomp profile \
                 (docs/operations.md, \"In a container\"), or in the unit: SystemCallFilter=@aio",
            ),
            Cause::TooOld => f.write_str(
                "this kernel has none, or an old one; leafblk needs Linux 6.1 or newer, and a \
                 sandbox that passes io_uring on",
            ),
            Cause::Limits => write!(f, "a limit is reached; {}", crate::error::CHECK_LIMITS),
            Cause::Forbidden => f.write_str(
                "this host forbids it to leafblk's user; look at its security modules (SELinux, \
                 AppArmor) and at the kernel's log",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(errno: i32, disabled: u8, is_filtered: bool) -> String {
        let source = io::Error::from_raw_os_error(errno);
        NoUring { cause: Cause::of(&source, Host { disabled, is_filtered }), source }.to_string()
    }

    #[test]
    fn each_cause_is_named_with_what_to_do() {
        for (errno, disabled, is_filtered, part) in [
            (libc::EPERM, 2, false, "kernel.io_uring_disabled=2); set that to 0"),
            (libc::EPERM, 1, true, "kernel.io_uring_disabled=1"),
            (libc::EPERM, 0, true, "in the container's seccomp profile"),
            (libc::ENOSYS, 0, true, "in the container's seccomp profile"),
            (libc::EACCES, 0, true, "in the container's seccomp profile"),
            (libc::ENOSYS, 0, false, "needs Linux 6.1 or newer"),
            (libc::EINVAL, 0, true, "needs Linux 6.1 or newer"),
            (libc::ENOMEM, 0, true, "a limit is reached"),
            (libc::EPERM, 0, false, "SELinux"),
        ] {
            let said = sentence(errno, disabled, is_filtered);
            assert!(said.contains(part), "{errno} {disabled} {is_filtered}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn this_host_has_one() {
        check().unwrap();
    }
}
