//! Records on their way to the journal, in the order in which the ledger decided them, already in the form that is stored. A row is
//! what one commit writes: everything that came while the one before it was on its way (group commit).

use std::collections::VecDeque;

use serde::Serialize;

use crate::ledger::event;
use crate::limits::JOURNAL_ROW_BYTES_MAX;

/// Records so far: those up to a position are durable once the row that holds the last of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// What one commit writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Records.
    pub bytes: Vec<u8>,
    /// Of the last of them.
    pub upto: Position,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    rows: VecDeque<Row>,
    size_bytes: usize,
    position: Position,
}

impl Outbox {
    pub(crate) fn push<T: Serialize>(&mut self, record: &T) -> Position {
        if self.rows.back().is_none_or(|row| row.bytes.len() >= JOURNAL_ROW_BYTES_MAX) {
            self.rows.push_back(Row { bytes: event::new_row(), upto: self.position });
        }
        self.position.0 += 1;
        if let Some(row) = self.rows.back_mut() {
            let before = row.bytes.len();
            event::append(&mut row.bytes, record);
            row.upto = self.position;
            self.size_bytes += row.bytes.len() - before;
        }
        self.position
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(crate) fn pop_row(&mut self) -> Option<Row> {
        let row = self.rows.pop_front()?;
        self.size_bytes = self.size_bytes.saturating_sub(row.bytes.len() - event::new_row().len());
        Some(row)
    }
}
