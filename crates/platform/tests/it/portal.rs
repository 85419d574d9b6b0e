//! The portal on both databases, as somebody with a browser and somebody with bad intentions have it: signing up to a draft invoice,
//! second factors, forms sent twice and from elsewhere, and what a stranger can learn.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bitnet_platform::portal::Reach;
use serde_json::json;

use super::store::on_both;
use super::visitor::{PASSWORD, Page, Site, Visitor, link_in};

fn text_between(page: &Page, before: &str, after: &str) -> String {
    let at = page.body.find(before).unwrap_or_else(|| panic!("no {before:?} in {}", page.body)) + before.len();
    page.body[at..].split(after).next().unwrap_or_default().to_string()
}

/// A first key, as the page shows it.
async fn first_key(visitor: &Visitor, account: &str) -> String {
    let page = visitor.send_form(&format!("/accounts/{account}/start"), &[]).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.body);
    text_between(&page, r#"<code id="key">"#, "</code>")
}

#[test]
fn first_visitor_of_the_machine_gets_from_signing_up_to_a_draft_invoice() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Machine).await;
        let ann = site.visitor();
        assert!(ann.get("/").await.body.contains("Get a key, free"));
        let form = ann.get(&format!("/sign-up?first={}", site.first())).await;
        assert!(form.body.contains("You are the first on this machine"), "{}", form.body);
        let first = form.hidden("first");
        let fields = [("name", "Ann"), ("email", "Ann@first.example"), ("password", PASSWORD), ("first", &first)];
        let signed_up = ann.send_form("/sign-up", &fields).await;
        assert_eq!(signed_up.location(), "/accounts", "no mail is needed: {}", signed_up.body);
        let account = ann.account().await;
        assert!(ann.follow("/accounts").await.body.contains("Make my first key"));
        assert!(ann.get(&format!("/accounts/{account}/start/seen")).await.body.contains("Waiting for it"));
        let key = first_key(&ann, &account).await;
        let body = json!({ "model": "sim", "prompt": "Once", "max_tokens": 5, "ignore_eos": true });
        let answer = site.served.post("/v1/completions", &key, &body).await;
        assert_eq!(answer.status, 200, "known at once: {}", answer.body);
        assert!(ann.get(&format!("/accounts/{account}/start/seen")).await.body.contains("Your first request is here"));
        site.served.platform.ledger().flush().await.expect("in the tables");
        let usage = ann.get(&format!("/accounts/{account}/usage?days=7")).await;
        assert!(usage.body.contains("<code>sim</code>"), "{}", usage.body);
        let data: serde_json::Value =
            serde_json::from_str(&ann.get(&format!("/accounts/{account}/usage.json?days=7")).await.body).expect("JSON");
        assert_eq!(data["requests"].as_array().expect("a list").last(), Some(&json!(1)));
        let invoice = ann.get(&format!("/accounts/{account}/invoices")).await;
        assert!(invoice.body.contains("1 operation that the plan includes"), "{}", invoice.body);
        let console = ann.send_form("/operator/reconcile", &[]).await;
        assert!(console.body.contains("They do: 1 event cost"), "{}", console.body);
        site.end().await;
    });
}

#[test]
fn operator_is_only_who_is_first_at_the_machine_itself() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Machine).await;
        let far = site.visitor().at("192.0.2.7:1");
        let first = site.first();
        let fields = [("name", "Eve"), ("email", "eve@far.example"), ("password", PASSWORD), ("first", &first)];
        assert_eq!(far.send_form("/sign-up", &fields).await.location(), "/check-mail");
        // By another name, and through something that stands between.
        for (name, value) in [("host", "evil.example"), ("x-forwarded-for", "192.0.2.7")] {
            let request = Request::post("/sign-up").header("content-type", "application/x-www-form-urlencoded").header(name, value);
            let body = format!("name=Eve&email=eve-{name}@far.example&password=four+words+are+long&first={first}");
            let page = site.visitor().send(request.body(Body::from(body)).expect("a request")).await;
            assert_eq!(page.location(), "/check-mail", "{name}");
        }
        // A proxy on this machine that says nothing of whom it asks for looks like the machine itself.
        for (number, wrong) in ["", "0", &"0".repeat(64)].into_iter().enumerate() {
            let email = format!("eve-proxied-{number}@far.example");
            let behind = site.visitor();
            assert!(!behind.get(&format!("/sign-up?first={wrong}")).await.body.contains("You are the first"));
            let fields = [("name", "Eve"), ("email", &email), ("password", PASSWORD), ("first", wrong)];
            assert_eq!(behind.send_form("/sign-up", &fields).await.location(), "/check-mail", "{wrong:?}");
            site.mail_to(&email, 1).await;
        }
        // Whoever gets a mail is in the database.
        for email in ["eve@far.example", "eve-host@far.example", "eve-x-forwarded-for@far.example"] {
            site.mail_to(email, 1).await;
        }
        let people = site.served.platform.store().people().await.expect("it reads");
        assert!(people.len() == 6 && people.iter().all(|person| person.operator_since.is_none()), "{people:?}");
        site.end().await;
    });
}

