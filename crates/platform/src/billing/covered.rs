//! What an invoice covers, read from the tables: of its month all entries that the ledger had, of earlier months those that came after
//! they were closed. Entries are never changed, so the same cover is the same sums for ever.

use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::billing::eu_tax_id::is_owed_by_customer;
use crate::billing::line::{LineId, LineOf, RequestLine};
use crate::billing::statement::{DrawGroup, FeePart, PartOff, Statement, TaxRate, UsageGroup, WaitingItem};
use crate::catalog::Catalog;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::event::Funding;
use crate::limits::N_REQUESTS_PER_PAGE;
use crate::money::{Micros, TokenCounts, TokenPrice};
use crate::store::{Store, as_i64, get, get_count, get_money, get_optional_time, get_time};
use crate::time::{Period, Timestamp};

/// Which entries an invoice covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cover {
    pub(crate) account: AccountId,
    /// Its month.
    pub(crate) period: Period,
    /// Entries of earlier months up to this one are on earlier invoices.
    pub(crate) after: u64,
    /// Entries up to this one are covered.
    pub(crate) upto: u64,
}

const USAGE: &str = "SELECT e.period AS period, e.funding AS funding, u.model AS model, e.class AS class, e.price_from AS price_from, CAST(COUNT(*) AS BIGINT) AS n, CAST(SUM(u.n_operations) AS BIGINT) AS n_operations, CAST(SUM(u.n_input) AS BIGINT) AS n_input, CAST(SUM(u.n_cached) AS BIGINT) AS n_cached, CAST(SUM(u.n_output) AS BIGINT) AS n_output, CAST(SUM(e.charge) AS BIGINT) AS charge FROM ledger_entry e JOIN usage_event u ON u.seq = e.seq WHERE e.account_id = $1 AND e.seq <= $2 AND (e.period = $3 OR (e.period < $3 AND e.seq > $4)) AND e.funding <> 'waived' GROUP BY e.period, e.funding, u.model, e.class, e.price_from ORDER BY e.period DESC, u.model, e.class, e.price_from";
const DRAWS: &str = "SELECT e.period AS period, d.grant_id AS grant_id, g.reason AS reason, CAST(COUNT(*) AS BIGINT) AS n, CAST(SUM(d.amount) AS BIGINT) AS amount FROM ledger_entry e JOIN credit_draw d ON d.seq = e.seq JOIN credit_grant g ON g.id = d.grant_id WHERE e.account_id = $1 AND e.seq <= $2 AND (e.period = $3 OR (e.period < $3 AND e.seq > $4)) GROUP BY e.period, d.grant_id, g.reason ORDER BY e.period DESC, d.grant_id";
const DUE: &str = "SELECT CAST(COALESCE(SUM(e.due), 0) AS BIGINT) AS due FROM ledger_entry e WHERE e.account_id = $1 AND e.seq <= $2 AND (e.period = $3 OR (e.period < $3 AND e.seq > $4))";
const PLANS: &str = "SELECT plan_id, valid_from, valid_until FROM account_plan WHERE account_id = $1 AND valid_from < $2 AND (valid_until IS NULL OR valid_until > $3) ORDER BY valid_from";
const PARTS_OFF: &str = "SELECT c.code, c.name, c.part_off FROM coupon_redemption r JOIN coupon c ON c.code = r.code WHERE r.account_id = $1 AND c.part_off IS NOT NULL AND r.from_period <= $2 AND (r.until_period IS NULL OR r.until_period > $2) ORDER BY r.redeemed_at, c.code";
const COMMITMENT: &str = "SELECT amount FROM commitment WHERE account_id = $1 AND from_period <= $2 AND (until_period IS NULL OR until_period > $2) ORDER BY from_period DESC LIMIT 1";
const ITEMS: &str = "SELECT id, text, amount, is_gross FROM invoice_item WHERE account_id = $1 AND invoice_id IS NULL AND created_at <= $2 ORDER BY created_at, id";
const TAXES: &str = "SELECT t.country, t.region, t.name, t.rate, t.reverse_charge, p.tax_id, s.country AS issuer_country FROM billing_profile p JOIN invoice_issuer s ON s.id = p.issuer_id JOIN tax_rate t ON t.country = p.country AND (t.region = '' OR t.region = p.region) WHERE p.account_id = $1 AND t.valid_from <= $2 AND (t.valid_until IS NULL OR t.valid_until > $2) ORDER BY t.region, t.name";
const REQUESTS: &str = "SELECT e.seq AS seq, u.request_id AS request_id, u.occurred_at AS occurred_at, u.outcome AS outcome, u.n_input AS n_input, u.n_cached AS n_cached, u.n_output AS n_output, e.charge AS charge, e.due AS due FROM ledger_entry e JOIN usage_event u ON u.seq = e.seq WHERE e.account_id = $1 AND e.period = $2 AND e.seq > $3 AND e.seq <= $4";

