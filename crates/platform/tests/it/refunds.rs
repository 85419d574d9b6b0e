//! Money that goes back, by us, in Stripe's dashboard or through a bank: once, with a credit note where one is due, and the books balance.

use bitnet_platform::PlatformError;
use bitnet_platform::billing::InvoiceStatus;
use bitnet_platform::directory::KeyAccess;
use bitnet_platform::ids::{AccountId, InvoiceId};
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::payment::{HookSecret, Payments, Stripe};
use bitnet_platform::store::Store;
use serde_json::{Value, json};

use super::fake_stripe::{FakeStripe, invoiced, status, tell, with_stripe};
use super::invoices::day;
use super::served::{Served, post};
use super::store::{by, on_both};

/// An invoice of 99 that was paid by card.
async fn paid(store: &Store, payments: &Payments) -> (AccountId, InvoiceId) {
    let (account, invoice) = invoiced(store, payments).await;
    payments.collect_due(day(31)).await.expect("collected");
    assert_eq!(status(store, invoice).await, (InvoiceStatus::Paid, 99_000_000));
    (account, invoice)
}

async fn credited(store: &Store, invoice: InvoiceId) -> i64 {
    store.invoice(invoice, None).await.expect("it is there").issued.expect("issued").credited.0
}

async fn assert_balanced(store: &Store) {
    let report = store.reconcile().await.expect("it reads");
    assert!(report.is_balanced(), "{report:?}");
}

/// What the account's newest invoice comes to, once the next month is closed.
async fn next_total(store: &Store, account: AccountId) -> Micros {
    store.close_periods(None, &by(day(62))).await.expect("closed");
    store.invoices(Some(account)).await.expect("read")[0].1
}

#[test]
fn refund_goes_back_to_the_card_once_with_a_credit_note() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = paid(&store, &payments).await;
        let back = |units, reason, n| {
            let (payments, by) = (payments.clone(), by(day(n)));
            async move { payments.refund(invoice, (Micros(units), reason), &by).await }
        };
        for wrong in [0, -1_000_000, 1, 99_010_000] {
            assert!(matches!(back(wrong, "x", 32).await, Err(PlatformError::Invalid { .. })), "{wrong}");
        }
        // The answer is lost: nobody knows, nothing is booked, and asked again it is the same refund.
        stripe.inside().loses_answer = true;
        assert!(back(30_000_000, "a day was lost", 32).await.is_err());
        assert_eq!(status(&store, invoice).await.1, 99_000_000);
        assert!(matches!(back(20_000_000, "another", 32).await, Err(PlatformError::Invalid { field: "invoice", .. })));
        stripe.inside().forgets_keys = true;
        let done = back(30_000_000, "a day was lost", 33).await.expect("sent back");
        assert_eq!((done.len(), done[0].status.as_str(), stripe.inside().refunds.len()), (1, "succeeded", 1), "{done:?}");
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 69_000_000), "and nothing is owed");
        let note = store.invoice(done[0].note.expect("a note"), Some(account)).await.expect("it is there");
        assert_eq!((note.total(), note.issued.expect("issued").corrects), (Micros::units(-30), Some(invoice)));
        assert_eq!(stripe.inside().refunds[0]["amount"], 3000);

        // Its events change nothing, in whatever order.
        let refund = stripe.inside().refunds[0].clone();
        tell(&payments, ("evt_1", "refund.updated"), &refund, day(33)).await;
        tell(&payments, ("evt_2", "charge.refunded"), &json!({ "payment_intent": "pi_1", "amount_refunded": 3000 }), day(33)).await;
        assert_eq!((status(&store, invoice).await.1, credited(&store, invoice).await), (69_000_000, 30_000_000));

        // The same again is another one, as long as there is something left.
        back(30_000_000, "a day was lost", 34).await.expect("sent back");
        assert!(matches!(back(40_000_000, "too much", 34).await, Err(PlatformError::Invalid { field: "amount", .. })));
        back(39_000_000, "the rest", 35).await.expect("sent back");
        assert_eq!((status(&store, invoice).await, credited(&store, invoice).await), ((InvoiceStatus::Paid, 0), 99_000_000));
        assert_eq!(next_total(&store, account).await, Micros::units(99), "and the next month costs what it does");
        assert_balanced(&store).await;
    });
}

#[test]
fn refund_that_stripe_refuses_or_that_comes_back_is_none() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = paid(&store, &payments).await;
        stripe.inside().refuses = Some((400, "charge_disputed"));
        assert!(payments.refund(invoice, (Micros::units(10), "x"), &by(day(32))).await.is_err());
        assert_eq!((status(&store, invoice).await.1, credited(&store, invoice).await), (99_000_000, 0));
        assert_eq!(store.refunds(invoice).await.expect("read")[0].status, "failed");
        stripe.inside().refuses = None;
        payments.refund(invoice, (Micros::units(10), "x"), &by(day(33))).await.expect("sent back");
        let mut refund = stripe.inside().refunds[0].clone();
        refund["status"] = "failed".into();
        for id in ["evt_1", "evt_2"] {
            tell(&payments, (id, "refund.failed"), &refund, day(34)).await;
        }
        // The note stands, so that what came back to us is the customer's.
        assert_eq!((status(&store, invoice).await.1, credited(&store, invoice).await), (99_000_000, 10_000_000));
        assert_eq!(next_total(&store, account).await, Micros::units(89));
        assert_balanced(&store).await;
    });
}

