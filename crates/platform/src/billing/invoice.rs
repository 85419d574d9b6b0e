//! Invoices as they are shown: a draft of a month that is still open, or one that was issued, as it was issued. What a draft says is
//! owed for usage is checked against the ledger's counter of the month: one that disagrees with it is not shown but an error.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::AnyConnection;

use crate::billing::covered::Cover;
use crate::billing::line::{InvoiceLine, LineId, RequestLine};
use crate::directory::AccountRow;
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId};
use crate::money::Micros;
use crate::store::{Store, get, get_count, get_money};
use crate::time::{Period, Timestamp};

/// One side of an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Party {
    /// Its name.
    pub name: String,
    /// In lines.
    pub address: String,
    /// ISO 3166-1; empty for unknown.
    #[serde(default)]
    pub country: String,
    /// By which the state knows it; empty for none.
    pub tax_id: String,
}

/// Who invoices whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parties {
    /// Who is paid.
    pub issuer: Party,
    /// Who pays.
    pub customer: Party,
}

/// What kind of paper it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// Somebody owes something.
    Invoice,
    /// Less than another invoice says.
    CreditNote,
}

impl DocumentKind {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invoice => "invoice",
            Self::CreditNote => "credit_note",
        }
    }

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Invoice => "Invoice",
            Self::CreditNote => "Credit note",
        }
    }
}

/// Whether it was paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// Not yet.
    Open,
    /// It was, or there was nothing to pay.
    Paid,
    /// It was given up.
    Uncollectible,
}

impl InvoiceStatus {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paid => "paid",
            Self::Uncollectible => "uncollectible",
        }
    }
}

/// What an issued invoice has besides a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Which.
    pub id: InvoiceId,
    /// Invoice or credit note.
    pub kind: DocumentKind,
    /// Its number, as it is printed.
    pub number: String,
    /// Of a credit note: the invoice that it corrects.
    pub corrects: Option<InvoiceId>,
    /// Until when it is to be paid.
    pub due_at: Timestamp,
    /// ISO 4217, in small letters.
    pub currency: String,
    /// Who invoices whom.
    pub parties: Parties,
    /// Whether it is paid.
    pub status: InvoiceStatus,
    /// Whether it is collected by itself.
    pub is_automatic: bool,
    /// What credit notes took off.
    pub credited: Micros,
    /// What was paid.
    pub paid: Micros,
    /// Whose number it has.
    pub(crate) issuer: String,
    pub(crate) cover: (u64, u64),
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
    /// When it was drawn up, or issued.
    pub at: Timestamp,
    /// Its lines.
    pub lines: Vec<InvoiceLine>,
    /// If it was issued.
    pub issued: Option<Issued>,
}

impl Invoice {
    /// The sum of its lines.
    pub fn total(&self) -> Micros {
        self.lines.iter().map(|line| line.amount).sum()
    }

    /// What is still to be paid.
    pub fn outstanding(&self) -> Micros {
        let issued = self.issued.as_ref();
        issued.map_or_else(|| self.total(), |issued| self.total().minus(issued.credited).minus(issued.paid)).or_zero()
    }

    /// As the organisation's API says it.
    pub fn to_json(&self, currency: &str) -> Value {
        let mut invoice = json!({
            "object": "organization.invoice",
            "status": self.issued.as_ref().map_or("draft", |issued| issued.status.name()),
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
        });
        if let Some(issued) = &self.issued {
            invoice["id"] = issued.id.to_string().into();
            invoice["kind"] = issued.kind.name().into();
            invoice["number"] = issued.number.clone().into();
            invoice["corrects"] = issued.corrects.map(|id| id.to_string()).into();
            invoice["due_at"] = issued.due_at.to_rfc3339().into();
            invoice["currency"] = issued.currency.clone().into();
            invoice["issuer"] = json!(issued.parties.issuer);
            invoice["customer"] = json!(issued.parties.customer);
            invoice["credited_micros"] = issued.credited.0.into();
            invoice["paid_micros"] = issued.paid.0.into();
            invoice["outstanding_micros"] = self.outstanding().0.into();
        }
        invoice
    }
}

