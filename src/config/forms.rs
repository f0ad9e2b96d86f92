//! How a root and a VM are written down: the keys of `[[root]]` and `[[vm]]`,
//! in the configuration file, in the state file, and in the control API's JSON.
//!
//! One shape, so that what is true of a key in one place is true in all.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::name::{NameOf, check_name};
use super::schemas::{
    BlockSize, FilePath, Queues, RootName, SerialNumber, Size, SocketPath, VmName,
};
use super::settings::{RootEntry, VmEntry};
use super::size::{format_size, parse_size};
use super::{RootFormat, UsageError};

/// A root image.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRoot)]
pub struct RootForm {
    /// What VMs call it; the file's stem if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RootName>)]
    pub name: Option<String>,
    /// The raw image or block device.
    #[schema(value_type = FilePath)]
    pub path: PathBuf,
    /// What it is. Without it, an image that looks like another format than raw is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<RootFormat>,
}

/// A VM.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewVm)]
pub struct VmForm {
    /// Its name: 1 to 64 letters, digits, dots, dashes and underscores.
    #[schema(value_type = VmName)]
    pub name: String,
    /// The root's name; may be left out where there is one root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RootName>)]
    pub root: Option<String>,
    /// Size of the disk; the root's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Size>)]
    pub size: Option<SizeForm>,
    /// The leaf file; STATE/NAME.leaf if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<FilePath>)]
    pub leaf: Option<PathBuf>,
    /// The vhost-user socket; RUNTIME/NAME.sock if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SocketPath>)]
    pub socket: Option<PathBuf>,
    /// Virtqueues; 1 if left out.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Queues>)]
    pub queues: Option<u64>,
    /// What the guest reads as the disk's serial number; what fits of the name if
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SerialNumber>)]
    pub serial: Option<String>,
    /// What the guest addresses the disk by, in bytes; 512 if left out.
    #[serde(
        default,
        rename = "block-size",
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(rename = "block-size", value_type = Option<BlockSize>)]
    pub block_size: Option<u64>,
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
        let entry = RootEntry::new(self.name, self.path)?;
        Ok(RootEntry { format: self.format, ..entry })
    }
}

impl From<&RootEntry> for RootForm {
    fn from(entry: &RootEntry) -> Self {
        let RootEntry { name, path, format } = entry.clone();
        Self { name: Some(name), path, format }
    }
}

impl VmForm {
    /// The entry that it describes.
    ///
    /// # Errors
    /// [`UsageError`] for a name that is none, the VM's or its root's.
    pub fn into_entry(self) -> Result<VmEntry, UsageError> {
        check_name(NameOf::Vm, &self.name)?;
        if let Some(root) = &self.root {
            check_name(NameOf::Root, root)?;
        }
        Ok(VmEntry {
            name: self.name,
            root: self.root,
            size: self.size.map(|size| size.0),
            leaf: self.leaf,
            socket: self.socket,
            queues: self.queues,
            serial: self.serial,
            block_size: self.block_size,
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
            serial: entry.serial.clone(),
            block_size: entry.block_size,
            readonly: entry.readonly,
            ephemeral: entry.ephemeral,
        }
    }
}

/// A size as text (`"4GiB"`) or as a number of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeForm(pub u64);

impl Serialize for SizeForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_size(self.0))
    }
}

impl<'de> Deserialize<'de> for SizeForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Whole { or_text: true }).map(Self)
    }
}

/// A whole number, where there may be none.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Number(u64);
    impl<'de> Deserialize<'de> for Number {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Whole { or_text: false }).map(Self)
        }
    }
    Ok(Option::<Number>::deserialize(deserializer)?.map(|number| number.0))
}

/// Takes whole numbers, and the texts of sizes where they may be one.
struct Whole {
    or_text: bool,
}

impl Visitor<'_> for Whole {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.or_text {
            true => "a size such as \"4GiB\" or a number of bytes",
            false => "a whole number",
        })
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    /// To JSON Schema 4096.0 is an integer, and some clients write it so.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at before")]
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<u64, E> {
        /// Up to here every whole number has a float of its own.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && (0.0..=EXACT).contains(&value) {
            return Ok(value as u64);
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        if !self.or_text {
            return Err(E::invalid_type(Unexpected::Str(text), &self));
        }
        parse_size(text).map_err(|reason| E::custom(format_args!("{text:?} {reason}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_written_down_reads_back_as_itself() {
        let text = "w,root=d,size=20GiB,leaf=/a/b.leaf,socket=/s,queues=2,serial=S1,block-size=4096,readonly,ephemeral";
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
    fn a_number_may_be_written_as_a_float_if_it_is_whole() {
        let read = |text: &str| {
            serde_json::from_str::<VmForm>(text)
                .map(|form| (form.size.map(|size| size.0), form.queues, form.block_size))
        };
        let floats = r#"{"name":"w","size":1048576.0,"queues":2.0,"block-size":4.096e3}"#;
        assert_eq!(read(floats).unwrap(), (Some(1 << 20), Some(2), Some(4096)));
        assert_eq!(read(r#"{"name":"w","queues":null}"#).unwrap(), (None, None, None));
        for wrong in ["1.5", "-1.0", "1e300", "\"2\"", "true"] {
            let text = format!(r#"{{"name":"w","queues":{wrong}}}"#);
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains("expected a whole number"), "{error}");
        }
        assert!(read(r#"{"name":"w","size":0.5}"#).is_err());
    }

    #[test]
    fn a_key_that_does_not_exist_is_refused() {
        let error = serde_json::from_str::<VmForm>(r#"{"name":"w","sise":1}"#).unwrap_err();
        assert!(error.to_string().contains("sise"), "{error}");
    }
}
