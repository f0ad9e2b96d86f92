//! What an image's name of its backing file means, as QEMU takes it.
//!
//! A name is a path from where the image is; or, with a colon before the first slash,
//! one of QEMU's protocols and what that makes of the rest; or `json:` and QEMU's own
//! options. The last two count from the working directory, as in a qemu-img that is run
//! here. Nothing is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::header::Named;

/// QEMU's names of the formats that are over a file of their own.
const FORMATS: &[&str] = &[
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vpc",
    "vhdx",
    "vdi",
    "parallels",
    "dmg",
    "bochs",
    "cloop",
    "luks",
];

/// Where a backing file is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// A file or device of this host.
    Here { path: PathBuf, format: Format },
    /// What QEMU reaches by this driver: elsewhere, or made by it.
    Driver(String),
    /// A part of a file, by an offset or a size.
    Part,
    /// Options that make no sense.
    Unknown,
}

/// In which format a backing file is declared to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Undeclared,
    Raw,
    /// By QEMU's name of it.
    Other(String),
}

impl Format {
    /// A format, or the protocols by which a raw file is reached.
    fn of(declared: Option<&str>) -> Self {
        match declared {
            None | Some("") => Self::Undeclared,
            Some("raw" | "file" | "host_device") => Self::Raw,
            Some(other) => Self::Other(other.to_owned()),
        }
    }
}

/// Where the backing file of the image at `image` is.
pub(super) fn place(image: &Path, named: &Named) -> Place {
    let format = Format::of(named.format.as_deref());
    match named.name.strip_prefix("json:") {
        Some(json) => match serde_json::from_str(json) {
            Ok(Value::Object(options)) => Options::of(&options).place("", image, format),
            Ok(_) | Err(_) => Place::Unknown,
        },
        None => by_name(image, &named.name, format),
    }
}

fn by_name(image: &Path, name: &str, format: Format) -> Place {
    let before_slash = name.split('/').next().unwrap_or_default();
    match before_slash.split_once(':') {
        None => {
            let path = image.parent().unwrap_or(Path::new("")).join(name);
            Place::Here { path, format }
        }
        Some((protocol @ ("file" | "host_device"), _)) => {
            Place::Here { path: PathBuf::from(&name[protocol.len() + 1..]), format }
        }
        Some((protocol, _)) => Place::Driver(protocol.to_owned()),
    }
}

/// QEMU's options, each by its path: `{"file": {"driver": …}}` is `file.driver`.
struct Options(BTreeMap<String, Value>);

impl Options {
    fn of(options: &serde_json::Map<String, Value>) -> Self {
        let mut all = Self(BTreeMap::new());
        all.add("", options);
        all
    }

    fn add(&mut self, prefix: &str, options: &serde_json::Map<String, Value>) {
        for (key, value) in options {
            let key = format!("{prefix}{key}");
            match value {
                Value::Object(inner) => self.add(&format!("{key}."), inner),
                _ => drop(self.0.insert(key, value.clone())),
            }
        }
    }

    fn text(&self, prefix: &str, key: &str) -> Option<&str> {
        self.0.get(&format!("{prefix}{key}"))?.as_str()
    }

    fn has(&self, prefix: &str, key: &str) -> bool {
        self.0.contains_key(&format!("{prefix}{key}"))
    }

    fn has_file(&self, prefix: &str) -> bool {
        let below = format!("{prefix}file.");
        self.0.range(below.clone()..).next().is_some_and(|(key, _)| key.starts_with(&below))
    }

    /// What the options below `prefix` describe; `format` is what is known of it without
    /// them.
    fn place(&self, prefix: &str, image: &Path, format: Format) -> Place {
        let file = format!("{prefix}file.");
        match self.text(prefix, "driver") {
            Some("raw") if self.has(prefix, "offset") || self.has(prefix, "size") => Place::Part,
            Some("raw") => self.place(&file, image, Format::Raw),
            Some("file" | "host_device") => match self.text(prefix, "filename") {
                Some(path) => Place::Here { path: path.into(), format: format.or_raw() },
                None => Place::Unknown,
            },
            Some(driver) if FORMATS.contains(&driver) => {
                self.place(&file, image, Format::Other(driver.to_owned()))
            }
            Some(driver) => Place::Driver(driver.to_owned()),
            None if self.has_file(prefix) => self.place(&file, image, format),
            None => match self.text(prefix, "filename") {
                // Not from where the image is, as its name would be.
                Some(name) if !prefix.is_empty() => by_name(Path::new(""), name, format),
                Some(name) => by_name(image, name, format),
                None => Place::Unknown,
            },
        }
    }
}

