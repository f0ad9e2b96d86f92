//! What can't be served at a start, though the configuration says it: a root or a VM,
//! each with its own reason. The others are served, unless the start is *strict*: then
//! any of these ends it.

use super::error::HostError;
use super::host::Host;
use super::table::Origin;
use crate::config::name::NameOf;
use crate::config::{RootConfig, VmConfig, VmEntry};
use crate::error::Error;

/// Whether a start goes on without what can't be served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Strictness {
    /// It serves what it can.
    Lenient,
    /// It fails.
    Strict,
}

/// What can't be served.
#[derive(Debug)]
pub(super) struct StartFailures {
    strictness: Strictness,
    roots: Vec<(RootConfig, Error)>,
    vms: Vec<(VmConfig, Error)>,
}

impl StartFailures {
    /// None yet.
    pub(super) fn none(strictness: Strictness) -> Self {
        Self { strictness, roots: Vec::new(), vms: Vec::new() }
    }

    /// Adds a root.
    ///
    /// # Errors
    /// The reason, if the start is strict.
    pub(super) fn add_root(&mut self, root: RootConfig, why: Error) -> Result<(), Error> {
        match self.strictness {
            Strictness::Strict => Err(why),
            Strictness::Lenient => {
                self.roots.push((root, why));
                Ok(())
            }
        }
    }

    /// Adds a VM.
    ///
    /// # Errors
    /// The reason, if the start is strict.
    pub(super) fn add_vm(&mut self, vm: VmConfig, why: Error) -> Result<(), Error> {
        match self.strictness {
            Strictness::Strict => Err(why),
            Strictness::Lenient => {
                self.vms.push((vm, why));
                Ok(())
            }
        }
    }

    /// Why nothing on the root `name` can be served, if that is so.
    pub(super) fn of_root(&self, name: &str) -> Option<Error> {
        let (_, why) = self.roots.iter().find(|(root, _)| root.name == name)?;
        let (of, name, reason) = (NameOf::Root, name.to_owned(), why.to_string());
        Some(HostError::NotServed { of, name, reason }.into())
    }

    /// Those of `tried` that succeeded; adds the others.
    ///
    /// # Errors
    /// The first reason, if the start is strict.
    pub(super) fn sort<T>(
        &mut self,
        tried: impl IntoIterator<Item = (VmConfig, Result<T, Error>)>,
    ) -> Result<Vec<T>, Error> {
        let mut fit = Vec::new();
        for (vm, result) in tried {
            match result {
                Ok(made) => fit.push(made),
                Err(why) => self.add_vm(vm, why)?,
            }
        }
        Ok(fit)
    }

    /// Makes them known as failed, and says so in the log.
    pub(super) fn tell(self, host: &Host) {
        for (config, why) in self.roots {
            log::error!("root {} is not served: {why}", config.name);
            host.table().fail_root(config, Origin::Configuration, why.to_string());
        }
        for (config, why) in self.vms {
            log::error!("VM {} is not served: {why}", config.name);
            let entry = VmEntry { name: config.name.clone(), ..VmEntry::default() };
            host.table().fail_vm(config, entry, Origin::Configuration, why.to_string());
        }
    }
}
