//! The control API, from outside: a daemon, its socket, frontends and files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

#[path = "control/api.rs"]
mod api;
#[path = "control/errors.rs"]
mod errors;
#[path = "control/openapi.rs"]
mod openapi;
