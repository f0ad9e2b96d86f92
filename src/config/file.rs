//! The configuration file: TOML with the flags' names as keys, and the tables
//! `[[root]]` and `[[vm]]`.
//!
//! Knows the file's shape only; rules and defaults are
//! [`super::Config::resolve`]'s. Relative paths count from the file's
//! directory.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::forms::{RootForm, SizeForm, VmForm};
use super::limits::CONFIG_FILE_MAX_BYTES;
use super::nearest;
use super::settings::{ControlSocket, Settings};
use super::{HugepagesMode, UsageError};
use crate::error::Error;
use crate::io::open;

/// Why a configuration file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the configuration file {} cannot be read ({source}); check --config", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileForm {
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "roots")]
    root: Vec<Spanned<RootForm>>,
    #[serde(default, deserialize_with = "vms")]
    vm: Vec<Spanned<VmForm>>,
    cache_size: Option<SizeForm>,
    cache_block: Option<SizeForm>,
    #[serde(default, deserialize_with = "hugepages")]
    hugepages: Option<HugepagesMode>,
    keep_cache: Option<bool>,
    reactors: Option<u64>,
    poll_us: Option<u64>,
    socket_group: Option<String>,
    control_socket: Option<String>,
    control_group: Option<String>,
    http_port: Option<u64>,
    log: Option<String>,
}

fn roots<'de, D: Deserializer<'de>>(file: D) -> Result<Vec<Spanned<RootForm>>, D::Error> {
    file.deserialize_any(Tables::new("root"))
}

fn vms<'de, D: Deserializer<'de>>(file: D) -> Result<Vec<Spanned<VmForm>>, D::Error> {
    file.deserialize_any(Tables::new("vm"))
}

/// A list of tables under one key. What is written `[root]` instead of `[[root]]`
/// gets a sentence that says so.
struct Tables<T> {
    key: &'static str,
    form: PhantomData<T>,
}

impl<T> Tables<T> {
    const fn new(key: &'static str) -> Self {
        Self { key, form: PhantomData }
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Tables<T> {
    type Value = Vec<Spanned<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tables, each under [[{}]]", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, _table: A) -> Result<Self::Value, A::Error> {
        let key = self.key;
        Err(de::Error::custom(format_args!(
            "there may be several {key}s, so [{key}] is written in double brackets: [[{key}]]"
        )))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tables: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(table) = tables.next_element()? {
            all.push(table);
        }
        Ok(all)
    }
}

fn hugepages<'de, D: Deserializer<'de>>(file: D) -> Result<Option<HugepagesMode>, D::Error> {
    struct ModeVisitor;
    impl Visitor<'_> for ModeVisitor {
        type Value = HugepagesMode;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"auto\", \"on\" or \"off\"")
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<HugepagesMode, E> {
            let meant = if value { "on" } else { "off" };
            Err(E::custom(format_args!(
                "hugepages = {value} is no choice: there are \"auto\", \"on\" and \"off\"; did you \
                 mean \"{meant}\"?"
            )))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<HugepagesMode, E> {
            text.parse().map_err(E::custom)
        }
    }
    file.deserialize_any(ModeVisitor).map(Some)
}

/// Reads the file at `path`, which is absolute.
///
/// # Errors
/// A failure if it cannot be read, a usage error if it does not parse.
pub fn load(path: &Path) -> Result<Settings, Error> {
    let text = open::text_of_any(path, CONFIG_FILE_MAX_BYTES)
        .map_err(|source| Error::failure(FileError { path: path.into(), source }))?;
    let settings = parse(path, &text)?;
    let settings = settings.with_base(path.parent().unwrap_or(Path::new("/")));
    Ok(Settings { has_file: true, ..settings })
}

/// Parses the text of the file at `path`, which is only named in errors.
///
/// # Errors
/// [`UsageError::File`] with the line, or the mistake in one of its entries.
pub fn parse(path: &Path, text: &str) -> Result<Settings, UsageError> {
    let in_line = |line, message| UsageError::File { path: path.into(), line, message };
    let at = |offset, message| in_line(line_of(text, offset), message);
    let form: FileForm = toml::from_str(text).map_err(|error| {
        let (line, message) = line_and_message(text, &error);
        in_line(line, message)
    })?;
    let mut settings = Settings {
        state_dir: form.state_dir,
        runtime_dir: form.runtime_dir,
        cache_size_bytes: form.cache_size.map(|size| size.0),
        cache_block_bytes: form.cache_block.map(|size| size.0),
        hugepages: form.hugepages,
        keep_cache: form.keep_cache,
        reactors: form.reactors,
        poll_us: form.poll_us,
        socket_group: form.socket_group,
        control_socket: form.control_socket.map(ControlSocket::from),
        control_group: form.control_group,
        http_port: form.http_port,
        log: form.log,
        ..Settings::default()
    };
    for root in form.root {
        let offset = root.span().start;
        let entry = root.into_inner().into_entry();
        settings.roots.push(entry.map_err(|error| at(offset, error.to_string()))?);
    }
    for vm in form.vm {
        let offset = vm.span().start;
        let entry = vm.into_inner().into_entry();
        settings.vms.push(entry.map_err(|error| at(offset, error.to_string()))?);
    }
    settings.check_unique()?;
    Ok(settings)
}

/// The line, from 1, in which `offset` lies.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// Where a TOML text is wrong, and how in one line.
pub(crate) fn line_and_message(text: &str, error: &toml::de::Error) -> (usize, String) {
    let offset = error.span().map_or(0, |span| span.start);
    let lines: Vec<&str> = error.message().lines().map(str::trim).collect();
    (line_of(text, offset), nearest::with_hint(lines.join(", ")))
}

#[cfg(test)]
mod tests;
