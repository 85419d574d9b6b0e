//! The server's admission on the platform, on both databases: who is let in, what is refused how, and that what was used is booked
//! once, streamed or not, read to the end or left.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bitnet_engine::SimulatedPace;
use bitnet_platform::directory::{KeyAccess, KeyScope};
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::ledger::{AccountStatus, Overage};
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use http_body::Body as _;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::served::{Served, post};
use super::store::{by, on_both};

const FREE_CAP: (Overage, Micros) = (Overage::Refuse, Micros::ZERO);
const RICH: (Overage, Micros) = (Overage::Charge, Micros::units(1));

fn completion(max_tokens: u32) -> Value {
    json!({ "model": "sim", "prompt": "Once upon", "max_tokens": max_tokens, "ignore_eos": true, "temperature": 0, "seed": 1 })
}

fn streamed(max_tokens: u32) -> Value {
    let mut body = completion(max_tokens);
    body["stream"] = true.into();
    body
}

#[test]
fn request_costs_the_same_streamed_or_not_and_is_booked_before_it_is_shown() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", RICH).await;
        let (_, key) = served.key(account, |_| {}).await;
        let answer = served.post("/v1/completions", &key, &completion(20)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["usage"]["completion_tokens"], 20);
        let used = |served: &Served| served.platform.ledger().ledger().balance(account, Timestamp::now());
        let once = used(&served).used.charge;
        assert_eq!(once, Micros(29), "9 tokens read and 20 written, a micro each");
        let answer = served.post("/v1/completions", &key, &streamed(20)).await;
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
        // What a client has read is durable: nothing is flushed here.
        let reopened = bitnet_platform::ledger::service::LedgerService::open(Box::new(served.platform.store().clone()), Timestamp::now());
        let balance = reopened.await.expect("another writer").ledger().balance(account, Timestamp::now());
        assert_eq!(balance.used.n_events, 2);
        // The second found some of its prompt in the cache, or not: a tenth of the price.
        assert!((Micros(20)..=Micros(58)).contains(&balance.used.charge), "{balance:?}");
        assert_eq!((balance.held, used(&served).held), Default::default());
        served.end().await;
    });
}

#[test]
fn client_that_leaves_pays_for_what_was_written_until_then() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace { per_step: Duration::from_millis(2), ..SimulatedPace::default() }).await;
        let account = served.account("payg", RICH).await;
        let (_, key) = served.key(account, |_| {}).await;
        for n_frames in [0, 1, 3] {
            let before = served.platform.ledger().ledger().balance(account, Timestamp::now()).used;
            let response = served.router.clone().oneshot(post("/v1/completions", &key, &streamed(500))).await.expect("infallible");
            let mut body = response.into_body();
            for _ in 0..n_frames {
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                assert!(frame.is_some_and(|frame| frame.is_ok()));
            }
            drop(body);
            // It is settled by the engine's thread, within a step.
            let used = loop {
                let balance = served.platform.ledger().ledger().balance(account, Timestamp::now());
                if balance.held == Default::default() {
                    break balance.used;
                }
                tokio::task::yield_now().await;
            };
            assert!(used.charge.0 - before.charge.0 < 509, "it was not written to its end");
            assert!(n_frames < 3 || used.n_events == before.n_events + 1, "what was read is paid");
        }
        served.platform.ledger().flush().await.expect("durable");
        assert!(served.platform.store().reconcile().await.expect("it reads").is_balanced());
        served.end().await;
    });
}

#[test]
fn caller_without_a_right_is_refused_in_the_dialect_of_the_route() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let developer = served.account("developer", FREE_CAP).await;
        let (_, key) = served.key(developer, |_| {}).await;
        let missing = served.send(Request::post("/v1/completions").body(Body::from(completion(1).to_string())).expect("a request")).await;
        assert_eq!(missing.refusal(), (401, "invalid_api_key".into()));
        let forged = format!("{}0", &key[..key.len() - 1]);
        for wrong in [forged.as_str(), "sk-bitnet-", "' OR 1=1 --"] {
            if wrong != key {
                assert_eq!(served.post("/v1/completions", wrong, &completion(1)).await.refusal(), (401, "invalid_api_key".into()));
            }
        }
        let message = json!({ "model": "sim", "max_tokens": 1, "messages": [{ "role": "user", "content": "a" }] });
        let forged = served.post("/v1/messages", "sk-bitnet-", &message).await;
        assert_eq!((forged.status.as_u16(), &forged.json()["error"]["type"]), (401, &json!("authentication_error")));

        let models = KeyScope { models: Some(vec!["other".into()]), routes: None };
        let (_, for_other) = served.key(developer, |key| key.scope = models).await;
        assert_eq!(served.post("/v1/completions", &for_other, &completion(1)).await.refusal(), (403, "permission_denied".into()));
        let routes = KeyScope { models: None, routes: Some(vec!["/v1/models".into()]) };
        let (_, for_list) = served.key(developer, |key| key.scope = routes).await;
        assert_eq!(served.post("/v1/completions", &for_list, &completion(1)).await.refusal(), (403, "permission_denied".into()));
        assert_eq!(served.get("/v1/models", &for_list).await.status, 200);
        let (_, admin) = served.key(developer, |key| key.access = KeyAccess::Admin).await;
        assert_eq!(served.get("/v1/models", &admin).await.refusal(), (403, "permission_denied".into()));

        let (id, ends) = served.key(developer, |_| {}).await;
        assert_eq!(served.post("/v1/completions", &ends, &completion(1)).await.status, 200);
        served.platform.store().revoke_api_key(developer, id, &by(Timestamp::now())).await.expect("revoked");
        let revoked_at = std::time::Instant::now();
        while served.post("/v1/completions", &ends, &completion(1)).await.status == 200 {
            assert!(revoked_at.elapsed() < Duration::from_secs(1), "a key is revoked within a second");
            tokio::task::yield_now().await;
        }
        let suspend = AccountStatus::Suspended;
        served.platform.store().set_account_status(developer, suspend, &by(Timestamp::now())).await.expect("suspended");
        served.refresh().await;
        assert_eq!(served.post("/v1/completions", &key, &completion(1)).await.refusal(), (403, "permission_denied".into()));
        served.end().await;
    });
}

