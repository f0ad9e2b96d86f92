//! A terminal, for commands that look for one.
#![allow(
    dead_code,
    unsafe_code,
    clippy::allow_attributes,
    reason = "openpty(3) and the descriptors that it makes; not each test file uses it"
)]

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};

/// A terminal: our side and the command's.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let (name, settings) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: both point to an int; name and settings may be null.
    let result =
        unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, std::ptr::null()) };
    assert_eq!(result, 0);
    // SAFETY: two new descriptors that nobody else has.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}
