//! Collecting invoices from a Stripe of the tests' own. The real client against a stateful stand-in from elsewhere (`localstripe`) is a
//! journey of `cargo xtask clients`.

use std::time::Duration;

use bitnet_platform::billing::{InvoiceLine, InvoiceStatus, LineKind, Profile};
use bitnet_platform::ledger::AccountStatus;
use bitnet_platform::payment::{Charge, HookError};
use bitnet_platform::store::Store;
use bitnet_platform::time::Timestamp;
use bitnet_platform::{PlatformError, money::Micros};
use serde_json::json;

use super::fake_stripe::{event, invoiced, signed, status, tell, with_stripe};
use super::invoices::day;
use super::store::{by, on_both};

async fn status_of(store: &Store, account: bitnet_platform::ids::AccountId, now: Timestamp) -> AccountStatus {
    store.account(account, now).await.expect("it is there").status
}

async fn assert_balanced(store: &Store) {
    let report = store.reconcile().await.expect("it reads");
    assert!(report.is_balanced(), "{report:?}");
}

#[test]
fn charge_whose_answer_is_lost_is_made_once() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
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
        let (stripe, payments) = with_stripe(&store).await;
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

#[test]
fn attempt_that_was_not_made_charges_what_is_owed_by_then() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (_, invoice) = invoiced(&store, &payments).await;
        stripe.inside().refuses = Some((500, ""));
        assert!(payments.collect_due(day(31)).await.is_err(), "Stripe is away");
        store.credit_invoice(invoice, (Micros::units(50), "goodwill"), &by(day(32))).await.expect("credited");
        stripe.inside().refuses = None;
        payments.collect_due(day(33)).await.expect("collected");
        assert_eq!(stripe.inside().asked["amount"], "4900", "what is owed now, and not what was");
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 49_000_000));

        let (_, second) = invoiced(&store, &payments).await;
        stripe.inside().refuses = Some((500, ""));
        assert!(payments.collect(second, &by(day(31))).await.is_err());
        store.mark_paid(second, "transfer", &by(day(32))).await.expect("paid");
        stripe.inside().refuses = None;
        assert_eq!(payments.collect(second, &by(day(33))).await.expect("looked"), None, "nothing is owed");
        assert_eq!(stripe.inside().n_charges, 1, "and nothing is charged");
        assert_balanced(&store).await;
    });
}

#[test]
fn money_that_comes_when_nothing_is_owed_is_taken_off_the_next_invoice() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = invoiced(&store, &payments).await;
        stripe.inside().loses_answer = true;
        assert!(payments.collect_due(day(31)).await.is_err());
        store.mark_paid(invoice, "transfer", &by(day(32))).await.expect("paid");
        let intent = stripe.inside().intents[0].clone();
        tell(&payments, ("evt_1", "payment_intent.succeeded"), &intent, day(32)).await;
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 198_000_000), "it was paid twice");
        store.close_periods(None, &by(day(62))).await.expect("closed");
        let issued = store.invoices(Some(account)).await.expect("read");
        assert_eq!(issued[0].1, Micros::ZERO, "February was paid before");
        assert_balanced(&store).await;
    });
}

#[test]
fn refusal_that_is_nobodys_failure_to_pay_uses_up_no_attempt() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = invoiced(&store, &payments).await;
        for (n, refusal) in [(401, ""), (403, ""), (400, "parameter_invalid_integer")].into_iter().enumerate() {
            stripe.inside().refuses = Some(refusal);
            for more in 0..5 {
                let tried = payments.collect_due(day(31 + 5 * n as u64 + more)).await;
                assert!(matches!(tried, Err(PlatformError::Payment { .. })), "{tried:?}");
            }
        }
        assert_eq!(status_of(&store, account, day(50)).await, AccountStatus::Active, "it has not failed to pay");
        // A card that declines still has all of its attempts.
        stripe.inside().refuses = None;
        stripe.inside().declines = true;
        assert_eq!(payments.collect_due(day(80)).await.expect("tried"), 1);
        assert_eq!(payments.collect_due(day(82)).await.expect("nothing is due"), 0);
        stripe.inside().declines = false;
        assert_eq!(payments.collect_due(day(83)).await.expect("tried"), 1, "three days after the first that failed");
        assert_eq!(status(&store, invoice).await.0, InvoiceStatus::Paid);
        assert_balanced(&store).await;
    });
}