#[test]
fn stranger_cannot_tell_whether_an_address_has_signed_up() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        site.person("known@tell.example").await;
        let answers = |email: &'static str| {
            let site = &site;
            async move {
                let visitor = site.visitor();
                let up = visitor.send_form("/sign-up", &[("name", "X"), ("email", email), ("password", PASSWORD)]).await;
                let cookie = up.headers.get("set-cookie").map(|value| value.to_str().expect("text").len());
                let wrong = site.visitor().post("/log-in", &[("email", email), ("password", "not the right one")]).await;
                let forgot = site.visitor().post("/forgot", &[("email", email)]).await;
                let body = wrong.body.replace(email, "");
                (up.status, up.location().to_string(), cookie, wrong.status, body, forgot.location().to_string())
            }
        };
        assert_eq!(answers("known@tell.example").await, answers("nobody@tell.example").await);
        // The mails tell, to whom they belong.
        assert!(site.mail_to("known@tell.example", 3).await.subject.contains("new password"));
        site.end().await;
    });
}

#[test]
fn address_that_somebody_else_signed_up_with_is_whose_mail_it_is() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let fields = |password: &'static str| [("name", "V"), ("email", "victim@pre.example"), ("password", password)];
        let attacker = site.visitor();
        attacker.send_form("/sign-up", &fields("the attacker's own")).await;
        let first = link_in(&site.mail_to("victim@pre.example", 1).await, "/confirm/");
        let victim = site.visitor();
        victim.send_form("/sign-up", &fields(PASSWORD)).await;
        let second = link_in(&site.mail_to("victim@pre.example", 2).await, "/confirm/");
        assert_eq!(victim.post(&first, &[]).await.status, StatusCode::UNAUTHORIZED, "the older link is none any more");
        assert_eq!(victim.post(&second, &[]).await.location(), "/accounts");
        assert_eq!(victim.post(&second, &[]).await.status, StatusCode::UNAUTHORIZED, "used once");
        assert_eq!(attacker.get("/accounts").await.location(), "/log-in?next=/accounts", "the attacker's session is gone");
        let log_in = [("email", "victim@pre.example"), ("password", "the attacker's own")];
        assert_eq!(attacker.post("/log-in", &log_in).await.status, StatusCode::UNAUTHORIZED);
        site.end().await;
    });
}

