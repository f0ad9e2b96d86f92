//! The flags of `leafblk qemu-args`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::completion::names;
use super::source::SourceArgs;
use crate::config::UsageError;
use crate::qemu_args::Hypervisor;

/// The flags of `leafblk qemu-args`.
#[derive(Debug, Args)]
pub struct QemuArgsArgs {
    /// The VM
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(names))]
    pub name: String,
    /// The hypervisor: qemu, cloud-hypervisor, firecracker or libvirt (a whole domain)
    /// [default: qemu]
    #[arg(long = "for", value_name = "HYPERVISOR")]
    pub hypervisor: Option<String>,
    /// Print options and remarks as JSON, the options as an array of arguments
    #[arg(long)]
    pub json: bool,
    /// Where VMs and roots are described.
    #[command(flatten)]
    pub source: SourceArgs,
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
