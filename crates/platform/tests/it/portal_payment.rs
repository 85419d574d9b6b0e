//! The page by which an account pays, over a Stripe of the tests' own: a card that is stored, an invoice that is paid by a click, and one
//! that is declined.

use axum::http::StatusCode;
use bitnet_platform::directory::Search;
use bitnet_platform::identity::OperatorRight;
use bitnet_platform::payment::{HookSecret, Stripe};
use bitnet_platform::portal::{CardForm, Reach};
use bitnet_platform::time::Timestamp;

use super::fake_stripe::FakeStripe;
use super::store::{by, on_both};
use super::visitor::Site;

/// An operator sends some of what was paid back.
async fn refund_in_the_console(site: &Site, stripe: &FakeStripe, (account, invoice): (&str, &str)) {
    let operator = site.person("operator@pays.example").await;
    let store = site.served.platform.store();
    let person = store.find_people(Search { text: "operator@pays.example", after: "", n_max: 1 }).await.expect("it reads").remove(0);
    store.set_operator(person.id, OperatorRight::Granted, &by(Timestamp::now())).await.expect("granted");
    let path = format!("/operator/accounts/{account}/invoices/{invoice}");
    assert!(operator.get(&format!("/operator/accounts/{account}")).await.body.contains(&path));
    for wrong in ["", "-1", "0.001", "1000000"] {
        let answer = operator.send_form(&format!("{path}/refund"), &[("amount", wrong), ("reason", "a day was lost")]).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
    }
    let fields = [("amount", "12.50"), ("reason", "a day was lost")];
    let refunded = operator.send_form(&format!("{path}/refund"), &fields).await;
    assert_eq!(refunded.location(), format!("{path}?said=refunded"), "{}", refunded.body);
    assert_eq!(stripe.inside().refunds[0]["amount"], 1250);
    let credited = operator.send_form(&format!("{path}/credit"), &[("amount", "1"), ("reason", "goodwill")]).await;
    assert_eq!(credited.location(), format!("{path}?said=credited"), "{}", credited.body);
    let page = operator.get(&path).await.body;
    assert!(page.contains("a day was lost") && page.contains("succeeded") && page.contains("$13.50"), "{page}");
    let none = operator.send_form(&format!("{path}/paid"), &[("reference", "transfer")]).await;
    assert_eq!(none.status, StatusCode::UNPROCESSABLE_ENTITY, "there is nothing left to be paid");
}

#[test]
fn card_is_stored_and_an_open_invoice_is_paid_by_it() {
    on_both(|store, url| async move {
        let (stripe, at) = FakeStripe::start().await;
        let cards = CardForm { publishable_key: "pk_test_1".into(), script: "https://js.stripe.com/v3/".into() };
        let client = Stripe::new(&at, "sk_test_1").expect("a client");
        let set_up = |platform: bitnet_platform::Platform| platform.with_payments(client, HookSecret::new("whsec_1"));
        let site = Site::start_with(&url, Reach::Network, (set_up, Some(cards))).await;
        let ann = site.person("ann@pays.example").await;
        let account = ann.account().await;
        let path = format!("/accounts/{account}/payment");
        let page = ann.get(&path).await;
        assert!(
            page.body.contains("There is no card") && page.body.contains("https://js.stripe.com/v3/") && page.body.contains("pk_test_1")
        );
        let policy = page.headers["content-security-policy"].to_str().expect("text");
        assert!(
            policy.contains("script-src 'self' https://js.stripe.com;") && policy.contains("frame-src https://js.stripe.com"),
            "{policy}"
        );
        let others = ann.get(&format!("/accounts/{account}/plan")).await;
        assert!(!others.headers["content-security-policy"].to_str().expect("text").contains("stripe"), "no other page loads it");
        assert!(ann.send_form(&format!("{path}/begin"), &[]).await.body.contains("seti_1_secret"));
        assert_eq!(ann.send_form(&path, &[("payment_method", "'; DROP")]).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(ann.send_form(&path, &[("payment_method", "pm_1")]).await.location(), format!("{path}?said=card"));
        let stored = ann.get(&path).await.body;
        assert!(stored.contains("<strong>Visa") && stored.contains("4242") && stored.contains("until 04/2050"), "{stored}");
        let id = account.parse().expect("an id");
        store.set_plan(id, "developer", &by(Timestamp::now())).await.expect("changed");
        let later = by(Timestamp::now().plus(std::time::Duration::from_secs(40 * 86_400)));
        store.close_periods(Some(id), &later).await.expect("closed");
        let invoice = store.invoices(Some(id)).await.expect("it reads").swap_remove(0).0.issued.expect("issued").id;
        let pay = format!("/accounts/{account}/invoices/{invoice}/pay");
        stripe.inside().declines = true;
        let declined = ann.send_form(&pay, &[]).await;
        assert!(declined.status == StatusCode::PAYMENT_REQUIRED && declined.body.contains("card_declined"), "{}", declined.body);
        stripe.inside().declines = false;
        let eve = site.person("eve@pays.example").await;
        let foreign = format!("/accounts/{}/invoices/{invoice}/pay", eve.account().await);
        assert_eq!(eve.send_form(&foreign, &[]).await.status, StatusCode::NOT_FOUND, "somebody else's invoice");
        assert!(ann.get(&path).await.body.contains("Pay now"));
        let paid = ann.send_form(&pay, &[]).await;
        assert_eq!(paid.location(), format!("{path}?said=paid"), "{}", paid.body);
        assert_eq!(stripe.inside().n_charges, 1);
        refund_in_the_console(&site, &stripe, (&account, &invoice.to_string())).await;
        // The month after it was closed, too, and its invoice waits.
        let left = ann.get(&path).await;
        assert!(!left.body.contains(&pay) && left.body.matches(">Pay now<").count() <= 1, "{}", left.body);
        site.end().await;
    });
}
