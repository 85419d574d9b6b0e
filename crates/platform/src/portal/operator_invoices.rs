//! An account's invoices in the operator's console: noting that one was paid by transfer, taking something off it, sending money back to
//! the card that paid it.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::billing::{DocumentKind, Invoice, InvoiceStatus, Issued};
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId};
use crate::money::Micros;
use crate::payment::RefundRow;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::keys::optional;
use crate::portal::page::{Fault, PortalError, Shell, id_of, redirect, show_as};
use crate::portal::payment::{payments, said};

type Answer = Result<Response, PortalError>;
type Ids = Path<(String, String)>;

#[derive(Template)]
#[template(path = "portal/operator_invoice.html")]
struct InvoicePage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    invoice: &'a Invoice,
    issued: &'a Issued,
    refunds: Vec<RefundRow>,
    takes_cards: bool,
}

impl InvoicePage<'_> {
    fn is_open(&self) -> bool {
        self.issued.status != InvoiceStatus::Paid
    }

    fn is_invoice(&self) -> bool {
        self.issued.kind == DocumentKind::Invoice
    }
}

/// The invoice of a URL; none of another account's.
fn named((account, invoice): &(String, String)) -> Result<(AccountId, InvoiceId), PortalError> {
    Ok((id_of(account)?, id_of(invoice)?))
}

async fn invoice_page(portal: &Portal, visit: &Visit, (account, id): (AccountId, InvoiceId), fault: Option<Fault>) -> Answer {
    let store = portal.platform().store();
    let invoice = store.invoice(id, Some(account)).await?;
    let issued = invoice.issued.as_ref().ok_or(PlatformError::NotFound { what: "invoice" })?;
    let refunds = store.refunds(id).await?;
    let takes_cards = portal.platform().payments().is_some();
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, format!("{} {}", issued.kind.title(), issued.number), "operator-accounts")?.with_fault(text);
    show_as(status, &InvoicePage { shell, account, invoice: &invoice, issued, refunds, takes_cards })
}

/// One of them.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit, Path(ids): Ids) -> Answer {
    invoice_page(&portal, &visit, named(&ids)?, None).await
}

async fn done(
    portal: &Portal,
    visit: &Visit,
    ((account, id), word): ((AccountId, InvoiceId), &str),
    result: Result<(), PortalError>,
) -> Answer {
    match result {
        Ok(()) => Ok(redirect(&format!("/operator/accounts/{account}/invoices/{id}?said={word}"))),
        Err(error) => invoice_page(portal, visit, (account, id), Some(error.fault()?)).await,
    }
}

fn amount(visit: &Visit) -> Result<Micros, PlatformError> {
    let wrong = || PlatformError::Invalid { field: "amount", reason: "expected an amount such as 12.50".into() };
    optional::<Micros>(visit, "amount")?.ok_or_else(wrong)
}

/// Notes that it was paid elsewhere.
pub(super) async fn paid(State(portal): State<Portal>, visit: Visit, Path(ids): Ids) -> Answer {
    let (account, id) = named(&ids)?;
    let store = portal.platform().store();
    store.invoice(id, Some(account)).await?;
    let result = store.mark_paid(id, visit.field("reference"), visit.by()).await.map_err(PortalError);
    done(&portal, &visit, ((account, id), "noted"), result).await
}

/// Takes an amount off, by a credit note.
pub(super) async fn credit(State(portal): State<Portal>, visit: Visit, Path(ids): Ids) -> Answer {
    let (account, id) = named(&ids)?;
    let store = portal.platform().store();
    store.invoice(id, Some(account)).await?;
    let off = async {
        store.credit_invoice(id, (amount(&visit)?, visit.field("reason")), visit.by()).await?;
        Ok(())
    };
    let result = off.await;
    done(&portal, &visit, ((account, id), "credited"), result).await
}

/// Sends money back to the card.
pub(super) async fn refund(State(portal): State<Portal>, visit: Visit, Path(ids): Ids) -> Answer {
    let (account, id) = named(&ids)?;
    portal.platform().store().invoice(id, Some(account)).await?;
    let back = async {
        let what = (amount(&visit)?, visit.field("reason"));
        payments(&portal)?.refund(id, what, visit.by()).await.map_err(said)?;
        Ok(())
    };
    let result = back.await;
    done(&portal, &visit, ((account, id), "refunded"), result).await
}
