//! A boot trace: what a guest asked for, in its order.
//!
//! Lines are `microseconds op sector sectors`; op is R, W, F(lush) or
//! D(iscard). The times are not used: a replay goes as fast as it can.

use std::collections::BTreeSet;
use std::path::Path;

use crate::client::{Kind, Op};
use crate::util::{Context, Error, Result, to_u64, to_usize};

const SECTOR: u64 = 512;

/// What a sector holds at some point of the trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// What the root holds.
    Root,
    /// What this VM wrote last.
    Written,
    /// Discarded: anything.
    Unknown,
}

/// Bytes of a request that hold the same content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub content: Content,
    /// Within the request.
    pub start: usize,
    pub len: usize,
}

/// A trace with what each read must return.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The requests in order.
    pub ops: Vec<Op>,
    /// For each request, what a read of it finds; empty for all others.
    pub parts: Vec<Vec<Part>>,
    /// The disk's size in bytes: up to the last request, rounded up to 1 MiB.
    pub disk_bytes: u64,
    /// Bytes of the largest read or write.
    pub largest: usize,
    /// Bytes read.
    pub read_bytes: u64,
}

impl Trace {
    /// Reads a trace.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context(|| format!("cannot read the trace {}", path.display()))?;
        let mut ops = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            ops.push(parse(line).ok_or_else(|| {
                Error::from(format!(
                    "{} line {}: not `microseconds op sector sectors`: {line}",
                    path.display(),
                    number + 1
                ))
            })?);
        }
        if ops.is_empty() {
            return Err(Error::from(format!("{} has no requests", path.display())));
        }
        Ok(Self::new(ops))
    }

    fn new(ops: Vec<Op>) -> Self {
        let end = ops.iter().map(|op| op.offset + to_u64(op.len)).max().unwrap_or(0);
        let disk_bytes = end.next_multiple_of(1 << 20);
        let mut disk = vec![Content::Root; to_usize(disk_bytes / SECTOR)];
        let mut parts = Vec::with_capacity(ops.len());
        let (mut largest, mut read_bytes) = (0, 0);
        for op in &ops {
            let first = to_usize(op.offset / SECTOR);
            let sectors = &mut disk[first..first + op.len / 512];
            let mut found = Vec::new();
            match op.kind {
                Kind::Read => {
                    found = split(sectors);
                    read_bytes += to_u64(op.len);
                }
                Kind::Write => sectors.fill(Content::Written),
                Kind::Discard => sectors.fill(Content::Unknown),
                Kind::Flush => {}
            }
            if op.kind != Kind::Discard {
                largest = largest.max(op.len);
            }
            parts.push(found);
        }
        Self { ops, parts, disk_bytes, largest, read_bytes }
    }

    /// The blocks of `block_bytes` that hold root sectors which the trace reads.
    pub(crate) fn root_blocks(&self, block_bytes: u64) -> BTreeSet<u64> {
        let mut blocks = BTreeSet::new();
        for (op, parts) in self.ops.iter().zip(&self.parts) {
            for part in parts.iter().filter(|part| part.content == Content::Root) {
                let start = op.offset + to_u64(part.start);
                let last = start + to_u64(part.len) - 1;
                blocks.extend(start / block_bytes..=last / block_bytes);
            }
        }
        blocks
    }
}

/// Runs of equal content.
fn split(sectors: &[Content]) -> Vec<Part> {
    let mut start = 0;
    sectors
        .chunk_by(|left, right| left == right)
        .map(|run| {
            let part = Part { content: run[0], start, len: run.len() * 512 };
            start += part.len;
            part
        })
        .collect()
}

fn parse(line: &str) -> Option<Op> {
    let mut fields = line.split_whitespace().skip(1);
    let kind = match fields.next()? {
        "R" => Kind::Read,
        "W" => Kind::Write,
        "F" => return Some(Op::FLUSH),
        "D" => Kind::Discard,
        _ => return None,
    };
    // Bounds keep a damaged trace from asking for an absurd disk: 1 TiB, 1 GiB.
    let offset = fields.next()?.parse::<u64>().ok().filter(|&sector| sector < 1 << 31)?;
    let len =
        fields.next()?.parse::<u64>().ok().filter(|&sectors| sectors > 0 && sectors <= 1 << 21)?;
    Some(Op { kind, offset: offset * SECTOR, len: to_usize(len * SECTOR) })
}
