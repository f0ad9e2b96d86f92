//! The leaf's tools: each through the command, on what it says and on what it
//! leaves; QEMU's own tools agreeing; kills at every step.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise, in its helpers too"
)]

mod agreement;
mod changes;
mod checking;
#[path = "../common/mod.rs"]
mod common;
mod daemon;
mod images;
mod kills;
mod properties;
mod raw_disks;
mod refusals;
mod reports;
mod scene;
mod stepper;
mod terminal;
mod truncated;
mod unclosed;
