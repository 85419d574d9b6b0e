//! The ledger's tables: appending to the journal, applying projections, reading back what a writer begins with.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::any::AnyRow;

use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::event::{Entry, EventKey, Grant, HoldId, OpenRequest, PayloadHash, Produced};
use crate::ledger::projection::Projection;
use crate::ledger::scope::{PeriodUse, ScopeId};
use crate::ledger::service::{LedgerStore, Takeover};
use crate::ledger::{GrantBalance, Opening, event};
use crate::limits::{N_JOURNAL_ROWS_PER_PROJECTION, N_PAST_PERIODS, PROJECTION_BYTES_MAX};
use crate::money::Micros;
use crate::store::bulk::Column::{Bytes, Int, Text};
use crate::store::bulk::{Bulk, Cell, Place, rows_per_statement, written};
use crate::store::{BoxFuture, Store, Write, as_i64, get, get_count, get_money, get_optional_time, get_parsed, get_time};
use crate::time::{Period, Timestamp};

const EVENTS: Bulk = Bulk {
    head: "INSERT INTO usage_event (seq, account_id, source, event_id, payload_hash, project_id, api_key_id, request_id, model, purpose, outcome, occurred_at, n_input, n_cached, n_output, n_operations) ",
    columns: &[Int, Text, Text, Text, Bytes, Text, Text, Text, Text, Text, Text, Int, Int, Int, Int, Int],
    place: Place::Insert,
    tail: "",
};
const ENTRIES: Bulk = Bulk {
    head: "INSERT INTO ledger_entry (seq, account_id, period, posted_at, plan_id, class, price_from, funding, charge, due) ",
    columns: &[Int, Text, Int, Int, Text, Text, Int, Text, Int, Int],
    place: Place::Insert,
    tail: "",
};
const DRAWS: Bulk =
    Bulk { head: "INSERT INTO credit_draw (seq, grant_id, amount) ", columns: &[Int, Text, Int], place: Place::Insert, tail: "" };
const DRAWN: Bulk = Bulk {
    head: "UPDATE credit_grant SET remaining = credit_grant.remaining - p.column2 FROM ",
    columns: &[Text, Int],
    place: Place::From,
    tail: " WHERE credit_grant.id = p.column1",
};
const GRANTS: Bulk = Bulk {
    head: "INSERT INTO credit_grant (id, account_id, amount, remaining, granted_at, expires_at, reason) ",
    columns: &[Text, Text, Int, Int, Int, Int, Text],
    place: Place::Insert,
    tail: "",
};
const OPENED: Bulk = Bulk {
    head: "INSERT INTO open_request (hold_epoch, hold_number, request, n_cached, n_output) ",
    columns: &[Int, Int, Bytes, Int, Int],
    place: Place::Insert,
    tail: "",
};
const PROGRESSED: Bulk = Bulk {
    head: "UPDATE open_request SET n_cached = p.column3, n_output = p.column4 FROM ",
    columns: &[Int; 4],
    place: Place::From,
    tail: " WHERE open_request.hold_epoch = p.column1 AND open_request.hold_number = p.column2",
};
const CLOSED: Bulk =
    Bulk { head: "DELETE FROM open_request WHERE (hold_epoch, hold_number) IN ", columns: &[Int; 2], place: Place::In, tail: "" };
