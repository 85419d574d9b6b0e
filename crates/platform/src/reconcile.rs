//! Checking the books: every event has its entry and costs what the rate card of its time says; credit, counters and rollups add
//! up to the entries, to the micro. And rebuilding what is derived. Reads the tables only, so that it finds what the ledger in
//! memory got wrong, too.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::catalog::Catalog;
use crate::error::PlatformError;
use crate::ledger::projection::Grain;
use crate::money::{Micros, TokenCounts};
use crate::store::{Store, as_i64, get, get_count, get_money, get_time};

/// Something that does not add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which sum.
    pub what: &'static str,
    /// Of what.
    pub at: String,
    /// From the events or entries.
    pub expected: i64,
    /// As it is stored.
    pub got: i64,
}

/// The result of a reconciliation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Events that were read.
    pub n_events: u64,
    /// What they cost, all together.
    pub charge: Micros,
    /// Of this, what is owed.
    pub due: Micros,
    /// What is wrong; cut off at [`N_DIFFERENCES_MAX`].
    pub differences: Vec<Difference>,
}

/// Differences that a report holds.
pub const N_DIFFERENCES_MAX: usize = 1000;
const N_EVENTS_PER_PAGE: i64 = 2000;

/// Each is a query of rows `at, expected, got` that differ. Sums over nothing are nothing, which `COALESCE` says.
const SUMS: &[(&str, &str)] = &[
    (
        "entries without an event",
        "SELECT CAST(e.seq AS TEXT) AS at, CAST(0 AS BIGINT) AS expected, CAST(1 AS BIGINT) AS got FROM ledger_entry e LEFT JOIN usage_event u ON u.seq = e.seq WHERE u.seq IS NULL",
    ),
    (
        "credit drawn and owed, of an entry's charge",
        "SELECT CAST(e.seq AS TEXT) AS at, e.charge AS expected, CAST(e.due + COALESCE(SUM(d.amount), 0) AS BIGINT) AS got FROM ledger_entry e LEFT JOIN credit_draw d ON d.seq = e.seq GROUP BY e.seq, e.charge, e.due HAVING e.charge <> e.due + COALESCE(SUM(d.amount), 0)",
    ),
    (
        "draws without an entry",
        "SELECT CAST(d.seq AS TEXT) AS at, CAST(0 AS BIGINT) AS expected, d.amount AS got FROM credit_draw d LEFT JOIN ledger_entry e ON e.seq = d.seq WHERE e.seq IS NULL",
    ),
    (
        "what is left of a grant",
        "SELECT g.id AS at, CAST(g.amount - COALESCE(SUM(d.amount), 0) AS BIGINT) AS expected, g.remaining AS got FROM credit_grant g LEFT JOIN credit_draw d ON d.grant_id = g.id GROUP BY g.id, g.amount, g.remaining HAVING g.amount - COALESCE(SUM(d.amount), 0) <> g.remaining OR g.remaining < 0",
    ),
    // An account's closed months cover, of all months up to the last of them, what the ledger had when that was closed.
    (
        "lines of usage and credit, of what closed months owe",
        "SELECT * FROM (SELECT c.account_id AS at, CAST(COALESCE((SELECT SUM(e.due) FROM ledger_entry e WHERE e.account_id = c.account_id AND e.period <= c.period AND e.seq <= c.upto_seq), 0) AS BIGINT) AS expected, CAST(COALESCE((SELECT SUM(l.amount) FROM invoice i JOIN invoice_line l ON l.invoice_id = i.id WHERE i.account_id = c.account_id AND i.kind = 'invoice' AND (l.line_id LIKE 'usage:%' OR l.line_id LIKE 'credit:%' OR l.line_id LIKE 'late:%')), 0) AS BIGINT) AS got FROM closed_period c WHERE c.period = (SELECT MAX(x.period) FROM closed_period x WHERE x.account_id = c.account_id)) AS k WHERE expected <> got",
    ),
    (
        "months closed without a gap",
        "SELECT account_id AS at, CAST(MAX(period) - MIN(period) + 1 AS BIGINT) AS expected, CAST(COUNT(*) AS BIGINT) AS got FROM closed_period GROUP BY account_id HAVING MAX(period) - MIN(period) + 1 <> COUNT(*)",
    ),
    (
        "an invoice's total, of its lines",
        "SELECT i.id AS at, CAST(COALESCE(SUM(l.amount), 0) AS BIGINT) AS expected, i.total AS got FROM invoice i LEFT JOIN invoice_line l ON l.invoice_id = i.id GROUP BY i.id, i.total HAVING COALESCE(SUM(l.amount), 0) <> i.total",
    ),
    (
        "numbers of invoices without a gap",
        "SELECT * FROM (SELECT s.id AS at, s.last_invoice AS expected, CAST((SELECT COUNT(*) FROM invoice i WHERE i.issuer_id = s.id AND i.kind = 'invoice' AND i.number BETWEEN 1 AND s.last_invoice) AS BIGINT) AS got FROM invoice_issuer s) AS k WHERE expected <> got",
    ),
    (
        "numbers of credit notes without a gap",
        "SELECT * FROM (SELECT s.id AS at, s.last_credit_note AS expected, CAST((SELECT COUNT(*) FROM invoice i WHERE i.issuer_id = s.id AND i.kind = 'credit_note' AND i.number BETWEEN 1 AND s.last_credit_note) AS BIGINT) AS got FROM invoice_issuer s) AS k WHERE expected <> got",
    ),
    (
        "what credit notes take off an invoice",
        "SELECT * FROM (SELECT i.id AS at, CAST(COALESCE((SELECT -SUM(n.total) FROM invoice n WHERE n.corrects = i.id), 0) AS BIGINT) AS expected, i.credited AS got FROM invoice i) AS k WHERE expected <> got",
    ),
    (
        "what was paid of an invoice",
        "SELECT * FROM (SELECT i.id AS at, CAST(COALESCE((SELECT SUM(p.amount) FROM payment p WHERE p.invoice_id = i.id AND p.status = 'succeeded'), 0) - COALESCE((SELECT SUM(r.amount) FROM refund r JOIN payment p ON p.id = r.payment_id WHERE p.invoice_id = i.id AND r.status = 'succeeded'), 0) AS BIGINT) AS expected, i.paid AS got FROM invoice i) AS k WHERE expected <> got",
    ),
];

