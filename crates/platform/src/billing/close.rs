//! Closing months: an account's month becomes an invoice with a number, once, in one transaction. Run again, it changes nothing: a
//! month that is closed is passed over. Months of an account are closed in their order, so that what comes late for one has an
//! invoice to be on.

use serde_json::{Value, json};
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::covered::Cover;
use crate::billing::invoice::{DocumentKind, Parties, Party};
use crate::billing::line::{InvoiceLine, LineKind};
use crate::billing::settings::Profile;
use crate::billing::statement::Lines;
use crate::catalog::Catalog;
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId, ItemId};
use crate::limits::{CLOSE_AFTER, N_MONTHS_PER_RUN};
use crate::money::Micros;
use crate::platform::CURRENCY;
use crate::store::{Store, Write, as_i64, get, get_count, get_parsed, get_time};
use crate::time::{Period, Timestamp};
use crate::webhooks::Happened;

/// A month of an account that was closed just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Whose.
    pub account: AccountId,
    /// Which month.
    pub period: Period,
    /// Its invoice; none if there was nothing to invoice.
    pub invoice: Option<InvoiceId>,
}

/// A paper to be issued.
pub(crate) struct NewDocument<'a> {
    pub(crate) kind: DocumentKind,
    pub(crate) account: AccountId,
    pub(crate) period: Period,
    pub(crate) corrects: Option<InvoiceId>,
    pub(crate) profile: &'a Profile,
    /// Of a credit note: as its invoice has them, whatever is said of them since.
    pub(crate) parties: Option<&'a Parties>,
    pub(crate) lines: &'a [InvoiceLine],
}

/// What a month comes to.
struct Drawn {
    cover: Cover,
    profile: Profile,
    lines: Lines,
}

/// An amount that is to wait for the next invoice.
pub(crate) struct NewItem {
    source: String,
    text: String,
    amount: Micros,
    is_gross: bool,
}

impl NewItem {
    /// Before tax; `source` names what made it.
    pub(crate) fn new(source: String, text: String, amount: Micros) -> Self {
        Self { source, text, amount, is_gross: false }
    }

    /// The same amount, with its tax in it.
    pub(crate) fn with_its_tax(self) -> Self {
        Self { is_gross: true, ..self }
    }
}

const OPEN_MONTHS: &str = "SELECT a.id AS id, a.created_at AS created_at, CAST(COALESCE(MAX(c.period), 0) AS BIGINT) AS last FROM account a LEFT JOIN closed_period c ON c.account_id = a.id GROUP BY a.id, a.created_at ORDER BY a.created_at, a.id";
const DOING: &str = "closing a month";
/// What stands alone on an invoice that is collected from a card; Stripe charges half a dollar at least.
const CHARGED_ALONE_MIN: Micros = Micros(500_000);

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database(DOING)
}