const USED: Bulk = Bulk {
    head: "INSERT INTO period_use (scope_kind, scope_id, period, n_events, n_operations, n_included, charge, due) ",
    columns: &[Text, Text, Int, Int, Int, Int, Int, Int],
    place: Place::Insert,
    tail: " ON CONFLICT (scope_kind, scope_id, period) DO UPDATE SET n_events = period_use.n_events + excluded.n_events, n_operations = period_use.n_operations + excluded.n_operations, n_included = period_use.n_included + excluded.n_included, charge = period_use.charge + excluded.charge, due = period_use.due + excluded.due",
};
const ROLLUPS: Bulk = Bulk {
    head: "INSERT INTO usage_rollup (account_id, grain, bucket_start, project_id, api_key_id, model, purpose, n_events, n_operations, n_input, n_cached, n_output, charge, due) ",
    columns: &[Text, Text, Int, Text, Text, Text, Text, Int, Int, Int, Int, Int, Int, Int],
    place: Place::Insert,
    tail: " ON CONFLICT (account_id, grain, bucket_start, project_id, api_key_id, model, purpose) DO UPDATE SET n_events = usage_rollup.n_events + excluded.n_events, n_operations = usage_rollup.n_operations + excluded.n_operations, n_input = usage_rollup.n_input + excluded.n_input, n_cached = usage_rollup.n_cached + excluded.n_cached, n_output = usage_rollup.n_output + excluded.n_output, charge = usage_rollup.charge + excluded.charge, due = usage_rollup.due + excluded.due",
};
/// A question for each key, so that the answer comes from the index however large or small the database believes the table to be.
const KNOWN: Bulk = Bulk {
    head: "SELECT * FROM (SELECT p.column1 AS account_id, p.column2 AS source, p.column3 AS event_id, (SELECT u.payload_hash FROM usage_event u WHERE u.account_id = p.column1 AND u.source = p.column2 AND u.event_id = p.column3) AS payload_hash FROM ",
    columns: &[Text; 3],
    place: Place::From,
    tail: ") AS k WHERE payload_hash IS NOT NULL",
};

/// How far the journal and the tables are, and who writes.
struct Writer {
    epoch: u64,
    journal_row: u64,
    projected_row: u64,
}

impl Store {
    async fn writer(&self, write: &mut Write<'_>) -> Result<Writer, PlatformError> {
        let query = sqlx::query("SELECT epoch, journal_row, projected_row FROM ledger_writer");
        let row = query.fetch_one(&mut *write.transaction).await.map_err(PlatformError::database("reading the writer"))?;
        Ok(Writer {
            epoch: get_count(&row, "epoch")?,
            journal_row: get_count(&row, "journal_row")?,
            projected_row: get_count(&row, "projected_row")?,
        })
    }

