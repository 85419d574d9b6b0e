//! Many rows in one statement. A row is a list of cells, whatever the table; the text of the statement depends only on their number.

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe};

use crate::error::PlatformError;
use crate::limits::N_ROWS_PER_STATEMENT;
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

/// A statement around a list of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bulk {
    /// Stands before the list.
    pub(crate) head: &'static str,
    /// What a row looks like: a type for each of its cells where the database could not tell, or nothing.
    pub(crate) casts: &'static [&'static str],
    /// Stands behind it.
    pub(crate) tail: &'static str,
}

impl Bulk {
    /// The statement for so many rows.
    pub(crate) fn text(&self, n_rows: usize, dialect: Dialect) -> String {
        let mut text = String::from(self.head);
        let mut n_cells = 0;
        for row in 0..n_rows {
            text.push_str(if row == 0 { "(" } else { ", (" });
            for (column, cast) in self.casts.iter().enumerate() {
                n_cells += 1;
                // SQLite would look numbered placeholders up one by one.
                let placeholder = if dialect == Dialect::Sqlite { "?".to_string() } else { format!("${n_cells}") };
                let comma = if column == 0 { "" } else { ", " };
                let cell = if cast.is_empty() { placeholder } else { format!("CAST({placeholder} AS {cast})") };
                text.push_str(comma);
                text.push_str(&cell);
            }
            text.push(')');
        }
        text.push_str(self.tail);
        text
    }

    /// Runs it over all rows, a bounded number at a time; returns how many it touched.
    pub(crate) async fn run(&self, write: &mut Write<'_>, dialect: Dialect, rows: Vec<Vec<Cell>>) -> Result<u64, PlatformError> {
        let mut n_touched = 0;
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let chunk: Vec<Vec<Cell>> = rows.by_ref().take(N_ROWS_PER_STATEMENT).collect();
            let text = self.text(chunk.len(), dialect);
            let mut query = sqlx::query(AssertSqlSafe(text));
            for cell in chunk.into_iter().flatten() {
                query = bind(query, cell);
            }
            let done = query.execute(&mut *write.transaction).await.map_err(written)?;
            n_touched += done.rows_affected();
        }
        Ok(n_touched)
    }
}

/// Binds one cell.
pub(crate) fn bind(query: Query<'_, Any, AnyArguments>, cell: Cell) -> Query<'_, Any, AnyArguments> {
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