#[test]
fn form_from_elsewhere_or_sent_twice_does_nothing_more() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@forms.example").await;
        let account = ann.account().await;
        let path = format!("/accounts/{account}/start");
        let (csrf, once) = ann.proof().await;
        let fields = [("csrf", csrf.as_str()), ("once", once.as_str())];
        let foreign = |name: &'static str, value: &'static str| {
            let request = Request::post(&path).header("content-type", "application/x-www-form-urlencoded").header(name, value);
            request.body(Body::from(format!("csrf={csrf}&once={once}"))).expect("a request")
        };
        for (name, value) in
            [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site")]
        {
            assert_eq!(ann.send(foreign(name, value)).await.status, StatusCode::FORBIDDEN, "{name}: {value}");
        }
        let of_another = site.person("bob@forms.example").await.proof().await.0;
        for wrong in
            [&[][..], &[("once", once.as_str())], &[("csrf", of_another.as_str()), ("once", once.as_str())], &[("csrf", csrf.as_str())]]
        {
            assert_eq!(ann.post(&path, wrong).await.status, StatusCode::FORBIDDEN, "{wrong:?}");
        }
        assert_eq!(ann.post(&path, &fields).await.status, StatusCode::OK);
        let again = ann.post(&path, &fields).await;
        assert_eq!((again.status, again.location()), (StatusCode::SEE_OTHER, format!("{path}?said=again").as_str()));
        // One whose end is not known yet, or that only a form leads to, goes on at a page that there is.
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        sqlx::query("UPDATE submission SET location = NULL").execute(&pool).await.expect("it writes");
        pool.close().await;
        assert_eq!(ann.post(&path, &fields).await.location(), format!("{path}?said=under-way"));
        let id = site.served.platform.store().api_keys(None).await.expect("it reads")[0].id;
        let rotate = format!("/accounts/{account}/keys/{id}/rotate");
        let (csrf, once) = ann.proof().await;
        let fields = [("csrf", csrf.as_str()), ("once", once.as_str())];
        assert_eq!(ann.post(&rotate, &fields).await.status, StatusCode::OK);
        let loaded_anew = ann.post(&rotate, &fields).await;
        assert_eq!(loaded_anew.location(), format!("/accounts/{account}/keys?said=again"));
        assert_eq!(ann.get(loaded_anew.location()).await.status, StatusCode::OK);
        let keys = ann.get(&format!("/accounts/{account}/keys")).await;
        assert_eq!(keys.body.matches("/revoke\"").count(), 2, "one key, and the one that replaces it");
        let large = Request::post(&path).header("content-type", "application/x-www-form-urlencoded");
        let large = ann.send(large.body(Body::from(format!("csrf={csrf}&x={}", "a".repeat(100_000)))).expect("a request")).await;
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
        let wrong = Request::post(&path).header("content-type", "application/json").body(Body::from("{}")).expect("a request");
        assert_eq!(ann.send(wrong).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        site.end().await;
    });
}

#[test]
fn passwords_are_slowed_down_and_reset_once() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@reset.example").await;
        let guess = site.visitor();
        let mut statuses = Vec::new();
        for _ in 0..8 {
            statuses.push(guess.post("/log-in", &[("email", "ann@reset.example"), ("password", "guessed in vain")]).await.status.as_u16());
        }
        assert!(statuses.starts_with(&[401]) && statuses.ends_with(&[429]), "{statuses:?}");
        let elsewhere = site.visitor().at("192.0.2.9:1");
        let right = [("email", "ann@reset.example"), ("password", PASSWORD)];
        assert_eq!(elsewhere.post("/log-in", &right).await.location(), "/accounts", "its owner is not locked out");
        assert_eq!(elsewhere.post("/forgot", &[("email", "ann@reset.example")]).await.location(), "/forgot?said=sent");
        let link = link_in(&site.mail_to("ann@reset.example", 2).await, "/reset/");
        assert_eq!(elsewhere.get(&link).await.status, StatusCode::OK);
        assert_eq!(elsewhere.post(&link, &[("password", "short")]).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(elsewhere.post(&link, &[("password", "another four words")]).await.location(), "/log-in?said=reset");
        assert_eq!(elsewhere.post(&link, &[("password", "yet another four words")]).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(ann.get("/profile").await.location(), "/log-in?next=/profile", "signed out everywhere");
        let newer = site.visitor().at("192.0.2.10:1");
        assert_eq!(newer.post("/log-in", &right).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(
            newer.post("/log-in", &[("email", "ann@reset.example"), ("password", "another four words")]).await.location(),
            "/accounts"
        );
        site.end().await;
    });
}

/// The code of a secret that a page shows, at a time: RFC 6238 over RFC 4226, by their letter.
fn code_of(secret: &str, step: u64) -> String {
    let bits: String = secret
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            let value = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".find(c).expect("base 32");
            format!("{value:05b}")
        })
        .collect();
    let key: Vec<u8> = bits
        .as_bytes()
        .chunks_exact(8)
        .map(|bits| u8::from_str_radix(std::str::from_utf8(bits).expect("bits"), 2).expect("a byte"))
        .collect();
    totp_rs::Builder::new().with_secret(key).build_noncompliant().generate(step * 30).to_string()
}

