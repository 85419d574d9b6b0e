//! Issued invoices: reading them, correcting them by credit notes, and what is known of their being paid. A line that was issued is
//! never changed.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::close::{NewDocument, NewItem, lock_issuer};
use crate::billing::covered::get_period;
use crate::billing::invoice::{DocumentKind, Invoice, InvoiceStatus, Issued, from_json};
use crate::billing::line::{InvoiceLine, LineKind, Rounding};
use crate::billing::settings::Profile;
use crate::billing::statement::{MICROS_PER_CENT, ratio};
use crate::directory::check_label;
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId, PaymentId};
use crate::limits::N_INVOICES_PER_PAGE;
use crate::money::Micros;
use crate::store::{Store, Write, get, get_count, get_money, get_parsed, get_time};
use crate::time::Timestamp;

const INVOICES: &str = "SELECT i.*, a.name AS account_name, CAST(COALESCE((SELECT MAX(p.upto_seq) FROM closed_period p WHERE p.account_id = i.account_id AND p.period < i.period), 0) AS BIGINT) AS after_seq, CAST(COALESCE((SELECT MAX(p.upto_seq) FROM closed_period p WHERE p.account_id = i.account_id AND p.period = i.period), 0) AS BIGINT) AS upto_seq FROM invoice i JOIN account a ON a.id = i.account_id";

