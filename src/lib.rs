//! leafblk: a vhost-user block backend for many virtual machines on one root.
//!
//! A guest sector is looked up in three places: the VM's **leaf** (what this VM
//! changed), the shared **cache** (root blocks that any VM read) and the shared
//! read-only **root**. [`daemon`] puts the process together; a request then
//! meets [`vhost_user`] (once, at set-up), [`reactor`] with [`virtqueue`],
//! [`guest_memory`] and [`request`], then [`disk`] with [`leaf`], [`cache`] and
//! [`root`], and [`io`]. [`tools`] work on a leaf that no VM uses. docs/ARCHITECTURE.md tells the story.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

// As the tests in tests/ call it, for what both have of them.
#[cfg(test)]
extern crate self as leafblk;

mod boot;
pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod disk;
pub mod engine;
pub mod error;
#[cfg(test)]
#[path = "../tests/common/faulty_storage.rs"]
mod faulty_storage;
pub mod guest_memory;
pub mod io;
pub mod leaf;
#[cfg(test)]
#[path = "../tests/common/lingering.rs"]
mod lingering;
pub mod logging;
pub mod metrics;
mod prefetch;
pub mod qemu_args;
pub mod reactor;
pub mod request;
pub mod root;
mod shell;
pub mod slot_leaf;
pub mod stats;
mod sync;
mod thread;
pub mod tools;
pub mod top;
pub mod units;
#[cfg(test)]
#[path = "../tests/common/unopened.rs"]
mod unopened;
pub mod vhost_user;
pub mod virtqueue;
pub mod web;
pub mod write_cache;
