//! Pages that grow, wait or report: lists of the console, downloads, what waits for a first request, and how models are.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::portal::Reach;
use serde_json::json;
use sqlx::AnyPool;

use super::served::BREAKS;
use super::store::on_both;
use super::visitor::{Site, Visitor};

async fn execute(url: &str, statement: &'static str) {
    let pool = AnyPool::connect(url).await.expect("it connects");
    sqlx::query(statement).execute(&pool).await.expect("it writes");
    pool.close().await;
}

/// Somebody who runs the installation.
async fn operator(site: &Site, url: &str, email: &str) -> Visitor {
    let visitor = site.person(email).await;
    execute(url, "UPDATE person SET operator_since = 1").await;
    visitor
}

#[test]
fn lists_of_the_console_are_read_a_page_at_a_time_and_searched() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let boss = operator(&site, &url, "boss@lists.example").await;
        execute(
            &url,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120) INSERT INTO account (id, name, status, overage, spending_cap, created_at) SELECT SUBSTR(a.id, 1, 29) || CAST(1000 + n.i AS TEXT) || SUBSTR(a.id, 34), 'Many_' || CAST(n.i AS TEXT), 'active', 'refuse', 0, 1 + n.i FROM account a CROSS JOIN n",
        )
        .await;
        execute(
            &url,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO person (id, email, name, password_hash, created_at) SELECT SUBSTR(p.id, 1, 29) || CAST(1000 + n.i AS TEXT) || SUBSTR(p.id, 34), 'many' || CAST(n.i AS TEXT) || '@lists.example', 'Many', '', 1 + n.i FROM person p CROSS JOIN n",
        )
        .await;
        for (path, n_expected) in [("/operator/accounts", 121_usize), ("/operator/people", 61)] {
            let (mut next, mut n_rows, mut n_pages) = (path.to_string(), 0, 0);
            loop {
                let page = boss.get(&next).await;
                assert_eq!(page.status, StatusCode::OK);
                n_rows += page.body.matches("<tr><td>").count();
                n_pages += 1;
                let Some(at) = page.body.find("&amp;after=").or_else(|| page.body.find("&after=")) else { break };
                let id: String = page.body[at..].split('=').nth(1).expect("an id").chars().take_while(|c| *c != '"').collect();
                next = format!("{path}?q=&after={id}");
            }
            assert_eq!((n_rows, n_pages), (n_expected, n_expected.div_ceil(50)), "{path}");
        }
        let found = |path: &'static str| {
            let boss = &boss;
            async move { boss.get(path).await.body.matches("<tr><td>").count() }
        };
        assert_eq!(found("/operator/accounts?q=many_7").await, 11, "7 and 70 to 79");
        assert_eq!(found("/operator/accounts?q=many%25").await, 0, "a percent sign is one");
        assert_eq!(found("/operator/people?q=boss@lists").await, 1);
        assert!(boss.get("/operator").await.body.contains("61 people"));
        site.end().await;
    });
}

#[test]
fn audit_log_is_downloaded_to_its_end() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@download.example").await;
        let account = ann.account().await;
        execute(
            &url,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) INSERT INTO audit_record (seq, at, actor, action, account_id, target, before_state, after_state, address, request_id, previous_hash, hash) SELECT r.seq + n.i, r.at, r.actor, 'test.repeated', r.account_id, r.target, '', '', '', '', r.previous_hash, r.hash FROM audit_record r CROSS JOIN n WHERE r.seq = (SELECT MAX(seq) FROM audit_record WHERE account_id <> '')",
        )
        .await;
        let all = ann.get(&format!("/accounts/{account}/audit.jsonl")).await;
        assert_eq!(all.headers["content-type"], "application/jsonl");
        let lines: Vec<serde_json::Value> = all.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.iter().filter(|line| line["action"] == "test.repeated").count(), 2500);
        assert!(lines.is_sorted_by_key(|line| line["seq"].as_u64()) && lines[0]["action"] == "account.created");
        let last = lines[lines.len() - 2]["seq"].as_u64().expect("a number");
        let rest = ann.get(&format!("/accounts/{account}/audit.jsonl?after={last}")).await;
        assert_eq!(rest.body.lines().count(), 1);
        site.end().await;
    });
}

fn part(path: &str) -> Request<Body> {
    Request::get(path).header("hx-request", "true").body(Body::empty()).expect("a request")
}

#[test]
fn page_that_waits_for_a_first_request_waits_less_and_less_and_is_never_replaced_by_another_page() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@waits.example").await;
        let account = ann.account().await;
        let seen = format!("/accounts/{account}/start/seen");
        let at = |n: u32| format!("{seen}?n={n}");
        assert!(
            ann.get(&format!("/accounts/{account}/start")).await.body.contains(&format!("hx-get=\"{}\" hx-trigger=\"every 2s\"", at(1)))
        );
        assert!(ann.send(part(&at(1))).await.body.contains(&format!("hx-get=\"{}\" hx-trigger=\"every 2s\"", at(2))));
        assert!(ann.send(part(&at(60))).await.body.contains("every 10s"));
        for late in [180, u32::MAX] {
            let page = ann.send(part(&at(late))).await;
            assert!(!page.body.contains("hx-get") && page.body.contains("Look again"), "{}", page.body);
        }
        // Neither a failure nor the way to sign in is put into the page as if it were the part.
        let foreign = site.person("eve@waits.example").await;
        assert_eq!(foreign.send(part(&seen)).await.status, StatusCode::NO_CONTENT);
        let stranger = site.visitor().send(part(&seen)).await;
        assert!(stranger.status == StatusCode::OK && stranger.body.contains("not signed in any more") && !stranger.body.contains("<html"));
        site.end().await;
    });
}

#[test]
fn status_page_says_which_model_has_broken_down() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let before = site.visitor().get("/status").await;
        assert!(before.body.contains("Everything works") && before.body.contains("2,048 tokens of context"), "{}", before.body);
        let account = site.served.account("developer", (Overage::Refuse, Micros::ZERO)).await;
        let (_, key) = site.served.key(account, |_| {}).await;
        let body = json!({ "model": "sim", "prompt": char::from(BREAKS).to_string(), "max_tokens": 5 });
        while !site.served.app.models().all().iter().any(|model| model.name == "sim" && model.engine.is_broken()) {
            site.served.post("/v1/completions", &key, &body).await;
        }
        let after = site.visitor().get("/status").await;
        assert!(after.body.contains("Something does not work") && after.body.contains("its engine has broken down"), "{}", after.body);
        assert_eq!(after.body.matches("works: loaded").count(), 1, "the other one still does");
        site.end().await;
    });
}
