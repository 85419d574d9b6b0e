//! Drafts of invoices. A line of usage is the sum of entries that were charged, each rounded to a micro when it was rated, so that a
//! sum needs no rounding; a fee is rounded once, half a micro up. What is owed for usage is checked against the ledger's counter of
//! the month: an invoice that disagrees with it is not shown but an error.

use std::str::FromStr;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::catalog::Catalog;
use crate::directory::AccountRow;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::limits::N_REQUESTS_PER_PAGE;
use crate::money::{Micros, TokenPrice};
use crate::store::{Store, as_i64, get, get_count, get_money, get_optional_time, get_time};
use crate::time::{Period, Timestamp};

/// What a line is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LineKind {
    /// A plan's monthly price, for the part of the month in which the account had it.
    Fee {
        /// Which plan.
        plan: String,
        /// From.
        from_micros: i64,
        /// Until.
        until_micros: i64,
    },
    /// Requests that the plan's operations paid.
    Included {
        /// Operations.
        n_operations: u64,
    },
    /// Tokens of a model, at one version of its price.
    Usage {
        /// Which model.
        model: String,
        /// Priced as.
        class: String,
        /// By the version that began then.
        price_from_micros: i64,
        /// Tokens computed of prompts.
        n_input: u64,
        /// Tokens of prompts that the cache had.
        n_cached: u64,
        /// Tokens written.
        n_output: u64,
        /// For a million of each.
        price_per_million_micros: [i64; 3],
    },
    /// What credit paid.
    Credit {
        /// Which grant.
        grant: String,
    },
}

/// A line of an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InvoiceLine {
    /// By which its requests are asked for.
    pub id: String,
    /// For people.
    pub text: String,
    /// What it is for.
    #[serde(flatten)]
    pub kind: LineKind,
    /// Requests in it.
    pub n_requests: u64,
    /// What it adds to the total; credit is negative.
    #[serde(rename = "amount_micros")]
    pub amount: Micros,
}

/// What an account owes for a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// Whose.
    pub account: AccountId,
    /// For people.
    pub account_name: String,
    /// Which month.
    pub period: Period,
    /// When it was drawn up.
    pub at: Timestamp,
    /// Its lines.
    pub lines: Vec<InvoiceLine>,
}

impl Invoice {
    /// The sum of its lines.
    pub fn total(&self) -> Micros {
        self.lines.iter().map(|line| line.amount).sum()
    }

    /// As the organisation's API says it.
    pub fn to_json(&self, currency: &str) -> Value {
        json!({
            "object": "organization.invoice",
            "status": "draft",
            "account_id": self.account.to_string(),
            "account_name": self.account_name,
            "period": self.period.to_string(),
            "period_start": self.period.start().0 / 1_000_000,
            "period_end": self.period.next().start().0 / 1_000_000,
            "drawn_up_at": self.at.to_rfc3339(),
            "currency": currency,
            "lines": self.lines,
            "total_micros": self.total().0,
            "total": self.total().to_string(),
        })
    }
}

/// A request in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestLine {
    /// Its entry's place in the ledger.
    pub seq: u64,
    /// As the client saw it.
    pub request_id: String,
    /// When, in microseconds since 1970.
    pub occurred_at_micros: i64,
    /// How it ended.
    pub outcome: String,
    /// Tokens: computed, cached, written.
    pub tokens: [u64; 3],
    /// What it cost.
    pub charge_micros: i64,
    /// Of this, what no credit paid.
    pub due_micros: i64,
}

/// Names a line whose requests are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineId {
    /// Of the plan's operations.
    Included,
    /// Of a model at a price.
    Usage { model: String, class: String, price_from: i64 },
    /// Of those that a grant paid for.
    Credit { grant: String },
}

impl FromStr for LineId {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "line", reason: "expected the id of a line with requests".into() };
        match text.split_once(':') {
            None if text == "included" => Ok(Self::Included),
            Some(("credit", grant)) => Ok(Self::Credit { grant: grant.into() }),
            // A model's name may have colons, so it comes last.
            Some(("usage", rest)) => {
                let mut parts = rest.splitn(3, ':');
                let (from, class, model) = (parts.next(), parts.next(), parts.next());
                let price_from = from.and_then(|from| from.parse().ok()).ok_or_else(wrong)?;
                Ok(Self::Usage { price_from, class: class.ok_or_else(wrong)?.into(), model: model.ok_or_else(wrong)?.into() })
            }
            _ => Err(wrong()),
        }
    }
}

