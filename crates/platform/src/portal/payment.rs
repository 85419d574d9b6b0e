//! How an account pays: its card, its open invoices, and what becomes of those that stay unpaid. A card's number is typed into Stripe's
//! own field and never comes here.

use askama::Template;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sqlx::any::AnyRow;

use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId};
use crate::money::Micros;
use crate::payment::{Card, Charge, Payments};
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, Shell, id_of, redirect, show_as};
use crate::portal::{CardForm, Portal};
use crate::store::{Store, get, get_count, get_money, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;

type Answer = Result<Response, PortalError>;

/// An invoice that is open, and how far collecting it has come.
struct OpenInvoice {
    id: InvoiceId,
    number: String,
    due_at: Timestamp,
    left: Micros,
    n_attempts: u64,
    next_attempt_at: Option<Timestamp>,
    is_restricting: bool,
    is_overdue: bool,
    /// Of the last attempt that failed.
    reason: String,
}

const OPEN: &str = "SELECT i.id, i.name, i.due_at, i.total - i.credited - i.paid AS outstanding, COALESCE(d.n_attempts, 0) AS n_attempts, d.next_attempt_at, d.restricted_at, COALESCE((SELECT p.reason FROM payment p WHERE p.invoice_id = i.id AND p.status = 'failed' ORDER BY p.attempt DESC LIMIT 1), '') AS reason FROM invoice i LEFT JOIN dunning d ON d.invoice_id = i.id WHERE i.account_id = $1 AND i.kind = 'invoice' AND i.status = 'open' ORDER BY i.due_at, i.id";

impl Store {
    /// The invoices of an account that are open: one for each month at most.
    async fn open_invoices(&self, account: AccountId, now: Timestamp) -> Result<Vec<OpenInvoice>, PlatformError> {
        let query = sqlx::query(OPEN).bind(account.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading invoices"))?;
        let read = |row: &AnyRow| {
            let due_at = get_time(row, "due_at")?;
            Ok(OpenInvoice {
                id: get_parsed(row, "id")?,
                number: get(row, "name")?,
                due_at,
                left: get_money(row, "outstanding")?,
                n_attempts: get_count(row, "n_attempts")?,
                next_attempt_at: get_optional_time(row, "next_attempt_at")?,
                is_restricting: get_optional_time(row, "restricted_at")?.is_some(),
                is_overdue: due_at <= now,
                reason: get(row, "reason")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// An account's card; nothing without one.
    async fn card_of(&self, account: AccountId) -> Result<Option<Card>, PlatformError> {
        let text = "SELECT card_brand, card_last_digits, card_expires FROM payment_customer WHERE account_id = $1 AND payment_method <> ''";
        let row = sqlx::query(text).bind(account.to_string()).fetch_optional(self.pool()).await;
        let row = row.map_err(PlatformError::database("reading how an account pays"))?;
        let read = |row: AnyRow| {
            let (brand, last_digits, expires) = (get(&row, "card_brand")?, get(&row, "card_last_digits")?, get(&row, "card_expires")?);
            Ok(Card { brand, last_digits, expires })
        };
        row.map(read).transpose()
    }
}

impl Card {
    /// As people write it.
    fn brand_in_words(&self) -> &str {
        match self.brand.as_str() {
            "visa" => "Visa",
            "mastercard" => "Mastercard",
            "amex" => "American Express",
            "discover" => "Discover",
            "diners" => "Diners Club",
            "jcb" => "JCB",
            "unionpay" => "UnionPay",
            _ => "Card",
        }
    }
}

#[derive(Template)]
#[template(path = "portal/payment.html")]
struct PaymentPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    takes_cards: bool,
    card: Option<Card>,
    form: Option<&'a CardForm>,
    invoices: Vec<OpenInvoice>,
}

async fn payment_page(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let account = visit.account()?;
    let store = portal.platform().store();
    let takes_cards = portal.platform().payments().is_some();
    let form = portal.card_form().filter(|_| takes_cards);
    let (card, invoices) = (store.card_of(account).await?, store.open_invoices(account, portal.now()).await?);
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Payment", "payment")?.with_fault(text);
    let mut response = show_as(status, &PaymentPage { shell, account, takes_cards, card, form, invoices })?;
    if let Some(policy) = form.and_then(|form| HeaderValue::from_str(&form.content_policy()).ok()) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}

/// All of it.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    payment_page(&portal, &visit, None).await
}

pub(super) fn payments(portal: &Portal) -> Result<&Payments, PortalError> {
    let reason = || "this installation takes no cards: invoices are paid as they say".to_string();
    portal.platform().payments().ok_or_else(|| PortalError(PlatformError::Invalid { field: "payment_method", reason: reason() }))
}

/// What Stripe refuses is said as it says it; anything else stays an error.
pub(super) fn said(error: PlatformError) -> PortalError {
    PortalError(match error {
        PlatformError::Payment { source } if source.is_of_input() => {
            PlatformError::Invalid { field: "payment_method", reason: source.to_string() }
        }
        PlatformError::Payment { .. } => {
            let reason = "the payment service cannot be reached just now: nothing was charged by this click, try again in a moment".into();
            PlatformError::Invalid { field: "payment_method", reason }
        }
        other => other,
    })
}

/// What Stripe's field needs to ask for a card.
pub(super) async fn begin(State(portal): State<Portal>, visit: Visit) -> Answer {
    let begun = match payments(&portal) {
        Ok(payments) => payments.begin_setup(visit.account()?).await.map_err(said),
        Err(error) => Err(error),
    };
    match begun {
        Ok(secret) => Ok(Json(json!({ "client_secret": secret })).into_response()),
        Err(error) => Ok(Json(json!({ "error": error.fault()?.text })).into_response()),
    }
}

/// Pays by a card from now on, that Stripe has taken.
pub(super) async fn set_card(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let set = async {
        portal.platform().rights().check_change("payment", portal.now())?;
        payments(&portal)?.set_payment_method(account, visit.field("payment_method"), visit.by()).await.map_err(said)
    };
    match set.await {
        Ok(()) => Ok(redirect(&format!("/accounts/{account}/payment?said=card"))),
        Err(error) => payment_page(&portal, &visit, Some(error.fault()?)).await,
    }
}

/// Pays an invoice now, by the card.
pub(super) async fn pay(State(portal): State<Portal>, visit: Visit, Path((_, invoice)): Path<(String, String)>) -> Answer {
    let account = visit.account()?;
    let invoice: InvoiceId = id_of(&invoice)?;
    portal.platform().store().invoice(invoice, Some(account)).await?;
    let paid = async { payments(&portal)?.collect(invoice, visit.by()).await.map_err(said) };
    let word = match paid.await {
        Ok(None | Some(Charge::Succeeded { .. })) => "paid",
        Ok(Some(Charge::Processing { .. })) => "paying",
        Ok(Some(Charge::TooSmall { .. })) => "carried",
        Ok(Some(Charge::Failed { reason, .. })) => {
            let fault =
                Fault { status: StatusCode::PAYMENT_REQUIRED, text: format!("The payment failed: {}.", reason.trim_end_matches('.')) };
            return payment_page(&portal, &visit, Some(fault)).await;
        }
        Err(error) => return payment_page(&portal, &visit, Some(error.fault()?)).await,
    };
    Ok(redirect(&format!("/accounts/{account}/payment?said={word}")))
}
