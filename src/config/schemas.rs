//! The rules of single values as JSON Schema has them, for docs/openapi.json: what a
//! schema here allows breaks no rule of [`super`], though the host may not have it.
//!
//! Only described here; [`super::name`], [`super::serial`], [`super::size`] and
//! `resolve.rs` apply them. Tests hold the two together.

use std::borrow::Cow;

use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::limits::{
    DISK_SIZE_MAX_BYTES, NAME_LEN_MAX, PATH_LEN_MAX, QUEUES_MAX, SOCKET_PATH_LEN_MAX,
};
use super::serial::SERIAL_LEN_MAX;
use crate::units::{BlockSize as Blocks, SECTOR_SIZE};

/// The names of [`super::name`].
const NAME: &str = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$";
/// The serial numbers of [`super::serial`].
const SERIAL: &str = "^[!-~]([ -~]{0,18}[!-~])?$";
/// Absolute, without a NUL, and ending in a name: not in a slash, `.` or `..`.
const PATH: &str =
    r"^/([^\u0000]*/)?([^/.\u0000][^/\u0000]*|\.[^/.\u0000][^/\u0000]*|\.\.[^/\u0000]+)$";
/// Whole numbers with a unit, up to 1024TiB. [`super::size::parse_size`] takes more: a
/// number of bytes without a unit or with B, a space before the unit, other spellings.
const SIZE: &str = "^([1-9][0-9]{0,11}KiB|[1-9][0-9]{0,8}MiB|[1-9][0-9]{0,5}GiB|\
                    ([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])TiB)$";

/// Names a value's schema among the components.
macro_rules! component {
    ($(#[$doc:meta])* $type:ident, $build:expr) => {
        $(#[$doc])*
        pub struct $type;

        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $build
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                stringify!($type).into()
            }
        }
    };
}

component!(
    /// A VM's name.
    VmName,
    text(NAME, NAME_LEN_MAX, "A VM's name. `control` is taken: its socket is leafblk's own.")
);
component!(
    /// A root's name.
    RootName,
    text(NAME, NAME_LEN_MAX, "A root's name.")
);
component!(
    /// A disk's serial number.
    SerialNumber,
    text(SERIAL, SERIAL_LEN_MAX, "A disk's serial number, as its guest reads it.")
);
component!(
    /// A file.
    FilePath,
    text(PATH, PATH_LEN_MAX, "An absolute path that ends in a name.")
);
component!(
    /// A socket.
    SocketPath,
    text(PATH, SOCKET_PATH_LEN_MAX, "The same for a socket: 107 bytes at most.")
);
component!(
    /// A size.
    Size,
    OneOfBuilder::new()
        .item(
            whole(512, DISK_SIZE_MAX_BYTES)
                .multiple_of(Some(SECTOR_SIZE))
                .description(Some("Bytes."))
        )
        .item(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some(SIZE))
                .description(Some("A whole number and KiB, MiB, GiB or TiB."))
        )
        .description(Some("A disk's size: whole bytes, or a text with a unit: `512MiB`, `4GiB`."))
        .into()
);
component!(
    /// A disk's virtqueues.
    Queues,
    whole(1, QUEUES_MAX.into()).description(Some("Virtqueues.")).into()
);
component!(
    /// A logical block.
    BlockSize,
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .enum_values(Some(Blocks::ALL.map(Blocks::to_bytes)))
        .description(Some("Bytes of a logical block."))
        .into()
);

fn text(pattern: &str, len_max: usize, about: &str) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    schema.min_length(Some(1)).max_length(Some(len_max)).description(Some(about)).into()
}

fn whole(min: u64, max: u64) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(min))
        .maximum(Some(max))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use regex::Regex;

    use super::*;
    use crate::config::name::{NameOf, check_name};
    use crate::config::serial::Serial;
    use crate::config::size::parse_size;
    use crate::config::{Directories, VmConfig, VmEntry, check_disk_size};

    fn fits(pattern: &str, text: &str) -> bool {
        Regex::new(pattern).unwrap().is_match(text)
    }

    fn resolves(leaf: &str) -> bool {
        let directories = Directories { state: "/s".into(), runtime: "/r".into() };
        let entry = VmEntry { name: "w".into(), leaf: Some(leaf.into()), ..VmEntry::default() };
        VmConfig::resolve(&entry, ["d"].into_iter(), &directories).is_ok()
    }

    /// Texts made of what the rules speak of.
    fn texts() -> impl Strategy<Value = String> {
        const PIECES: [&str; 14] =
            ["a", "Z", "0", "_", ".", "-", "/", "..", " ", "\0", "\n", "é", "~", "\u{7f}"];
        let piece = prop::sample::select(&PIECES[..]);
        let many = prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
        prop_oneof![many.clone(), many.prop_map(|text| format!("/{text}")), "\\PC{0,70}"]
    }

    proptest! {
        #[test]
        fn a_schema_allows_what_its_rule_does(text in texts()) {
            prop_assert_eq!(fits(NAME, &text), check_name(NameOf::Root, &text).is_ok());
            prop_assert_eq!(fits(SERIAL, &text), Serial::new("w", &text).is_ok());
            prop_assert_eq!(fits(PATH, &text), resolves(&text), "{:?}", text);
        }

        #[test]
        fn a_size_that_the_schema_allows_is_one(number in 0_u64..1 << 42, unit in 0..5_usize) {
            let text = format!("{number}{}", ["", "KiB", "MiB", "GiB", "TiB"][unit]);
            let allowed = parse_size(&text).is_ok_and(|bytes| {
                check_disk_size("w", bytes).is_ok()
            });
            prop_assert!(allowed || !fits(SIZE, &text), "{}", text);
        }
    }

    #[test]
    fn the_edges_of_each_rule_are_in_its_schema() {
        for (pattern, text, is_in) in [
            (NAME, "n".repeat(NAME_LEN_MAX), true),
            (NAME, "n".repeat(NAME_LEN_MAX + 1), false),
            (SERIAL, "s".repeat(SERIAL_LEN_MAX), true),
            (SERIAL, "s".repeat(SERIAL_LEN_MAX + 1), false),
            (SIZE, "1024TiB".into(), true),
            (SIZE, "1025TiB".into(), false),
            (SIZE, "0KiB".into(), false),
            (SIZE, "1KiB".into(), true),
            (SIZE, "20GiB".into(), true),
            (SIZE, "1GB".into(), false),
        ] {
            assert_eq!(fits(pattern, &text), is_in, "{text}");
        }
        let path = |len: usize| format!("/{}", "p/".repeat(len / 2 - 1) + "p");
        assert_eq!(Path::new(&path(PATH_LEN_MAX + 1)), PathBuf::from(path(PATH_LEN_MAX + 1)));
        assert!(resolves(&path(PATH_LEN_MAX - 1)) && !resolves(&path(PATH_LEN_MAX + 3)));
    }
}
