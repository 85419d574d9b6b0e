//! The ledger on a store, for many callers at once. Decisions are made under one lock and take about a microsecond; what they
//! decided is committed by one writer, everything that came meanwhile in one row (group commit), and later projected into tables.
//! Whoever must not go on before something is durable waits for its position.
//!
//! A store that is away stops nothing that was admitted: records wait in memory, and the writer tries again. At the outbox's bound
//! new requests are refused. A store that another writer has taken over ends this one's.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::error::PlatformError;
use crate::ledger::event::{EventKey, Grant, HoldId, Outcome, PayloadHash, Produced, UsageEvent};
use crate::ledger::projection::Projection;
use crate::ledger::{Admitted, Ask, Ingested, Ledger, Measured, NotOpen, NotRecorded, Opening, Position, Refusal, Row};
use crate::limits::{COMMIT_EVERY, N_EVENTS_PER_BATCH, N_JOURNAL_ROWS_MAX, STORE_AWAY_MAX};
use crate::store::BoxFuture;
use crate::time::{Clock, Timestamp};

/// Where a writer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// Its number; those before it can write no more.
    pub epoch: u64,
    /// The last row of the journal.
    pub journal_row: u64,
    /// The last row that is in the tables.
    pub projected_row: u64,
}

/// What keeps a ledger. Each method is one transaction: all of it happens, or nothing.
pub trait LedgerStore: Send + Sync {
    /// Makes the caller the one writer.
    fn take_over(&self) -> BoxFuture<'_, Takeover>;
    /// What the tables say.
    fn load(&self, now: Timestamp) -> BoxFuture<'_, Opening>;
    /// Writes a row behind the one before it, durably, if the epoch is the present writer's. The same row again is no error: a
    /// commit whose answer was lost is simply tried again.
    fn append<'a>(&'a self, epoch: u64, number: u64, bytes: &'a [u8]) -> BoxFuture<'a, ()>;
    /// Some of the rows after this one, in order.
    fn rows_after(&self, number: u64) -> BoxFuture<'_, Vec<(u64, Vec<u8>)>>;
    /// Applies a projection, if the epoch is the present writer's and the last projection ended where it begins; one that was applied is
    /// no error.
    fn project<'a>(&'a self, epoch: u64, projection: &'a Projection) -> BoxFuture<'a, ()>;
    /// The hashes of those of these events that are in the tables.
    fn known<'a>(&'a self, keys: &'a [EventKey]) -> BoxFuture<'a, HashMap<EventKey, PayloadHash>>;
}

/// See the module.
pub struct LedgerService {
    ledger: Mutex<Ledger>,
    store: Box<dyn LedgerStore>,
    epoch: u64,
    /// The row that is on its way, so that a second try writes the very same.
    in_flight: tokio::sync::Mutex<Writing>,
    projected_row: tokio::sync::Mutex<u64>,
    /// Ingests between the question what is known and the decision upon it.
    ingesting: Mutex<Ingesting>,
    /// The last row that was committed, and the last that is in the tables, to be looked at without the locks.
    rows: [AtomicU64; 2],
    /// Nothing can be written any more.
    has_ended: AtomicBool,
    /// Since when the store has been asked for something without success, in microseconds since 1970; 0 if it is not.
    at_work_since: AtomicI64,
    durable: watch::Sender<Position>,
    work: Notify,
}

/// What is in the tables is forgotten in memory, but not what got there after an ingest asked them: it would find that in neither. So
/// each ingest has a floor, and nothing above the lowest is forgotten; nobody waits for anybody.
#[derive(Default)]
struct Ingesting {
    /// Entries up to this one are in the tables.
    projected_seq: u64,
    /// How many ingests began when entries up to so many were in the tables.
    floors: BTreeMap<u64, usize>,
}

impl Ingesting {
    /// Up to where memory may forget.
    fn floor(&self) -> u64 {
        self.floors.keys().next().map_or(self.projected_seq, |lowest| (*lowest).min(self.projected_seq))
    }
}

/// An ingest's floor; ends with it, also where it is dropped while it waits.
struct Floor<'a> {
    ingesting: &'a Mutex<Ingesting>,
    seq: u64,
}

impl<'a> Floor<'a> {
    fn hold(ingesting: &'a Mutex<Ingesting>) -> Self {
        let mut open = ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = open.projected_seq;
        *open.floors.entry(seq).or_default() += 1;
        Self { ingesting, seq }
    }
}

impl Drop for Floor<'_> {
    fn drop(&mut self) {
        let mut open = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        let n_left = open.floors.get_mut(&self.seq).map_or(0, |n| {
            *n -= 1;
            *n
        });
        if n_left == 0 {
            open.floors.remove(&self.seq);
        }
    }
}

