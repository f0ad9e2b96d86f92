//! Which live map a leaf is opened with: one that an earlier daemon left, or a
//! new one from the map in the file.

use std::path::Path;

use super::OpenOptions;
use crate::io::storage::Storage;
use crate::leaf::header::Header;
use crate::leaf::live_map::place::{OpenError, Wanted};
use crate::leaf::live_map::{LiveMap, Owner, PAGE_LEN, Shape};
use crate::leaf::{LeafError, SIZE_MAX, durable_map, map_len_bytes};

/// Where a live map comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// From the durable map, parts of which may be half written.
    Durable { half_written: bool },
    /// An earlier daemon's, with its header.
    TakenOver,
    /// The same, and the daemon was killed while it replaced the header: what
    /// that says, such as the disk's size, may not be durable.
    TakenOverUnsynced,
    /// An earlier daemon's, whose header of this generation is damaged: joined to
    /// the durable map.
    Ahead(u64),
}

impl Shape {
    /// Of the live map of a leaf with this header.
    pub(in crate::leaf) fn of(header: &Header) -> Self {
        Self {
            sectors: header.virtual_size / 512,
            pages_max: pages_max(header),
            packed: header.table_offset.is_some(),
        }
    }
}

impl<'a> Wanted<'a> {
    /// The live map of the leaf at `leaf`, which has this header.
    pub(in crate::leaf) fn of(leaf: &'a Path, header: &Header, alone: bool) -> Self {
        Self {
            leaf,
            owner: Owner::of(header),
            shape: Shape::of(header),
            unclosed: !header.clean && !header.map_void,
            alone,
            void: header.map_void,
        }
    }
}

/// The live map that an earlier daemon left, if there is one.
pub(super) fn find(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    wanted: &Wanted<'_>,
    options: &OpenOptions,
) -> Result<Option<(LiveMap, Origin)>, LeafError> {
    // A reader takes a crashed daemon's map over as well, or it would not
    // see what that one acknowledged; but it leaves no map of its own.
    let Some(live_path) = options.live_map.as_deref() else {
        return Ok(None);
    };
    let map_error = |source| LeafError::LiveMap { path: live_path.to_owned(), source };
    let taken = LiveMap::take_over(live_path, wanted, options.read_only);
    let (leaf, live) = (path.display(), live_path.display());
    let (map, ahead) = match taken {
        Ok(Some(taken)) => taken,
        Ok(None) => {
            if wanted.unclosed {
                log::warn!(
                    "leaf {leaf}: it was not closed, and there is no live map of it beside \
                     {live}: what was flushed counts, as after a loss of power"
                );
            } else if wanted.alone {
                log::warn!(
                    "leaf {leaf}: one of its header's two copies is damaged; the other counts"
                );
            }
            return Ok(None);
        }
        Err(OpenError::Io(source)) => return Err(map_error(source)),
        Err(OpenError::Ahead { map, why }) => {
            return Err(LeafError::LiveMapAhead { path: path.to_owned(), map, why });
        }
        Err(OpenError::InUse(map)) => {
            return Err(LeafError::LiveMapInUse { path: path.to_owned(), map });
        }
    };
    if let Some(generation) = ahead {
        log::warn!(
            "leaf {leaf}: the newer copy of its header is damaged; took over the live map of an \
             earlier run, which fits that one, beside what the older one says"
        );
        let map =
            if options.read_only { map.copied(&wanted.owner, &wanted.shape) } else { Ok(map) };
        let map = map.map_err(map_error)?;
        // A map that was not filled any more is completed: bits are only added.
        durable_map::load(storage, header, &map).map_err(|source| LeafError::Io {
            path: path.to_owned(),
            operation: "read the presence map",
            source,
        })?;
        return Ok(Some((map, Origin::Ahead(generation))));
    }
    log::info!("leaf {leaf}: took over the live map of an earlier run");
    let replaced = map.is_being_replaced().map_err(map_error)?;
    if !options.read_only && !replaced {
        map.own(&wanted.owner, wanted.shape.sectors).map_err(map_error)?;
    }
    let origin = if replaced { Origin::TakenOverUnsynced } else { Origin::TakenOver };
    Ok(Some((map, origin)))
}

/// A new live map from the durable map. It is that of the next header: one that
/// this one doesn't know about must never be taken for current later.
pub(super) fn next(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    options: &OpenOptions,
) -> Result<(LiveMap, bool), LeafError> {
    let live_path = options.live_map.as_deref().filter(|_| !options.read_only);
    let next = Header { generation: header.generation + 1, ..header.clone() };
    let (map, half_written) = new(path, storage, &next, live_path)?;
    map.announce(&Owner::of(&next), next.virtual_size / 512).map_err(|source| {
        let path = live_path.unwrap_or(Path::new("(memory)")).to_owned();
        LeafError::LiveMap { path, source }
    })?;
    Ok((map, half_written))
}

/// A live map that is to be the header's, from the durable map; whether parts of
/// that are half written.
pub(super) fn new(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    live_path: Option<&Path>,
) -> Result<(LiveMap, bool), LeafError> {
    let owner = Owner::of(header);
    let map = LiveMap::create(live_path, &owner, path, &Shape::of(header)).map_err(|source| {
        let path = live_path.unwrap_or(Path::new("(memory)")).to_owned();
        LeafError::LiveMap { path, source }
    })?;
    let half_written = durable_map::load(storage, header, &map).map_err(|source| {
        LeafError::Io { path: path.to_owned(), operation: "read the presence map", source }
    })?;
    Ok((map, half_written))
}

/// Map pages that the leaf has room for.
fn pages_max(header: &Header) -> usize {
    let room = header.map_room_end() - header.map_offset;
    let most = map_len_bytes(SIZE_MAX);
    usize::try_from(room.min(most)).unwrap_or(usize::MAX) / PAGE_LEN
}
