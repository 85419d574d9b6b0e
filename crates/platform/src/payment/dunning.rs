//! Dunning: an invoice that is collected automatically is charged when it is issued; if that fails, again after some days, and again;
//! then the account may do nothing until it is paid. Each attempt is written before it is made, so that one whose end nobody saw is
//! asked for and not made again.

use std::time::Duration;

use serde_json::json;
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::close::NewItem;
use crate::billing::statement::MICROS_PER_CENT;
use crate::directory::note_change;
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId, PaymentId};
use crate::limits::N_COLLECTED_PER_RUN;
use crate::money::Micros;
use crate::payment::{CARRIED, Charge, Payments, STRIPE};
use crate::store::{Store, Write, get, get_count, get_money, get_parsed, get_time};
use crate::time::Timestamp;
use crate::webhooks::Happened;

const DAY: Duration = Duration::from_secs(86_400);
/// Pauses after attempts that failed; after the last of them the account is restricted.
pub const ATTEMPT_PAUSES: [Duration; 3] =
    [Duration::from_secs(3 * DAY.as_secs()), Duration::from_secs(5 * DAY.as_secs()), Duration::from_secs(7 * DAY.as_secs())];
/// When what was not answered is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

const DUE: &str = "SELECT d.invoice_id FROM dunning d JOIN invoice i ON i.id = d.invoice_id WHERE d.next_attempt_at <= $1 AND i.status = 'open' ORDER BY d.next_attempt_at LIMIT $2";
const DOING: &str = "collecting an invoice";

/// An attempt that is about to be made, or whose end is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its name.
    pub payment: PaymentId,
    /// Of which invoice.
    pub invoice: InvoiceId,
    /// Whose.
    pub account: AccountId,
    /// How much.
    pub amount: Micros,
    /// How much is owed now; another amount than that of an attempt that was begun before.
    owed: Micros,
    /// In which currency.
    pub currency: String,
    /// It was begun before, and how it ended is not known.
    pub is_old: bool,
    /// Somebody is asking right now.
    is_under_way: bool,
    customer: String,
    method: String,
}

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database(DOING)
}

impl Payments {
    /// Makes the attempts that are due now; says how many.
    pub async fn collect_due(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let query = sqlx::query(DUE).bind(now.0).bind(N_COLLECTED_PER_RUN);
        let rows = query.fetch_all(self.store.pool()).await.map_err(failed())?;
        let by = By::job("dunning", now);
        let mut failed_first = None;
        for row in &rows {
            let invoice: InvoiceId = get_parsed(row, "invoice_id")?;
            if let Err(error) = self.collect(invoice, &by).await {
                // One that cannot be collected keeps no other waiting.
                tracing::warn!(%error, %invoice, "an invoice cannot be collected");
                failed_first.get_or_insert(error);
            }
        }
        // Whoever died between a payment and this has left somebody restricted who has paid.
        let query = sqlx::query("SELECT DISTINCT account_id FROM dunning WHERE restricted_at IS NOT NULL");
        for row in &query.fetch_all(self.store.pool()).await.map_err(failed())? {
            self.store.release_account(get_parsed(row, "account_id")?, &by).await?;
        }
        failed_first.map_or(Ok(rows.len()), Err)
    }

    /// Tries to be paid an invoice now.
    pub async fn collect(&self, invoice: InvoiceId, by: &By) -> Result<Option<Charge>, PlatformError> {
        let Some(mut attempt) = self.store.begin_attempt(invoice, by.at).await? else { return Ok(None) };
        if attempt.is_under_way {
            return Ok(Some(Charge::Processing { reference: String::new() }));
        }
        if attempt.is_old
            && !attempt.customer.is_empty()
            && let Some(charge) = self.stripe.find_charge(&attempt.customer, attempt.payment).await?
        {
            self.store.end_attempt(attempt.payment, &charge, by).await?;
            return Ok(Some(charge));
        }
        if attempt.amount != attempt.owed {
            // It was never made, and something else is owed by now, or nothing.
            self.store.withdraw_attempt(attempt.payment, "another amount is owed by now", by).await?;
            match self.store.begin_attempt(invoice, by.at).await? {
                Some(other) if !other.is_old => attempt = other,
                _ => return Ok(None),
            }
        }
        let charge = self.charge(&attempt).await?;
        match &charge {
            Charge::TooSmall { .. } => self.store.carry_forward(&attempt, by).await?,
            charge => self.store.end_attempt(attempt.payment, charge, by).await?,
        }
        Ok(Some(charge))
    }

    async fn charge(&self, attempt: &Attempt) -> Result<Charge, PlatformError> {
        if attempt.method.is_empty() {
            let reason = "no_payment_method: the account has no card".to_string();
            return Ok(Charge::Failed { reference: String::new(), reason });
        }
        let what = (attempt.amount.0 / MICROS_PER_CENT, attempt.currency.as_str());
        // What fails otherwise is no failure of who pays: the attempt stays, and is asked for again.
        Ok(self.stripe.charge((&attempt.customer, &attempt.method), what, (attempt.invoice, attempt.payment)).await?)
    }
}

