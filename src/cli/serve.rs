//! The flags of `leafblk serve`.

use clap::Args;

use super::source::SourceArgs;
use super::values::{number, size};
use crate::config::{ControlSocket, Environment, HugepagesMode, Settings};
use crate::daemon::Strictness;
use crate::error::Error;

/// The flags of `leafblk serve`.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Where VMs and roots are described.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Memory for root blocks, shared by all VMs [default: 1GiB, or a quarter
    /// of the host's memory if that is less]
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,
    /// Bytes that are read and evicted at a time, 4KiB to 2MiB [default: 64KiB]
    #[arg(long, value_name = "SIZE")]
    pub cache_block: Option<String>,
    /// Cache in hugepages: auto falls back to transparent huge pages, on does not,
    /// off takes none [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    pub hugepages: Option<String>,
    /// Leave the cache in memory at the end, so that the next start finds it
    /// warm (docs/durability.md); without this, what an earlier start left is
    /// removed
    #[arg(long)]
    pub keep_cache: bool,
    /// Threads that serve I/O [default: half the CPUs, 1 to 4]
    #[arg(long, value_name = "N")]
    pub reactors: Option<String>,
    /// Microseconds to poll for more work before sleeping; 0 sleeps at once
    /// [default: 50]
    #[arg(long, value_name = "N")]
    pub poll_us: Option<String>,
    /// A group whose members may connect to the VMs' sockets, such as that of
    /// the hypervisor's user [default: none]
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Where the control API listens (docs/control.md), or off
    /// [default: control.sock in the runtime directory]
    #[arg(long, value_name = "PATH|off")]
    pub control_socket: Option<String>,
    /// A group whose members may use the control API too
    #[arg(long, value_name = "GROUP")]
    pub control_group: Option<String>,
    /// A port on 127.0.0.1 for looking: a page at /, /metrics; whoever has an
    /// account here may read it (docs/observability.md) [default: none]
    #[arg(long, value_name = "N")]
    pub http_port: Option<String>,
    /// Fail where a root or a VM can't be served; without this, the others are served
    #[arg(long)]
    pub strict: bool,
    /// Say whether flags and files are right, change nothing, and end
    #[arg(long)]
    pub check: bool,
}

impl ServeArgs {
    /// Whether a root or a VM that can't be served ends the start.
    pub const fn strictness(&self) -> Strictness {
        if self.strict { Strictness::Strict } else { Strictness::Lenient }
    }

    /// What the file and these flags say, the flags first.
    ///
    /// # Errors
    /// As [`SourceArgs::settings`].
    pub fn settings(&self, env: &Environment) -> Result<Settings, Error> {
        let flags = Settings {
            cache_size_bytes: size("cache-size", self.cache_size.as_deref())?,
            cache_block_bytes: size("cache-block", self.cache_block.as_deref())?,
            hugepages: match &self.hugepages {
                Some(text) => Some(text.parse::<HugepagesMode>()?),
                None => None,
            },
            keep_cache: self.keep_cache.then_some(true),
            reactors: number("reactors", "from 1", self.reactors.as_deref())?,
            poll_us: number("poll-us", "from 0", self.poll_us.as_deref())?,
            socket_group: self.socket_group.clone(),
            control_socket: self.control_socket.clone().map(ControlSocket::from),
            control_group: self.control_group.clone(),
            http_port: number("http-port", "from 1 to 65535", self.http_port.as_deref())?,
            ..Settings::default()
        };
        Ok(self.source.settings(env)?.overridden_by(flags))
    }
}