struct Writing {
    last_row: u64,
    row: Option<Row>,
}

impl LedgerService {
    /// Takes the ledger over: what the journal has is put into the tables, then they are read, then requests that an earlier
    /// writer left are settled.
    pub async fn open(store: Box<dyn LedgerStore>, now: Timestamp) -> Result<Self, PlatformError> {
        let takeover = store.take_over().await?;
        let mut projected_row = takeover.projected_row;
        while projected_row < takeover.journal_row {
            let projection = Projection::of_rows(&store.rows_after(projected_row).await?)?;
            if projection.after != projected_row || projection.upto <= projected_row {
                let reason = format!("expected rows after {projected_row}, got {} to {}", projection.after + 1, projection.upto);
                return Err(PlatformError::Corrupt { what: "the journal", reason });
            }
            store.project(takeover.epoch, &projection).await?;
            projected_row = projection.upto;
        }
        let ledger = Ledger::new(takeover.epoch, store.load(now).await?, now);
        Ok(Self {
            ledger: Mutex::new(ledger),
            store,
            epoch: takeover.epoch,
            in_flight: tokio::sync::Mutex::new(Writing { last_row: takeover.journal_row, row: None }),
            projected_row: tokio::sync::Mutex::new(projected_row),
            ingesting: Mutex::default(),
            rows: [AtomicU64::new(takeover.journal_row), AtomicU64::new(projected_row)],
            has_ended: AtomicBool::new(false),
            at_work_since: AtomicI64::new(0),
            durable: watch::Sender::new(Position::default()),
            work: Notify::new(),
        })
    }

    /// The ledger, for reading balances and setting terms.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Decisions change nothing before they are sure to succeed, so a poisoned ledger is whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Ledger::admit`].
    pub fn admit(&self, ask: Ask, now: Timestamp) -> Result<Admitted, Refusal> {
        if self.n_rows_behind() > N_JOURNAL_ROWS_MAX || self.has_ended() || self.is_away(now) {
            return Err(Refusal::Unavailable);
        }
        self.ledger().admit(ask, now)
    }

    /// See [`Ledger::record`].
    pub fn record(&self, id: HoldId, produced: Produced, (now, lease): (Timestamp, Duration)) -> Result<Position, NotRecorded> {
        let position = self.ledger().record(id, produced, (now, lease))?;
        self.work.notify_one();
        Ok(position)
    }

    /// See [`Ledger::settle`].
    pub fn settle(&self, id: HoldId, used: (Measured, Outcome), now: Timestamp) -> Result<Position, NotOpen> {
        let position = self.ledger().settle(id, used, now)?;
        self.work.notify_one();
        Ok(position)
    }

    /// See [`Ledger::void`].
    pub fn void(&self, id: HoldId, now: Timestamp) -> Result<Position, NotOpen> {
        let position = self.ledger().void(id, now)?;
        self.work.notify_one();
        Ok(position)
    }

    /// See [`Ledger::cut`].
    pub fn cut(&self, id: HoldId, shown: Produced, now: Timestamp) -> Result<Position, NotOpen> {
        let position = self.ledger().cut(id, shown, now)?;
        self.work.notify_one();
        Ok(position)
    }

    /// See [`Ledger::grant`].
    pub fn grant(&self, grant: Grant) -> Position {
        let position = self.ledger().grant(grant);
        self.work.notify_one();
        position
    }

    /// Books events of another source, each at most once. They are durable when the positions are.
    pub async fn ingest(&self, events: Vec<UsageEvent>, now: Timestamp) -> Result<Vec<Ingested>, PlatformError> {
        if events.len() > N_EVENTS_PER_BATCH {
            let reason = format!("at most {N_EVENTS_PER_BATCH} events, got {}", events.len());
            return Err(PlatformError::Invalid { field: "events", reason });
        }
        let keys: Vec<EventKey> = events.iter().map(UsageEvent::key).collect();
        let _nothing_newer_is_forgotten = Floor::hold(&self.ingesting);
        // What is not in the tables yet is looked at when it is decided, and so is what other ingests decided meanwhile.
        let known = self.store.known(&keys).await?;
        let mut ledger = self.ledger();
        let ingested = events.into_iter().map(|event| ledger.ingest(event, &known, now)).collect();
        drop(ledger);
        self.work.notify_one();
        Ok(ingested)
    }

    /// Waits until everything up to a position is durable.
    pub async fn until_durable(&self, position: Position) -> Result<(), PlatformError> {
        let mut durable = self.durable.subscribe();
        let reached = durable.wait_for(|durable| *durable >= position || self.has_ended()).await;
        match reached {
            Ok(durable) if *durable >= position => Ok(()),
            _ => Err(PlatformError::Ended),
        }
    }

