//! The flags that describe VMs and roots: the same for every command that
//! needs them.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Environment, RootEntry, Settings, UsageError, VmEntry, file};
use crate::error::Error;

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
    /// A read-only image that VMs share; NAME is the file's stem if left out; format=raw
    /// takes its bytes as they are, also where they look like another format's
    #[arg(long, value_name = "NAME=PATH[,format=raw]")]
    pub root: Vec<String>,
    /// The VMs, as text for `VmEntry::parse`.
    #[arg(
        long,
        value_name = "NAME,root=ROOT,…",
        help = "A VM: NAME[,root=ROOT][,size=SIZE][,leaf=PATH][,socket=PATH][,queues=N]\
                [,serial=TEXT]\
                [,block-size=512|4096][,readonly][,ephemeral]; root= may be left out where there is one root"
    )]
    pub vm: Vec<String>,
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
