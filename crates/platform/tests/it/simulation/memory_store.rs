//! A store in memory, for simulation: tables as maps, each method all or nothing, and a plan that says at which write the world ends,
//! before or after that write became durable. What a transaction does inside is the database's promise and not simulated here; the
//! same suite runs on real databases.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bitnet_platform::PlatformError;
use bitnet_platform::billing::InvoiceLine;
use bitnet_platform::ids::{AccountId, GrantId};
use bitnet_platform::ledger::event::{Entry, EventKey, HoldId, OpenRequest, PayloadHash};
use bitnet_platform::ledger::projection::{Bucket, Projection, RollupCounts};
use bitnet_platform::ledger::scope::{PeriodUse, ScopeId};
use bitnet_platform::ledger::service::{LedgerStore, Takeover};
use bitnet_platform::ledger::{GrantBalance, Opening};
use bitnet_platform::money::Micros;
use bitnet_platform::store::BoxFuture;
use bitnet_platform::time::{Period, Timestamp};

/// What happens at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and has done nothing.
    Before,
    /// It is done, but nobody learns of it.
    After,
}

/// What is on the disk.
#[derive(Default, Clone)]
pub(crate) struct Tables {
    pub(crate) opening: Opening,
    pub(crate) epoch: u64,
    pub(crate) journal_row: u64,
    pub(crate) projected_row: u64,
    pub(crate) journal: BTreeMap<u64, Vec<u8>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) grants: BTreeMap<GrantId, GrantBalance>,
    pub(crate) open: BTreeMap<HoldId, OpenRequest>,
    pub(crate) used: BTreeMap<(ScopeId, Period), PeriodUse>,
    pub(crate) rollups: BTreeMap<Bucket, RollupCounts>,
    /// Every projection that was applied, to be tried again.
    pub(crate) applied: Vec<Projection>,
    /// Months that are closed: the last entry that each invoice may have, and its lines.
    pub(crate) closed: BTreeMap<(AccountId, Period), ClosedMonth>,
    /// Negative amounts that wait for an account's next invoice.
    pub(crate) carried: BTreeMap<AccountId, Micros>,
}

/// A month that is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClosedMonth {
    pub(crate) upto: u64,
    pub(crate) lines: Vec<InvoiceLine>,
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) tables: Tables,
    pub(crate) n_writes: u64,
    /// At which write, counted from the first, what goes wrong.
    pub(crate) faults: HashMap<u64, Fault>,
}

#[derive(Clone, Default)]
pub(crate) struct MemoryStore(pub(crate) Arc<Mutex<Disk>>);

impl MemoryStore {
    pub(crate) fn write<T>(&self, work: impl FnOnce(&mut Tables) -> Result<T, PlatformError>) -> Result<T, PlatformError> {
        let mut disk = self.0.lock().unwrap();
        disk.n_writes += 1;
        let number = disk.n_writes;
        let broken = || PlatformError::Database { doing: "simulating", source: sqlx::Error::WorkerCrashed };
        match disk.faults.get(&number).copied() {
            Some(Fault::Before) => Err(broken()),
            Some(Fault::After) => {
                work(&mut disk.tables)?;
                Err(broken())
            }
            None => work(&mut disk.tables),
        }
    }
}

