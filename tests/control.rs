//! The control API, from outside: a daemon, its socket, frontends and files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

#[path = "control/api.rs"]
mod api;
#[path = "control/block_size.rs"]
mod block_size;
#[path = "control/changed_roots.rs"]
mod changed_roots;
#[path = "control/cli.rs"]
mod cli;
#[path = "control/clients.rs"]
mod clients;
#[path = "control/errors.rs"]
mod errors;
#[path = "control/formats.rs"]
mod formats;
#[path = "control/leaves.rs"]
mod leaves;
#[path = "control/lost_files.rs"]
mod lost_files;
#[path = "control/openapi.rs"]
mod openapi;
#[path = "control/persistence.rs"]
mod persistence;
#[path = "control/reload.rs"]
mod reload;
#[path = "control/resize.rs"]
mod resize;
#[path = "control/revert.rs"]
mod revert;
#[path = "control/serials.rs"]
mod serials;
#[path = "control/server.rs"]
mod server;
#[path = "control/stock.rs"]
mod stock;
#[path = "control/storm.rs"]
mod storm;
