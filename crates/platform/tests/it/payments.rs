//! Collecting invoices from a Stripe of the tests' own, which declines cards, loses answers and repeats events. The real client against
//! a stateful stand-in from elsewhere (`localstripe`) is a journey of `cargo xtask clients`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use bitnet_platform::billing::{InvoiceStatus, Profile};
use bitnet_platform::ids::{AccountId, InvoiceId};
use bitnet_platform::ledger::AccountStatus;
use bitnet_platform::payment::{Charge, HookError, HookSecret, Payments, Stripe};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::invoices::{day, rich_account};
use super::store::{NOW, by, on_both};

#[derive(Default)]
pub(crate) struct Inside {
    /// By name: what it says.
    intents: Vec<Value>,
    /// Answers by idempotency key.
    answers: HashMap<String, Value>,
    pub(crate) declines: bool,
    /// The next charge is made, and its answer is an error of the server.
    loses_answer: bool,
    forgets_keys: bool,
    pub(crate) n_charges: usize,
}

#[derive(Clone, Default)]
pub(crate) struct FakeStripe(Arc<Mutex<Inside>>);

impl FakeStripe {
    pub(crate) async fn start() -> (Self, String) {
        let stripe = Self::default();
        let router = Router::new()
            .route("/v1/customers", post(async || Json(json!({ "id": "cus_1" }))))
            .route("/v1/setup_intents", post(async || Json(json!({ "id": "seti_1", "client_secret": "seti_1_secret" }))))
            .route("/v1/payment_methods/{id}/attach", post(async |Path(id): Path<String>| Json(json!({ "id": id }))))
            .route("/v1/payment_intents", get(list).post(charge))
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

async fn list(State(stripe): State<FakeStripe>, Query(_): Query<HashMap<String, String>>) -> Json<Value> {
    Json(json!({ "data": stripe.inside().intents }))
}

async fn charge(State(stripe): State<FakeStripe>, headers: HeaderMap, Form(form): Form<HashMap<String, String>>) -> Response {
    let mut inside = stripe.inside();
    assert_eq!(headers["authorization"], "Bearer sk_test_1");
    let key = headers["idempotency-key"].to_str().expect("text").to_string();
    if let Some(answer) = inside.answers.get(&key).filter(|_| !inside.forgets_keys) {
        return Json(answer.clone()).into_response();
    }
    if inside.declines {
        let error = json!({ "error": { "code": "card_declined", "message": "Your card was declined." } });
        return (StatusCode::PAYMENT_REQUIRED, Json(error)).into_response();
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

fn payments(store: &Arc<Store>, url: &str) -> Payments {
    Payments::new(store.clone(), Stripe::new(url, "sk_test_1").expect("a client"), HookSecret::new("whsec_1"))
}

/// An account that is collected automatically, with a card, and its invoice for January.
async fn invoiced(store: &Store, payments: &Payments) -> (AccountId, InvoiceId) {
    let (account, _) = rich_account(store, "developer").await;
    let profile = store.billing_profile(account).await.expect("a profile");
    store.set_billing_profile(account, &Profile { is_automatic: true, ..profile }, &by(NOW)).await.expect("set");
    payments.set_payment_method(account, "pm_1", &by(NOW)).await.expect("set");
    let closed = store.close_periods(None, &by(day(31))).await.expect("closed");
    (account, closed[0].invoice.expect("an invoice"))
}

async fn status(store: &Store, id: InvoiceId) -> (InvoiceStatus, i64) {
    let issued = store.invoice(id, None).await.expect("it is there").issued.expect("issued");
    (issued.status, issued.paid.0)
}

fn event(id: &str, kind: &str, object: &Value) -> Vec<u8> {
    json!({ "id": id, "type": kind, "data": { "object": object } }).to_string().into_bytes()
}

fn signed(body: &[u8], now: Timestamp) -> String {
    let seconds = now.0 / 1_000_000;
    let mut mac = Hmac::<Sha256>::new_from_slice(b"whsec_1").expect("a key");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

#[test]
fn charge_whose_answer_is_lost_is_made_once() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (stripe, url) = FakeStripe::start().await;
        let payments = payments(&store, &url);
        let (_, invoice) = invoiced(&store, &payments).await;
        stripe.inside().loses_answer = true;
        assert!(payments.collect_due(day(31)).await.is_err(), "nobody knows what became of it");
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Open, 0));
        // Longer than Stripe remembers keys.
        stripe.inside().forgets_keys = true;
        assert_eq!(payments.collect_due(day(33)).await.expect("collected"), 1);
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 99_000_000));
        assert_eq!(stripe.inside().n_charges, 1, "it was charged once");
        assert_eq!(payments.collect_due(day(90)).await.expect("nothing is due"), 0);
        assert_eq!(payments.collect(invoice, &by(day(90))).await.expect("nothing is left"), None);

