//! Money that goes back. A refund is written down before Stripe is asked, under a name that Stripe hears, too, so that one whose answer
//! was lost is asked for and not made again. What went back is off what was paid; a credit note takes it off the invoice, so that it is
//! owed to nobody, except for what the customer had paid too much, which was off already. What a bank takes back (a dispute) is off what
//! was paid and has no note: the invoice is open again, and nobody charges its card for it by itself.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::statement::MICROS_PER_CENT;
use crate::directory::check_label;
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId, PaymentId, RefundId};
use crate::limits::N_COLLECTED_PER_RUN;
use crate::money::Micros;
use crate::payment::stripe::{RefundEnd, Refunded};
use crate::payment::{Payments, STRIPE};
use crate::store::{Store, Write, get, get_money, get_parsed};
use crate::webhooks::Happened;

const DOING: &str = "giving money back";

/// What is known of money that goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundRow {
    /// Its name.
    pub id: RefundId,
    /// Of which payment.
    pub payment: PaymentId,
    /// Of which invoice.
    pub invoice: InvoiceId,
    /// How much.
    pub amount: Micros,
    /// `pending`, `succeeded` or `failed`.
    pub status: String,
    /// Why.
    pub reason: String,
    /// The credit note that says so.
    pub note: Option<InvoiceId>,
    /// What Stripe calls the payment.
    intent: String,
}

/// Money that somebody else has sent or taken back.
pub(super) struct Elsewhere<'a> {
    pub(super) kind: &'static str,
    pub(super) reference: &'a str,
    pub(super) amount: Micros,
    pub(super) reason: &'a str,
}

const REFUNDS: &str = "SELECT r.id, r.payment_id, p.invoice_id, r.amount, r.status, r.reason, r.note_id, p.provider_ref FROM refund r JOIN payment p ON p.id = r.payment_id";
/// Payments of an invoice by Stripe with what has not gone back of them, the newest first.
const REFUNDABLE: &str = "SELECT p.id, CAST(p.amount - COALESCE((SELECT SUM(r.amount) FROM refund r WHERE r.payment_id = p.id AND r.status <> 'failed'), 0) AS BIGINT) AS remaining FROM payment p WHERE p.invoice_id = $1 AND p.provider = $2 AND p.status = 'succeeded' AND p.provider_ref <> '' ORDER BY p.attempt DESC";

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database(DOING)
}

impl Payments {
    /// Sends money that was paid by card back to it, with a credit note. Asked again while nobody knows what became of the same refund,
    /// it makes no second one.
    pub async fn refund(&self, invoice: InvoiceId, (amount, reason): (Micros, &str), by: &By) -> Result<Vec<RefundRow>, PlatformError> {
        let begun = self.store.begin_refund(invoice, (amount, reason), by).await?;
        for refund in &begun {
            self.settle_refund(refund, by).await?;
        }
        let ids: Vec<RefundId> = begun.iter().map(|refund| refund.id).collect();
        Ok(self.store.refunds(invoice).await?.into_iter().filter(|refund| ids.contains(&refund.id)).collect())
    }

