//! Webhooks of an account: where it wants to hear of what happens, what was sent there, and the secret that signs it, shown once.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::ids::{AccountId, EndpointId};
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, Shell, id_of, redirect, show, show_as};
use crate::webhooks::{Delivery, EndpointRow, KINDS, NewEndpoint};

type Answer = Result<Response, PortalError>;

struct EndpointView {
    endpoint: EndpointRow,
    deliveries: Vec<Delivery>,
}

#[derive(Template)]
#[template(path = "portal/webhooks.html")]
struct WebhooksPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    endpoints: Vec<EndpointView>,
    kinds: &'static [&'static str],
}

#[derive(Template)]
#[template(path = "portal/webhook_made.html")]
struct WebhookMadePage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    secret: String,
}

/// Deliveries of an endpoint on the page.
const N_SHOWN: usize = 10;

async fn list(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let account = visit.account()?;
    let store = portal.platform().store();
    let mut endpoints = Vec::new();
    for endpoint in store.endpoints(account).await? {
        let mut deliveries = store.deliveries(account, endpoint.id).await?;
        deliveries.truncate(N_SHOWN);
        endpoints.push(EndpointView { endpoint, deliveries });
    }
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Webhooks", "webhooks")?.with_fault(text);
    show_as(status, &WebhooksPage { shell, account, endpoints, kinds: KINDS })
}

/// Where it hears of what.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    list(&portal, &visit, None).await
}

/// Makes one.
pub(super) async fn create(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let new = NewEndpoint { account, url: visit.field("url").into(), kinds: visit.all("events") };
    let webhooks = portal.platform().webhooks();
    let made = async {
        portal.platform().rights().check_change("webhooks", portal.now())?;
        portal.platform().store().create_endpoint(&new, webhooks.outbound(), visit.by()).await
    };
    match made.await {
        Ok(made) => {
            let secret = webhooks.secrets().shown(made.id, made.secret_version);
            show(&WebhookMadePage { shell: Shell::new(&visit, "Your webhook", "webhooks")?, account, secret })
        }
        Err(error) => list(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Changes its secret.
pub(super) async fn rotate(State(portal): State<Portal>, visit: Visit, Path((_, id)): Path<(String, String)>) -> Answer {
    let (account, id): (AccountId, EndpointId) = (visit.account()?, id_of(&id)?);
    portal.platform().rights().check_change("webhooks", portal.now())?;
    let version = portal.platform().store().rotate_endpoint((account, id), visit.by()).await?;
    let secret = portal.platform().webhooks().secrets().shown(id, version);
    show(&WebhookMadePage { shell: Shell::new(&visit, "Your webhook", "webhooks")?, account, secret })
}

/// Removes it.
pub(super) async fn remove(State(portal): State<Portal>, visit: Visit, Path((_, id)): Path<(String, String)>) -> Answer {
    let account = visit.account()?;
    portal.platform().store().remove_endpoint((account, id_of(&id)?), visit.by()).await?;
    Ok(redirect(&format!("/accounts/{account}/webhooks?said=saved")))
}