    async fn append_row(&self, epoch: u64, number: u64, bytes: &[u8]) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let doing = "appending to the journal";
        // The row lock of this update is what keeps an old writer out while a new one takes over.
        let query = sqlx::query("UPDATE ledger_writer SET journal_row = $1 WHERE epoch = $2 AND journal_row = $3");
        let query = query.bind(as_i64(number)).bind(as_i64(epoch)).bind(as_i64(number) - 1);
        let updated = query.execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        if updated.rows_affected() == 0 {
            let writer = self.writer(&mut write).await?;
            return match writer {
                Writer { epoch: owner, .. } if owner != epoch => Err(PlatformError::Fenced { own: epoch, owner }),
                // It was committed, and only the answer was lost.
                Writer { journal_row, .. } if journal_row == number => Ok(()),
                Writer { journal_row, .. } => {
                    Err(PlatformError::Corrupt { what: "the journal", reason: format!("row {number} after row {journal_row}") })
                }
            };
        }
        let query = sqlx::query("INSERT INTO journal (row_number, epoch, records) VALUES ($1, $2, $3)");
        let query = query.bind(as_i64(number)).bind(as_i64(epoch)).bind(bytes.to_vec());
        query.execute(&mut *write.transaction).await.map_err(written)?;
        write.commit(doing).await
    }

    async fn apply_projection(&self, epoch: u64, projection: &Projection) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let doing = "projecting the journal";
        let last_seq = projection.last_seq().map(as_i64);
        let query = sqlx::query(
            "UPDATE ledger_writer SET projected_row = $1, last_seq = COALESCE($2, last_seq) WHERE epoch = $3 AND projected_row = $4 AND journal_row >= $1",
        );
        let query = query.bind(as_i64(projection.upto)).bind(last_seq).bind(as_i64(epoch)).bind(as_i64(projection.after));
        let updated = query.execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        if updated.rows_affected() == 0 {
            let Writer { epoch: owner, projected_row, .. } = self.writer(&mut write).await?;
            // A new writer has read how far the tables are, and counts on the rows behind that.
            if owner != epoch {
                return Err(PlatformError::Fenced { own: epoch, owner });
            }
            if projected_row >= projection.upto {
                return Ok(());
            }
            let reason = format!("a projection of rows {} to {} after row {projected_row}", projection.after + 1, projection.upto);
            return Err(PlatformError::Corrupt { what: "the journal", reason });
        }
        self.write_projection(&mut write, projection).await?;
        let query = sqlx::query("DELETE FROM journal WHERE row_number <= $1").bind(as_i64(projection.upto));
        query.execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        write.commit(doing).await
    }

    async fn write_projection(&self, write: &mut Write<'_>, projection: &Projection) -> Result<(), PlatformError> {
        let entries = &projection.entries;
        let mut drawn: HashMap<String, i64> = HashMap::new();
        for draw in entries.iter().flat_map(|entry| &entry.draws) {
            *drawn.entry(draw.grant.to_string()).or_default() += draw.amount.0;
        }
        let draw_row =
            |entry: &Entry, draw: &event::Draw| vec![count(entry.seq), Cell::Text(draw.grant.to_string()), Cell::Int(draw.amount.0)];
        let draws = entries.iter().flat_map(|entry| entry.draws.iter().map(move |draw| draw_row(entry, draw))).collect();
        let progress_row = |(id, produced): (&HoldId, &Produced)| {
            vec![count(id.epoch), count(id.number), count(produced.n_cached), count(produced.n_output)]
        };
        let dialect = self.dialect();
        GRANTS.run(write, dialect, projection.grants.iter().map(grant_row).collect()).await?;
        // Made a statement at a time: a request on this core would wait for all of them to be made.
        for entries in entries.chunks(rows_per_statement(dialect)) {
            EVENTS.run(write, dialect, entries.iter().map(event_row).collect()).await?;
            ENTRIES.run(write, dialect, entries.iter().map(entry_row).collect()).await?;
        }
        let steps = [
            (DRAWS, draws),
            (DRAWN, drawn.into_iter().map(|(grant, amount)| vec![Cell::Text(grant), Cell::Int(amount)]).collect()),
            (CLOSED, projection.closed.iter().map(|id| vec![count(id.epoch), count(id.number)]).collect()),
            (PROGRESSED, projection.progressed.iter().map(progress_row).collect()),
            (OPENED, projection.opened.values().map(opened_row).collect()),
            (USED, projection.used.iter().map(used_row).collect()),
            (ROLLUPS, projection.rollups.iter().map(rollup_row).collect()),
        ];
        for (bulk, rows) in steps {
            bulk.run(write, dialect, rows).await?;
        }
        Ok(())
    }

    async fn read_opening(&self, now: Timestamp) -> Result<Opening, PlatformError> {
        let failed = || PlatformError::database("reading the ledger");
        let row = sqlx::query("SELECT last_seq FROM ledger_writer").fetch_one(self.pool()).await.map_err(failed())?;
        let last_seq = get_count(&row, "last_seq")?;
        let oldest = now.period().minus_months(N_PAST_PERIODS);
        let query = sqlx::query("SELECT * FROM period_use WHERE period >= $1").bind(i64::from(oldest.0));
        let used = query.fetch_all(self.pool()).await.map_err(failed())?;
        let grants = sqlx::query("SELECT * FROM credit_grant").fetch_all(self.pool()).await.map_err(failed())?;
        let query = sqlx::query("SELECT request, n_cached, n_output FROM open_request ORDER BY hold_epoch, hold_number");
        let open = query.fetch_all(self.pool()).await.map_err(failed())?;
        Ok(Opening {
            last_seq,
            catalog: self.catalog().await?,
            accounts: self.all_terms().await?,
            limits: self.all_limits().await?,
            used: used.iter().map(read_used).collect::<Result<_, _>>()?,
            grants: grants.iter().map(read_grant).collect::<Result<_, _>>()?,
            open: open.iter().map(read_open).collect::<Result<_, _>>()?,
        })
    }

    async fn read_known(&self, keys: &[EventKey]) -> Result<HashMap<EventKey, PayloadHash>, PlatformError> {
        let mut known = HashMap::new();
        for keys in keys.chunks(rows_per_statement(self.dialect())) {
            let text = |text: &str| Cell::Text(text.to_string());
            let row = |key: &EventKey| vec![Cell::Text(key.account.to_string()), text(&key.source), text(&key.event_id)];
            let query = KNOWN.query(keys.iter().map(row).collect(), self.dialect());
            let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("looking up events"))?;
            for row in &rows {
                let (source, event_id) = (get::<String>(row, "source")?, get::<String>(row, "event_id")?);
                let account: AccountId = get_parsed(row, "account_id")?;
                let key = EventKey { account, source: source.into(), event_id: event_id.into() };
                known.insert(key, read_hash(row)?);
            }
        }
        Ok(known)
    }
}

