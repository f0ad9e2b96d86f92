//! Groups by name.

use nix::unistd::Group;

use crate::error::Error;

/// The number of the group that the setting `setting` names.
///
/// # Errors
/// A sentence, where there is no such group or the system can't tell.
pub(super) fn id_of(setting: &str, name: &str) -> Result<u32, Error> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(Error::failure(format!(
            "there is no group {name}; make it (groupadd {name}), or choose another {setting}"
        ))),
        Err(source) => Err(Error::failure(format!(
            "the group {name} can't be looked up ({source}); try again, or choose another {setting}"
        ))),
    }
}