    /// What is durable, as it changes.
    pub fn durable(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }

    /// Commits one row, if there is anything to commit. After an error the next call tries the same row.
    pub async fn commit(&self) -> Result<Option<Position>, PlatformError> {
        let mut writing = self.in_flight.lock().await;
        if writing.row.is_none() {
            writing.row = self.ledger().pop_row();
        }
        let Some(row) = &writing.row else { return Ok(None) };
        let (number, upto) = (writing.last_row + 1, row.upto);
        if let Err(error) = self.store.append(self.epoch, number, &row.bytes).await {
            if !error.is_transient() {
                self.end();
            }
            return Err(error);
        }
        writing.last_row = number;
        writing.row = None;
        self.rows[0].store(number, Ordering::Relaxed);
        self.durable.send_replace(upto);
        Ok(Some(upto))
    }

    /// Puts a stretch of the journal into the tables; says whether there was any.
    pub async fn project(&self) -> Result<Option<u64>, PlatformError> {
        let mut projected_row = self.projected_row.lock().await;
        let rows = self.store.rows_after(*projected_row).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let projection = Projection::of_rows(&rows)?;
        self.store.project(self.epoch, &projection).await?;
        *projected_row = projection.upto;
        self.rows[1].store(projection.upto, Ordering::Relaxed);
        if let Some(last_seq) = projection.last_seq() {
            let mut ingesting = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
            ingesting.projected_seq = ingesting.projected_seq.max(last_seq);
            let floor = ingesting.floor();
            drop(ingesting);
            self.ledger().projected(floor);
        }
        Ok(Some(projection.upto))
    }

    /// Rows of the journal that are not in the tables yet.
    pub fn n_rows_behind(&self) -> u64 {
        // A row whose commit's answer was lost may be projected before it is known to be committed.
        self.rows[0].load(Ordering::Relaxed).saturating_sub(self.rows[1].load(Ordering::Relaxed))
    }

    /// Nothing more can be written: whoever waits learns of it.
    fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.durable.send_modify(|_| {});
    }

    /// Whether nothing can be admitted any more: another writer has taken over, or the store refuses for good what it is given.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Whether the store has failed for longer than anybody should be let in.
    fn is_away(&self, now: Timestamp) -> bool {
        let since = self.at_work_since.load(Ordering::Relaxed);
        since != 0 && now.since(Timestamp(since)) > STORE_AWAY_MAX
    }

    /// Commits and projects until another writer takes over, or the store refuses what it is given; a store that is away is asked
    /// again for ever. `now` tells the time, for leases.
    pub async fn run(self: Arc<Self>, now: Clock) -> PlatformError {
        let (mut pause, mut is_failing) = (RETRY_MIN, false);
        let mut next_commit = tokio::time::Instant::now();
        loop {
            self.ledger().expire(now());
            // A store that does not answer is as far away as one that fails.
            let _ = self.at_work_since.compare_exchange(0, now().0, Ordering::Relaxed, Ordering::Relaxed);
            match self.turn(&mut next_commit).await {
                Ok(()) => {
                    self.at_work_since.store(0, Ordering::Relaxed);
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("the ledger's store is there again");
                    }
                    pause = RETRY_MIN;
                }
                Err(error) if error.is_transient() => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the ledger's store failed: what is to be written waits");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => {
                    self.end();
                    return error;
                }
            }
        }
    }

    /// Commits what there is; when there is nothing, projects some; when there is nothing of that either, waits. Where the tables
    /// are far behind, commits and projections alternate.
    async fn turn(&self, next_commit: &mut tokio::time::Instant) -> Result<(), PlatformError> {
        let is_behind = self.n_rows_behind() >= N_ROWS_BEFORE_PROJECTING;
        if !is_behind {
            tokio::time::sleep_until(*next_commit).await;
        }
        *next_commit = tokio::time::Instant::now() + COMMIT_EVERY;
        if self.commit().await?.is_some() && !is_behind {
            return Ok(());
        }
        if self.project().await?.is_some() {
            return Ok(());
        }
        // A permit that was left meanwhile ends the wait at once; without any work, leases are looked at now and then.
        let _ = tokio::time::timeout(IDLE_MAX, self.work.notified()).await;
        Ok(())
    }

    /// Commits and projects all there is: before a process ends, and in tests.
    pub async fn flush(&self) -> Result<(), PlatformError> {
        while self.commit().await?.is_some() {}
        while self.project().await?.is_some() {}
        Ok(())
    }
}

const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(2);
const IDLE_MAX: Duration = Duration::from_millis(500);
/// Commits come before projections until this many rows wait; then they alternate.
const N_ROWS_BEFORE_PROJECTING: u64 = 16;