#[test]
fn refund_of_what_was_paid_too_much_has_no_note() {
    on_both(|store, _| async move {
        let (_stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = paid(&store, &payments).await;
        store.credit_invoice(invoice, (Micros::units(20), "goodwill"), &by(day(32))).await.expect("credited");
        let done = payments.refund(invoice, (Micros::units(25), "wanted back"), &by(day(33))).await.expect("sent back");
        let note = store.invoice(done[0].note.expect("a note"), None).await.expect("it is there");
        assert_eq!(note.total(), Micros::units(-5), "20 were off already");
        assert_eq!((status(&store, invoice).await, credited(&store, invoice).await), ((InvoiceStatus::Paid, 74_000_000), 25_000_000));
        assert_eq!(next_total(&store, account).await, Micros::units(99), "what went back is not taken off once more");
        assert_balanced(&store).await;
    });
}

#[test]
fn money_that_went_back_elsewhere_is_heard_of() {
    on_both(|store, _| async move {
        let (_stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = paid(&store, &payments).await;
        for (id, cents) in [("evt_1", 1000), ("evt_2", 2500), ("evt_3", 1000)] {
            tell(&payments, (id, "charge.refunded"), &json!({ "payment_intent": "pi_1", "amount_refunded": cents }), day(32)).await;
        }
        tell(&payments, ("evt_4", "charge.refunded"), &json!({ "payment_intent": "pi_77", "amount_refunded": 1 }), day(32)).await;
        assert_eq!((status(&store, invoice).await, credited(&store, invoice).await), ((InvoiceStatus::Paid, 74_000_000), 25_000_000));

        let dispute = |status: &str| -> Value {
            json!({ "id": "dp_1", "payment_intent": "pi_1", "amount": 7400, "status": status, "reason": "fraudulent" })
        };
        tell(&payments, ("evt_5", "charge.dispute.created"), &dispute("warning_needs_response"), day(33)).await;
        assert_eq!(status(&store, invoice).await.0, InvoiceStatus::Paid, "a warning takes nothing");
        tell(&payments, ("evt_6", "charge.dispute.created"), &dispute("needs_response"), day(33)).await;
        tell(&payments, ("evt_7", "charge.dispute.funds_withdrawn"), &dispute("needs_response"), day(33)).await;
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Open, 0), "the bank has taken it back");
        assert_eq!(payments.collect_due(day(40)).await.expect("looked"), 0, "and nobody charges the card for it by itself");
        assert_balanced(&store).await;
        tell(&payments, ("evt_8", "charge.dispute.funds_reinstated"), &dispute("won"), day(41)).await;
        tell(&payments, ("evt_9", "charge.dispute.closed"), &dispute("won"), day(41)).await;
        tell(&payments, ("evt_10", "charge.dispute.funds_withdrawn"), &dispute("needs_response"), day(41)).await;
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 74_000_000), "it was won, whatever comes late");
        let kinds: Vec<String> =
            store.audit_records(0, Some(account)).await.expect("read").into_iter().map(|record| record.action).collect();
        for kind in ["invoice.refunded", "invoice.payment_disputed", "invoice.refund_returned", "credit_note.issued"] {
            assert!(kinds.iter().any(|other| other == kind), "{kind}: {kinds:?}");
        }
        assert_balanced(&store).await;
    });
}

#[test]
fn secret_of_a_payment_setup_is_not_kept() {
    on_both(|_, url| async move {
        let (_stripe, stripe_url) = FakeStripe::start().await;
        let served = Served::start_with(&url, Default::default(), |platform| {
            let stripe = Stripe::new(&stripe_url, "sk_test_1").expect("a client");
            platform.with_payments(stripe, HookSecret::new("whsec_1"))
        });
        let served = served.await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        for _ in 0..2 {
            let mut request = post("/v1/organization/billing/payment_setup", &admin, &json!({}));
            request.headers_mut().insert("idempotency-key", "k".parse().expect("a header"));
            let answer = served.send(request).await;
            assert_eq!(answer.json()["client_secret"], "seti_1_secret_2", "{}", answer.body);
        }
        let mut kept = Vec::new();
        served.platform.store().backup(&mut kept, bitnet_platform::time::Timestamp::now()).await.expect("read");
        assert!(!String::from_utf8(kept).expect("text").contains("seti_1_secret_2"), "it stands in the database");
        served.end().await;
    });
}
