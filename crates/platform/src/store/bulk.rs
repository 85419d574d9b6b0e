//! Many rows in one statement. A row is a list of cells, whatever the table; the text of the statement depends on their number at
//! most.

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe};

use crate::error::PlatformError;
use crate::limits::{N_ROWS_PER_ARRAY, N_ROWS_PER_STATEMENT};
use crate::store::{Dialect, Write};

/// A value of a column.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Int(i64),
    OptionalInt(Option<i64>),
    Text(String),
    OptionalText(Option<String>),
    Bytes(Vec<u8>),
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Int,
    Text,
    Bytes,
}

impl Column {
    /// As PostgreSQL names a list of it.
    const fn array(self) -> &'static str {
        match self {
            Self::Int => "BIGINT[]",
            Self::Text => "TEXT[]",
            Self::Bytes => "BYTEA[]",
        }
    }
}

/// What the list of rows is in its statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Rows to insert.
    Insert,
    /// A table `p` with columns `column1`, `column2`, …
    From,
    /// What something is in.
    In,
}

/// A statement around a list of rows. SQLite gets a placeholder for each cell. PostgreSQL gets one for each column, with the whole
/// column as the text of an array, so that its statement is the same however many rows there are, and is parsed and planned once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bulk {
    /// Stands before the list.
    pub(crate) head: &'static str,
    /// What a row looks like.
    pub(crate) columns: &'static [Column],
    /// What the list is.
    pub(crate) place: Place,
    /// Stands behind it.
    pub(crate) tail: &'static str,
}

impl Bulk {
    /// The statement for so many rows.
    pub(crate) fn text(&self, n_rows: usize, dialect: Dialect) -> String {
        let list = match dialect {
            Dialect::Sqlite => self.values(n_rows),
            Dialect::Postgres => self.unnested(),
        };
        format!("{}{list}{}", self.head, self.tail)
    }

    fn values(&self, n_rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let rows = vec![row.as_str(); n_rows].join(", ");
        match self.place {
            Place::Insert => format!("VALUES {rows}"),
            Place::From => format!("(VALUES {rows}) AS p"),
            Place::In => format!("(VALUES {rows})"),
        }
    }

    fn unnested(&self) -> String {
        let cast = |(index, column): (usize, &Column)| format!("CAST(${} AS TEXT)::{}", index + 1, column.array());
        let arrays = self.columns.iter().enumerate().map(cast).collect::<Vec<_>>().join(", ");
        match self.place {
            Place::Insert => format!("SELECT * FROM unnest({arrays})"),
            Place::From => {
                let names = (1..=self.columns.len()).map(|number| format!("column{number}")).collect::<Vec<_>>().join(", ");
                format!("unnest({arrays}) AS p ({names})")
            }
            Place::In => format!("(SELECT * FROM unnest({arrays}))"),
        }
    }

    /// The statement with these rows in it.
    pub(crate) fn query(&self, rows: Vec<Vec<Cell>>, dialect: Dialect) -> Query<'static, Any, AnyArguments> {
        let query = sqlx::query(AssertSqlSafe(self.text(rows.len(), dialect)));
        match dialect {
            Dialect::Sqlite => rows.into_iter().flatten().fold(query, bind),
            Dialect::Postgres => self.arrays(&rows).into_iter().fold(query, |query, array| query.bind(array)),
        }
    }

    /// Each column as the text of an array.
    fn arrays(&self, rows: &[Vec<Cell>]) -> Vec<String> {
        let array = |column: usize| {
            let mut text = String::with_capacity(rows.len() * 24 + 2);
            text.push('{');
            for (index, row) in rows.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                push_element(&mut text, &row[column]);
            }
            text.push('}');
            text
        };
        (0..self.columns.len()).map(array).collect()
    }

    /// Runs it over all rows, a bounded number at a time; returns how many it touched.
    pub(crate) async fn run(&self, write: &mut Write<'_>, dialect: Dialect, rows: Vec<Vec<Cell>>) -> Result<u64, PlatformError> {
        let mut n_touched = 0;
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let chunk: Vec<Vec<Cell>> = rows.by_ref().take(rows_per_statement(dialect)).collect();
            let done = self.query(chunk, dialect).execute(&mut *write.transaction).await.map_err(written)?;
            n_touched += done.rows_affected();
        }
        Ok(n_touched)
    }
}

/// Rows of one statement: SQLite bounds the number of placeholders.
pub(crate) const fn rows_per_statement(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Sqlite => N_ROWS_PER_STATEMENT,
        Dialect::Postgres => N_ROWS_PER_ARRAY,
    }
}

/// An element of an array's text. A quoted one is never `NULL` and ends where an unescaped quote is.
fn push_element(text: &mut String, cell: &Cell) {
    match cell {
        Cell::Int(value) | Cell::OptionalInt(Some(value)) => push_number(text, *value),
        Cell::OptionalInt(None) | Cell::OptionalText(None) => text.push_str("NULL"),
        Cell::Text(value) | Cell::OptionalText(Some(value)) => {
            text.push('"');
            for c in value.chars() {
                if matches!(c, '"' | '\\') {
                    text.push('\\');
                }
                text.push(c);
            }
            text.push('"');
        }
        Cell::Bytes(value) => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            text.push_str("\"\\\\x");
            for byte in value {
                text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                text.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
            text.push('"');
        }
    }
}

fn push_number(text: &mut String, value: i64) {
    use std::fmt::Write as _;
    // Writing to a string never fails.
    let _ = write!(text, "{value}");
}

/// Binds one cell.
fn bind(query: Query<'static, Any, AnyArguments>, cell: Cell) -> Query<'static, Any, AnyArguments> {
    match cell {
        Cell::Int(value) => query.bind(value),
        Cell::OptionalInt(value) => query.bind(value),
        Cell::Text(value) => query.bind(value),
        Cell::OptionalText(value) => query.bind(value),
        Cell::Bytes(value) => query.bind(value),
    }
}

/// What a failed statement means: a row that is there already is no failure of the database, and trying again does not help.
pub(crate) fn written(error: sqlx::Error) -> PlatformError {
    match error.as_database_error() {
        Some(cause) if cause.is_unique_violation() => PlatformError::Corrupt { what: "a table of the ledger", reason: cause.to_string() },
        _ => PlatformError::Database { doing: "writing rows", source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_becomes_the_text_of_an_array() {
        let bulk = Bulk { head: "SELECT ", columns: &[Column::Int, Column::Text, Column::Bytes], place: Place::In, tail: "" };
        let rows = vec![
            vec![Cell::Int(-7), Cell::Text("a\"b\\c,{}".into()), Cell::Bytes(vec![0, 255])],
            vec![Cell::OptionalInt(None), Cell::Text("NULL".into()), Cell::Bytes(Vec::new())],
        ];
        let expected = ["{-7,NULL}", "{\"a\\\"b\\\\c,{}\",\"NULL\"}", "{\"\\\\x00ff\",\"\\\\x\"}"];
        assert_eq!(bulk.arrays(&rows), expected);
        assert_eq!(bulk.text(2, Dialect::Sqlite), "SELECT (VALUES (?, ?, ?), (?, ?, ?))");
        let unnested = "SELECT (SELECT * FROM unnest(CAST($1 AS TEXT)::BIGINT[], CAST($2 AS TEXT)::TEXT[], CAST($3 AS TEXT)::BYTEA[]))";
        assert_eq!(bulk.text(2, Dialect::Postgres), unnested);
    }
}