/// The columns of a rollup that are sums, each as the events and entries have it.
const ROLLUP_SUMS: &[(&str, &str)] = &[
    ("n_events", "COUNT(*)"),
    ("n_operations", "SUM(u.n_operations)"),
    ("n_input", "SUM(u.n_input)"),
    ("n_cached", "SUM(u.n_cached)"),
    ("n_output", "SUM(u.n_output)"),
    ("charge", "SUM(e.charge)"),
    ("due", "SUM(e.due)"),
];

/// The same of a month's counters.
const USE_SUMS: &[(&str, &str)] = &[
    ("n_events", "COUNT(*)"),
    ("n_operations", "SUM(u.n_operations)"),
    ("n_included", "SUM(CASE WHEN e.funding = 'included' THEN u.n_operations ELSE 0 END)"),
    ("charge", "SUM(e.charge)"),
    ("due", "SUM(e.due)"),
];

/// What the buckets of one length must be that begin then or later: one row for each, from the entries.
fn rollup_query(grain: Grain, since: i64) -> String {
    let micros = grain.micros();
    // Neither database's remainder is Euclid's, so a time before 1970 is lifted first; `start_of` agrees.
    let start = format!("(u.occurred_at - ((u.occurred_at % {micros}) + {micros}) % {micros})");
    format!(
        "SELECT u.account_id AS account_id, '{}' AS grain, {start} AS bucket_start, u.project_id AS project_id, COALESCE(u.api_key_id, '') AS api_key_id, u.model AS model, u.purpose AS purpose{} \
         FROM usage_event u JOIN ledger_entry e ON e.seq = u.seq WHERE u.occurred_at >= {since} GROUP BY u.account_id, {start}, u.project_id, COALESCE(u.api_key_id, ''), u.model, u.purpose",
        grain.name(),
        sums(ROLLUP_SUMS)
    )
}