const DOING: &str = "drawing up an invoice";

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database(DOING)
}

impl Cover {
    /// All that its invoice follows from, as things are in this transaction.
    pub(crate) async fn statement(
        &self,
        connection: &mut AnyConnection,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Statement, PlatformError> {
        let fees = plan_fees(connection, (self.account, self.period), catalog).await?;
        let rows = self.rows(connection, USAGE).await?;
        let usage = rows.iter().map(|row| usage_group(row, catalog)).collect::<Result<_, _>>()?;
        let draws = self.rows(connection, DRAWS).await?.iter().map(draw_group).collect::<Result<_, _>>()?;
        let account = self.account.to_string();
        let period = i64::from(self.period.0);
        let rows = sqlx::query(PARTS_OFF).bind(account.clone()).bind(period).fetch_all(&mut *connection).await.map_err(failed())?;
        let part = |row: &AnyRow| {
            Ok(PartOff { code: get(row, "code")?, name: get(row, "name")?, part: u32::try_from(get_count(row, "part_off")?).unwrap_or(0) })
        };
        let parts_off = rows.iter().map(part).collect::<Result<_, PlatformError>>()?;
        let query = sqlx::query(COMMITMENT).bind(account.clone()).bind(period);
        let row = query.fetch_optional(&mut *connection).await.map_err(failed())?;
        let commitment = row.as_ref().map(|row| get_money(row, "amount")).transpose()?;
        let rows = sqlx::query(ITEMS).bind(account.clone()).bind(now.0).fetch_all(&mut *connection).await.map_err(failed())?;
        let item = |row: &AnyRow| {
            let (id, text, amount) = (get(row, "id")?, get(row, "text")?, get_money(row, "amount")?);
            Ok(WaitingItem { id, text, amount, is_gross: get_count(row, "is_gross")? == 1 })
        };
        let items = rows.iter().map(item).collect::<Result<_, PlatformError>>()?;
        let rows = sqlx::query(TAXES).bind(account).bind(now.0).fetch_all(&mut *connection).await.map_err(failed())?;
        let taxes = rows.iter().map(tax_rate).collect::<Result<_, _>>()?;
        Ok(Statement { period: self.period, fees, usage, draws, parts_off, commitment, items, taxes })
    }

    /// What the ledger says is owed for the entries that it covers.
    pub(crate) async fn due(&self, connection: &mut AnyConnection) -> Result<Micros, PlatformError> {
        self.rows(connection, DUE).await?.first().map_or(Ok(Micros::ZERO), |row| get_money(row, "due"))
    }

    async fn rows(&self, connection: &mut AnyConnection, text: &'static str) -> Result<Vec<AnyRow>, PlatformError> {
        let query = sqlx::query(text).bind(self.account.to_string()).bind(as_i64(self.upto));
        let query = query.bind(i64::from(self.period.0)).bind(as_i64(self.after));
        query.fetch_all(&mut *connection).await.map_err(failed())
    }
}

/// The fees of a month, a part for each plan and each version of its price.
pub(crate) async fn plan_fees(
    connection: &mut AnyConnection,
    (account, period): (AccountId, Period),
    catalog: &Catalog,
) -> Result<Vec<FeePart>, PlatformError> {
    let (start, end) = (period.start(), period.next().start());
    let query = sqlx::query(PLANS).bind(account.to_string()).bind(end.0).bind(start.0);
    let rows = query.fetch_all(&mut *connection).await.map_err(failed())?;
    let mut fees = Vec::new();
    for row in &rows {
        let plan: String = get(row, "plan_id")?;
        let (from, until) = (get_time(row, "valid_from")?.max(start), get_optional_time(row, "valid_until")?.unwrap_or(end).min(end));
        // A plan whose price changes within the month is charged by each version for its part.
        for version in catalog.plan_versions(&plan, (from, until)) {
            let from = from.max(version.validity.from);
            let until = version.validity.until.map_or(until, |end| end.min(until));
            let (name, monthly_price) = (version.name.clone(), version.monthly_price);
            fees.push(FeePart { plan: plan.clone(), name, monthly_price, from, until });
        }
    }
    Ok(fees)
}

fn usage_group(row: &AnyRow, catalog: &Catalog) -> Result<UsageGroup, PlatformError> {
    let (class, price_from): (String, _) = (get(row, "class")?, get_time(row, "price_from")?);
    let price = catalog.price_from(&class, price_from).map_or_else(TokenPrice::default, |version| version.price);
    let funding = if get::<String>(row, "funding")? == "included" { Funding::Included } else { Funding::Metered };
    Ok(UsageGroup {
        period: get_period(row)?,
        funding,
        model: get(row, "model")?,
        class,
        price_from,
        price,
        n_requests: get_count(row, "n")?,
        n_operations: get_count(row, "n_operations")?,
        tokens: TokenCounts {
            n_input: get_count(row, "n_input")?,
            n_cached: get_count(row, "n_cached")?,
            n_output: get_count(row, "n_output")?,
        },
        charge: get_money(row, "charge")?,
    })
}

fn draw_group(row: &AnyRow) -> Result<DrawGroup, PlatformError> {
    Ok(DrawGroup {
        period: get_period(row)?,
        grant: get(row, "grant_id")?,
        reason: get(row, "reason")?,
        n_requests: get_count(row, "n")?,
        amount: get_money(row, "amount")?,
    })
}

fn tax_rate(row: &AnyRow) -> Result<TaxRate, PlatformError> {
    let (country, issuer_country): (String, String) = (get(row, "country")?, get(row, "issuer_country")?);
    let tax_id: String = get(row, "tax_id")?;
    Ok(TaxRate {
        region: get(row, "region")?,
        name: get(row, "name")?,
        rate: u32::try_from(get_count(row, "rate")?).unwrap_or(u32::MAX),
        reverse_charge: get_count(row, "reverse_charge")? == 1 && is_owed_by_customer(&issuer_country, (&country, &tax_id)),
        country,
    })
}

/// A column of a month.
pub(crate) fn get_period(row: &AnyRow) -> Result<Period, PlatformError> {
    let period: i64 = get(row, "period")?;
    i32::try_from(period).map(Period).map_err(|_| PlatformError::Corrupt { what: "period", reason: period.to_string() })
}

impl Store {
    /// Requests of a line, behind one of them, in order, a page at a time.
    pub(crate) async fn covered_requests(&self, cover: Cover, line: &LineId, after: u64) -> Result<Vec<RequestLine>, PlatformError> {
        let end = " ORDER BY e.seq LIMIT $5";
        let text = match line.of {
            LineOf::Included => format!("{REQUESTS} AND e.funding = 'included'{end}"),
            LineOf::Usage { .. } => {
                format!("{REQUESTS} AND e.funding = 'metered' AND u.model = $6 AND e.class = $7 AND e.price_from = $8{end}")
            }
            LineOf::Credit { .. } => format!("{REQUESTS} AND e.seq IN (SELECT d.seq FROM credit_draw d WHERE d.grant_id = $6){end}"),
        };
        let period = line.late_of.unwrap_or(cover.period);
        // What an earlier month had when it was closed is on its own invoice.
        let after = if line.late_of.is_some() { after.max(cover.after) } else { after };
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(cover.account.to_string()).bind(i64::from(period.0));
        let query = query.bind(as_i64(after)).bind(as_i64(cover.upto)).bind(N_REQUESTS_PER_PAGE);
        let query = match &line.of {
            LineOf::Included => query,
            LineOf::Usage { model, class, price_from } => query.bind(model.clone()).bind(class.clone()).bind(*price_from),
            LineOf::Credit { grant } => query.bind(grant.clone()),
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
