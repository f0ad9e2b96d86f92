//! The command line: flags, their help, and the way from them to
//! [`Settings`](crate::config::Settings). Each command's flags are a file of
//! their own.
//!
//! Owns the names of flags and the sentences of clap's errors. Values are
//! taken as text and given their meaning by [`crate::config`], so that a flag
//! and its TOML key obey the same rules with the same sentences.

mod completion;
mod confirm;
mod control;
mod generate;
mod if_absent;
mod leaf;
mod other_words;
mod qemu_args;
mod reload;
mod root;
mod serve;
mod source;
mod status;
mod table;
mod top;
mod values;
mod verify;
mod vm;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

pub use self::completion::answer_shell;
pub use self::control::ControlArgs;
pub use self::generate::{CompletionsArgs, ManArgs, print_openapi};
pub use self::leaf::LeafArgs;
use self::other_words::instead;
pub use self::qemu_args::QemuArgsArgs;
pub use self::reload::ReloadArgs;
pub use self::root::RootCommand;
pub use self::serve::ServeArgs;
pub use self::source::SourceArgs;
pub use self::status::StatusArgs;
pub use self::top::TopArgs;
pub use self::vm::VmCommand;
use crate::config::UsageError;
use crate::error::EXIT_STATUS;

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
  leafblk leaf info /var/lib/leafblk/web1.leaf
  leafblk vm attach web3,root=debian
  leafblk status

The log goes to stderr; LEAFBLK_LOG=debug shows more, LEAFBLK_LOG=warn less.
Exit status: 0 done, 1 failed, 2 a mistake in the command line or the configuration. The
commands on VMs and roots have more: leafblk vm --help."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve VMs until SIGTERM or SIGINT; more can be attached meanwhile
    #[command(after_help = "\
Examples:
  leafblk serve --root debian.raw --vm web1 --vm web2
  leafblk serve --root debian=/images/debian.raw --vm web1,root=debian,size=20GiB,queues=2
  leafblk serve --root debian.raw --vm test,ephemeral --cache-size 4GiB --hugepages on
  leafblk serve --config /etc/leafblk.toml
  leafblk serve --config /etc/leafblk.toml --check

A root or VM that can't be served is logged, shown by leafblk status and tried again by
leafblk reload; the others are served. With --strict it ends the start.
Sizes are bytes, KiB, MiB, GiB or TiB: 512MiB, 4GiB. A flag wins over the file,
and a --vm or --root replaces the file's entry of the same name.
SIGTERM or SIGINT drains, flushes and stops; a second one stops at once. SIGHUP
reads the configuration file again, as leafblk reload does (docs/control.md).")]
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
    /// Look at, change or convert a leaf that no VM uses (docs/leaf-tools.md)
    Leaf(LeafArgs),
    /// See and change the VMs of a running leafblk (docs/control.md)
    #[command(subcommand, after_help = EXIT_STATUS)]
    Vm(VmCommand),
    /// See and change the roots of a running leafblk (docs/control.md)
    #[command(subcommand, after_help = EXIT_STATUS)]
    Root(RootCommand),
    /// Have a running leafblk read its configuration file again
    #[command(after_help = "\
Examples:
  leafblk reload
  leafblk reload --json | jq '.failed'

It prints what was added, removed and changed, and what is pending, such as a setting that
needs a restart. What failed is on stderr, with the reason, and makes the exit status 1; a
file with a mistake changes nothing. docs/control.md has the rules.")]
    Reload(ReloadArgs),
    /// Show a running leafblk at a glance
    Status(StatusArgs),
    /// Watch a running leafblk: its VMs, its cache, its reactors
    #[command(after_help = "\
Examples:
  leafblk top
  leafblk top --interval 5
  leafblk top --once | head
  leafblk top --json | jq '.vms[].name'

? shows the keys; docs/observability.md explains the columns.")]
    Top(TopArgs),
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  source <(leafblk completions bash)
  leafblk completions bash > /etc/bash_completion.d/leafblk
  leafblk completions zsh > /usr/share/zsh/vendor-completions/_leafblk
  leafblk completions fish > ~/.config/fish/completions/leafblk.fish")]
    Completions(CompletionsArgs),
    /// Write man pages, for packagers
    #[command(hide = true)]
    Man(ManArgs),
    /// Print the OpenAPI document of the control API
    #[command(name = "openapi", hide = true)]
    OpenApi,
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
        let args: Vec<OsString> = args.into_iter().collect();
        Self::try_parse_from(&args).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                ParseEnd::Print(error.render().to_string())
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                ParseEnd::Help(error.render().to_string())
            }
            _ => ParseEnd::Mistake(UsageError::CommandLine(sentence(&error, args.get(1)))),
        })
    }
}

/// clap's error, which is a paragraph, as one sentence. `noun` is the first argument.
fn sentence(error: &clap::Error, noun: Option<&OsString>) -> String {
    let rendered = error.render().to_string();
    let first = rendered.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let mut text = first.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
        && let Some(instead) = noun.and_then(|noun| instead(noun.to_str()?, word))
    {
        return format!("{text}; {instead}");
    }
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