impl Store {
    /// Writes down that an invoice is about to be charged. Nothing if there is nothing left to be paid.
    async fn begin_attempt(&self, id: InvoiceId, now: Timestamp) -> Result<Option<Attempt>, PlatformError> {
        let mut write = self.begin().await?;
        let (invoice, total) = self.locked_invoice(&mut write, id).await?;
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let outstanding = total.minus(issued.credited).minus(issued.paid);
        let account = invoice.account;
        let query =
            sqlx::query("SELECT id, amount, updated_at FROM payment WHERE invoice_id = $1 AND status = 'pending' ORDER BY attempt LIMIT 1");
        let pending = query.bind(id.to_string()).fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        if outstanding <= Micros::ZERO && pending.is_none() {
            return Ok(None);
        }
        let query = sqlx::query("SELECT customer, payment_method FROM payment_customer WHERE account_id = $1").bind(account.to_string());
        let row = query.fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let (customer, method) = match &row {
            Some(row) => (get(row, "customer")?, get(row, "payment_method")?),
            None => (String::new(), String::new()),
        };
        let (payment, amount, is_old) = match &pending {
            Some(row) => (get_parsed(row, "id")?, get_money(row, "amount")?, true),
            None => (self.add_payment(&mut write, (id, outstanding), (STRIPE, "", "pending"), now).await?, outstanding, false),
        };
        // Whoever asks notes when; another waits until that must have come to an end.
        let asked_at = pending.as_ref().map(|row| get_time(row, "updated_at")).transpose()?;
        let is_under_way = asked_at.is_some_and(|asked_at| now.since(asked_at) < ASK_AGAIN);
        if !is_under_way {
            let touch = sqlx::query("UPDATE payment SET updated_at = $1 WHERE id = $2").bind(now.0).bind(payment.to_string());
            touch.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let later = sqlx::query("UPDATE dunning SET next_attempt_at = $1 WHERE invoice_id = $2").bind(now.plus(ASK_AGAIN).0);
        later.bind(id.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit(DOING).await?;
        let currency = issued.currency.clone();
        let owed = outstanding.or_zero();
        Ok(Some(Attempt { payment, invoice: id, account, amount, owed, currency, is_old, is_under_way, customer, method }))
    }

    /// Gives up an attempt that was not made. If it was made after all, its event will say so, and it counts.
    async fn withdraw_attempt(&self, payment: PaymentId, reason: &str, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE payment SET status = 'failed', reason = $1, updated_at = $2 WHERE id = $3 AND status = 'pending'");
        let update = update.bind(reason.to_string()).bind(by.at.0).bind(payment.to_string());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit(DOING).await
    }

    /// Puts what is less than is charged at all on the next invoice, which settles this one: nobody has failed to pay it.
    async fn carry_forward(&self, attempt: &Attempt, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let (invoice, total) = self.locked_invoice(&mut write, attempt.invoice).await?;
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let update =
            sqlx::query("UPDATE payment SET provider = $1, status = 'succeeded', updated_at = $2 WHERE id = $3 AND status = 'pending'");
        let update = update.bind(CARRIED).bind(by.at.0).bind(attempt.payment.to_string());
        if update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Ok(());
        }
        let text = format!("{}, which was too little to be charged by itself", issued.number);
        let item = NewItem::new(format!("too_little:{}", attempt.payment), text, attempt.amount).with_its_tax();
        self.add_item(&mut write, invoice.account, item, by.at).await?;
        let settled = (issued.credited, issued.paid.plus(attempt.amount));
        self.set_paid(&mut write, (&invoice, total), settled, (&attempt.payment.to_string(), by.at)).await?;
        let (before, after) = (json!({ "paid_micros": issued.paid.0 }), json!({ "carried_micros": attempt.amount.0 }));
        let deed = Deed { action: "invoice.carried", account: Some(invoice.account), target: issued.id.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit(DOING).await
    }

    /// Notes how an attempt ended. Said again, or in another order, it changes nothing: who has paid has paid.
    pub(crate) async fn end_attempt(&self, payment: PaymentId, charge: &Charge, by: &By) -> Result<(), PlatformError> {
        let query = sqlx::query("SELECT invoice_id FROM payment WHERE id = $1").bind(payment.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(failed())?;
        let id: InvoiceId = get_parsed(&row.ok_or(PlatformError::NotFound { what: "payment" })?, "invoice_id")?;
        let mut write = self.begin().await?;
        let (invoice, total) = self.locked_invoice(&mut write, id).await?;
        // Read under the invoice's lock, which all that change a payment of it hold.
        let query = sqlx::query("SELECT status, amount FROM payment WHERE id = $1").bind(payment.to_string());
        let row = query.fetch_one(&mut *write.transaction).await.map_err(failed())?;
        let (before, amount): (String, _) = (get(&row, "status")?, get_money(&row, "amount")?);
        let (status, reference, reason) = match charge {
            Charge::Succeeded { reference } => ("succeeded", reference.as_str(), ""),
            Charge::Processing { reference } => ("pending", reference.as_str(), ""),
            Charge::Failed { reference, reason } => ("failed", reference.as_str(), reason.as_str()),
            Charge::TooSmall { reason } => ("failed", "", reason.as_str()),
        };
        // Each attempt is charged once, so one that has failed is not under way again: that was said before, and came late.
        let is_late = before == "failed" && status != "succeeded";
        if before == "succeeded" || is_late {
            return Ok(());
        }
        let update = sqlx::query(
            "UPDATE payment SET status = $1, provider_ref = CASE WHEN $2 = '' THEN provider_ref ELSE $2 END, reason = $3, updated_at = $4 WHERE id = $5",
        );
        let update = update.bind(status).bind(reference.to_string()).bind(reason.to_string()).bind(by.at.0).bind(payment.to_string());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        match status {
            "succeeded" => self.note_paid(&mut write, &invoice, (total, amount), (payment, by)).await?,
            "failed" => self.note_failed(&mut write, (id, invoice.account, payment), reason, by).await?,
            // Its event will come; it is asked for now and then.
            _ => {}
        }
        write.commit(DOING).await?;
        if status == "succeeded" { self.release_account(invoice.account, by).await } else { Ok(()) }
    }

    /// Plans the next attempt, or restricts the account.
    async fn note_failed(
        &self,
        write: &mut Write<'_>,
        (invoice, account, payment): (InvoiceId, AccountId, PaymentId),
        reason: &str,
        by: &By,
    ) -> Result<(), PlatformError> {
        let data = json!({ "id": invoice.to_string(), "reason": reason });
        let happened = Happened { account, source: format!("invoice.payment_failed:{payment}"), kind: "invoice.payment_failed", data };
        self.note_happened(write, happened, by.at).await?;
        let query = sqlx::query("SELECT n_attempts FROM dunning WHERE invoice_id = $1").bind(invoice.to_string());
        let Some(row) = query.fetch_optional(&mut *write.transaction).await.map_err(failed())? else { return Ok(()) };
        let n_attempts = get_count(&row, "n_attempts")?;
        let pause = ATTEMPT_PAUSES.get(usize::try_from(n_attempts).unwrap_or(usize::MAX));
        let next = pause.map(|pause| by.at.plus(*pause).0);
        let update = sqlx::query("UPDATE dunning SET n_attempts = n_attempts + 1, next_attempt_at = $1 WHERE invoice_id = $2");
        update.bind(next).bind(invoice.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        if next.is_some() {
            return Ok(());
        }
        self.restrict(write, (invoice, account), by).await
    }

    async fn restrict(&self, write: &mut Write<'_>, (invoice, account): (InvoiceId, AccountId), by: &By) -> Result<(), PlatformError> {
        let update = sqlx::query("UPDATE dunning SET restricted_at = $1 WHERE invoice_id = $2 AND restricted_at IS NULL");
        let update = update.bind(by.at.0).bind(invoice.to_string());
        if update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Ok(());
        }
        note_change(write, "account", &account.to_string()).await?;
        let data = json!({ "invoice": invoice.to_string() });
        let happened = Happened { account, source: format!("account.restricted:{invoice}:{}", by.at.0), kind: "account.restricted", data };
        self.note_happened(write, happened, by.at).await?;
        let (before, after) = (json!({ "status": "active" }), json!({ "status": "suspended", "invoice": invoice.to_string() }));
        let deed = Deed { action: "account.restricted", account: Some(account), target: account.to_string(), before, after };
        self.audit(write, by, deed).await
    }

    /// Lets an account work again that was restricted for invoices, if all of them are paid. One that was given up is not; and what an
    /// operator has said of the account stays as it is.
    pub(crate) async fn release_account(&self, account: AccountId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        // The lock of the account's row makes this follow or precede a restriction.
        let lock = sqlx::query("UPDATE account SET name = name WHERE id = $1").bind(account.to_string());
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let query = sqlx::query(
            "SELECT i.status FROM dunning d JOIN invoice i ON i.id = d.invoice_id WHERE d.account_id = $1 AND d.restricted_at IS NOT NULL",
        );
        let rows = query.bind(account.to_string()).fetch_all(&mut *write.transaction).await.map_err(failed())?;
        let is_paid = |row: &AnyRow| get::<String>(row, "status").is_ok_and(|status| status == "paid");
        if rows.is_empty() || !rows.iter().all(is_paid) {
            return Ok(());
        }
        self.lift_restriction(&mut write, account).await?;
        let happened =
            Happened { account, source: format!("account.restored:{account}:{}", by.at.0), kind: "account.restored", data: json!({}) };
        self.note_happened(&mut write, happened, by.at).await?;
        let (before, after) = (json!({ "restricted": true }), json!({ "restricted": false }));
        let deed = Deed { action: "account.restored", account: Some(account), target: account.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("letting an account work again").await
    }

    /// Ends what dunning has restricted; what an operator has suspended stays so.
    pub(crate) async fn lift_restriction(&self, write: &mut Write<'_>, account: AccountId) -> Result<(), PlatformError> {
        let end = sqlx::query("UPDATE dunning SET restricted_at = NULL WHERE account_id = $1").bind(account.to_string());
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        note_change(write, "account", &account.to_string()).await
    }
}