impl LedgerStore for Arc<Store> {
    fn take_over(&self) -> BoxFuture<'_, Takeover> {
        Box::pin(async move {
            let mut write = self.begin().await?;
            let doing = "taking the ledger over";
            let update = sqlx::query("UPDATE ledger_writer SET epoch = epoch + 1");
            update.execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
            let Writer { epoch, journal_row, projected_row } = self.writer(&mut write).await?;
            write.commit(doing).await?;
            Ok(Takeover { epoch, journal_row, projected_row })
        })
    }

    fn load(&self, now: Timestamp) -> BoxFuture<'_, Opening> {
        Box::pin(self.read_opening(now))
    }

    fn append<'a>(&'a self, epoch: u64, number: u64, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(self.append_row(epoch, number, bytes))
    }

    fn rows_after(&self, number: u64) -> BoxFuture<'_, Vec<(u64, Vec<u8>)>> {
        Box::pin(async move {
            let query = sqlx::query("SELECT row_number, records FROM journal WHERE row_number > $1 ORDER BY row_number LIMIT $2");
            let query = query.bind(as_i64(number)).bind(N_JOURNAL_ROWS_PER_PROJECTION as i64);
            let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading the journal"))?;
            let mut read = Vec::new();
            let mut n_bytes = 0;
            for row in &rows {
                let bytes: Vec<u8> = get(row, "records")?;
                n_bytes += bytes.len();
                read.push((get_count(row, "row_number")?, bytes));
                if n_bytes >= PROJECTION_BYTES_MAX {
                    break;
                }
            }
            Ok(read)
        })
    }

    fn project<'a>(&'a self, epoch: u64, projection: &'a Projection) -> BoxFuture<'a, ()> {
        Box::pin(self.apply_projection(epoch, projection))
    }

    fn known<'a>(&'a self, keys: &'a [EventKey]) -> BoxFuture<'a, HashMap<EventKey, PayloadHash>> {
        Box::pin(self.read_known(keys))
    }
}

fn count(n: u64) -> Cell {
    Cell::Int(as_i64(n))
}

fn event_row(entry: &Entry) -> Vec<Cell> {
    let event = &entry.event;
    vec![
        count(entry.seq),
        Cell::Text(event.owner.account.to_string()),
        Cell::Text(event.source.to_string()),
        Cell::Text(event.event_id.to_string()),
        Cell::Bytes(event.payload_hash().0.to_vec()),
        Cell::Text(event.owner.project.to_string()),
        Cell::OptionalText(event.owner.api_key.map(|key| key.to_string())),
        Cell::Text(event.request_id.to_string()),
        Cell::Text(event.model.to_string()),
        Cell::Text(event.purpose.name().to_string()),
        Cell::Text(event.outcome.name().to_string()),
        Cell::Int(event.occurred_at.0),
        count(event.tokens.n_input),
        count(event.tokens.n_cached),
        count(event.tokens.n_output),
        count(event.n_operations),
    ]
}

fn entry_row(entry: &Entry) -> Vec<Cell> {
    vec![
        count(entry.seq),
        Cell::Text(entry.event.owner.account.to_string()),
        Cell::Int(i64::from(entry.event.occurred_at.period().0)),
        Cell::Int(entry.posted_at.0),
        Cell::Text(entry.plan.to_string()),
        Cell::Text(entry.class.to_string()),
        Cell::Int(entry.price_from.0),
        Cell::Text(entry.funding.name().to_string()),
        Cell::Int(entry.charge.0),
        Cell::Int(entry.due().0),
    ]
}

fn grant_row(grant: &Grant) -> Vec<Cell> {
    vec![
        Cell::Text(grant.id.to_string()),
        Cell::Text(grant.account.to_string()),
        Cell::Int(grant.amount.0),
        Cell::Int(grant.amount.0),
        Cell::Int(grant.granted_at.0),
        Cell::OptionalInt(grant.expires_at.map(|time| time.0)),
        Cell::Text(grant.reason.clone()),
    ]
}

