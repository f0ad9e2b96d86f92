//! `--if-absent`: what is there already is as good as new, if it is what is asked for.

use std::fmt::Display;
use std::path::PathBuf;

use super::vm::bytes;
use crate::config::limits::QUEUES_DEFAULT;
use crate::config::name::NameOf;
use crate::config::{RootEntry, RootFormat, VmEntry};
use crate::control::{RootInfo, State, VmInfo};
use crate::error::{Error, Refusal};

/// A setting that is not as it is wanted.
struct Difference {
    setting: &'static str,
    there: String,
    wanted: String,
}

fn difference(
    setting: &'static str,
    there: impl Display,
    wanted: Option<impl Display>,
) -> Option<Difference> {
    let (there, wanted) = (there.to_string(), wanted?.to_string());
    (there != wanted).then_some(Difference { setting, there, wanted })
}

/// That a VM is there as `wanted`. What that leaves open, and what isn't the same for all,
/// may be anything.
///
/// # Errors
/// How it differs, or why it is not served.
pub(super) fn check_vm(wanted: &VmEntry, there: &VmInfo) -> Result<(), Error> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let differences = [
        difference("root", &there.root, wanted.root.as_ref()),
        difference("size", bytes(there.size), wanted.size.map(|size| bytes(Some(size)))),
        difference("leaf", &there.leaf, path(&wanted.leaf)),
        difference("socket", &there.socket, path(&wanted.socket)),
        difference("queues", there.queues, Some(wanted.queues.unwrap_or(QUEUES_DEFAULT.into()))),
        difference("serial", &there.serial, wanted.serial.as_ref()),
        difference("block-size", there.block_size, Some(wanted.block_size.unwrap_or(512))),
        difference("readonly", there.readonly, Some(wanted.readonly)),
        difference("ephemeral", there.ephemeral, Some(wanted.ephemeral)),
    ];
    check(NameOf::Vm, &there.name, differences)?;
    check_served(NameOf::Vm, &there.name, there.state, there.reason.as_deref())
}

/// That a root is there as `wanted`.
///
/// # Errors
/// How it differs, or why it is not served.
pub(super) fn check_root(wanted: &RootEntry, there: &RootInfo) -> Result<(), Error> {
    let differences = [
        difference("path", &there.path, Some(wanted.path.display())),
        difference("format", format(there.format), Some(format(wanted.format))),
    ];
    check(NameOf::Root, &there.name, differences)?;
    check_served(NameOf::Root, &there.name, there.state, there.reason.as_deref())
}

/// How an image's format came to be known.
pub(super) const fn format(format: Option<RootFormat>) -> &'static str {
    match format {
        Some(RootFormat::Raw) => "raw",
        None => "probed",
    }
}

fn check<const N: usize>(
    of: NameOf,
    name: &str,
    differences: [Option<Difference>; N],
) -> Result<(), Error> {
    let Some(Difference { setting, there, wanted }) = differences.into_iter().flatten().next()
    else {
        return Ok(());
    };
    Err(Error::refused(
        Refusal::Exists,
        format!(
            "there is a {of} {name} already, whose {setting} is {there} and not {wanted}; choose \
             another name, or take that one away first"
        ),
    ))
}

fn check_served(of: NameOf, name: &str, state: State, reason: Option<&str>) -> Result<(), Error> {
    match state {
        State::Serving => Ok(()),
        State::Attaching | State::Changing => Err(Error::refused(
            Refusal::Busy,
            format!("{of} {name} is being attached or changed at this moment; try again"),
        )),
        State::Failed => {
            let reason = reason.unwrap_or("the log says why");
            Err(Error::failure(format!(
                "{of} {name} is there already, but could not be attached ({reason}); mend that and \
                 reload, or take it away"
            )))
        }
    }
}
