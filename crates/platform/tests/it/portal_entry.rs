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
            answers.push((
                page.status,
                page.location().to_string(),
                page.body.replace(email, ""),
                confirm.body,
                visitor.get("/check-mail").await.body,
            ));
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

#[test]
fn invitations_do_not_tell_how_many_mails_an_address_has_had() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let prober = site.person("prober@counts.example").await;
        site.person("known@counts.example").await;
        let account = prober.account().await;
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        let team = "UPDATE account_plan SET plan_id = 'enterprise'";
        sqlx::query(team).execute(&pool).await.expect("it writes");
        pool.close().await;
        let mut answers = Vec::new();
        for email in ["known@counts.example", "nobody@counts.example"] {
            for _ in 0..2 {
                prober.post("/forgot", &[("email", email)]).await;
            }
            let mut statuses = Vec::new();
            for _ in 0..6 {
                let fields = [("email", email), ("role", "viewer")];
                statuses.push(prober.send_form(&format!("/accounts/{account}/members/invite"), &fields).await.status.as_u16());
            }
            answers.push(statuses);
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0].last(), Some(&429), "they are bounded all the same");
        site.end().await;
    });
}

#[test]
fn who_never_confirms_an_address_is_forgotten() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@forgotten.example").await;
        for email in ["old@forgotten.example", "asked-anew@forgotten.example"] {
            site.visitor().send_form("/sign-up", &[("name", "Old"), ("email", email), ("password", PASSWORD)]).await;
            site.mail_to(email, 1).await;
        }
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        for statement in [
            "UPDATE person SET created_at = created_at - 700000000000",
            "UPDATE mail_link SET expires_at = 1 WHERE person_id IN (SELECT id FROM person WHERE email = 'old@forgotten.example')",
        ] {
            sqlx::query(statement).execute(&pool).await.expect("it writes");
        }
        let newer = [("name", "New"), ("email", "new@forgotten.example"), ("password", PASSWORD)];
        site.visitor().send_form("/sign-up", &newer).await;
        site.mail_to("new@forgotten.example", 1).await;
        let mut left: Vec<String> = store.people().await.expect("it reads").into_iter().map(|person| person.email).collect();
        left.sort();
        assert_eq!(left, ["ann@forgotten.example", "asked-anew@forgotten.example", "new@forgotten.example"]);
        let query = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM session WHERE person_id NOT IN (SELECT id FROM person)");
        assert_eq!(query.fetch_one(&pool).await.expect("it reads"), 0);
        pool.close().await;
        assert_eq!(ann.get("/profile").await.status, StatusCode::OK, "who has confirmed it stays");
        site.end().await;
    });
}