/// What the counters of one kind of scope must be.
fn use_query(kind: &str, column: &str) -> String {
    format!(
        "SELECT '{kind}' AS scope_kind, u.{column} AS scope_id, e.period AS period{} FROM usage_event u JOIN ledger_entry e ON e.seq = u.seq \
         WHERE u.{column} IS NOT NULL GROUP BY u.{column}, e.period",
        sums(USE_SUMS)
    )
}

fn sums(columns: &[(&str, &str)]) -> String {
    columns.iter().map(|(name, sum)| format!(", CAST({sum} AS BIGINT) AS {name}")).collect()
}

const SCOPES: &[(&str, &str)] = &[("account", "account_id"), ("project", "project_id"), ("api_key", "api_key_id")];

impl Store {
    /// Checks all the books. Takes no locks: run it where nothing is being projected, or expect to run it again.
    pub async fn reconcile(&self) -> Result<Report, PlatformError> {
        let mut report = Report::default();
        self.rate_again(&self.catalog().await?, &mut report).await?;
        for (what, query) in SUMS {
            let rows = sqlx::query(*query).fetch_all(self.pool()).await.map_err(PlatformError::database("reconciling"))?;
            for row in &rows {
                let (expected, got) = (get(row, "expected")?, get(row, "got")?);
                report.note(Difference { what, at: get(row, "at")?, expected, got });
            }
        }
        let minutes_before = self.minutes_before().await?.0;
        for grain in Grain::ALL {
            let since = if grain == Grain::Minute { minutes_before } else { i64::MIN + 1 };
            let stored = "SELECT * FROM usage_rollup WHERE grain = ";
            let stored = format!("{stored}'{}' AND bucket_start >= {since}", grain.name());
            let keys = ["account_id", "project_id", "api_key_id", "model", "purpose"];
            self.compare(&mut report, (rollup_query(grain, since), stored), (&keys, "bucket_start"), ROLLUP_SUMS).await?;
        }
        for (kind, column) in SCOPES {
            let stored = format!("SELECT * FROM period_use WHERE scope_kind = '{kind}'");
            self.compare(&mut report, (use_query(kind, column), stored), (&["scope_id"], "period"), USE_SUMS).await?;
        }
        Ok(report)
    }

    /// Rates every event anew, by the price that its entry names, and that price by the event's time.
    async fn rate_again(&self, catalog: &Catalog, report: &mut Report) -> Result<(), PlatformError> {
        let mut after = 0;
        loop {
            let query = sqlx::query(
                "SELECT u.seq AS seq, u.occurred_at, u.n_input, u.n_cached, u.n_output, e.class, e.price_from, e.funding, e.charge, e.due \
                 FROM usage_event u LEFT JOIN ledger_entry e ON e.seq = u.seq WHERE u.seq > $1 ORDER BY u.seq LIMIT $2",
            );
            let query = query.bind(after).bind(N_EVENTS_PER_PAGE);
            let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reconciling"))?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = get(last, "seq")?;
            for row in &rows {
                rate_row(row, catalog, report)?;
            }
        }
    }