#[test]
fn second_factor_is_asked_for_and_its_codes_open_once() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@factor.example").await;
        let page = ann.get("/profile/second-factor").await;
        let secret = text_between(&page, "Or type: <code>", "</code>");
        let now = bitnet_platform::time::Timestamp::now().0 as u64 / 30_000_000;
        let wrong = ann.send_form("/profile/second-factor", &[("code", "000000")]).await;
        assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY);
        let on = ann.send_form("/profile/second-factor", &[("code", &code_of(&secret, now))]).await;
        let codes = text_between(&on, r#"<pre id="codes">"#, "</pre>");
        let recovery = codes.lines().next().expect("a code").to_string();
        let log_in = |site: &Site| {
            let visitor = site.visitor();
            async move {
                let page = visitor.post("/log-in", &[("email", "ann@factor.example"), ("password", PASSWORD)]).await;
                assert_eq!(page.location(), "/log-in/code?next=/accounts");
                assert_eq!(visitor.get("/accounts").await.location(), "/log-in?next=/accounts", "a password alone opens nothing");
                visitor
            }
        };
        let visitor = log_in(&site).await;
        let taken = visitor.post("/log-in/code", &[("code", &code_of(&secret, now))]).await;
        assert_eq!(taken.status, StatusCode::UNAUTHORIZED, "the code that turned it on is taken");
        let waiting = visitor.cookie();
        assert_eq!(visitor.post("/log-in/code", &[("code", &code_of(&secret, now + 1))]).await.location(), "/accounts");
        assert_ne!(visitor.cookie(), waiting, "another token than before the second factor");
        assert_eq!(visitor.with_cookie(waiting).get("/log-in/code").await.location(), "/log-in");
        let by_paper = log_in(&site).await;
        assert_eq!(by_paper.post("/log-in/code", &[("code", &recovery)]).await.location(), "/accounts");
        let again = log_in(&site).await;
        assert_eq!(again.post("/log-in/code", &[("code", &recovery)]).await.status, StatusCode::UNAUTHORIZED, "once");
        // Six digits are soon guessed: ten attempts, from wherever, and then one each quarter of an hour.
        let mut statuses = Vec::new();
        for number in 0..12 {
            let page = again.at(&format!("198.51.100.{number}:1")).post("/log-in/code", &[("code", "000000")]).await;
            let wait: u64 = page.headers.get("retry-after").map_or(0, |value| value.to_str().expect("text").parse().expect("seconds"));
            statuses.push((page.status.as_u16(), wait > 600));
        }
        assert!(statuses.starts_with(&[(401, false)]) && statuses.iter().filter(|(status, _)| *status == 401).count() <= 6, "{statuses:?}");
        assert_eq!(statuses.last().map(|(status, _)| *status), Some(429), "{statuses:?}");
        let everywhere = visitor.send_form("/log-out/everywhere", &[]).await;
        assert_eq!(everywhere.location(), "/log-in?said=signed-out");
        assert_eq!(by_paper.get("/accounts").await.location(), "/log-in?next=/accounts");
        site.end().await;
    });
}

#[test]
fn invitation_is_for_its_address_and_an_account_keeps_an_owner() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@team.example").await;
        let account = ann.account().await;
        let invite = format!("/accounts/{account}/members/invite");
        let full = ann.send_form(&invite, &[("email", "bob@team.example"), ("role", "developer")]).await;
        assert!(full.status == StatusCode::UNPROCESSABLE_ENTITY && full.body.contains("Your plan allows 1 member."), "{}", full.body);
        let by = super::store::by(bitnet_platform::time::Timestamp::now());
        store.set_plan(account.parse().expect("an id"), "team", &by).await.expect("changed");
        let invited = ann.send_form(&invite, &[("email", "bob@team.example"), ("role", "developer")]).await;
        assert!(invited.location().ends_with("said=invited"), "{}", invited.body);
        let link = link_in(&site.mail_to("bob@team.example", 1).await, "/invitations/");
        let eve = site.person("eve@team.example").await;
        assert!(eve.get(&link).await.body.contains("It is for another address"));
        assert_eq!(eve.send_form(&link, &[]).await.status, StatusCode::UNAUTHORIZED);
        let bob = site.visitor();
        bob.send_form("/sign-up", &[("name", "Bob"), ("email", "bob@team.example"), ("password", PASSWORD)]).await;
        bob.post(&link_in(&site.mail_to("bob@team.example", 2).await, "/confirm/"), &[]).await;
        assert_eq!(bob.send_form(&link, &[]).await.location(), format!("/accounts/{account}?said=joined"));
        assert_eq!(bob.account().await, account, "who was invited has no account beside");
        assert_eq!(bob.get(&format!("/accounts/{account}/audit")).await.status, StatusCode::FORBIDDEN);
        let members = ann.get(&format!("/accounts/{account}/members")).await;
        let own = text_between(&members, &format!("/accounts/{account}/members/"), "/role");
        let leave = ann.send_form(&format!("/accounts/{account}/members/{own}/remove"), &[]).await;
        assert!(leave.body.contains("An account has an owner"), "{}", leave.body);
        let log = ann.get(&format!("/accounts/{account}/audit")).await;
        for action in ["account.created", "member.added", "invitation.created", "invitation.accepted"] {
            assert!(log.body.contains(action), "{action}");
        }
        site.end().await;
    });
}