impl Store {
    /// An issued invoice, if it is the account's; without an account, anybody's.
    pub async fn invoice(&self, id: InvoiceId, account: Option<AccountId>) -> Result<Invoice, PlatformError> {
        let text = format!("{INVOICES} WHERE i.id = $1 AND (i.account_id = $2 OR $2 = '')");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(id.to_string());
        let query = query.bind(account.map_or_else(String::new, |id| id.to_string()));
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading an invoice"))?;
        let mut invoice = read_invoice(&row.ok_or(PlatformError::NotFound { what: "invoice" })?)?;
        let query = sqlx::query("SELECT * FROM invoice_line WHERE invoice_id = $1 ORDER BY line_number").bind(id.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading an invoice"))?;
        invoice.lines = rows.iter().map(read_line).collect::<Result<_, _>>()?;
        Ok(invoice)
    }

    /// Issued invoices and credit notes with their totals and without their lines, the newest first; of one account, or of all.
    pub async fn invoices(&self, account: Option<AccountId>) -> Result<Vec<(Invoice, Micros)>, PlatformError> {
        let text = format!("{INVOICES} WHERE i.account_id = $1 OR $1 = '' ORDER BY i.issued_at DESC, i.number DESC LIMIT $2");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(account.map_or_else(String::new, |id| id.to_string()));
        let rows = query.bind(N_INVOICES_PER_PAGE).fetch_all(self.pool()).await;
        let read = |row: &AnyRow| Ok((read_invoice(row)?, get_money(row, "total")?));
        rows.map_err(PlatformError::database("reading invoices"))?.iter().map(read).collect()
    }

    /// Takes an amount off an issued invoice. What was paid too much by that is on the next invoice.
    pub async fn credit_invoice(&self, id: InvoiceId, (amount, reason): (Micros, &str), by: &By) -> Result<InvoiceId, PlatformError> {
        check_label(reason)?;
        if amount <= Micros::ZERO || amount.0 % MICROS_PER_CENT != 0 {
            return Err(PlatformError::Invalid { field: "amount", reason: "expected whole cents, more than none".into() });
        }
        let mut write = self.begin().await?;
        self.lock_issuer_of(&mut write, id).await?;
        let (invoice, total) = self.locked_invoice(&mut write, id).await?;
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let note = self.write_note(&mut write, (&invoice, total), (amount, reason), by).await?;
        let credited = issued.credited.plus(amount);
        self.set_paid(&mut write, (&invoice, total), (credited, issued.paid), (&note.to_string(), by.at)).await?;
        write.commit("crediting an invoice").await?;
        self.release_account(invoice.account, by).await?;
        Ok(note)
    }

    /// Locks whoever issued an invoice, before the invoice itself is locked: in this order, nobody waits for another in a circle.
    pub(crate) async fn lock_issuer_of(&self, write: &mut Write<'_>, id: InvoiceId) -> Result<(), PlatformError> {
        let query = sqlx::query("SELECT issuer_id FROM invoice WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(&mut *write.transaction).await.map_err(PlatformError::database("reading an invoice"))?;
        let issuer: String = get(&row.ok_or(PlatformError::NotFound { what: "invoice" })?, "issuer_id")?;
        lock_issuer(write, &issuer).await
    }

    /// Issues a credit note, by whoever issued the invoice; who writes what is credited of that is the caller. Both are locked.
    pub(crate) async fn write_note(
        &self,
        write: &mut Write<'_>,
        (invoice, total): (&Invoice, Micros),
        (amount, reason): (Micros, &str),
        by: &By,
    ) -> Result<InvoiceId, PlatformError> {
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        if issued.kind != DocumentKind::Invoice {
            return Err(PlatformError::Invalid { field: "invoice", reason: "a credit note is not corrected by another".into() });
        }
        let left = total.minus(issued.credited);
        if amount > left {
            return Err(PlatformError::Invalid { field: "amount", reason: format!("of this invoice, {left} are left") });
        }
        let lines = self.note_lines(write, invoice, (total, amount), reason).await?;
        // As the invoice has it, whatever is agreed with the account since.
        let profile = Profile {
            issuer: issued.issuer.clone(),
            party: issued.parties.customer.clone(),
            region: String::new(),
            email: String::new(),
            is_automatic: issued.is_automatic,
            net_days: 0,
        };
        let (kind, account, period) = (DocumentKind::CreditNote, invoice.account, invoice.period);
        let parties = Some(&issued.parties);
        let new = NewDocument { kind, account, period, corrects: Some(issued.id), profile: &profile, parties, lines: &lines };
        self.issue(write, new, by).await
    }

    /// What a credit note says: its amount without tax, and the taxes in it by their shares, so that they add up.
    async fn note_lines(
        &self,
        write: &mut Write<'_>,
        invoice: &Invoice,
        (total, amount): (Micros, Micros),
        reason: &str,
    ) -> Result<Vec<InvoiceLine>, PlatformError> {
        let Some(issued) = &invoice.issued else { return Ok(Vec::new()) };
        let query = sqlx::query("SELECT * FROM invoice_line WHERE invoice_id = $1 ORDER BY line_number").bind(issued.id.to_string());
        let rows = query.fetch_all(&mut *write.transaction).await.map_err(PlatformError::database("reading an invoice"))?;
        let lines: Vec<InvoiceLine> = rows.iter().map(read_line).collect::<Result<_, _>>()?;
        // What was paid before has no part in the taxes; the last note of an invoice has what those before it left of each.
        let is_paid =
            |line: &&InvoiceLine| matches!(line.kind, LineKind::Overpaid { .. } | LineKind::Brought { .. } | LineKind::OverpaidCarried);
        let taxed = total.minus(lines.iter().filter(is_paid).map(|line| line.amount).sum());
        let share = |line: &InvoiceLine| {
            let upto = |credited: Micros| ratio(line.amount, (i128::from(credited.0), i128::from(taxed.0.max(1))), MICROS_PER_CENT);
            let tax = upto(issued.credited.plus(amount)).minus(upto(issued.credited));
            InvoiceLine { text: format!("of {}", line.text), amount: Micros::ZERO.minus(tax), ..line.clone() }
        };
        let taxes: Vec<InvoiceLine> = lines.iter().filter(|line| matches!(line.kind, LineKind::Tax { .. })).map(share).collect();
        let net = taxes.iter().fold(amount, |net, tax| net.plus(tax.amount));
        let correction = InvoiceLine {
            id: "correction".into(),
            text: format!("correction of {}: {reason}", issued.number),
            kind: LineKind::Correction,
            rounding: Rounding::Exact,
            n_requests: 0,
            amount: Micros::ZERO.minus(net),
        };
        Ok(std::iter::once(correction).chain(taxes).collect())
    }

    /// An invoice within a transaction that changes how it is paid, and its total. Its row is locked.
    pub(crate) async fn locked_invoice(&self, write: &mut Write<'_>, id: InvoiceId) -> Result<(Invoice, Micros), PlatformError> {
        let failed = || PlatformError::database("reading an invoice");
        let lock = sqlx::query("UPDATE invoice SET paid = paid WHERE id = $1").bind(id.to_string());
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let text = format!("{INVOICES} WHERE i.id = $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(id.to_string());
        let row = query.fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let row = row.ok_or(PlatformError::NotFound { what: "invoice" })?;
        Ok((read_invoice(&row)?, get_money(&row, "total")?))
    }

    /// Notes what is off and what is paid of an invoice, and with that whether it is settled. What is now more than it says is taken off
    /// the next one, under the name of the note or payment that made it so; what is no longer too much is put on it again.
    pub(crate) async fn set_paid(
        &self,
        write: &mut Write<'_>,
        (invoice, total): (&Invoice, Micros),
        (credited, paid): (Micros, Micros),
        (source, now): (&str, Timestamp),
    ) -> Result<InvoiceStatus, PlatformError> {
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let id = issued.id;
        let overpaid = |settled: Micros| settled.minus(total).or_zero();
        let back = overpaid(credited.plus(paid)).minus(overpaid(issued.credited.plus(issued.paid)));
        if back != Micros::ZERO {
            let what = if back > Micros::ZERO { "paid too much on" } else { "went back of what was paid too much on" };
            let text = format!("{what} {}", issued.number);
            let item = NewItem::new(format!("overpaid:{source}"), text, Micros::ZERO.minus(back)).with_its_tax();
            self.add_item(write, invoice.account, item, now).await?;
        }
        // What was given up stays so until all of it is there: its account owes it no less.
        let status = match issued.status {
            _ if credited.plus(paid) >= total => InvoiceStatus::Paid,
            InvoiceStatus::Uncollectible => InvoiceStatus::Uncollectible,
            InvoiceStatus::Open | InvoiceStatus::Paid => InvoiceStatus::Open,
        };
        let update = sqlx::query("UPDATE invoice SET credited = $1, paid = $2, status = $3 WHERE id = $4");
        let update = update.bind(credited.0).bind(paid.0).bind(status.name()).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting a payment"))?;
        if status == InvoiceStatus::Paid {
            let end = sqlx::query("UPDATE dunning SET next_attempt_at = NULL WHERE invoice_id = $1").bind(id.to_string());
            end.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting a payment"))?;
        }
        Ok(status)
    }

    /// Notes that an invoice was paid outside of here, such as by a bank transfer.
    pub async fn mark_paid(&self, id: InvoiceId, reference: &str, by: &By) -> Result<(), PlatformError> {
        check_label(reference)?;
        let mut write = self.begin().await?;
        let (invoice, total) = self.locked_invoice(&mut write, id).await?;
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let outstanding = total.minus(issued.credited).minus(issued.paid);
        if outstanding <= Micros::ZERO {
            return Err(PlatformError::Invalid { field: "invoice", reason: "there is nothing left to be paid".into() });
        }
        let payment = self.add_payment(&mut write, (id, outstanding), ("manual", reference, "succeeded"), by.at).await?;
        self.note_paid(&mut write, &invoice, (total, outstanding), (payment, by)).await?;
        write.commit("noting a payment").await?;
        self.release_account(invoice.account, by).await
    }

    /// Adds what was paid to an invoice, tells of it, and writes it into the log.
    pub(crate) async fn note_paid(
        &self,
        write: &mut Write<'_>,
        invoice: &Invoice,
        (total, amount): (Micros, Micros),
        (payment, by): (PaymentId, &By),
    ) -> Result<(), PlatformError> {
        let Some(issued) = &invoice.issued else { return Err(PlatformError::NotFound { what: "invoice" }) };
        let paid = issued.paid.plus(amount);
        let status = self.set_paid(write, (invoice, total), (issued.credited, paid), (&payment.to_string(), by.at)).await?;
        if status == InvoiceStatus::Paid {
            let data =
                json!({ "id": issued.id.to_string(), "number": issued.number, "total_micros": total.0, "currency": issued.currency });
            let (account, source) = (invoice.account, format!("invoice.paid:{}", issued.id));
            self.note_happened(write, crate::webhooks::Happened { account, source, kind: "invoice.paid", data }, by.at).await?;
        }
        let (before, after) = (json!({ "paid_micros": issued.paid.0 }), json!({ "paid_micros": paid.0, "status": status.name() }));
        let deed = Deed { action: "invoice.paid", account: Some(invoice.account), target: issued.id.to_string(), before, after };
        self.audit(write, by, deed).await
    }

    /// Gives up an invoice that nobody will pay.
    pub async fn give_invoice_up(&self, id: InvoiceId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let (invoice, _) = self.locked_invoice(&mut write, id).await?;
        let update = sqlx::query("UPDATE invoice SET status = 'uncollectible' WHERE id = $1 AND status = 'open'").bind(id.to_string());
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("giving an invoice up"))?;
        if updated.rows_affected() == 0 {
            return Err(PlatformError::Invalid { field: "invoice", reason: "it is not open".into() });
        }
        let end = sqlx::query("UPDATE dunning SET next_attempt_at = NULL WHERE invoice_id = $1").bind(id.to_string());
        end.execute(&mut *write.transaction).await.map_err(PlatformError::database("giving an invoice up"))?;
        let after = json!({ "status": "uncollectible" });
        let deed = Deed { action: "invoice.given_up", account: Some(invoice.account), target: id.to_string(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("giving an invoice up").await
    }
}

fn read_invoice(row: &AnyRow) -> Result<Invoice, PlatformError> {
    let status = match get::<String>(row, "status")?.as_str() {
        "open" => InvoiceStatus::Open,
        "paid" => InvoiceStatus::Paid,
        _ => InvoiceStatus::Uncollectible,
    };
    let corrects: Option<String> = get(row, "corrects")?;
    let issued = Issued {
        id: get_parsed(row, "id")?,
        kind: if get::<String>(row, "kind")? == "invoice" { DocumentKind::Invoice } else { DocumentKind::CreditNote },
        number: get(row, "name")?,
        corrects: corrects.map(|id| id.parse()).transpose()?,
        due_at: get_time(row, "due_at")?,
        currency: get(row, "currency")?,
        parties: from_json(&get::<String>(row, "parties")?, "parties")?,
        status,
        is_automatic: get::<String>(row, "collection")? == "automatic",
        credited: get_money(row, "credited")?,
        paid: get_money(row, "paid")?,
        issuer: get(row, "issuer_id")?,
        cover: (get_count(row, "after_seq")?, get_count(row, "upto_seq")?),
    };
    Ok(Invoice {
        account: get_parsed(row, "account_id")?,
        account_name: get(row, "account_name")?,
        period: get_period(row)?,
        at: get_time(row, "issued_at")?,
        lines: Vec::new(),
        issued: Some(issued),
    })
}

fn read_line(row: &AnyRow) -> Result<InvoiceLine, PlatformError> {
    Ok(InvoiceLine {
        id: get(row, "line_id")?,
        text: get(row, "text")?,
        kind: from_json(&get::<String>(row, "detail")?, "a line")?,
        rounding: get_parsed(row, "rounding")?,
        n_requests: get_count(row, "n_requests")?,
        amount: get_money(row, "amount")?,
    })
}
