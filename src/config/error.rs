//! Mistakes in the settings, each with its sentence.

use std::path::PathBuf;

use super::limits::{NAME_LEN_MAX, PATH_LEN_MAX, SOCKET_PATH_LEN_MAX};
use super::name::NameOf;
use super::serial::SERIAL_LEN_MAX;
use super::size::SizeError;

/// The settings contradict themselves or the rules. Nothing has been done yet
/// when one of these is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The command line itself does not parse.
    #[error("{0}")]
    CommandLine(String),
    /// A configuration file that does not parse.
    #[error("{}, line {line}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there, without a full stop.
        message: String,
    },
    /// A name outside the rules of [`super::name`].
    #[error(
        "{of} name {name:?} {reason}; a name is 1 to {NAME_LEN_MAX} letters, digits, dots, dashes \
         and underscores, and starts with none of dot and dash"
    )]
    Name {
        /// What carries the name.
        of: NameOf,
        /// The name as given.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A VM whose socket would be the control socket.
    #[error("VM name {name:?} is reserved for leafblk's own socket; choose another name")]
    ReservedName {
        /// The name as given.
        name: String,
    },
    /// A serial number outside the rules of [`super::serial`].
    #[error(
        "VM {vm}: serial {serial:?} {reason}; a serial number is 1 to {SERIAL_LEN_MAX} printable \
         ASCII characters, with no space at either end"
    )]
    Serial {
        /// The VM.
        vm: String,
        /// The serial number as given.
        serial: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// No name was given, and the file's name does not make one.
    #[error(
        "root {} has no name and its file name makes none ({stem:?}); name it: --root NAME={}",
        path.display(), path.display()
    )]
    RootNeedsName {
        /// The image.
        path: PathBuf,
        /// What the name would have been.
        stem: String,
    },
    /// A `--root` without a path.
    #[error("root {text:?} has no path; write --root NAME=PATH or --root PATH")]
    RootWithoutPath {
        /// The flag's value.
        text: String,
    },
    /// A size that is none.
    #[error("{setting}: {text:?} {reason}")]
    Size {
        /// The setting, `cache-size` or `VM web1: size`.
        setting: String,
        /// The text as given.
        text: String,
        /// Why.
        reason: SizeError,
    },
    /// A number that is none.
    #[error("{setting}: {text:?} is no whole number; give one {range}")]
    Number {
        /// The setting.
        setting: String,
        /// The text as given.
        text: String,
        /// What is accepted, `from 1 to 64`.
        range: String,
    },
    /// A value that its rule does not allow.
    #[error("{setting} is {value}; it must be {rule}")]
    Range {
        /// The setting.
        setting: String,
        /// The value as given.
        value: String,
        /// What is accepted.
        rule: String,
    },
    /// A word that is not one of the choices.
    #[error("{setting}: {value:?} is unknown; use {choices}")]
    Choice {
        /// The setting.
        setting: String,
        /// The word as given.
        value: String,
        /// The choices, as a list for people.
        choices: &'static str,
    },
    /// A key in `--vm` that does not exist.
    #[error(
        "--vm {text:?} has the unknown option {option:?}; the options are root=ROOT, size=SIZE, \
         leaf=PATH, socket=PATH, queues=N, serial=TEXT, block-size=512|4096, readonly and \
         ephemeral (a path or serial number with a comma goes into the configuration file)"
    )]
    VmOption {
        /// The flag's value.
        text: String,
        /// The part that is unknown.
        option: String,
    },
    /// A key in `--vm` given twice.
    #[error("--vm {text:?} gives {option} twice; give it once")]
    VmOptionTwice {
        /// The flag's value.
        text: String,
        /// The option.
        option: &'static str,
    },
    /// A key in `--vm` without its value.
    #[error("--vm {text:?} gives {option} no value; write {option}=…")]
    VmOptionEmpty {
        /// The flag's value.
        text: String,
        /// The option.
        option: &'static str,
    },
    /// Two entries with one name.
    #[error("{of} {name} is given twice; give each {of} its own name")]
    Twice {
        /// Of what.
        of: NameOf,
        /// The name.
        name: String,
    },
    /// A VM on a root that does not exist.
    #[error("VM {vm} is on root {root:?}, which is not given; {known}")]
    UnknownRoot {
        /// The VM.
        vm: String,
        /// The root it asks for.
        root: String,
        /// What there is, or how to give one.
        known: String,
    },
    /// A VM that must say its root.
    #[error("VM {vm} does not say its root and there are {count}; add root= with one of {known}")]
    RootNeeded {
        /// The VM.
        vm: String,
        /// How many roots there are.
        count: usize,
        /// Their names.
        known: String,
    },
    /// No root at all.
    #[error(
        "VM {vm} has no root; give one with --root NAME=PATH, a [[root]] table or leafblk root add"
    )]
    NoRoot {
        /// The first VM.
        vm: String,
    },
    /// More entries than one process takes.
    #[error("there are {count} {of}s; one process takes at most {max}, start a second one")]
    TooMany {
        /// Of what.
        of: NameOf,
        /// How many.
        count: usize,
        /// How many fit.
        max: usize,
    },
    /// Two uses of one path.
    #[error(
        "{} would be both {first} and {second}; give one of them another path",
        path.display()
    )]
    PathShared {
        /// The path.
        path: PathBuf,
        /// `the leaf of VM web1`.
        first: String,
        /// `the socket of VM web2`.
        second: String,
    },
    /// A path that names nothing.
    #[error("{setting} {:?} is no usable path; give one that ends in a name", path.as_os_str())]
    Path {
        /// The setting.
        setting: String,
        /// The path as given.
        path: PathBuf,
    },
    /// A path whose meaning would depend on who reads it.
    #[error("{setting} {} is not absolute; give the whole path, from /", path.display())]
    RelativePath {
        /// The setting.
        setting: String,
        /// The path as given.
        path: PathBuf,
    },
    /// A socket path that does not fit a socket address.
    #[error(
        "the socket path {} of {of} has {length} bytes and a Unix socket takes at most \
         {SOCKET_PATH_LEN_MAX}; choose a shorter --runtime-dir or {setting}",
        path.display()
    )]
    SocketPathLong {
        /// Whose it is.
        of: String,
        /// What else gives the path.
        setting: &'static str,
        /// The path.
        path: PathBuf,
        /// Somebody has given that path; otherwise the runtime directory makes it.
        is_given: bool,
        /// Its length in bytes.
        length: usize,
    },
    /// A path that is longer than any can be.
    #[error("{setting} has {length} characters, and a path at most {PATH_LEN_MAX}")]
    PathLong {
        /// The setting.
        setting: String,
        /// Its length in characters.
        length: usize,
    },
    /// A disk that would end within a block.
    #[error("VM {vm}: size is {size}; it must be a multiple of {block}, its block-size")]
    NoWholeBlocks {
        /// The VM.
        vm: String,
        /// The size as given, in bytes.
        size: u64,
        /// The bytes of a block.
        block: u32,
    },
    /// A directory that has no default here.
    #[error("{variable} is not set, so there is no default {what}; set it or pass {flag} DIR")]
    NoDefaultDir {
        /// The environment variable that is missing.
        variable: &'static str,
        /// Which directory.
        what: &'static str,
        /// The flag that gives it.
        flag: &'static str,
    },
    /// Relative paths have no meaning here.
    #[error("the working directory cannot be read ({source}); change to one that exists")]
    NoWorkingDir {
        /// Why.
        source: std::io::Error,
    },
}