impl Store {
    /// Draws up what an account owes for a month that is not closed, as far as it is in the tables; a plan that it has now is charged
    /// to the month's end.
    pub async fn draft_invoice(&self, account: AccountId, period: Period, now: Timestamp) -> Result<Invoice, PlatformError> {
        let AccountRow { id, name, .. } = self.account(account, now).await?;
        let catalog = self.catalog().await?;
        let mut snapshot = self.snapshot().await?;
        let cover = self.open_cover(&mut snapshot, (id, period)).await?;
        let lines = cover.statement(&mut snapshot, &catalog, now).await?.lines().lines;
        let own = lines.iter().filter(|line| line.kind.is_of_ledger() && !line.id.starts_with("late:"));
        let owed: Micros = own.map(|line| line.amount).sum();
        let query = sqlx::query("SELECT due FROM period_use WHERE scope_kind = 'account' AND scope_id = $1 AND period = $2");
        let query = query.bind(id.to_string()).bind(i64::from(period.0));
        let row = query.fetch_optional(&mut *snapshot).await.map_err(PlatformError::database("reading what is owed"))?;
        let expected = row.as_ref().map_or(Ok(Micros::ZERO), |row| get_money(row, "due"))?;
        if owed != expected {
            let reason = format!("its lines of usage add up to {owed}, and the ledger to {expected}");
            return Err(PlatformError::Corrupt { what: "an invoice", reason });
        }
        Ok(Invoice { account: id, account_name: name, period, at: now, lines, issued: None })
    }

    /// What an invoice for a month that is not closed would cover. What came late for months before is on it once the month before it
    /// is closed; until then that one has it.
    pub(crate) async fn open_cover(
        &self,
        connection: &mut AnyConnection,
        (account, period): (AccountId, Period),
    ) -> Result<Cover, PlatformError> {
        let failed = || PlatformError::database("drawing up an invoice");
        let query = sqlx::query("SELECT last_seq FROM ledger_writer");
        let upto = get_count(&query.fetch_one(&mut *connection).await.map_err(failed())?, "last_seq")?;
        let query = sqlx::query("SELECT period, upto_seq FROM closed_period WHERE account_id = $1 ORDER BY period DESC LIMIT 1");
        let row = query.bind(account.to_string()).fetch_optional(&mut *connection).await.map_err(failed())?;
        let closed = row.map(|row| Ok::<_, PlatformError>((get::<i64>(&row, "period")?, get_count(&row, "upto_seq")?))).transpose()?;
        let after = match closed {
            Some((last, _)) if i64::from(period.0) <= last => {
                return Err(PlatformError::Invalid { field: "month", reason: format!("{period} is closed: see its invoice") });
            }
            Some((last, after)) if i64::from(period.0) == last + 1 => after,
            // Nothing of earlier months.
            _ => upto,
        };
        Ok(Cover { account, period, after, upto })
    }

    /// Requests of a line of a draft, behind one of them, in order, a page at a time.
    pub async fn line_requests(
        &self,
        (account, period): (AccountId, Period),
        line: &LineId,
        after: u64,
    ) -> Result<Vec<RequestLine>, PlatformError> {
        let mut snapshot = self.snapshot().await?;
        let cover = self.open_cover(&mut snapshot, (account, period)).await?;
        drop(snapshot);
        self.covered_requests(cover, line, after).await
    }

    /// Requests of a line of an issued invoice of an account.
    pub async fn issued_line_requests(
        &self,
        (account, id): (AccountId, InvoiceId),
        line: &LineId,
        after: u64,
    ) -> Result<Vec<RequestLine>, PlatformError> {
        let invoice = self.invoice(id, Some(account)).await?;
        let issued = invoice.issued.ok_or(PlatformError::NotFound { what: "invoice" })?;
        let (after_seq, upto) = issued.cover;
        self.covered_requests(Cover { account, period: invoice.period, after: after_seq, upto }, line, after).await
    }
}

/// A text that was stored as JSON.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &'static str) -> Result<T, PlatformError> {
    serde_json::from_str(text).map_err(|error| PlatformError::Corrupt { what, reason: error.to_string() })
}