    /// Asks what became of refunds whose end is not known.
    pub(super) async fn settle_refunds(&self, by: &By) -> Result<(), PlatformError> {
        let text = format!("{REFUNDS} WHERE r.status = 'pending' AND r.kind = 'refund' ORDER BY r.updated_at LIMIT $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(N_COLLECTED_PER_RUN);
        let rows = query.fetch_all(self.store.pool()).await.map_err(failed())?;
        let mut failed_first = None;
        for row in &rows {
            let refund = read_refund_row(row)?;
            if let Err(error) = self.settle_refund(&refund, by).await {
                tracing::warn!(%error, refund = %refund.id, "a refund cannot be made");
                failed_first.get_or_insert(error);
            }
        }
        failed_first.map_or(Ok(()), Err)
    }

    async fn settle_refund(&self, refund: &RefundRow, by: &By) -> Result<(), PlatformError> {
        let found = self.stripe.find_refund(&refund.intent, refund.id).await?;
        let made = match found {
            Some(refunded) => Ok(refunded),
            None => self.stripe.refund(&refund.intent, refund.amount.0 / MICROS_PER_CENT, refund.id).await,
        };
        match made {
            Ok(refunded) => self.store.end_refund(refund.id, &refunded, by).await,
            // Stripe will not: the refund is none, and whoever wanted it hears why.
            Err(error) if error.is_of_input() => {
                let refunded = Refunded { reference: String::new(), end: RefundEnd::Failed };
                self.store.end_refund(refund.id, &refunded, by).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Store {
    /// All that went back of an invoice's payments, the oldest first.
    pub async fn refunds(&self, invoice: InvoiceId) -> Result<Vec<RefundRow>, PlatformError> {
        let text = format!("{REFUNDS} WHERE p.invoice_id = $1 ORDER BY r.created_at, r.id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(invoice.to_string()).fetch_all(self.pool()).await.map_err(failed())?;
        rows.iter().map(read_refund_row).collect()
    }

    /// Writes down that money is about to go back; of several payments, if one has not enough.
    async fn begin_refund(&self, id: InvoiceId, (amount, reason): (Micros, &str), by: &By) -> Result<Vec<RefundRow>, PlatformError> {
        check_label(reason)?;
        let invalid = |reason: String| PlatformError::Invalid { field: "amount", reason };
        if amount <= Micros::ZERO || amount.0 % MICROS_PER_CENT != 0 {
            return Err(invalid("expected whole cents, more than none".into()));
        }
        let mut write = self.begin().await?;
        let (invoice, _) = self.locked_invoice(&mut write, id).await?;
        let text = format!("{REFUNDS} WHERE p.invoice_id = $1 AND r.status = 'pending' AND r.kind = 'refund' ORDER BY r.id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(id.to_string());
        let rows = rows.fetch_all(&mut *write.transaction).await.map_err(failed())?;
        let pending: Vec<RefundRow> = rows.iter().map(read_refund_row).collect::<Result<_, _>>()?;
        if pending.iter().map(|refund| refund.amount).sum::<Micros>() == amount && pending.iter().all(|refund| refund.reason == reason) {
            return Ok(pending);
        }
        if !pending.is_empty() {
            return Err(PlatformError::Invalid { field: "invoice", reason: "another refund of it is under way".into() });
        }
        let query = sqlx::query(REFUNDABLE).bind(id.to_string()).bind(STRIPE);
        let rows = query.fetch_all(&mut *write.transaction).await.map_err(failed())?;
        let mut left = amount;
        for row in &rows {
            let part = get_money(row, "remaining")?.min(left);
            if part > Micros::ZERO {
                let payment: PaymentId = get_parsed(row, "id")?;
                insert_refund(&mut write, payment, (Elsewhere { kind: "refund", reference: "", amount: part, reason }, "pending"), by)
                    .await?;
                left = left.minus(part);
            }
        }
        if left > Micros::ZERO {
            return Err(invalid(format!("of what was paid by card, {} can go back", amount.minus(left))));
        }
        let after = json!({ "amount_micros": amount.0, "reason": reason });
        let deed =
            Deed { action: "invoice.refund_ordered", account: Some(invoice.account), target: id.to_string(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit(DOING).await?;
        Ok(self.refunds(id).await?.into_iter().filter(|refund| refund.status == "pending").collect())
    }

    /// Notes what became of a refund. Said again, it changes nothing; what went back and came back is paid again.
    pub(super) async fn end_refund(&self, id: RefundId, refunded: &Refunded, by: &By) -> Result<(), PlatformError> {
        let text = format!("{REFUNDS} WHERE r.id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(id.to_string()).fetch_optional(self.pool()).await.map_err(failed())?;
        let refund = read_refund_row(&row.ok_or(PlatformError::NotFound { what: "refund" })?)?;
        let mut write = self.begin().await?;
        self.lock_issuer_of(&mut write, refund.invoice).await?;
        let locked = self.locked_invoice(&mut write, refund.invoice).await?;
        // Read under the invoice's lock, which all that change a refund of it hold.
        let query = sqlx::query("SELECT status FROM refund WHERE id = $1").bind(id.to_string());
        let before: String = get(&query.fetch_one(&mut *write.transaction).await.map_err(failed())?, "status")?;
        let after = match refunded.end {
            RefundEnd::Succeeded => "succeeded",
            RefundEnd::Pending => "pending",
            RefundEnd::Failed => "failed",
        };
        let update = sqlx::query(
            "UPDATE refund SET status = $1, provider_ref = CASE WHEN $2 = '' THEN provider_ref ELSE $2 END, updated_at = $3 WHERE id = $4",
        );
        let is_known = before == after && after != "pending" || before == "failed" || before == "succeeded" && after == "pending";
        if is_known {
            return Ok(());
        }
        let update = update.bind(after).bind(refunded.reference.clone()).bind(by.at.0).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        match (before.as_str(), after) {
            (_, "succeeded") => self.note_refunded(&mut write, &locked, &refund, by).await?,
            ("succeeded", _) => self.note_returned(&mut write, &locked, (id, refund.amount), by).await?,
            _ => {}
        }
        write.commit(DOING).await
    }

    /// Takes what went back off what was paid, and off the invoice, but for what was paid too much.
    async fn note_refunded(
        &self,
        write: &mut Write<'_>,
        (invoice, total): &(crate::billing::Invoice, Micros),
        refund: &RefundRow,
        by: &By,
    ) -> Result<(), PlatformError> {
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let overpaid = issued.credited.plus(issued.paid).minus(*total).or_zero();
        let off = refund.amount.minus(overpaid).or_zero();
        if off > Micros::ZERO {
            let note = self.write_note(write, (invoice, *total), (off, &refund.reason), by).await?;
            let update = sqlx::query("UPDATE refund SET note_id = $1 WHERE id = $2").bind(note.to_string()).bind(refund.id.to_string());
            update.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let (credited, paid) = (issued.credited.plus(off), issued.paid.minus(refund.amount));
        self.set_paid(write, (invoice, *total), (credited, paid), (&refund.id.to_string(), by.at)).await?;
        let names = (invoice.account, refund.invoice);
        self.tell_of_return(write, names, ("invoice.refunded", &refund.id.to_string(), refund.amount), by).await
    }

    /// What went back and did not arrive is paid after all.
    async fn note_returned(
        &self,
        write: &mut Write<'_>,
        (invoice, total): &(crate::billing::Invoice, Micros),
        (id, amount): (RefundId, Micros),
        by: &By,
    ) -> Result<(), PlatformError> {
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let settled = (issued.credited, issued.paid.plus(amount));
        self.set_paid(write, (invoice, *total), settled, (&format!("returned:{id}"), by.at)).await?;
        let (before, after) = (json!({ "paid_micros": issued.paid.0 }), json!({ "paid_micros": settled.1.0, "refund": id.to_string() }));
        let deed = Deed { action: "invoice.refund_returned", account: Some(invoice.account), target: issued.id.to_string(), before, after };
        self.audit(write, by, deed).await
    }

    async fn tell_of_return(
        &self,
        write: &mut Write<'_>,
        (account, invoice): (AccountId, InvoiceId),
        (kind, refund, amount): (&'static str, &str, Micros),
        by: &By,
    ) -> Result<(), PlatformError> {
        let data = json!({ "id": invoice.to_string(), "refund": refund, "amount_micros": amount.0 });
        let happened = Happened { account, source: format!("{kind}:{refund}"), kind, data: data.clone() };
        self.note_happened(write, happened, by.at).await?;
        let deed = Deed { action: kind, account: Some(account), target: invoice.to_string(), before: Value::Null, after: data };
        self.audit(write, by, deed).await
    }

    /// Money that somebody has sent back in Stripe's dashboard: `so_far` of a payment in all. What is more than what is known went back.
    pub(super) async fn note_refunds_elsewhere(&self, intent: &str, so_far: Micros, by: &By) -> Result<(), PlatformError> {
        let Some((payment, invoice)) = self.payment_of(intent).await? else { return Ok(()) };
        let mut write = self.begin().await?;
        self.lock_issuer_of(&mut write, invoice).await?;
        let locked = self.locked_invoice(&mut write, invoice).await?;
        let query = sqlx::query(
            "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS known FROM refund WHERE payment_id = $1 AND kind = 'refund' AND status <> 'failed'",
        );
        let row = query.bind(payment.to_string()).fetch_one(&mut *write.transaction).await.map_err(failed())?;
        let amount = so_far.minus(get_money(&row, "known")?);
        if amount <= Micros::ZERO {
            return Ok(());
        }
        let reason = "refunded in Stripe's dashboard";
        let new = Elsewhere { kind: "refund", reference: "", amount, reason };
        let id = insert_refund(&mut write, payment, (new, "succeeded"), by).await?;
        let (status, reason) = ("succeeded".to_string(), reason.to_string());
        let refund = RefundRow { id, payment, invoice, amount, status, reason, note: None, intent: intent.into() };
        self.note_refunded(&mut write, &locked, &refund, by).await?;
        write.commit(DOING).await
    }

    /// What a bank takes back of a payment, or has given back: in whatever order that is heard.
    pub(super) async fn note_dispute(&self, intent: &str, (new, is_lost): (Elsewhere<'_>, bool), by: &By) -> Result<(), PlatformError> {
        let Some((payment, invoice)) = self.payment_of(intent).await? else { return Ok(()) };
        let mut write = self.begin().await?;
        let locked = self.locked_invoice(&mut write, invoice).await?;
        let Some(issued) = &locked.0.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let query = sqlx::query("SELECT id, status, amount FROM refund WHERE kind = 'dispute' AND provider_ref = $1");
        let row = query.bind(new.reference.to_string()).fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let known =
            row.map(|row| Ok::<_, PlatformError>((get_parsed(&row, "id")?, get::<String>(&row, "status")?, get_money(&row, "amount")?)));
        match known.transpose()? {
            None if is_lost => {
                let (amount, settled) = (new.amount, (issued.credited, issued.paid.minus(new.amount)));
                let id = insert_refund(&mut write, payment, (new, "succeeded"), by).await?;
                self.set_paid(&mut write, (&locked.0, locked.1), settled, (&id.to_string(), by.at)).await?;
                let names = (locked.0.account, invoice);
                self.tell_of_return(&mut write, names, ("invoice.payment_disputed", &id.to_string(), amount), by).await?;
            }
            None => {
                insert_refund(&mut write, payment, (new, "failed"), by).await?;
            }
            Some((id, status, amount)) if status == "succeeded" && !is_lost => {
                let update = sqlx::query("UPDATE refund SET status = 'failed', updated_at = $1 WHERE id = $2").bind(by.at.0);
                update.bind(RefundId::to_string(&id)).execute(&mut *write.transaction).await.map_err(failed())?;
                self.note_returned(&mut write, &locked, (id, amount), by).await?;
            }
            Some(_) => return Ok(()),
        }
        write.commit(DOING).await
    }

    /// The payment that Stripe calls so, and its invoice; none if it is somebody else's.
    async fn payment_of(&self, intent: &str) -> Result<Option<(PaymentId, InvoiceId)>, PlatformError> {
        let query = sqlx::query("SELECT id, invoice_id FROM payment WHERE provider = $1 AND provider_ref = $2 AND status = 'succeeded'");
        let row = query.bind(STRIPE).bind(intent.to_string()).fetch_optional(self.pool()).await.map_err(failed())?;
        row.map(|row| Ok((get_parsed(&row, "id")?, get_parsed(&row, "invoice_id")?))).transpose()
    }
}

async fn insert_refund(
    write: &mut Write<'_>,
    payment: PaymentId,
    (new, status): (Elsewhere<'_>, &'static str),
    by: &By,
) -> Result<RefundId, PlatformError> {
    let id = RefundId::random()?;
    let insert = sqlx::query(
        "INSERT INTO refund (id, payment_id, kind, provider_ref, amount, status, reason, note_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, NULL, $8, $8)",
    );
    let insert = insert.bind(id.to_string()).bind(payment.to_string()).bind(new.kind).bind(new.reference.to_string());
    let insert = insert.bind(new.amount.0).bind(status).bind(new.reason.to_string()).bind(by.at.0);
    insert.execute(&mut *write.transaction).await.map_err(failed())?;
    Ok(id)
}

fn read_refund_row(row: &AnyRow) -> Result<RefundRow, PlatformError> {
    let note: Option<String> = get(row, "note_id")?;
    Ok(RefundRow {
        id: get_parsed(row, "id")?,
        payment: get_parsed(row, "payment_id")?,
        invoice: get_parsed(row, "invoice_id")?,
        amount: get_money(row, "amount")?,
        status: get(row, "status")?,
        reason: get(row, "reason")?,
        note: note.map(|id| id.parse()).transpose()?,
        intent: get(row, "provider_ref")?,
    })
}