impl Tables {
    pub(crate) fn apply(&mut self, projection: &Projection) -> Result<(), PlatformError> {
        if self.projected_row >= projection.upto {
            return Ok(());
        }
        assert_eq!(self.projected_row, projection.after, "a projection begins where the last one ended");
        self.projected_row = projection.upto;
        for entry in &projection.entries {
            assert!(self.entries.iter().all(|other| other.event.key() != entry.event.key()), "{:?} is booked twice", entry.event.key());
            self.entries.push(entry.clone());
        }
        for grant in &projection.grants {
            let balance = GrantBalance { remaining: grant.amount, grant: grant.clone() };
            assert!(self.grants.insert(grant.id, balance).is_none(), "a grant is given twice");
        }
        for draw in projection.entries.iter().flat_map(|entry| &entry.draws) {
            let balance = self.grants.get_mut(&draw.grant).expect("a grant that is there pays");
            balance.remaining = balance.remaining.minus(draw.amount);
        }
        for id in &projection.closed {
            assert!(self.open.remove(id).is_some(), "only what was opened is closed");
        }
        for (id, produced) in &projection.progressed {
            self.open.get_mut(id).expect("only what was opened goes on").produced = *produced;
        }
        self.open.extend(projection.opened.clone());
        for (key, used) in &projection.used {
            let sum = self.used.entry(*key).or_default();
            sum.n_events += used.n_events;
            sum.n_operations += used.n_operations;
            sum.n_included += used.n_included;
            sum.charge = sum.charge.plus(used.charge);
            sum.due = sum.due.plus(used.due);
        }
        for (bucket, counts) in &projection.rollups {
            let sum = self.rollups.entry(bucket.clone()).or_default();
            sum.n_events += counts.n_events;
            sum.n_operations += counts.n_operations;
            sum.tokens.n_input += counts.tokens.n_input;
            sum.tokens.n_cached += counts.tokens.n_cached;
            sum.tokens.n_output += counts.tokens.n_output;
            sum.charge = sum.charge.plus(counts.charge);
            sum.due = sum.due.plus(counts.due);
        }
        self.journal.retain(|number, _| *number > projection.upto);
        self.applied.push(projection.clone());
        Ok(())
    }
}

impl LedgerStore for MemoryStore {
    fn take_over(&self) -> BoxFuture<'_, Takeover> {
        let taken = self.write(|tables| {
            tables.epoch += 1;
            Ok(Takeover { epoch: tables.epoch, journal_row: tables.journal_row, projected_row: tables.projected_row })
        });
        Box::pin(std::future::ready(taken))
    }

    fn load(&self, _now: Timestamp) -> BoxFuture<'_, Opening> {
        let tables = &self.0.lock().unwrap().tables;
        let opening = Opening {
            last_seq: tables.entries.last().map_or(0, |entry| entry.seq),
            used: tables.used.iter().map(|((scope, period), used)| (*scope, *period, *used)).collect(),
            grants: tables.grants.values().cloned().collect(),
            open: tables.open.values().cloned().collect(),
            ..tables.opening.clone()
        };
        Box::pin(std::future::ready(Ok(opening)))
    }

    fn append<'a>(&'a self, epoch: u64, number: u64, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        let appended = self.write(|tables| {
            if tables.epoch != epoch {
                return Err(PlatformError::Fenced { own: epoch, owner: tables.epoch });
            }
            if tables.journal_row == number {
                return Ok(());
            }
            assert_eq!(tables.journal_row + 1, number, "no row is left out");
            tables.journal_row = number;
            tables.journal.insert(number, bytes.to_vec());
            Ok(())
        });
        Box::pin(std::future::ready(appended))
    }

    fn rows_after(&self, number: u64) -> BoxFuture<'_, Vec<(u64, Vec<u8>)>> {
        let tables = &self.0.lock().unwrap().tables;
        // Few at a time, so that projections are cut at many places.
        let rows = tables.journal.range(number + 1..).take(2).map(|(number, bytes)| (*number, bytes.clone())).collect();
        Box::pin(std::future::ready(Ok(rows)))
    }

    fn project<'a>(&'a self, epoch: u64, projection: &'a Projection) -> BoxFuture<'a, ()> {
        let projected = self.write(|tables| {
            if tables.epoch != epoch {
                return Err(PlatformError::Fenced { own: epoch, owner: tables.epoch });
            }
            tables.apply(projection)
        });
        Box::pin(std::future::ready(projected))
    }

    fn known<'a>(&'a self, keys: &'a [EventKey]) -> BoxFuture<'a, HashMap<EventKey, PayloadHash>> {
        let tables = &self.0.lock().unwrap().tables;
        let known = tables.entries.iter().map(|entry| (entry.event.key(), entry.event.payload_hash()));
        Box::pin(std::future::ready(Ok(known.filter(|(key, _)| keys.contains(key)).collect())))
    }
}