        let intent = stripe.inside().intents[0].clone();
        let body = event("evt_1", "payment_intent.succeeded", &intent);
        for _ in 0..3 {
            assert_eq!(payments.hear(&signed(&body, day(33)), &body, day(33)).await.expect("heard"), Ok(()));
        }
        let other = event(
            "evt_2",
            "payment_intent.payment_failed",
            &json!({ "id": "pi_1", "status": "requires_payment_method", "metadata": intent["metadata"] }),
        );
        assert_eq!(payments.hear(&signed(&other, day(33)), &other, day(33)).await.expect("heard"), Ok(()));
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 99_000_000), "who has paid has paid");
        assert_eq!(payments.hear(&signed(&body, day(33)), &body, day(34)).await.expect("heard"), Err(HookError::Old));
        assert_eq!(payments.hear(&signed(&other, day(33)), &body, day(33)).await.expect("heard"), Err(HookError::Forged));
        let none = b"{}";
        assert_eq!(payments.hear(&signed(none, day(33)), none, day(33)).await.expect("heard"), Err(HookError::Malformed));
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
    });
}

#[test]
fn account_that_does_not_pay_is_restricted_and_let_in_again_when_it_does() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (stripe, url) = FakeStripe::start().await;
        let payments = payments(&store, &url);
        let (account, invoice) = invoiced(&store, &payments).await;
        stripe.inside().declines = true;
        let of = |now: Timestamp| {
            let store = store.clone();
            async move { store.account(account, now).await.expect("it is there").status }
        };
        let mut tried = Vec::new();
        for hour in 0..24 * 20 {
            let now = day(31).plus(Duration::from_secs(hour * 3600));
            assert_eq!(of(now).await, if tried.len() < 4 { AccountStatus::Active } else { AccountStatus::Suspended });
            if payments.collect_due(now).await.expect("tried") > 0 {
                tried.push(hour / 24);
            }
        }
        assert_eq!(tried, [0, 3, 8, 15], "at once, then after three, five and seven days");
        assert_eq!(of(day(51)).await, AccountStatus::Suspended);
        stripe.inside().declines = false;
        // Another card: what is open is charged at once.
        payments.set_payment_method(account, "pm_2", &by(day(52))).await.expect("set");
        assert_eq!(payments.collect_due(day(52)).await.expect("collected"), 1);
        assert_eq!((status(&store, invoice).await.0, of(day(52)).await), (InvoiceStatus::Paid, AccountStatus::Active));

        // An operator's suspension is not ended by a payment.
        let (stripe_two, second) = (stripe.clone(), store.close_periods(None, &by(day(62))).await.expect("closed"));
        store.set_account_status(account, AccountStatus::Suspended, &by(day(62))).await.expect("suspended");
        let charged = payments.collect(second[0].invoice.expect("an invoice"), &by(day(62))).await.expect("collected");
        assert!(matches!(charged, Some(Charge::Succeeded { .. })), "{charged:?}");
        assert_eq!((of(day(62)).await, stripe_two.inside().n_charges), (AccountStatus::Suspended, 2));
        let kinds: Vec<String> =
            store.audit_records(0, Some(account)).await.expect("read").into_iter().map(|record| record.action).collect();
        assert!(
            ["account.restricted", "account.restored", "invoice.paid"].iter().all(|kind| kinds.iter().any(|other| other == kind)),
            "{kinds:?}"
        );
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
    });
}
