//! The command line: flags, their help, and the way from them to
//! [`Settings`].
//!
//! Owns the names of flags and the sentences of clap's errors. Values are
//! taken as text and given their meaning by [`crate::config`], so that a flag
//! and its TOML key obey the same rules with the same sentences.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};

use crate::config::size::parse_size;
use crate::config::{Environment, HugepagesMode, RootEntry, Settings, UsageError, VmEntry, file};
use crate::error::Error;
use crate::qemu_args::Hypervisor;

/// A vhost-user block backend: many VMs on one root image, each with its leaf.
#[derive(Debug, Parser)]
#[command(
    name = "leafblk",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  leafblk serve --root debian=debian.raw --vm web1,root=debian --vm web2,root=debian
  leafblk qemu-args web1
  leafblk qemu-args web1 --for cloud-hypervisor

The log goes to stderr; LEAFBLK_LOG=debug shows more, LEAFBLK_LOG=warn less."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve VMs until SIGTERM or SIGINT
    #[command(after_help = "\
Examples:
  leafblk serve --root debian.raw --vm web1 --vm web2
  leafblk serve --root debian=/images/debian.raw --vm web1,root=debian,size=20GiB,queues=2
  leafblk serve --root debian.raw --vm test,ephemeral --cache-size 4GiB --hugepages on
  leafblk serve --config /etc/leafblk.toml

Sizes are bytes, KiB, MiB, GiB or TiB: 512MiB, 4GiB. A flag wins over the file,
and a --vm or --root replaces the file's entry of the same name.
SIGTERM or SIGINT drains, flushes and stops; a second one stops at once.")]
    Serve(ServeArgs),
    /// Print the options with which a hypervisor uses a VM's disk
    #[command(after_help = "\
Examples:
  leafblk qemu-args web1
  leafblk qemu-args web1 --for firecracker
  eval \"qemu-system-x86_64 -accel kvm $(leafblk qemu-args web1)\"

The options go to stdout, remarks to stderr. The VM is looked up in the given
--vm and --config, then among the VMs that a running leafblk serves.")]
    QemuArgs(QemuArgsArgs),
}

/// Where VMs and roots are described: the same for every command.
#[derive(Debug, Default, Args)]
pub struct SourceArgs {
    /// Settings from a TOML file (docs/configuration.md)
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Where leaves are [default: /var/lib/leafblk for root, else
    /// $XDG_STATE_HOME/leafblk or ~/.local/state/leafblk]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where sockets are [default: /run/leafblk for root, else
    /// $XDG_RUNTIME_DIR/leafblk]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// A read-only image that VMs share; NAME is the file's stem if left out
    #[arg(long, value_name = "NAME=PATH")]
    pub root: Vec<String>,
    /// The VMs, as text for `VmEntry::parse`.
    #[arg(
        long,
        value_name = "NAME,root=ROOT,…",
        help = "A VM: NAME[,root=ROOT][,size=SIZE][,leaf=PATH][,socket=PATH][,queues=N]\
                [,readonly][,ephemeral]; root= may be left out where there is one root"
    )]
    pub vm: Vec<String>,
}

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
    /// Cache in hugepages: auto falls back to ordinary memory, on does not,
    /// off takes none [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    pub hugepages: Option<String>,
    /// Threads that serve I/O [default: half the CPUs, 1 to 4]
    #[arg(long, value_name = "N")]
    pub reactors: Option<String>,
    /// Microseconds to poll for more work before sleeping; 0 sleeps at once
    /// [default: 50]
    #[arg(long, value_name = "N")]
    pub poll_us: Option<String>,
}

/// The flags of `leafblk qemu-args`.
#[derive(Debug, Args)]
pub struct QemuArgsArgs {
    /// The VM
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The hypervisor: qemu, cloud-hypervisor or firecracker [default: qemu]
    #[arg(long = "for", value_name = "HYPERVISOR")]
    pub hypervisor: Option<String>,
    /// Where VMs and roots are described.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// How a command line ends that asks for no work.
#[derive(Debug)]
pub enum ParseEnd {
    /// `--help` or `--version`: print the text to stdout, status 0.
    Print(String),
    /// No command at all: print the help to stderr, status 2.
    Help(String),
    /// A mistake, with its sentence.
    Mistake(UsageError),
}

impl Cli {
    /// Parses a command line, the program's name first.
    ///
    /// # Errors
    /// [`ParseEnd`] where there is nothing to run.
    pub fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, ParseEnd> {
        Self::try_parse_from(args).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                ParseEnd::Print(error.render().to_string())
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                ParseEnd::Help(error.render().to_string())
            }
            _ => ParseEnd::Mistake(UsageError::CommandLine(sentence(&error))),
        })
    }
}

/// clap's error, which is a paragraph, as one sentence.
fn sentence(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let first = rendered.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let mut text = first.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let suggestions =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    let suggestion = suggestions.into_iter().find_map(|kind| error.get(kind));
    match suggestion {
        Some(ContextValue::String(near)) => text.push_str(&format!("; did you mean {near}?")),
        Some(ContextValue::Strings(near)) => {
            text.push_str(&format!("; did you mean {}?", near.join(" or ")));
        }
        _ => text.push_str("; see leafblk --help"),
    }
    text
}

impl SourceArgs {
    /// What the file and these flags say, the flags first.
    ///
    /// # Errors
    /// A failure if the file cannot be read, else the first mistake found.
    pub fn settings(&self, env: &Environment) -> Result<Settings, Error> {
        let flags = self.flags(env)?;
        match &self.config {
            Some(path) => {
                let path = env.working_dir.join(path);
                Ok(file::load(&path)?.overridden_by(flags))
            }
            None => Ok(flags),
        }
    }

    fn flags(&self, env: &Environment) -> Result<Settings, UsageError> {
        let settings = Settings {
            state_dir: self.state_dir.clone(),
            runtime_dir: self.runtime_dir.clone(),
            roots: collect(&self.root, RootEntry::parse)?,
            vms: collect(&self.vm, VmEntry::parse)?,
            ..Settings::default()
        };
        settings.check_unique()?;
        Ok(settings.with_base(&env.working_dir))
    }
}

fn collect<T>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, UsageError>,
) -> Result<Vec<T>, UsageError> {
    texts.iter().map(|text| parse(text)).collect()
}

impl ServeArgs {
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
            reactors: number("reactors", "from 1", self.reactors.as_deref())?,
            poll_us: number("poll-us", "from 0", self.poll_us.as_deref())?,
            ..Settings::default()
        };
        Ok(self.source.settings(env)?.overridden_by(flags))
    }
}

fn size(setting: &str, text: Option<&str>) -> Result<Option<u64>, UsageError> {
    text.map(|text| {
        parse_size(text).map_err(|reason| UsageError::Size {
            setting: setting.into(),
            text: text.into(),
            reason,
        })
    })
    .transpose()
}

fn number(setting: &str, range: &str, text: Option<&str>) -> Result<Option<u64>, UsageError> {
    text.map(|text| {
        text.parse().map_err(|_| UsageError::Number {
            setting: setting.into(),
            text: text.into(),
            range: range.into(),
        })
    })
    .transpose()
}

impl QemuArgsArgs {
    /// The hypervisor asked for.
    ///
    /// # Errors
    /// [`UsageError::Choice`].
    pub fn hypervisor(&self) -> Result<Hypervisor, UsageError> {
        self.hypervisor.as_deref().map_or(Ok(Hypervisor::Qemu), str::parse)
    }
}
