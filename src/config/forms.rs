//! How a root and a VM are written down: the keys of `[[root]]` and `[[vm]]`,
//! in the configuration file, in the state file, and in the control API's JSON.
//!
//! One shape, so that what is true of a key in one place is true in all.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::UsageError;
use super::name::{NameOf, check_name};
use super::settings::{RootEntry, VmEntry};
use super::size::{format_size, parse_size};

/// A root image.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRoot)]
pub struct RootForm {
    /// What VMs call it; the file's stem if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The raw image or block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

/// A VM.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewVm)]
pub struct VmForm {
    /// Its name: 1 to 64 letters, digits, dots, dashes and underscores.
    pub name: String,
    /// The root's name; may be left out where there is one root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Size of the disk; the root's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Size>)]
    pub size: Option<SizeForm>,
    /// The leaf file; STATE/NAME.leaf if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub leaf: Option<PathBuf>,
    /// The vhost-user socket; RUNTIME/NAME.sock if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Virtqueues; 1 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub queues: Option<u64>,
    /// The guest may not write.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// The leaf is thrown away when the VM is detached.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ephemeral: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl RootForm {
    /// The entry that it describes.
    ///
    /// # Errors
    /// As [`RootEntry::new`].
    pub fn into_entry(self) -> Result<RootEntry, UsageError> {
        RootEntry::new(self.name, self.path)
    }
}

impl From<&RootEntry> for RootForm {
    fn from(entry: &RootEntry) -> Self {
        Self { name: Some(entry.name.clone()), path: entry.path.clone() }
    }
}

impl VmForm {
    /// The entry that it describes.
    ///
    /// # Errors
    /// [`UsageError`] for a name that is none.
    pub fn into_entry(self) -> Result<VmEntry, UsageError> {
        check_name(NameOf::Vm, &self.name)?;
        Ok(VmEntry {
            name: self.name,
            root: self.root,
            size: self.size.map(|size| size.0),
            leaf: self.leaf,
            socket: self.socket,
            queues: self.queues,
            readonly: self.readonly,
            ephemeral: self.ephemeral,
        })
    }
}

impl From<&VmEntry> for VmForm {
    fn from(entry: &VmEntry) -> Self {
        Self {
            name: entry.name.clone(),
            root: entry.root.clone(),
            size: entry.size.map(SizeForm),
            leaf: entry.leaf.clone(),
            socket: entry.socket.clone(),
            queues: entry.queues,
            readonly: entry.readonly,
            ephemeral: entry.ephemeral,
        }
    }
}

/// A size as text (`"4GiB"`) or as a number of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeForm(pub u64);

/// A size: whole bytes, or a text with a unit: `512MiB`, `4GiB`.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// A whole number and KiB, MiB, GiB or TiB.
    Text(String),
}

impl Serialize for SizeForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_size(self.0))
    }
}

impl<'de> Deserialize<'de> for SizeForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = SizeForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"4GiB\" or a number of bytes")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<SizeForm, E> {
                u64::try_from(value)
                    .map(SizeForm)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<SizeForm, E> {
                Ok(SizeForm(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SizeForm, E> {
                parse_size(text)
                    .map(SizeForm)
                    .map_err(|reason| E::custom(format_args!("{text:?} {reason}")))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_written_down_reads_back_as_itself() {
        let text = "w,root=d,size=20GiB,leaf=/a/b.leaf,socket=/s,queues=2,readonly,ephemeral";
        let entry = VmEntry::parse(text).unwrap();
        let json = serde_json::to_string(&VmForm::from(&entry)).unwrap();
        let back: VmForm = serde_json::from_str(&json).unwrap();
        assert_eq!(back.into_entry().unwrap(), entry);
        let toml = toml::to_string(&VmForm::from(&entry)).unwrap();
        assert_eq!(toml::from_str::<VmForm>(&toml).unwrap().into_entry().unwrap(), entry);
    }

    #[test]
    fn what_says_nothing_is_not_written() {
        let entry = VmEntry { name: "w".into(), ..VmEntry::default() };
        assert_eq!(serde_json::to_string(&VmForm::from(&entry)).unwrap(), r#"{"name":"w"}"#);
    }

    #[test]
    fn a_key_that_does_not_exist_is_refused() {
        let error = serde_json::from_str::<VmForm>(r#"{"name":"w","sise":1}"#).unwrap_err();
        assert!(error.to_string().contains("sise"), "{error}");
    }
}
