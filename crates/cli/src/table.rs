//! A table for the terminal that is also Markdown: what is printed can be pasted.

use std::io::{self, Write};

use crate::terminal::{Style, Terminal};

/// Rows of cells under headings.
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(ToString::to_string).collect(), rows: Vec::new(), right: vec![false; headings.len()] }
    }

    /// Adds a row, one cell for each heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.headings.len(), "a row has a cell for each heading");
        self.rows.push(cells);
    }

    /// Aligns columns to the right: numbers.
    pub(crate) fn align_right(&mut self, columns: &[usize]) {
        columns.iter().for_each(|&column| self.right[column] = true);
    }

    /// Writes all of it.
    pub(crate) fn write(&self, out: &mut dyn Write, terminal: &Terminal) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.headings.len()).map(|column| self.width(column)).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).zip(&self.right).map(|((cell, &width), &right)| pad(cell, width, right));
            format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
        };
        writeln!(out, "{}", terminal.on_stdout(Style::Bold, line(&self.headings)))?;
        let rules = widths.iter().zip(&self.right).map(|(&width, &right)| match right {
            true => format!("{}:", "-".repeat(width - 1)),
            false => "-".repeat(width),
        });
        writeln!(out, "{}", terminal.on_stdout(Style::Dim, format!("| {} |", rules.collect::<Vec<_>>().join(" | "))))?;
        self.rows.iter().try_for_each(|row| writeln!(out, "{}", line(row)))
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| &row[column]).chain([&self.headings[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    }
}

fn pad(cell: &str, width: usize, right: bool) -> String {
    if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_two_columns_is_markdown() {
        let mut table = Table::new(&["model", "t/s"]);
        table.row(vec!["ä".into(), "12.34 ± 0.01".into()]);
        table.align_right(&[1]);
        let mut out = Vec::new();
        table.write(&mut out, &Terminal::plain()).expect("memory takes everything");
        let expected = "| model |          t/s |\n| ----- | -----------: |\n| ä     | 12.34 ± 0.01 |\n";
        assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
    }
}
