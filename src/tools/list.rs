//! Rows as they are found: a JSON array or lines for people, never a list in
//! memory.

use std::io::{self, Write};

use serde::Serialize;

use super::ToolError;

/// An open JSON array, a row a line.
#[derive(Debug)]
pub(super) struct JsonArray<W: Write> {
    out: W,
    rows: u64,
}

impl<W: Write> JsonArray<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, rows: 0 }
    }

    pub(super) fn row(&mut self, row: &impl Serialize) -> Result<(), ToolError> {
        self.out
            .write_all(if self.rows == 0 { b"[" } else { b",\n" })
            .and_then(|()| Ok(serde_json::to_writer(&mut self.out, row)?))
            .map_err(ToolError::Print)?;
        self.rows += 1;
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<(), ToolError> {
        let end: &[u8] = if self.rows == 0 { b"[]\n" } else { b"]\n" };
        self.out.write_all(end).and_then(|()| self.out.flush()).map_err(ToolError::Print)
    }
}

/// Writes one JSON value and a newline.
pub(super) fn print_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), ToolError> {
    serde_json::to_writer_pretty(&mut *out, value)
        .map_err(io::Error::from)
        .and_then(|()| out.write_all(b"\n"))
        .map_err(ToolError::Print)
}
