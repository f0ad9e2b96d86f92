//! Who a frontend is, for people: its process and what that is called.

use rustix::process::Pid;

use crate::io::open::kernel_text;

/// The process that has connected.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peer {
    /// Its process id; `None` where it is in a PID namespace that this process doesn't see.
    pub pid: Option<u32>,
    /// The name of its command, as `ps` shows it; `None` where /proc doesn't tell.
    pub command: Option<String>,
}

impl Peer {
    /// The process with this number, whose command is called so now.
    pub(super) fn of(pid: Option<Pid>) -> Self {
        let pid = pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        let command = pid.and_then(|pid| kernel_text(format!("/proc/{pid}/comm")).ok());
        Self { pid, command: command.map(|text| printable(text.trim_end_matches('\n'))) }
    }
}

/// A process may give itself any name, and terminals heed some characters.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_as_the_kernel_has_it() {
        let peer = Peer::of(Some(rustix::process::getpid()));
        assert_eq!(peer.pid, Some(std::process::id()));
        let command = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(peer.command.as_deref(), Some(command.trim_end()));
        assert_eq!(Peer::of(None), Peer::default());
    }

    #[test]
    fn a_name_that_would_move_the_cursor_does_not() {
        assert_eq!(printable("qemu\x1b[2J\n"), "qemu?[2J?");
    }
}
