//! Tables for people: columns two spaces apart, as wide as their widest cell.

use std::fmt;

/// A table; numbers are text like the rest.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column heads, or none.
    pub(super) fn new(heads: &[&str]) -> Self {
        let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
        Self { rows: if heads.is_empty() { Vec::new() } else { vec![heads] } }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a".into(), "20GiB".into()]);
        table.row(["longer".into(), "1".into()]);
        assert_eq!(table.to_string(), "NAME    SIZE\na       20GiB\nlonger  1\n");
        assert_eq!(Table::new(&[]).to_string(), "");
    }
}
