//! What the name of a VM or a root may look like.
//!
//! Names become parts of file names, socket names, guest-visible serial
//! numbers and hypervisor options, so they hold nothing that any of these
//! gives a meaning to.

use super::UsageError;
use super::limits::{NAME_LEN_MAX, VM_NAMES_RESERVED};

/// What carries the name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameOf {
    /// A virtual machine.
    Vm,
    /// A root image.
    Root,
}

impl std::fmt::Display for NameOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vm => "VM",
            Self::Root => "root",
        })
    }
}

/// Checks `name`: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first no dot and no dash.
///
/// # Errors
/// [`UsageError::Name`] says which rule is broken.
pub fn check_name(of: NameOf, name: &str) -> Result<(), UsageError> {
    let reason = if name.is_empty() {
        "is empty".to_owned()
    } else if name.contains('/') {
        "has a slash".to_owned()
    } else if let Some(odd) = name.chars().find(|&c| !is_name_char(c)) {
        format!("has the character {odd:?}")
    } else if name.len() > NAME_LEN_MAX {
        format!("is {} characters long", name.len())
    } else if name.starts_with(['.', '-']) {
        "starts with a dot or a dash".to_owned()
    } else if of == NameOf::Vm && VM_NAMES_RESERVED.contains(&name) {
        return Err(UsageError::ReservedName { name: name.into() });
    } else {
        return Ok(());
    };
    Err(UsageError::Name {
        of,
        name: name.into(),
        reason,
    })
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for name in ["web1", "a", "Debian-12.5_x", "0", &"n".repeat(64)] {
            check_name(NameOf::Vm, name).unwrap();
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        for (name, reason) in [
            ("", "is empty"),
            ("../x", "has a slash"),
            ("a b", "has the character ' '"),
            ("a\nb", "has the character '\\n'"),
            ("é", "has the character 'é'"),
            (".x", "starts with a dot or a dash"),
            ("-x", "starts with a dot or a dash"),
            (&"n".repeat(65), "is 65 characters long"),
        ] {
            let text = check_name(NameOf::Root, name).unwrap_err().to_string();
            assert!(text.contains(reason), "{name:?}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn the_control_socket_keeps_its_name() {
        assert!(check_name(NameOf::Vm, "control").is_err());
        assert!(check_name(NameOf::Root, "control").is_ok());
    }
}