impl Store {
    /// Closes every month of every account that has ended long enough ago; of one account, if it is named. Says what was closed. An
    /// account whose month cannot be closed keeps no other waiting: all others are closed, then its error is returned.
    pub async fn close_periods(&self, account: Option<AccountId>, by: &By) -> Result<Vec<Closed>, PlatformError> {
        let last = by.at.minus(CLOSE_AFTER).period().minus_months(1);
        let rows = sqlx::query(OPEN_MONTHS).fetch_all(self.pool()).await.map_err(failed())?;
        let catalog = self.catalog().await?;
        let (mut closed, mut not_closed) = (Vec::new(), Vec::new());
        for row in &rows {
            let (id, first) = (get_parsed(row, "id")?, next_month(row)?);
            if account.is_some_and(|account| account != id) {
                continue;
            }
            let months = (first.0..=last.0).take(N_MONTHS_PER_RUN).map(Period);
            match self.close_months((id, months), &catalog, by, &mut closed).await {
                Ok(()) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, account = %id, "a month cannot be closed");
                    not_closed.push((id, error));
                }
            }
        }
        let n_accounts = not_closed.len();
        match not_closed.into_iter().next() {
            Some((id, error)) => Err(PlatformError::NotClosed { n_accounts, account: id.to_string(), source: Box::new(error) }),
            None => Ok(closed),
        }
    }

    async fn close_months(
        &self,
        (account, months): (AccountId, impl Iterator<Item = Period>),
        catalog: &Catalog,
        by: &By,
        closed: &mut Vec<Closed>,
    ) -> Result<(), PlatformError> {
        for period in months {
            closed.extend(self.close_period((account, period), catalog, by).await?);
        }
        Ok(())
    }

    /// Closes a month of an account, if it is the next one. All sums are of a snapshot, which keeps nobody from writing; what is written
    /// then takes a moment.
    async fn close_period(
        &self,
        (account, period): (AccountId, Period),
        catalog: &Catalog,
        by: &By,
    ) -> Result<Option<Closed>, PlatformError> {
        self.add_service_credit((account, period), catalog, by.at).await?;
        let Some(drawn) = self.draw_up((account, period), catalog, by.at).await? else { return Ok(None) };
        let Drawn { cover, profile, lines: Lines { lines, carried, carried_gross } } = drawn;
        let mut write = self.begin().await?;
        // Held to the end: numbers follow each other, and two jobs do not close the same month.
        lock_issuer(&mut write, &profile.issuer).await?;
        if is_closed(&mut write.transaction, (account, period)).await? {
            return Ok(None);
        }
        let is_empty = is_nothing(&lines, &profile);
        let invoice = if is_empty {
            None
        } else {
            let kind = DocumentKind::Invoice;
            let new = NewDocument { kind, account, period, corrects: None, profile: &profile, parties: None, lines: &lines };
            Some(self.issue(&mut write, new, by).await?)
        };
        if let Some(id) = invoice {
            take_items(&mut write, id, &lines).await?;
            let from = "from the invoice before";
            let items = [
                NewItem::new(format!("carried:{id}"), format!("carried {from}"), carried),
                NewItem::new(format!("carried_gross:{id}"), format!("paid before, carried {from}"), carried_gross).with_its_tax(),
            ];
            for item in items.into_iter().filter(|item| item.amount < Micros::ZERO) {
                self.add_item(&mut write, account, item, by.at).await?;
            }
        }
        let insert =
            sqlx::query("INSERT INTO closed_period (account_id, period, upto_seq, closed_at, invoice_id) VALUES ($1, $2, $3, $4, $5)");
        let insert = insert.bind(account.to_string()).bind(i64::from(period.0)).bind(as_i64(cover.upto)).bind(by.at.0);
        insert.bind(invoice.map(|id| id.to_string())).execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit(DOING).await?;
        Ok(Some(Closed { account, period, invoice }))
    }

    /// What a month comes to, as a snapshot has it; none if it is closed. What is in there stays so until it is written: entries are never
    /// changed, what is agreed holds from now on and not for a month that is over, and what waits is taken by the one who closes.
    async fn draw_up(
        &self,
        (account, period): (AccountId, Period),
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<Option<Drawn>, PlatformError> {
        let profile = self.billing_profile(account).await?;
        let mut snapshot = self.snapshot().await?;
        if is_closed(&mut snapshot, (account, period)).await? {
            return Ok(None);
        }
        let cover = closing_cover(&mut snapshot, (account, period)).await?;
        let lines = cover.statement(&mut snapshot, catalog, now).await?.lines();
        let owed: Micros = lines.lines.iter().filter(|line| line.kind.is_of_ledger()).map(|line| line.amount).sum();
        let expected = cover.due(&mut snapshot).await?;
        if owed != expected {
            let reason = format!("its lines of usage add up to {owed}, and the ledger to {expected}");
            return Err(PlatformError::Corrupt { what: "an invoice", reason });
        }
        Ok(Some(Drawn { cover, profile, lines }))
    }

    /// Gives a paper its number and writes it. The issuer is locked.
    pub(crate) async fn issue(&self, write: &mut Write<'_>, new: NewDocument<'_>, by: &By) -> Result<InvoiceId, PlatformError> {
        let NewDocument { kind, account, period, corrects, profile, parties, lines } = new;
        let id = InvoiceId::random()?;
        let issuer = next_number(write, &profile.issuer, kind).await?;
        let total: Micros = lines.iter().map(|line| line.amount).sum();
        let due_at = by.at.plus(std::time::Duration::from_secs(u64::from(profile.net_days) * 86_400));
        let parties = parties.cloned().unwrap_or_else(|| Parties { issuer: issuer.party, customer: profile.party.clone() });
        let parties =
            serde_json::to_string(&parties).map_err(|error| PlatformError::Corrupt { what: "parties", reason: error.to_string() })?;
        // What is nothing is paid; a credit note is nothing that its customer pays.
        let status = if total > Micros::ZERO { "open" } else { "paid" };
        sqlx::query("INSERT INTO invoice (id, issuer_id, kind, number, name, account_id, period, corrects, issued_at, due_at, currency, parties, total, collection, status, credited, paid) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, 0)")
            .bind(id.to_string())
            .bind(profile.issuer.clone())
            .bind(kind.name())
            .bind(issuer.number)
            .bind(issuer.name.clone())
            .bind(account.to_string())
            .bind(i64::from(period.0))
            .bind(corrects.map(|id| id.to_string()))
            .bind(by.at.0)
            .bind(due_at.0)
            .bind(CURRENCY)
            .bind(parties)
            .bind(total.0)
            .bind(if profile.is_automatic { "automatic" } else { "manual" })
            .bind(status)
            .execute(&mut *write.transaction)
            .await
            .map_err(failed())?;
        for (index, line) in lines.iter().enumerate() {
            insert_line(write, (id, index + 1), line).await?;
        }
        if profile.is_automatic && total > Micros::ZERO {
            let insert = sqlx::query(
                "INSERT INTO dunning (invoice_id, account_id, n_attempts, next_attempt_at, restricted_at) VALUES ($1, $2, 0, $3, NULL)",
            );
            let insert = insert.bind(id.to_string()).bind(account.to_string()).bind(by.at.0);
            insert.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let after = json!({ "number": issuer.name, "period": period.to_string(), "total_micros": total.0 });
        let action = if kind == DocumentKind::Invoice { "invoice.issued" } else { "credit_note.issued" };
        let happened = Happened {
            account,
            source: format!("{action}:{id}"),
            kind: action,
            data: json!({ "id": id.to_string(), "number": issuer.name, "period": period.to_string(), "total_micros": total.0, "currency": CURRENCY }),
        };
        self.note_happened(write, happened, by.at).await?;
        let deed = Deed { action, account: Some(account), target: id.to_string(), before: Value::Null, after };
        self.audit(write, by, deed).await?;
        Ok(id)
    }

    /// An amount that waits for the next invoice. The same source again changes nothing.
    pub(crate) async fn add_item(
        &self,
        write: &mut Write<'_>,
        account: AccountId,
        NewItem { source, text, amount, is_gross }: NewItem,
        now: Timestamp,
    ) -> Result<bool, PlatformError> {
        let insert = sqlx::query(
            "INSERT INTO invoice_item (id, account_id, source, text, amount, is_gross, created_at, invoice_id) VALUES ($1, $2, $3, $4, $5, $6, $7, NULL) ON CONFLICT (source) DO NOTHING",
        );
        let insert = insert.bind(ItemId::random()?.to_string()).bind(account.to_string()).bind(source);
        let insert = insert.bind(text).bind(amount.0).bind(i64::from(is_gross)).bind(now.0);
        let inserted = insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting an amount"))?;
        Ok(inserted.rows_affected() == 1)
    }
}

async fn is_closed(connection: &mut AnyConnection, (account, period): (AccountId, Period)) -> Result<bool, PlatformError> {
    let query = sqlx::query("SELECT period FROM closed_period WHERE account_id = $1 AND period >= $2 LIMIT 1");
    let query = query.bind(account.to_string()).bind(i64::from(period.0));
    Ok(query.fetch_optional(connection).await.map_err(failed())?.is_some())
}

/// All entries that are in the tables now; of earlier months, those that are on no invoice yet.
async fn closing_cover(connection: &mut AnyConnection, (account, period): (AccountId, Period)) -> Result<Cover, PlatformError> {
    let query = sqlx::query("SELECT last_seq FROM ledger_writer");
    let upto = get_count(&query.fetch_one(&mut *connection).await.map_err(failed())?, "last_seq")?;
    let query = sqlx::query("SELECT CAST(COALESCE(MAX(upto_seq), 0) AS BIGINT) AS after FROM closed_period WHERE account_id = $1");
    let row = query.bind(account.to_string()).fetch_one(&mut *connection).await.map_err(failed())?;
    Ok(Cover { account, period, after: get_count(&row, "after")?, upto })
}

/// Those that wait on an invoice no more are those that its lines name: what another transaction adds meanwhile waits on.
async fn take_items(write: &mut Write<'_>, id: InvoiceId, lines: &[InvoiceLine]) -> Result<(), PlatformError> {
    for line in lines {
        let (LineKind::Item { item } | LineKind::Overpaid { item } | LineKind::Brought { item }) = &line.kind else { continue };
        let taken = sqlx::query("UPDATE invoice_item SET invoice_id = $1 WHERE id = $2").bind(id.to_string()).bind(item.clone());
        taken.execute(&mut *write.transaction).await.map_err(failed())?;
    }
    Ok(())
}

/// Whether there is nothing to invoice. What was too little to be charged, and has nothing else beside it, waits for another month.
fn is_nothing(lines: &[InvoiceLine], profile: &Profile) -> bool {
    let amounts = || lines.iter().filter(|line| line.amount != Micros::ZERO);
    let total: Micros = amounts().map(|line| line.amount).sum();
    let only_brought = amounts().all(|line| matches!(line.kind, LineKind::Brought { .. }));
    only_brought && (total == Micros::ZERO || profile.is_automatic && total < CHARGED_ALONE_MIN)
}

/// The month after the last that is closed, or the account's first.
fn next_month(row: &AnyRow) -> Result<Period, PlatformError> {
    let last: i64 = get(row, "last")?;
    let first = get_time(row, "created_at")?.period();
    let last = i32::try_from(last).map_err(|_| PlatformError::Corrupt { what: "period", reason: last.to_string() })?;
    Ok(if last == 0 { first } else { Period(last).next() })
}

/// Keeps others from taking numbers until this transaction ends.
pub(crate) async fn lock_issuer(write: &mut Write<'_>, issuer: &str) -> Result<(), PlatformError> {
    let lock = sqlx::query("UPDATE invoice_issuer SET last_invoice = last_invoice WHERE id = $1").bind(issuer.to_string());
    let locked = lock.execute(&mut *write.transaction).await.map_err(failed())?;
    if locked.rows_affected() == 1 { Ok(()) } else { Err(PlatformError::NotFound { what: "issuer" }) }
}

struct Numbered {
    number: i64,
    name: String,
    party: Party,
}

async fn next_number(write: &mut Write<'_>, issuer: &str, kind: DocumentKind) -> Result<Numbered, PlatformError> {
    let text = match kind {
        DocumentKind::Invoice => "UPDATE invoice_issuer SET last_invoice = last_invoice + 1 WHERE id = $1",
        DocumentKind::CreditNote => "UPDATE invoice_issuer SET last_credit_note = last_credit_note + 1 WHERE id = $1",
    };
    sqlx::query(text).bind(issuer.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
    let query = sqlx::query("SELECT * FROM invoice_issuer WHERE id = $1").bind(issuer.to_string());
    let row = query.fetch_one(&mut *write.transaction).await.map_err(failed())?;
    let (number, prefix) = match kind {
        DocumentKind::Invoice => ("last_invoice", "invoice_prefix"),
        DocumentKind::CreditNote => ("last_credit_note", "note_prefix"),
    };
    let number: i64 = get(&row, number)?;
    let name = format!("{}{number:06}", get::<String>(&row, prefix)?);
    let (party_name, address, tax_id) = (get(&row, "name")?, get(&row, "address")?, get(&row, "tax_id")?);
    let party = Party { name: party_name, address, country: get(&row, "country")?, tax_id };
    Ok(Numbered { number, name, party })
}

async fn insert_line(write: &mut Write<'_>, (id, number): (InvoiceId, usize), line: &InvoiceLine) -> Result<(), PlatformError> {
    let detail = serde_json::to_string(&line.kind).map_err(|error| PlatformError::Corrupt { what: "a line", reason: error.to_string() })?;
    let insert = sqlx::query(
        "INSERT INTO invoice_line (invoice_id, line_number, line_id, text, detail, rounding, n_requests, amount) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    );
    let insert = insert.bind(id.to_string()).bind(as_i64(number as u64)).bind(line.id.clone()).bind(line.text.clone()).bind(detail);
    let insert = insert.bind(line.rounding.name()).bind(as_i64(line.n_requests)).bind(line.amount.0);
    insert.execute(&mut *write.transaction).await.map_err(failed())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::directory::NewAccount;
    use crate::ledger::Overage;
    use crate::store::MIGRATIONS;

    const NOW: Timestamp = Timestamp(1_767_225_600_000_000);

    async fn account(store: &Store) -> AccountId {
        let new = NewAccount { name: "Ann".into(), plan: "developer".into(), overage: Overage::Refuse, spending_cap: Micros::ZERO };
        store.create_account(new, &By::operator("test", NOW)).await.expect("created")
    }

    async fn open(folder: &tempfile::TempDir) -> Store {
        let store = Store::connect(&format!("sqlite:{}", folder.path().join("p.db").display())).await.expect("it opens");
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        store
    }

    #[tokio::test]
    async fn account_that_cannot_be_closed_keeps_no_other_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder).await;
        let (bad, good) = (account(&store).await, account(&store).await);
        // An entry without its event, as a hand in the tables leaves it: lines and ledger disagree.
        let mut write = store.begin().await.expect("begun");
        let entry = format!(
            "INSERT INTO ledger_entry (seq, account_id, period, posted_at, plan_id, class, price_from, funding, charge, due) VALUES (1, '{bad}', {}, 0, 'developer', 'small', 0, 'metered', 7, 7)",
            NOW.period().0
        );
        sqlx::query(sqlx::AssertSqlSafe(entry)).execute(&mut *write.transaction).await.expect("written");
        sqlx::query("UPDATE ledger_writer SET last_seq = 1").execute(&mut *write.transaction).await.expect("written");
        write.commit("testing").await.expect("committed");
        let by = By::operator("test", NOW.plus(Duration::from_secs(32 * 86_400)));
        let closed = store.close_periods(None, &by).await;
        let Err(PlatformError::NotClosed { n_accounts: 1, account, .. }) = &closed else { panic!("{closed:?}") };
        assert_eq!(*account, bad.to_string());
        assert_eq!(store.invoices(Some(good)).await.expect("read").len(), 1, "the other has its invoice");
        assert!(store.invoices(Some(bad)).await.expect("read").is_empty());
    }

    #[tokio::test]
    async fn month_is_drawn_up_while_others_write() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder).await;
        let account = account(&store).await;
        let catalog = store.catalog().await.expect("read");
        let now = NOW.plus(Duration::from_secs(32 * 86_400));
        // Somebody writes, as the ledger does all the time: what is summed up does not wait for that, nor that for the sums.
        let write = store.begin().await.expect("begun");
        let drawn = tokio::time::timeout(Duration::from_secs(5), store.draw_up((account, NOW.period()), &catalog, now)).await;
        let drawn = drawn.expect("it does not wait").expect("drawn up").expect("it is open");
        assert_eq!(drawn.lines.lines.len(), 1, "its fee");
        drop(write);
    }
}
