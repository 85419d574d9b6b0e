//! A Stripe of the tests' own, which declines cards, refuses keys, loses answers and sends money back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use bitnet_platform::billing::{InvoiceStatus, Profile};
use bitnet_platform::ids::{AccountId, InvoiceId};
use bitnet_platform::payment::{HookSecret, Payments, Stripe};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::invoices::{day, rich_account};
use super::store::{NOW, by};

#[derive(Default)]
pub(crate) struct Inside {
    /// By name: what it says.
    pub(crate) intents: Vec<Value>,
    pub(crate) refunds: Vec<Value>,
    /// Answers by idempotency key.
    answers: HashMap<String, Value>,
    pub(crate) declines: bool,
    /// Nothing is charged or refunded; the answer is this status and code.
    pub(crate) refuses: Option<(u16, &'static str)>,
    /// The same, for this card only.
    pub(crate) refuses_card: Option<(&'static str, u16)>,
    /// The next charge is made, and its answer is an error of the server.
    pub(crate) loses_answer: bool,
    pub(crate) forgets_keys: bool,
    pub(crate) n_charges: usize,
    n_customers: usize,
    /// What was last tried to be charged.
    pub(crate) asked: Value,
}

#[derive(Clone, Default)]
pub(crate) struct FakeStripe(Arc<Mutex<Inside>>);

impl FakeStripe {
    pub(crate) async fn start() -> (Self, String) {
        let stripe = Self::default();
        let router = Router::new()
            .route("/v1/customers", post(customer))
            .route("/v1/payment_methods/{id}/attach", post(async |Path(id): Path<String>| Json(card(&id))))
            .route("/v1/payment_methods/{id}", get(async |Path(id): Path<String>| Json(card(&id))))
            .route("/v1/setup_intents", post(async || Json(json!({ "id": "seti_1", "client_secret": "seti_1_secret_2" }))))
            .route("/v1/payment_intents", get(list).post(charge))
            .route("/v1/refunds", get(list_refunds).post(refund))
            .with_state(stripe.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (stripe, url)
    }

    pub(crate) fn inside(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }
}

fn card(id: &str) -> Value {
    json!({ "id": id, "card": { "brand": "visa", "last4": "4242", "exp_month": 4, "exp_year": 2050 } })
}

async fn customer(State(stripe): State<FakeStripe>) -> Json<Value> {
    let mut inside = stripe.inside();
    inside.n_customers += 1;
    Json(json!({ "id": format!("cus_{}", inside.n_customers) }))
}

async fn list(State(stripe): State<FakeStripe>, Query(_): Query<HashMap<String, String>>) -> Json<Value> {
    Json(json!({ "data": stripe.inside().intents }))
}

async fn list_refunds(State(stripe): State<FakeStripe>, Query(asked): Query<HashMap<String, String>>) -> Json<Value> {
    let refunds = stripe.inside().refunds.clone();
    let of: Vec<Value> = refunds.into_iter().filter(|refund| refund["payment_intent"] == asked["payment_intent"].as_str()).collect();
    Json(json!({ "data": of }))
}

async fn refund(State(stripe): State<FakeStripe>, headers: HeaderMap, Form(form): Form<HashMap<String, String>>) -> Response {
    let mut inside = stripe.inside();
    let key = headers["idempotency-key"].to_str().expect("text").to_string();
    if let Some(answer) = inside.answers.get(&key).filter(|_| !inside.forgets_keys) {
        return Json(answer.clone()).into_response();
    }
    if let Some((status, code)) = inside.refuses {
        return refused(status, code);
    }
    let refund = json!({
        "id": format!("re_{}", inside.refunds.len() + 1),
        "status": "succeeded",
        "amount": form["amount"].parse::<i64>().expect("a number"),
        "payment_intent": form["payment_intent"],
        "metadata": { "refund": form["metadata[refund]"] },
    });
    inside.refunds.push(refund.clone());
    inside.answers.insert(key, refund.clone());
    if std::mem::take(&mut inside.loses_answer) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    Json(refund).into_response()
}

fn refused(status: u16, code: &str) -> Response {
    let error = json!({ "error": { "code": code, "message": "No." } });
    (StatusCode::from_u16(status).expect("a status"), Json(error)).into_response()
}

async fn charge(State(stripe): State<FakeStripe>, headers: HeaderMap, Form(form): Form<HashMap<String, String>>) -> Response {
    let mut inside = stripe.inside();
    assert_eq!(headers["authorization"], "Bearer sk_test_1");
    let key = headers["idempotency-key"].to_str().expect("text").to_string();
    if let Some(answer) = inside.answers.get(&key).filter(|_| !inside.forgets_keys) {
        return Json(answer.clone()).into_response();
    }
    inside.asked = json!({ "amount": form["amount"], "payment": form["metadata[payment]"] });
    if inside.declines {
        return refused(402, "card_declined");
    }
    if let Some((status, code)) = inside.refuses {
        return refused(status, code);
    }
    if let Some((_, status)) = inside.refuses_card.filter(|(card, _)| *card == form["payment_method"]) {
        return refused(status, "");
    }
    inside.n_charges += 1;
    let intent = json!({
        "id": format!("pi_{}", inside.n_charges),
        "status": "succeeded",
        "amount": form["amount"].parse::<i64>().expect("a number"),
        "metadata": { "invoice": form["metadata[invoice]"], "payment": form["metadata[payment]"] },
    });
    inside.intents.push(intent.clone());
    inside.answers.insert(key, intent.clone());
    if std::mem::take(&mut inside.loses_answer) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    Json(intent).into_response()
}

/// A Stripe, and what collects through it into a fresh store.
pub(crate) async fn with_stripe(store: &Arc<Store>) -> (FakeStripe, Payments) {
    store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
    let (stripe, url) = FakeStripe::start().await;
    (stripe, Payments::new(store.clone(), Stripe::new(&url, "sk_test_1").expect("a client"), HookSecret::new("whsec_1")))
}

/// An account that is collected automatically, with a card, and its invoice for January.
pub(crate) async fn invoiced(store: &Store, payments: &Payments) -> (AccountId, InvoiceId) {
    let (account, _) = rich_account(store, "developer").await;
    let profile = store.billing_profile(account).await.expect("a profile");
    store.set_billing_profile(account, &Profile { is_automatic: true, ..profile }, &by(NOW)).await.expect("set");
    payments.set_payment_method(account, "pm_1", &by(NOW)).await.expect("set");
    let closed = store.close_periods(None, &by(day(31))).await.expect("closed");
    (account, closed[0].invoice.expect("an invoice"))
}

pub(crate) async fn status(store: &Store, id: InvoiceId) -> (InvoiceStatus, i64) {
    let issued = store.invoice(id, None).await.expect("it is there").issued.expect("issued");
    (issued.status, issued.paid.0)
}

pub(crate) fn event(id: &str, kind: &str, object: &Value) -> Vec<u8> {
    json!({ "id": id, "type": kind, "data": { "object": object } }).to_string().into_bytes()
}

pub(crate) fn signed(body: &[u8], now: Timestamp) -> String {
    let seconds = now.0 / 1_000_000;
    let mut mac = Hmac::<Sha256>::new_from_slice(b"whsec_1").expect("a key");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

/// Says something as Stripe does.
pub(crate) async fn tell(payments: &Payments, (id, kind): (&str, &str), object: &Value, now: Timestamp) {
    let body = event(id, kind, object);
    assert_eq!(payments.hear(&signed(&body, now), &body, now).await.expect("heard"), Ok(()), "{kind}");
}
