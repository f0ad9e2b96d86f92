//! leafblk: a vhost-user block backend for many virtual machines on one root.
//!
//! A guest sector is looked up in three places: the VM's **leaf** (what this VM
//! changed), the shared **cache** (root blocks that any VM read) and the shared
//! read-only **root**. The modules, in the order in which a request meets them:

pub mod cache;
pub mod units;
