//! Ways in, as somebody with bad intentions tries them: addresses of others, links of others, and what answers tell.

use axum::http::StatusCode;
use bitnet_platform::portal::Reach;

use super::store::on_both;
use super::visitor::{PASSWORD, Site, link_in};

#[test]
fn link_of_a_mail_blesses_no_password_that_somebody_else_has_chosen() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let fields = |password: &'static str| [("name", "V"), ("email", "victim@blessed.example"), ("password", password)];
        let victim = site.visitor();
        victim.send_form("/sign-up", &fields(PASSWORD)).await;
        site.mail_to("victim@blessed.example", 1).await;
        let attacker = site.visitor();
        attacker.send_form("/sign-up", &fields("the attacker's own")).await;
        let link = link_in(&site.mail_to("victim@blessed.example", 2).await, "/confirm/");
        assert!(victim.get(&link).await.body.contains("The password that you signed up with"));
        for password in ["", PASSWORD] {
            let refused = victim.post(&link, &[("password", password)]).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.body);
        }
        // Somebody else who is signed in is not whoever signed up, either.
        let other = site.person("other@blessed.example").await;
        assert_eq!(other.post(&link, &[]).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(attacker.get("/accounts").await.location(), "/log-in?next=/accounts", "nothing was confirmed");
        // Whose mail it is sets a password of their own.
        victim.post("/forgot", &[("email", "victim@blessed.example")]).await;
        let reset = link_in(&site.mail_to("victim@blessed.example", 3).await, "/reset/");
        assert_eq!(victim.post(&reset, &[("password", PASSWORD)]).await.location(), "/log-in?said=reset");
        assert_eq!(attacker.get("/accounts").await.location(), "/log-in?next=/accounts", "the attacker's session is gone");
        let log_in = [("email", "victim@blessed.example"), ("password", PASSWORD)];
        assert_eq!(victim.post("/log-in", &log_in).await.location(), "/accounts");
        site.end().await;
    });
}

#[test]
fn address_is_confirmed_in_another_browser_by_its_password() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let (here, phone) = (site.visitor(), site.visitor());
        here.send_form("/sign-up", &[("name", "A"), ("email", "ann@phone.example"), ("password", PASSWORD)]).await;
        let link = link_in(&site.mail_to("ann@phone.example", 1).await, "/confirm/");
        assert!(!here.get(&link).await.body.contains("The password that you signed up with"), "here it is known");
        assert_eq!(phone.post(&link, &[("password", PASSWORD)]).await.location(), "/log-in?said=confirmed");
        assert_eq!(phone.get("/accounts").await.location(), "/log-in?next=/accounts", "which signs in, with a second factor if need be");
        assert!(here.get("/accounts").await.location().starts_with("/accounts/acct_"), "where the password was chosen");
        site.end().await;
    });
}

#[test]
fn signing_up_and_then_in_does_not_tell_whether_the_address_was_known() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        site.person("known@then-in.example").await;
        let mut answers = Vec::new();
        for email in ["known@then-in.example", "nobody@then-in.example"] {
            let visitor = site.visitor();
            let fields = [("name", "X"), ("email", email), ("password", "a password of the prober")];
            visitor.send_form("/sign-up", &fields).await;
            site.mail_to(email, if email.starts_with("known") { 2 } else { 1 }).await;
            let page = visitor.post("/log-in", &fields[1..]).await;
            let confirm = visitor.get(&format!("/confirm/{}", "0".repeat(64))).await;
            answers.push((page.status, page.location().to_string(), page.body.replace(email, ""), confirm.body, visitor.get("/check-mail").await.body));
        }
        assert_eq!(answers[0], answers[1]);
        assert!(site.mail_to("nobody@then-in.example", 2).await.text.contains("/confirm/"), "the mail tells, to whom it belongs");
        site.end().await;
    });
}

#[test]
fn stranger_who_asks_for_links_keeps_nobody_from_signing_in() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        site.person("ann@asked-for.example").await;
        let mut statuses = Vec::new();
        for number in 0..40 {
            let stranger = site.visitor().at(&format!("198.51.100.{number}:1"));
            statuses.push(stranger.post("/forgot", &[("email", "ann@asked-for.example")]).await.status.as_u16());
        }
        assert!(statuses.starts_with(&[303]) && statuses.ends_with(&[429]), "{statuses:?}");
        let log_in = [("email", "ann@asked-for.example"), ("password", PASSWORD)];
        assert_eq!(site.visitor().at("192.0.2.1:1").post("/log-in", &log_in).await.location(), "/accounts");
        site.end().await;
    });
}
