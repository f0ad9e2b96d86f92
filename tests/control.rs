//! The control API, from outside: a daemon, its socket, frontends and files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

#[path = "control/api.rs"]
mod api;
#[path = "control/cli.rs"]
mod cli;
#[path = "control/errors.rs"]
mod errors;
#[path = "control/openapi.rs"]
mod openapi;
#[path = "control/persistence.rs"]
mod persistence;
#[path = "control/resize.rs"]
mod resize;
#[path = "control/server.rs"]
mod server;
#[path = "control/storm.rs"]
mod storm;
