//! What a stretch of the journal means for the tables: rows to add, counters to raise, requests that are in flight or no more. A
//! pure function of the records, so that doing it again gives the same; a store applies it in one transaction together with how far
//! it goes, so that it is applied once.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ids::{ApiKeyId, ProjectId};
use crate::ledger::event::{Entry, Grant, HoldId, OpenRequest, Produced, Purpose, Record, read_row};
use crate::ledger::scope::{PeriodUse, ScopeId};
use crate::money::{Micros, TokenCounts};
use crate::time::{Period, Timestamp};

/// How long the buckets of a rollup are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grain {
    /// Sixty seconds.
    Minute,
    /// Sixty minutes.
    Hour,
    /// 24 hours, UTC.
    Day,
}

impl Grain {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// In microseconds.
    pub const fn micros(self) -> i64 {
        match self {
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }

    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// When the bucket of a time begins.
    pub const fn start_of(self, time: Timestamp) -> Timestamp {
        Timestamp(time.0 - time.0.rem_euclid(self.micros()))
    }
}

/// Which bucket of a rollup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// How long.
    pub grain: Grain,
    /// From when on.
    pub start: Timestamp,
    /// Whose.
    pub account: AccountId,
    /// For what.
    pub project: ProjectId,
    /// With which key.
    pub api_key: Option<ApiKeyId>,
    /// Of which model.
    pub model: String,
    /// What for.
    pub purpose: Purpose,
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RollupCounts {
    /// Events.
    pub n_events: u64,
    /// Operations.
    pub n_operations: u64,
    /// Tokens.
    pub tokens: TokenCounts,
    /// What they cost.
    pub charge: Micros,
    /// Of this, what no grant paid.
    pub due: Micros,
}

impl RollupCounts {
    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry) {
        let tokens = entry.event.tokens;
        self.n_events += 1;
        self.n_operations += entry.event.n_operations;
        self.tokens.n_input += tokens.n_input;
        self.tokens.n_cached += tokens.n_cached;
        self.tokens.n_output += tokens.n_output;
        self.charge = self.charge.plus(entry.charge);
        self.due = self.due.plus(entry.due());
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Projection {
    /// The row that it begins after.
    pub after: u64,
    /// The row that it ends with.
    pub upto: u64,
    /// Entries to add, in order.
    pub entries: Vec<Entry>,
    /// Grants to add.
    pub grants: Vec<Grant>,
    /// Requests that are new in flight.
    pub opened: BTreeMap<HoldId, OpenRequest>,
    /// Requests opened before that have produced more.
    pub progressed: BTreeMap<HoldId, Produced>,
    /// Requests opened before that are in flight no more.
    pub closed: BTreeSet<HoldId>,
    /// Counters to raise.
    pub used: BTreeMap<(ScopeId, Period), PeriodUse>,
    /// Buckets to raise.
    pub rollups: BTreeMap<Bucket, RollupCounts>,
}

impl Projection {
    /// Of rows that follow each other.
    pub fn of_rows(rows: &[(u64, Vec<u8>)]) -> Result<Self, PlatformError> {
        let (first, last) = match rows {
            [] => return Ok(Self::default()),
            [(first, _), ..] => (*first, first + rows.len() as u64 - 1),
        };
        if !rows.iter().map(|(number, _)| *number).eq(first..=last) {
            return Err(PlatformError::Corrupt { what: "the journal", reason: format!("rows are missing from {first} to {last}") });
        }
        let mut projection = Self { after: first - 1, upto: last, ..Self::default() };
        for (_, row) in rows {
            read_row(row)?.into_iter().for_each(|record| projection.add(record));
            // Many rows take milliseconds, for which a request on this core would wait.
            std::thread::yield_now();
        }
        Ok(projection)
    }

    /// The last entry, if there is one.
    pub fn last_seq(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.seq)
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Opened(request) => {
                self.opened.insert(request.id, *request);
            }
            Record::Progress { id, produced } => match self.opened.get_mut(&id) {
                Some(request) => request.produced = produced,
                None => {
                    self.progressed.insert(id, produced);
                }
            },
            Record::Entry { closes, entry } => {
                if let Some(id) = closes {
                    self.close(id);
                }
                self.count(&entry);
                self.entries.push(*entry);
            }
            Record::Closed { id } => self.close(id),
            Record::Granted(grant) => self.grants.push(*grant),
        }
    }

    fn close(&mut self, id: HoldId) {
        self.progressed.remove(&id);
        if self.opened.remove(&id).is_none() {
            self.closed.insert(id);
        }
    }

    fn count(&mut self, entry: &Entry) {
        let (event, owner) = (&entry.event, entry.event.owner);
        for scope in ScopeId::of_owner(&owner) {
            self.used.entry((scope, event.occurred_at.period())).or_default().add(entry);
        }
        for grain in Grain::ALL {
            let start = grain.start_of(event.occurred_at);
            let (account, project, api_key, model) = (owner.account, owner.project, owner.api_key, event.model.to_string());
            let purpose = event.purpose;
            self.rollups.entry(Bucket { grain, start, account, project, api_key, model, purpose }).or_default().add(entry);
        }
    }
}