#[test]
fn caller_past_a_limit_is_told_whether_to_wait_or_to_pay() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let poor = served.account("payg", FREE_CAP).await;
        let (_, key) = served.key(poor, |_| {}).await;
        assert_eq!(served.post("/v1/completions", &key, &completion(1)).await.refusal(), (402, "billing_not_active".into()));
        let message = json!({ "model": "sim", "max_tokens": 1, "messages": [{ "role": "user", "content": "a" }] });
        let refused = served.post("/v1/messages", &key, &message).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["type"]), (402, &json!("billing_error")));

        let capped = served.account("payg", (Overage::Charge, Micros(40))).await;
        let (_, key) = served.key(capped, |_| {}).await;
        let refused = served.post("/v1/completions", &key, &completion(100)).await;
        assert_eq!(refused.refusal(), (429, "insufficient_quota".into()));
        assert!(refused.headers.get("retry-after").is_none(), "waiting does not help");
        assert_eq!(served.post("/v1/completions", &key, &completion(10)).await.status, 200, "what fits is served");

        let rich = served.account("payg", RICH).await;
        let limits = ScopeLimits { requests_per_minute: Some(2), ..ScopeLimits::default() };
        let (_, slow) = served.key(rich, |key| key.limits = limits).await;
        for _ in 0..2 {
            assert_eq!(served.post("/v1/completions", &slow, &completion(1)).await.status, 200);
        }
        let refused = served.post("/v1/completions", &slow, &completion(1)).await;
        assert_eq!(refused.refusal(), (429, "rate_limit_exceeded".into()));
        assert!(refused.headers.contains_key("retry-after"));
        let limits = ScopeLimits { tokens_per_minute: Some(50), ..ScopeLimits::default() };
        let (_, narrow) = served.key(rich, |key| key.limits = limits).await;
        assert_eq!(served.post("/v1/completions", &narrow, &completion(100)).await.refusal(), (400, "invalid_value".into()));
        let limits = ScopeLimits { spending_cap: Some(Micros(5)), ..ScopeLimits::default() };
        let (_, cheap) = served.key(rich, |key| key.limits = limits).await;
        assert_eq!(served.post("/v1/completions", &cheap, &completion(1)).await.refusal(), (429, "insufficient_quota".into()));
        let free = served.account("free", FREE_CAP).await;
        let (_, key) = served.key(free, |_| {}).await;
        let answer = served.post("/v1/completions", &key, &completion(1)).await;
        assert_eq!(answer.headers.get("x-ratelimit-limit-requests").map(|value| value.as_bytes()), Some(&b"20"[..]));
        served.end().await;
    });
}

#[test]
fn request_that_is_not_served_counts_as_down() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", RICH).await;
        let (_, key) = served.key(account, |_| {}).await;
        let level = async || {
            let (store, outcomes) = (served.platform.store(), served.platform.outcomes());
            outcomes.flush(store).await.expect("written");
            let level = store.service_level(account, Timestamp::now().period()).await.expect("read");
            (level.n_served, level.n_failed)
        };
        assert_eq!(served.post("/v1/completions", &key, &completion(2)).await.status, 200);
        assert_eq!(served.post("/v1/completions", &key, &json!({ "model": "sim", "prompt": "", "max_tokens": 1 })).await.status, 400);
        assert_eq!(served.post("/v1/completions", &key, &completion(100_000)).await.status, 400);
        assert_eq!(level().await, (1, 0), "who asks for what cannot be was not let down");
        served.app.lifecycle().drain();
        assert_eq!(served.post("/v1/completions", &key, &completion(2)).await.status, 503);
        assert_eq!(served.post("/v1/chat/completions", &key, &chat(2)).await.status, 503);
        assert_eq!(level().await, (1, 2));
        served.end().await;
    });
}

fn chat(max_tokens: u32) -> Value {
    json!({ "model": "sim", "messages": [{ "role": "user", "content": "Once" }], "max_tokens": max_tokens })
}