impl Format {
    /// A protocol's own driver on top means that its bytes are the disk's.
    fn or_raw(self) -> Self {
        match self {
            Self::Undeclared => Self::Raw,
            declared => declared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(name: &str, format: Option<&str>) -> Place {
        let named = Named { name: name.into(), format: format.map(Into::into) };
        place(Path::new("/overlays/o.qcow2"), &named)
    }

    fn here(path: &str, format: Format) -> Place {
        Place::Here { path: path.into(), format }
    }

    #[test]
    fn a_name_is_a_path_from_where_the_image_is() {
        for (name, path) in [
            ("root.raw", "/overlays/root.raw"),
            ("../root.raw", "/overlays/../root.raw"),
            ("./a:b.raw", "/overlays/./a:b.raw"),
            ("/dev/vg/golden", "/dev/vg/golden"),
            ("/images/a:b.raw", "/images/a:b.raw"),
            ("file:root.raw", "root.raw"),
            ("file:///images/root.raw", "///images/root.raw"),
            ("host_device:/dev/vg/golden", "/dev/vg/golden"),
        ] {
            for format in ["raw", "file", "host_device"] {
                assert_eq!(place_of(name, Some(format)), here(path, Format::Raw), "{name}");
            }
            assert_eq!(place_of(name, None), here(path, Format::Undeclared), "{name}");
            let qcow2 = Format::Other("qcow2".into());
            assert_eq!(place_of(name, Some("qcow2")), here(path, qcow2), "{name}");
        }
    }

    #[test]
    fn what_is_elsewhere_is_known_by_its_driver() {
        for (name, driver) in [
            ("nbd://host/export", "nbd"),
            ("nbd:unix:/run/x.sock", "nbd"),
            ("https://host/root.raw", "https"),
            ("rbd:pool/image", "rbd"),
            ("ssh://host/root.raw", "ssh"),
            ("fat:/srv/files", "fat"),
            ("a:b.raw", "a"),
            (r#"json:{"driver":"nbd","host":"x"}"#, "nbd"),
            (r#"json:{"driver":"raw","file":{"driver":"rbd","pool":"p","image":"i"}}"#, "rbd"),
            (r#"json:{"driver":"qcow2","file.driver":"https","file.url":"x"}"#, "https"),
            (r#"json:{"file.filename":"nbd://host/x"}"#, "nbd"),
            (r#"json:{"driver":"throttle","file":{"driver":"file","filename":"/x"}}"#, "throttle"),
        ] {
            assert_eq!(place_of(name, Some("raw")), Place::Driver(driver.into()), "{name}");
        }
    }

    #[test]
    fn options_in_json_are_taken_nested_or_dotted() {
        let (raw, none) = (Format::Raw, Format::Undeclared);
        for (json, path, format) in [
            (r#"{"driver":"raw","file":{"driver":"file","filename":"/r.raw"}}"#, "/r.raw", &raw),
            (r#"{"driver":"raw","file.driver":"file","file.filename":"r.raw"}"#, "r.raw", &raw),
            (
                r#"{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"/r"}}}"#,
                "/r",
                &raw,
            ),
            (r#"{"driver":"host_device","filename":"/dev/vg/r"}"#, "/dev/vg/r", &raw),
            (r#"{"file":{"filename":"/r.raw"}}"#, "/r.raw", &none),
            (r#"{"filename":"/r.raw"}"#, "/r.raw", &none),
            (
                r#"{"driver":"raw","read-only":true,"file":{"driver":"file","locking":"off","filename":"/r"}}"#,
                "/r",
                &raw,
            ),
        ] {
            assert_eq!(
                place_of(&format!("json:{json}"), None),
                here(path, format.clone()),
                "{json}"
            );
        }
        // The options count, not the format beside them.
        let qcow2 = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/q"}}"#;
        assert_eq!(place_of(qcow2, Some("raw")), here("/q", Format::Other("qcow2".into())));
    }

    #[test]
    fn options_that_mean_less_or_more_than_a_file_are_told_apart() {
        for json in [
            r#"{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/r"}}"#,
            r#"{"driver":"raw","size":"512","file":{"driver":"file","filename":"/r"}}"#,
        ] {
            assert_eq!(place_of(&format!("json:{json}"), None), Place::Part, "{json}");
        }
        for json in
            ["", "{", "[]", "7", "{}", r#"{"driver":"raw","file":"node0"}"#, r#"{"driver":"file"}"#]
        {
            assert_eq!(place_of(&format!("json:{json}"), None), Place::Unknown, "{json}");
        }
    }
}