    /// Notes in which rows two queries differ.
    async fn compare(
        &self,
        report: &mut Report,
        (expected, stored): (String, String),
        (text_keys, number_key): (&[&'static str], &'static str),
        columns: &[(&'static str, &str)],
    ) -> Result<(), PlatformError> {
        let mut sides: [BTreeMap<String, Vec<i64>>; 2] = Default::default();
        for (side, query) in sides.iter_mut().zip([expected, stored]) {
            let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(self.pool()).await;
            for row in &rows.map_err(PlatformError::database("reconciling"))? {
                let texts = text_keys.iter().map(|key| get::<String>(row, key)).collect::<Result<Vec<_>, _>>()?;
                let key = format!("{} {}", texts.join(" "), get::<i64>(row, number_key)?);
                let values = columns.iter().map(|(column, _)| get::<i64>(row, column)).collect::<Result<_, _>>()?;
                side.insert(key, values);
            }
        }
        let [expected, stored] = sides;
        let zeros = vec![0; columns.len()];
        for key in expected.keys().chain(stored.keys().filter(|key| !expected.contains_key(*key))) {
            let (left, right) = (expected.get(key).unwrap_or(&zeros), stored.get(key).unwrap_or(&zeros));
            for (index, (what, _)) in columns.iter().enumerate().filter(|(index, _)| left[*index] != right[*index]) {
                report.note(Difference { what, at: key.clone(), expected: left[index], got: right[index] });
            }
        }
        Ok(())
    }

    /// Makes counters, rollups and what is left of grants anew from the entries; the result is the same however often.
    pub async fn rebuild_derived(&self) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let doing = "rebuilding what is derived";
        // Nothing is projected meanwhile: the projector updates this row first.
        let mut statements = vec![
            "UPDATE ledger_writer SET projected_row = projected_row".to_string(),
            "DELETE FROM usage_rollup".to_string(),
            "DELETE FROM period_use".to_string(),
            "UPDATE credit_grant SET remaining = amount - COALESCE((SELECT SUM(d.amount) FROM credit_draw d WHERE d.grant_id = credit_grant.id), 0)"
                .to_string(),
        ];
        let minutes_before = self.minutes_before().await?.0;
        let since = |grain| if grain == Grain::Minute { minutes_before } else { i64::MIN + 1 };
        statements.extend(Grain::ALL.map(|grain| format!("INSERT INTO usage_rollup {}", rollup_query(grain, since(grain)))));
        statements.extend(SCOPES.iter().map(|(kind, column)| format!("INSERT INTO period_use {}", use_query(kind, column))));
        for statement in statements {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        }
        write.commit(doing).await
    }
}

impl Report {
    /// Whether everything adds up.
    pub fn is_balanced(&self) -> bool {
        self.differences.is_empty()
    }

    fn note(&mut self, difference: Difference) {
        if self.differences.len() < N_DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

fn rate_row(row: &AnyRow, catalog: &Catalog, report: &mut Report) -> Result<(), PlatformError> {
    let seq = get_count(row, "seq")?;
    report.n_events += 1;
    let mut wrong = |what, expected, got| report.note(Difference { what, at: seq.to_string(), expected, got });
    let Some(funding) = get::<Option<String>>(row, "funding")? else {
        wrong("events without an entry", 1, 0);
        return Ok(());
    };
    let (class, from): (String, _) = (get(row, "class")?, get_time(row, "price_from")?);
    let tokens =
        TokenCounts { n_input: get_count(row, "n_input")?, n_cached: get_count(row, "n_cached")?, n_output: get_count(row, "n_output")? };
    let price =
        catalog.price_from(&class, from).filter(|price| get_time(row, "occurred_at").is_ok_and(|time| price.validity.holds_at(time)));
    match price {
        None => wrong("price at the time of an event", from.0, as_i64(seq)),
        Some(price) => {
            let expected = if funding == "metered" { price.price.charge(tokens) } else { Micros::ZERO };
            let got = get_money(row, "charge")?;
            if expected != got {
                wrong("charge for an event", expected.0, got.0);
            }
        }
    }
    report.charge = report.charge.plus(get_money(row, "charge")?);
    report.due = report.due.plus(get_money(row, "due")?);
    Ok(())
}
