//! Changes of roots: add and remove.

use std::sync::Arc;

use super::denied::{Need, explain};
use super::error::HostError;
use super::host::{Host, RootView};
use super::root_watch::{RootWatch, ServedRoot};
use super::table::{Cause, Life, Origin};
use crate::cache::RootKey;
use crate::config::name::NameOf;
use crate::config::paths::PathClaim;
use crate::config::{RootConfig, RootEntry};
use crate::disk::CachedRoot;
use crate::root::{Root, RootError, RootOptions};

/// Opens a root as its settings say.
///
/// # Errors
/// As [`Root::open_as`].
pub(super) fn open(config: &RootConfig) -> Result<Root, RootError> {
    let options = RootOptions { format: config.format, ..RootOptions::default() };
    Root::open_as(&config.name, &config.path, options)
}

impl Host {
    /// Adds a root: there until it is removed, also after a restart.
    ///
    /// # Errors
    /// [`HostError`]; nothing has changed then.
    pub fn add_root(&self, entry: &RootEntry) -> Result<RootView, HostError> {
        let config = RootConfig::resolve(entry)?;
        self.table().check_new(NameOf::Root, &entry.name, Origin::Api)?;
        self.add_resolved(config, Cause::Asked)?;
        self.record_roots();
        self.root(&entry.name)
    }

    /// Adds an entry of the state file; where that fails, it stays known as
    /// failed.
    pub(super) fn restore_root(&self, entry: &RootEntry) -> Result<(), HostError> {
        self.add_or_fail(RootConfig::resolve(entry)?, Cause::Kept)
    }

    /// Adds a root that is wanted until somebody says otherwise: where that
    /// fails, it stays known as failed.
    pub(super) fn add_or_fail(&self, config: RootConfig, cause: Cause) -> Result<(), HostError> {
        let added = self.add_resolved(config.clone(), cause);
        if let Err(error) = &added
            && cause.is_known_as_failed(error)
        {
            self.table().fail_root(config, cause.origin(), error.to_string());
        }
        added
    }

    fn add_resolved(&self, config: RootConfig, cause: Cause) -> Result<(), HostError> {
        let name = config.name.clone();
        let claims = vec![PathClaim::of_root(&config)];
        self.table().begin_root(config.clone(), cause, claims)?;
        let result = self.open_root(&config).and_then(|root| self.publish_root(root, &name, cause));
        if result.is_err() {
            self.table().remove_root(&name);
        }
        result
    }

    fn open_root(&self, config: &RootConfig) -> Result<ServedRoot, HostError> {
        let root = open(config);
        let explained = |error| HostError::Unfit(explain(error, &config.path, Need::Read));
        self.cached(root.map_err(explained)?)
    }

    /// Gives a root its part of the cache, and a watch over its file.
    pub(super) fn cached(&self, root: Root) -> Result<ServedRoot, HostError> {
        let watch = RootWatch::new(&root, &self.known_roots());
        let cache = self.cache();
        let key = root.state_key().map(RootKey);
        let table = cache.add_root_as(root.sectors(), key).map_err(HostError::failed)?;
        Ok(ServedRoot::new(CachedRoot::new(root, table, cache.block_bytes()), watch))
    }

    fn publish_root(&self, root: ServedRoot, name: &str, cause: Cause) -> Result<(), HostError> {
        if cause == Cause::Asked {
            self.table().root(name)?.keep = true;
            if let Err(error) = self.keep() {
                self.table().root(name)?.keep = false;
                // It may be in the file all the same (see `StateFile::write`).
                let _ = self.keep();
                return Err(error);
            }
        }
        self.table().root(name)?.life = Life::Serving(Arc::new(root));
        log::info!("root {name}: added");
        Ok(())
    }

    /// Removes a root that no VM has; its blocks leave the cache. A root of
    /// the configuration comes back with the next start or reload.
    ///
    /// # Errors
    /// [`HostError`]. After [`HostError::Failed`] the root is gone even so, and
    /// will be back at a restart.
    pub fn remove_root(&self, name: &str) -> Result<(), HostError> {
        let root = {
            let mut table = self.table();
            let users = table.users(name).join(", ");
            let row = table.root(name)?;
            if !users.is_empty() {
                let users = format!("VM {users}");
                return Err(HostError::RootUsed { name: name.into(), users });
            }
            let root = match &row.life {
                Life::Failed(_) => None,
                _ => Some(Arc::clone(row.serving(NameOf::Root, name)?)),
            };
            table.remove_root(name);
            root
        };
        if let Some(verification) = root.as_ref().and_then(|root| root.watch().verification()) {
            verification.call_off();
        }
        // Evicts its blocks, unless somebody still looks at it.
        drop(root);
        self.keep()?;
        log::info!("root {name}: removed");
        Ok(())
    }
}