const USAGE: &str = "SELECT u.model AS model, e.class AS class, e.price_from AS price_from, CAST(COUNT(*) AS BIGINT) AS n, CAST(SUM(u.n_input) AS BIGINT) AS n_input, CAST(SUM(u.n_cached) AS BIGINT) AS n_cached, CAST(SUM(u.n_output) AS BIGINT) AS n_output, CAST(SUM(e.charge) AS BIGINT) AS charge FROM ledger_entry e JOIN usage_event u ON u.seq = e.seq WHERE e.account_id = $1 AND e.period = $2 AND e.funding = 'metered' GROUP BY u.model, e.class, e.price_from ORDER BY u.model, e.class, e.price_from";
const INCLUDED: &str = "SELECT CAST(COUNT(*) AS BIGINT) AS n, CAST(COALESCE(SUM(u.n_operations), 0) AS BIGINT) AS n_operations FROM ledger_entry e JOIN usage_event u ON u.seq = e.seq WHERE e.account_id = $1 AND e.period = $2 AND e.funding = 'included'";
const CREDIT: &str = "SELECT d.grant_id AS grant_id, g.reason AS reason, CAST(COUNT(*) AS BIGINT) AS n, CAST(SUM(d.amount) AS BIGINT) AS amount FROM ledger_entry e JOIN credit_draw d ON d.seq = e.seq JOIN credit_grant g ON g.id = d.grant_id WHERE e.account_id = $1 AND e.period = $2 GROUP BY d.grant_id, g.reason ORDER BY d.grant_id";
const PLANS: &str = "SELECT plan_id, valid_from, valid_until FROM account_plan WHERE account_id = $1 AND valid_from < $2 AND (valid_until IS NULL OR valid_until > $3) ORDER BY valid_from";
const REQUESTS: &str = "SELECT e.seq AS seq, u.request_id AS request_id, u.occurred_at AS occurred_at, u.outcome AS outcome, u.n_input AS n_input, u.n_cached AS n_cached, u.n_output AS n_output, e.charge AS charge, e.due AS due FROM ledger_entry e JOIN usage_event u ON u.seq = e.seq WHERE e.account_id = $1 AND e.period = $2 AND e.seq > $3";

impl Store {
    /// Draws up what an account owes for a month, as far as it is in the tables; a plan that it has now is charged to the month's end.
    pub async fn draft_invoice(&self, account: AccountId, period: Period, now: Timestamp) -> Result<Invoice, PlatformError> {
        let AccountRow { id, name, .. } = self.account(account, now).await?;
        let catalog = self.catalog().await?;
        let mut lines = self.fees(id, period, &catalog).await?;
        lines.extend(self.included(id, period).await?);
        let n_before_usage = lines.len();
        lines.extend(self.usage_lines(id, period, &catalog).await?);
        lines.extend(self.credits(id, period).await?);
        let owed: Micros = lines[n_before_usage..].iter().map(|line| line.amount).sum();
        let query = sqlx::query("SELECT due FROM period_use WHERE scope_kind = 'account' AND scope_id = $1 AND period = $2");
        let query = query.bind(id.to_string()).bind(i64::from(period.0));
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading what is owed"))?;
        let expected = row.as_ref().map_or(Ok(Micros::ZERO), |row| get_money(row, "due"))?;
        if owed != expected {
            let reason = format!("its lines of usage add up to {owed}, and the ledger to {expected}");
            return Err(PlatformError::Corrupt { what: "an invoice", reason });
        }
        Ok(Invoice { account: id, account_name: name, period, at: now, lines })
    }

    async fn rows(&self, text: &'static str, account: AccountId, period: Period) -> Result<Vec<AnyRow>, PlatformError> {
        let query = sqlx::query(text).bind(account.to_string()).bind(i64::from(period.0));
        query.fetch_all(self.pool()).await.map_err(PlatformError::database("drawing up an invoice"))
    }

