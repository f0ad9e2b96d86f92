//! The `leafblk` command.
fn main() {}