#[test]
fn key_of_the_playground_is_of_its_account_and_opens_no_more_than_text() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@play.example").await;
        let account = ann.account().await;
        let page = ann.get(&format!("/accounts/{account}/playground")).await;
        let (csrf, project) = (text_between(&page, r#"data-csrf=""#, "\""), text_between(&page, r#"<option value="proj_"#, "\""));
        let lend = |project: String, csrf: String| {
            let request = Request::post(format!("/accounts/{account}/playground/key")).header("x-csrf-token", csrf);
            let request = request.header("content-type", "application/x-www-form-urlencoded");
            request.body(Body::from(format!("project={project}"))).expect("a request")
        };
        assert_eq!(ann.send(lend(format!("proj_{project}"), "forged".into())).await.status, StatusCode::FORBIDDEN);
        let foreign = site.person("bob@play.example").await;
        let theirs =
            text_between(&foreign.get(&format!("/accounts/{}/playground", foreign.account().await)).await, r#"<option value=""#, "\"");
        assert_eq!(ann.send(lend(theirs.replace("sim", "proj_0"), csrf.clone())).await.status, StatusCode::NOT_FOUND);
        let answer = ann.send(lend(format!("proj_{project}"), csrf)).await;
        let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        let key = answer["key"].as_str().expect("a key");
        let body = json!({ "model": "sim", "prompt": "Once", "max_tokens": 2, "ignore_eos": true });
        assert_eq!(site.served.post("/v1/completions", key, &body).await.status, 200);
        assert_eq!(site.served.post("/v1/embeddings", key, &json!({ "model": "sim", "input": "a" })).await.status, 403);
        assert!(site.served.platform.store().api_keys(None).await.expect("it reads").is_empty(), "it stands nowhere");
        site.end().await;
    });
}

#[test]
fn text_of_people_is_never_markup() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Machine).await;
        let evil = r#"<script>alert(1)</script>"'{{ 7*7 }}' OR 1=1 --"#;
        let ann = site.visitor();
        let fields = [("name", evil), ("email", "ann@markup.example"), ("password", PASSWORD), ("first", &site.first())];
        let signed_up = ann.send_form("/sign-up", &fields).await;
        assert_eq!(signed_up.location(), "/accounts", "{}", signed_up.body);
        let account = ann.account().await;
        let saved = ann.send_form(&format!("/accounts/{account}/settings"), &[("name", evil)]).await;
        assert!(saved.location().ends_with("said=saved"), "{}", saved.body);
        let wrong = ann.send_form(&format!("/accounts/{account}/keys"), &[("name", evil), ("project", "proj_' OR 1=1 --")]).await;
        assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", wrong.body);
        for path in ["", "/settings", "/members", "/audit", "/keys", "/invoices", "/invoices/draft.html", "/usage?project=' OR 1=1 --"] {
            let page = ann.get(&format!("/accounts/{account}{}", path.replace(' ', "%20"))).await;
            assert!(page.status == StatusCode::OK && !page.body.contains("<script>alert"), "{path}: {}", page.body);
        }
        let policy = ann.get("/").await.headers["content-security-policy"].to_str().expect("text").to_string();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        site.end().await;
    });
}