    async fn fees(&self, account: AccountId, period: Period, catalog: &Catalog) -> Result<Vec<InvoiceLine>, PlatformError> {
        let (start, end) = (period.start(), period.next().start());
        let query = sqlx::query(PLANS).bind(account.to_string()).bind(end.0).bind(start.0);
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("drawing up an invoice"))?;
        let mut lines = Vec::new();
        for row in &rows {
            let plan: String = get(row, "plan_id")?;
            let from = get_time(row, "valid_from")?.max(start);
            let until = get_optional_time(row, "valid_until")?.unwrap_or(end).min(end);
            let Some(version) = catalog.plan_at(&plan, from).filter(|version| version.monthly_price > Micros::ZERO) else { continue };
            let amount = prorated(version.monthly_price, (from, until), (start, end));
            let text = format!("{} plan, {} to {}, of {} a month", version.name, from.to_date(), until.to_date(), version.monthly_price);
            let kind = LineKind::Fee { plan: plan.clone(), from_micros: from.0, until_micros: until.0 };
            lines.push(InvoiceLine { id: format!("fee:{}:{plan}", from.0), text, kind, n_requests: 0, amount });
        }
        Ok(lines)
    }

    async fn included(&self, account: AccountId, period: Period) -> Result<Option<InvoiceLine>, PlatformError> {
        let rows = self.rows(INCLUDED, account, period).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (n_requests, n_operations) = (get_count(row, "n")?, get_count(row, "n_operations")?);
        let text = format!("{n_operations} operations that the plan includes");
        let kind = LineKind::Included { n_operations };
        let line = InvoiceLine { id: "included".into(), text, kind, n_requests, amount: Micros::ZERO };
        Ok((n_requests > 0).then_some(line))
    }

    async fn usage_lines(&self, account: AccountId, period: Period, catalog: &Catalog) -> Result<Vec<InvoiceLine>, PlatformError> {
        let line = |row: &AnyRow| {
            let (model, class): (String, String) = (get(row, "model")?, get(row, "class")?);
            let price_from = get_time(row, "price_from")?;
            let price = catalog.price_from(&class, price_from).map_or_else(TokenPrice::default, |version| version.price);
            let (n_input, n_cached, n_output) = (get_count(row, "n_input")?, get_count(row, "n_cached")?, get_count(row, "n_output")?);
            let kind = LineKind::Usage {
                model: model.clone(),
                class: class.clone(),
                price_from_micros: price_from.0,
                n_input,
                n_cached,
                n_output,
                price_per_million_micros: [price.input_per_million.0, price.cached_per_million.0, price.output_per_million.0],
            };
            let text = format!("{model}: {n_input} input, {n_cached} cached and {n_output} output tokens");
            let id = format!("usage:{}:{class}:{model}", price_from.0);
            Ok(InvoiceLine { id, text, kind, n_requests: get_count(row, "n")?, amount: get_money(row, "charge")? })
        };
        self.rows(USAGE, account, period).await?.iter().map(line).collect()
    }

    async fn credits(&self, account: AccountId, period: Period) -> Result<Vec<InvoiceLine>, PlatformError> {
        let line = |row: &AnyRow| {
            let (grant, reason): (String, String) = (get(row, "grant_id")?, get(row, "reason")?);
            let amount = Micros::ZERO.minus(get_money(row, "amount")?);
            let (id, text, kind) = (format!("credit:{grant}"), format!("credit: {reason}"), LineKind::Credit { grant });
            Ok(InvoiceLine { id, text, kind, n_requests: get_count(row, "n")?, amount })
        };
        self.rows(CREDIT, account, period).await?.iter().map(line).collect()
    }

    /// Requests of a line, behind one of them, in order, a page at a time.
    pub async fn line_requests(
        &self,
        (account, period): (AccountId, Period),
        line: &LineId,
        after: u64,
    ) -> Result<Vec<RequestLine>, PlatformError> {
        let end = " ORDER BY e.seq LIMIT $4";
        let text = match line {
            LineId::Included => format!("{REQUESTS} AND e.funding = 'included'{end}"),
            LineId::Usage { .. } => {
                format!("{REQUESTS} AND e.funding = 'metered' AND u.model = $5 AND e.class = $6 AND e.price_from = $7{end}")
            }
            LineId::Credit { .. } => format!("{REQUESTS} AND e.seq IN (SELECT d.seq FROM credit_draw d WHERE d.grant_id = $5){end}"),
        };
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(account.to_string()).bind(i64::from(period.0));
        let query = query.bind(as_i64(after)).bind(N_REQUESTS_PER_PAGE);
        let query = match line {
            LineId::Included => query,
            LineId::Usage { model, class, price_from } => query.bind(model.clone()).bind(class.clone()).bind(*price_from),
            LineId::Credit { grant } => query.bind(grant.clone()),
        };
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading requests of an invoice"))?;
        let read = |row: &AnyRow| {
            Ok(RequestLine {
                seq: get_count(row, "seq")?,
                request_id: get(row, "request_id")?,
                occurred_at_micros: get_time(row, "occurred_at")?.0,
                outcome: get(row, "outcome")?,
                tokens: [get_count(row, "n_input")?, get_count(row, "n_cached")?, get_count(row, "n_output")?],
                charge_micros: get_money(row, "charge")?.0,
                due_micros: get_money(row, "due")?.0,
            })
        };
        rows.iter().map(read).collect()
    }
}

/// A monthly price for a part of the month, by the microsecond, rounded once, half a micro up.
fn prorated(price: Micros, (from, until): (Timestamp, Timestamp), (start, end): (Timestamp, Timestamp)) -> Micros {
    let (part, whole) = (i128::from((until.0 - from.0).max(0)), i128::from(end.0 - start.0));
    let amount = (i128::from(price.0) * part * 2 + whole) / (whole * 2);
    Micros(i64::try_from(amount).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_id_reads_back() {
        let usage = LineId::Usage { model: "hf:a/b".into(), class: "small".into(), price_from: 7 };
        assert_eq!("usage:7:small:hf:a/b".parse::<LineId>().expect("an id"), usage);
        for wrong in ["", "usage", "usage:x:small:m", "usage:7:small", "fee:1:team"] {
            assert!(wrong.parse::<LineId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn parts_of_a_month_cost_what_the_month_does(price in 0i64..10_000_000_000, cut in 0i64..2_678_400_000_000) {
            let (start, end) = (Timestamp(0), Timestamp(2_678_400_000_000));
            let part = |from, until| prorated(Micros(price), (from, until), (start, end)).0;
            let halves = part(start, Timestamp(cut)) + part(Timestamp(cut), end);
            prop_assert!((halves - price).abs() <= 1, "each part is rounded once");
            prop_assert_eq!(part(start, end), price);
        }
    }
}