fn opened_row(request: &OpenRequest) -> Vec<Cell> {
    let mut bytes = event::new_row();
    event::append(&mut bytes, request);
    let Produced { n_cached, n_output } = request.produced;
    vec![count(request.id.epoch), count(request.id.number), Cell::Bytes(bytes), count(n_cached), count(n_output)]
}

fn used_row(((scope, period), used): (&(ScopeId, Period), &PeriodUse)) -> Vec<Cell> {
    let (kind, id) = scope.names();
    let keys = [Cell::Text(kind.to_string()), Cell::Text(id), Cell::Int(i64::from(period.0))];
    let counts = [count(used.n_events), count(used.n_operations), count(used.n_included)];
    keys.into_iter().chain(counts).chain([Cell::Int(used.charge.0), Cell::Int(used.due.0)]).collect()
}

fn rollup_row((bucket, counts): (&crate::ledger::projection::Bucket, &crate::ledger::projection::RollupCounts)) -> Vec<Cell> {
    vec![
        Cell::Text(bucket.account.to_string()),
        Cell::Text(bucket.grain.name().to_string()),
        Cell::Int(bucket.start.0),
        Cell::Text(bucket.project.to_string()),
        Cell::Text(bucket.api_key.map_or_else(String::new, |key| key.to_string())),
        Cell::Text(bucket.model.clone()),
        Cell::Text(bucket.purpose.name().to_string()),
        count(counts.n_events),
        count(counts.n_operations),
        count(counts.tokens.n_input),
        count(counts.tokens.n_cached),
        count(counts.tokens.n_output),
        Cell::Int(counts.charge.0),
        Cell::Int(counts.due.0),
    ]
}

fn read_used(row: &AnyRow) -> Result<(ScopeId, Period, PeriodUse), PlatformError> {
    let kind: String = get(row, "scope_kind")?;
    let scope = match kind.as_str() {
        "account" => ScopeId::Account(get_parsed(row, "scope_id")?),
        "project" => ScopeId::Project(get_parsed(row, "scope_id")?),
        "api_key" => ScopeId::ApiKey(get_parsed(row, "scope_id")?),
        _ => return Err(PlatformError::Corrupt { what: "scope_kind", reason: kind }),
    };
    let period: i64 = get(row, "period")?;
    let period = Period(i32::try_from(period).map_err(|_| PlatformError::Corrupt { what: "period", reason: period.to_string() })?);
    let used = PeriodUse {
        n_events: get_count(row, "n_events")?,
        n_operations: get_count(row, "n_operations")?,
        n_included: get_count(row, "n_included")?,
        charge: get_money(row, "charge")?,
        due: get_money(row, "due")?,
    };
    Ok((scope, period, used))
}

fn read_grant(row: &AnyRow) -> Result<GrantBalance, PlatformError> {
    let grant = Grant {
        id: get_parsed(row, "id")?,
        account: get_parsed(row, "account_id")?,
        amount: get_money(row, "amount")?,
        granted_at: get_time(row, "granted_at")?,
        expires_at: get_optional_time(row, "expires_at")?,
        reason: get(row, "reason")?,
    };
    Ok(GrantBalance { grant, remaining: Micros(get(row, "remaining")?) })
}

fn read_open(row: &AnyRow) -> Result<OpenRequest, PlatformError> {
    let bytes: Vec<u8> = get(row, "request")?;
    let request: OpenRequest = event::read_one(&bytes)?;
    let produced = Produced { n_cached: get_count(row, "n_cached")?, n_output: get_count(row, "n_output")? };
    Ok(OpenRequest { produced, ..request })
}

fn read_hash(row: &AnyRow) -> Result<PayloadHash, PlatformError> {
    let bytes: Vec<u8> = get(row, "payload_hash")?;
    let length = bytes.len();
    let hash = bytes.try_into().map_err(|_| PlatformError::Corrupt { what: "payload_hash", reason: format!("{length} bytes") })?;
    Ok(PayloadHash(hash))
}
