//! The serial number that a guest reads of its disk, and VMs that have the same.
//!
//! virtio gives it 20 bytes, padded with NULs (virtio 1.3, 5.2.6: VIRTIO_BLK_T_GET_ID).
//! Linux shows it as /sys/block/vda/serial, udev as /dev/disk/by-id/virtio-SERIAL, where
//! a second disk with the same is not seen.

use std::collections::BTreeMap;
use std::fmt;

use super::UsageError;

/// Bytes of a serial number.
pub const SERIAL_LEN_MAX: usize = 20;

/// A serial number: 1 to 20 printable ASCII characters, no space at either end.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Serial(String);

impl Serial {
    /// The serial number `text` of the VM `vm`.
    ///
    /// # Errors
    /// [`UsageError::Serial`] says which rule it breaks.
    pub fn new(vm: &str, text: &str) -> Result<Self, UsageError> {
        let reason = if text.is_empty() {
            "is empty".to_owned()
        } else if let Some(odd) = text.chars().find(|c| !matches!(c, ' '..='~')) {
            format!("has the character {odd:?}")
        } else if text.len() > SERIAL_LEN_MAX {
            format!("has {} characters", text.len())
        } else if text.trim() != text {
            "begins or ends with a space".to_owned()
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(UsageError::Serial { vm: vm.into(), serial: text.into(), reason })
    }

    /// That of a VM which does not say: what fits of its name, which
    /// [`super::name`] has checked.
    pub fn of_name(name: &str) -> Self {
        Self(name.chars().filter(|c| matches!(c, '!'..='~')).take(SERIAL_LEN_MAX).collect())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the guest reads it.
    pub fn to_bytes(&self) -> [u8; SERIAL_LEN_MAX] {
        let mut bytes = [0; SERIAL_LEN_MAX];
        bytes[..self.0.len()].copy_from_slice(self.0.as_bytes());
        bytes
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which VMs have which serial number.
pub struct Serials<'a>(BTreeMap<&'a Serial, Vec<&'a str>>);

impl<'a> Serials<'a> {
    /// Of these VMs, each given by its name and its serial number.
    pub fn of(vms: impl Iterator<Item = (&'a str, &'a Serial)>) -> Self {
        let mut names = BTreeMap::<_, Vec<_>>::new();
        for (name, serial) in vms {
            names.entry(serial).or_default().push(name);
        }
        Self(names)
    }

    /// Another VM than `name` that has this serial number.
    pub fn another(&self, serial: &Serial, name: &str) -> Option<&'a str> {
        self.0.get(serial)?.iter().copied().find(|other| *other != name)
    }

    /// What to say of a serial number that several have.
    pub fn shared(&self, serial: &Serial) -> Option<SameSerial> {
        let [first, second, others @ ..] = &self.0.get(serial)?[..] else {
            return None;
        };
        let (first, second) = ((*first).to_owned(), (*second).to_owned());
        Some(SameSerial { serial: serial.clone(), first, second, others: others.len() })
    }

    /// The same of every one.
    pub fn all_shared(&self) -> Vec<SameSerial> {
        self.0.keys().filter_map(|serial| self.shared(serial)).collect()
    }
}

/// VMs that have the same serial number: no mistake as long as no guest has two of
/// their disks, which leafblk can't know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SameSerial {
    serial: Serial,
    first: String,
    second: String,
    others: usize,
}

impl fmt::Display for SameSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, first, second, others } = self;
        write!(f, "VM {first} and VM {second}")?;
        match others {
            0 => {}
            1 => write!(f, " (and another)")?,
            more => write!(f, " (and {more} others)")?,
        }
        write!(
            f,
            " have the same serial number {:?}: a guest that has both disks sees one of them in \
             /dev/disk/by-id; give them serial numbers of their own, such as {}",
            serial.as_str(),
            example(second),
        )
    }
}

/// A setting that tells the VM `name` from others whose names begin alike: the last
/// words of it that fit.
fn example(name: &str) -> String {
    let last = name.get(name.len().saturating_sub(SERIAL_LEN_MAX)..).unwrap_or(name);
    let words = last.split_once(['-', '.', '_']).map_or(last, |(_, words)| words);
    let serial = if last == name || words.is_empty() { last } else { words };
    format!("serial={serial} for VM {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(text: &str) -> String {
        Serial::new("web1", text).unwrap_err().to_string()
    }

    #[test]
    fn a_serial_number_is_what_virtio_and_udev_take() {
        for text in ["a", "disk 1", "S/N:00-11", "12345678901234567890", "~!"] {
            assert_eq!(Serial::new("web1", text).unwrap().as_str(), text);
        }
        for (text, reason) in [
            ("", "is empty"),
            ("123456789012345678901", "has 21 characters"),
            ("Größe", "has the character 'ö'"),
            ("a\tb", "has the character '\\t'"),
            ("a\u{7f}", "has the character '\\u{7f}'"),
            (" a", "begins or ends with a space"),
            ("a ", "begins or ends with a space"),
        ] {
            let said = sentence(text);
            assert!(said.starts_with("VM web1: serial ") && said.contains(reason), "{said}");
            assert!(said.contains("1 to 20 printable ASCII characters"), "{said}");
        }
    }

    #[test]
    fn a_guest_reads_it_padded_with_nuls() {
        assert_eq!(Serial::of_name("web1").to_bytes(), *b"web1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(Serial::of_name("web-production-frontend").to_bytes(), *b"web-production-front");
    }

    #[test]
    fn vms_with_the_same_serial_number_are_named_once() {
        let of = |names: &[&str]| -> Vec<String> {
            let vms: Vec<_> = names.iter().map(|name| (*name, Serial::of_name(name))).collect();
            let serials = Serials::of(vms.iter().map(|(name, serial)| (*name, serial)));
            serials.all_shared().iter().map(ToString::to_string).collect()
        };
        assert!(of(&[]).is_empty() && of(&["a", "b"]).is_empty());
        let said = of(&["web-production-frontend-1", "other", "web-production-frontend-2"]);
        assert_eq!(
            said,
            ["VM web-production-frontend-1 and VM web-production-frontend-2 have the same serial \
              number \"web-production-front\": a guest that has both disks sees one of them in \
              /dev/disk/by-id; give them serial numbers of their own, such as \
              serial=frontend-2 for VM web-production-frontend-2"]
        );
        let name = "a-name-of-twenty-one-";
        let many: Vec<String> = (0..5).map(|n| format!("{name}{n}")).collect();
        let said = of(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.len() == 1 && said[0].contains("-1 (and 3 others) have"), "{said:?}");
    }
}
