//! The page by which an account pays, over a Stripe of the tests' own: a card that is stored, an invoice that is paid by a click, and one
//! that is declined.

use axum::http::StatusCode;
use bitnet_platform::payment::{HookSecret, Stripe};
use bitnet_platform::portal::{CardForm, Reach};
use bitnet_platform::time::Timestamp;

use super::fake_stripe::FakeStripe;
use super::store::{by, on_both};
use super::visitor::Site;

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
        assert!(ann.get(&path).await.body.contains("<code>pm_1</code>"));
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
        // The month after it was closed, too, and its invoice waits.
        let left = ann.get(&path).await;
        assert!(!left.body.contains(&pay) && left.body.matches("Pay now").count() <= 1, "{}", left.body);
        site.end().await;
    });
}