#[test]
fn amount_too_little_to_be_charged_is_on_the_next_invoice() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = invoiced(&store, &payments).await;
        store.credit_invoice(invoice, (Micros(98_700_000), "goodwill"), &by(day(31))).await.expect("credited");
        stripe.inside().refuses = Some((400, "amount_too_small"));
        let charged = payments.collect(invoice, &by(day(31))).await.expect("tried");
        assert!(matches!(charged, Some(Charge::TooSmall { .. })), "{charged:?}");
        assert_eq!(status(&store, invoice).await, (InvoiceStatus::Paid, 300_000), "the next invoice has it");
        assert_eq!(payments.collect(invoice, &by(day(32))).await.expect("nothing is left"), None);
        assert_balanced(&store).await;
        let closed = store.close_periods(None, &by(day(62))).await.expect("closed");
        let next = store.invoice(closed[0].invoice.expect("an invoice"), None).await.expect("it is there");
        let brought: Vec<&InvoiceLine> = next.lines.iter().filter(|line| matches!(line.kind, LineKind::Brought { .. })).collect();
        assert_eq!((brought.len(), brought[0].amount, next.total()), (1, Micros(300_000), Micros(99_300_000)), "{next:?}");
        assert!(brought[0].text.contains("too little to be charged"), "{}", brought[0].text);
        stripe.inside().refuses = None;
        assert_eq!(payments.collect_due(day(62)).await.expect("collected"), 1);
        assert_eq!(stripe.inside().asked["amount"], "9930");
        assert_eq!(stripe.inside().n_charges, 1);
        assert_balanced(&store).await;

        // With nothing beside it, it makes no invoice of its own.
        store.set_plan(account, "payg", &by(day(63))).await.expect("changed");
        let march = store.close_periods(None, &by(day(93))).await.expect("closed")[0].invoice.expect("an invoice");
        let left = store.invoice(march, None).await.expect("it is there").total().minus(Micros(200_000));
        store.credit_invoice(march, (left, "goodwill"), &by(day(93))).await.expect("credited");
        stripe.inside().refuses = Some((400, "amount_too_small"));
        payments.collect_due(day(93)).await.expect("tried");
        assert_eq!(store.close_periods(None, &by(day(123))).await.expect("closed")[0].invoice, None, "it waits");
        let profile = store.billing_profile(account).await.expect("a profile");
        store.set_billing_profile(account, &Profile { is_automatic: false, ..profile }, &by(day(123))).await.expect("set");
        let may = store.close_periods(None, &by(day(154))).await.expect("closed")[0].invoice.expect("an invoice");
        assert_eq!(store.invoice(may, None).await.expect("it is there").total(), Micros(200_000), "by hand, it is paid as any other");
        assert_balanced(&store).await;
    });
}

#[test]
fn invoice_that_cannot_be_collected_keeps_no_other_waiting() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, first) = invoiced(&store, &payments).await;
        let (_, second) = invoiced(&store, &payments).await;
        payments.set_payment_method(account, "pm_bad", &by(day(30))).await.expect("set");
        stripe.inside().refuses_card = Some(("pm_bad", 500));
        let tried = payments.collect_due(day(31)).await;
        assert!(tried.is_err(), "its error is told: {tried:?}");
        assert_eq!((status(&store, first).await.0, status(&store, second).await.0), (InvoiceStatus::Open, InvoiceStatus::Paid));
        stripe.inside().refuses_card = None;
        assert_eq!(payments.collect_due(day(32)).await.expect("tried"), 1, "and it is tried again");
        assert_eq!(status(&store, first).await.0, InvoiceStatus::Paid);
    });
}

#[test]
fn event_that_comes_late_counts_an_attempt_once() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        invoiced(&store, &payments).await;
        stripe.inside().declines = true;
        assert_eq!(payments.collect_due(day(31)).await.expect("tried"), 1);
        let payment = stripe.inside().asked["payment"].clone();
        for (id, kind, status) in
            [("evt_1", "payment_intent.processing", "processing"), ("evt_2", "payment_intent.payment_failed", "requires_payment_method")]
        {
            tell(&payments, (id, kind), &json!({ "id": "pi_9", "status": status, "metadata": { "payment": payment } }), day(31)).await;
        }
        let mut tried = Vec::new();
        for n in 32..60 {
            if payments.collect_due(day(n)).await.expect("tried") > 0 {
                tried.push(n - 31);
            }
        }
        assert_eq!(tried, [3, 8, 15], "the first failure was one");
    });
}

#[test]
fn suspension_by_an_operator_outlives_what_is_paid_or_given_up() {
    on_both(|store, _| async move {
        let (stripe, payments) = with_stripe(&store).await;
        let (account, invoice) = invoiced(&store, &payments).await;
        stripe.inside().declines = true;
        for n in [31, 34, 39, 46] {
            assert_eq!(payments.collect_due(day(n)).await.expect("tried"), 1);
        }
        assert_eq!(status_of(&store, account, day(46)).await, AccountStatus::Suspended, "it has not paid");
        store.set_account_status(account, AccountStatus::Suspended, &by(day(47))).await.expect("suspended");
        store.give_invoice_up(invoice, &by(day(48))).await.expect("given up");
        payments.collect_due(day(49)).await.expect("looked");
        assert_eq!(status_of(&store, account, day(49)).await, AccountStatus::Suspended, "what is given up is not paid");
        store.mark_paid(invoice, "late", &by(day(50))).await.expect("paid");
        payments.collect_due(day(50)).await.expect("looked");
        assert_eq!(status_of(&store, account, day(50)).await, AccountStatus::Suspended, "and the operator has said nothing else");
        store.set_account_status(account, AccountStatus::Active, &by(day(51))).await.expect("let in");
        assert_eq!(status_of(&store, account, day(51)).await, AccountStatus::Active);
    });
}
