//! What one account says reaches no other: not in an answer, whatever was asked for and however it ended, not in a log, and not in the
//! time that an answer takes. `cargo xtask endure` asks a million times, the tests some thousands.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Request};
use bitnet_engine::SimulatedPace;
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use http_body::Body as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::served::{Served, post};

/// How every secret of an account begins.
const CANARY: &str = "canary-in-prompt";
const N_ACCOUNTS: usize = 4;

fn is_long() -> bool {
    std::env::var_os("BITNET_ENDURE").is_some()
}

fn canary(account: usize) -> String {
    format!("{CANARY}-{}", ["amber", "birch", "cedar", "dusk"][account])
}

/// Reads every log line of the process, at every level of our own.
struct Watch;
static N_LOGGED: AtomicU64 = AtomicU64::new(0);
static N_LEAKED: AtomicU64 = AtomicU64::new(0);

/// Looks at fields.
struct Look;

impl Visit for Look {
    fn record_debug(&mut self, _field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        N_LOGGED.fetch_add(1, Ordering::Relaxed);
        if text.contains(CANARY) {
            N_LEAKED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Subscriber for Watch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("bitnet") || *metadata.level() <= Level::INFO
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut Look);
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, values: &Record<'_>) {
        values.record(&mut Look);
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Look);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// What somebody asks for: a route and a body, with a secret in it wherever there is room for one.
fn asked(n: u64, secret: &str) -> (&'static str, Value) {
    let long = format!("{secret} {secret} {secret} and the same for everybody");
    let stream = n.is_multiple_of(2);
    match n % 7 {
        0 | 1 => ("/v1/completions", json!({ "model": "other", "prompt": long, "max_tokens": 4, "echo": true, "stream": stream })),
        2 | 3 => {
            let messages = json!([{ "role": "system", "content": "be kind" }, { "role": "user", "content": long }]);
            ("/v1/chat/completions", json!({ "model": "other", "messages": messages, "max_tokens": 5, "stream": stream }))
        }
        4 => ("/v1/responses", json!({ "model": "other", "input": long, "max_output_tokens": 16 })),
        5 => ("/v1/chat/completions", json!({ "model": secret, "messages": [] })),
        _ => ("/v1/completions", json!({ "model": "other", "prompt": long, secret: true })),
    }
}

/// Reads an answer to its end, or leaves after so many frames.
async fn read(served: &Served, request: Request<axum::body::Body>, n_frames_max: usize) -> (HeaderMap, String) {
    let response = served.router.clone().oneshot(request).await.expect("infallible");
    let (parts, mut body) = response.into_parts();
    let mut text = String::new();
    for _ in 0..n_frames_max {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
        if let Ok(data) = frame.expect("a frame").into_data() {
            text.push_str(&String::from_utf8_lossy(&data));
        }
    }
    (parts.headers, text)
}

/// How often somebody's own secret came back, and somebody else's.
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    n_own: u64,
    n_foreign: u64,
    /// Answers that a model wrote.
    n_written: u64,
}

fn look(account: usize, (headers, body): &(HeaderMap, String), found: &mut Found) {
    let text = format!("{headers:?}{body}");
    found.n_own += u64::from(text.contains(&canary(account)));
    found.n_foreign += (0..N_ACCOUNTS).filter(|other| *other != account && text.contains(&canary(*other))).count() as u64;
}

/// A client that asks for one thing after the other, and sometimes leaves in the middle, or asks for what others have kept.
async fn ask_on(served: Arc<Served>, keys: Arc<Vec<String>>, (client, n_requests): (u64, u64)) -> Found {
    let account = client as usize % N_ACCOUNTS;
    let (key, mut found) = (&keys[account], Found::default());
    for round in 0..n_requests {
        let n = (round ^ client << 40).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 33;
        let (route, body) = asked(n, &canary(account));
        let n_frames_max = if n.is_multiple_of(5) { (n / 5 % 4) as usize } else { usize::MAX };
        let answer = read(&served, post(route, key, &body), n_frames_max).await;
        look(account, &answer, &mut found);
        found.n_written += u64::from(answer.1.contains("\"finish_reason\"") || answer.1.contains("\"resp_"));
        let kept = serde_json::from_str::<Value>(&answer.1).ok().and_then(|answer| Some(answer["id"].as_str()?.to_string()));
        if let Some(id) = kept.filter(|id| id.starts_with("resp_")) {
            for (other, key) in keys.iter().enumerate() {
                let request = Request::get(format!("/v1/responses/{id}/input_items")).header("authorization", format!("Bearer {key}"));
                let items = read(&served, request.body(axum::body::Body::empty()).expect("a request"), usize::MAX).await;
                look(other, &items, &mut found);
            }
        }
    }
    found
}

async fn accounts(served: &Served) -> Vec<String> {
    let mut keys = Vec::new();
    for _ in 0..N_ACCOUNTS {
        let account = served.account("enterprise", (Overage::Refuse, Micros::ZERO)).await;
        keys.push(served.key(account, |_| {}).await.1);
    }
    keys
}

fn on_sqlite<F: Future<Output = ()>>(pace: SimulatedPace, test: impl FnOnce(Arc<Served>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    runtime.block_on(async {
        let served = Arc::new(Served::start(&url, pace).await);
        test(served.clone()).await;
        Arc::into_inner(served).expect("the clients are gone").end().await;
    });
}

#[test]
fn canary_of_an_account_is_in_no_answer_of_another_and_in_no_log() {
    // Another test of this process may have set one, which would then watch less.
    let watches = tracing::subscriber::set_global_default(Watch).is_ok();
    assert!(watches, "somebody else reads the logs");
    let (n_clients, n_requests) = if is_long() { (64, 16_000) } else { (32, 100) };
    on_sqlite(SimulatedPace::default(), async |served| {
        let keys = Arc::new(accounts(&served).await);
        let mut clients = JoinSet::new();
        for client in 0..n_clients {
            clients.spawn(ask_on(served.clone(), keys.clone(), (client, n_requests)));
        }
        let mut all = Found::default();
        while let Some(found) = clients.join_next().await {
            let found = found.expect("a client saw something else");
            all = Found {
                n_own: all.n_own + found.n_own,
                n_foreign: all.n_foreign + found.n_foreign,
                n_written: all.n_written + found.n_written,
            };
        }
        let (n_logged, n_leaked) = (N_LOGGED.load(Ordering::Relaxed), N_LEAKED.load(Ordering::Relaxed));
        println!("{} requests: {all:?}, {n_logged} fields of logs", n_clients * n_requests);
        assert_eq!(all.n_foreign, 0, "somebody else's secret");
        let n_all = n_clients * n_requests;
        assert!(all.n_own > n_all / 2 && all.n_written > n_all / 2, "or nobody looked: {all:?}");
        assert_eq!(n_leaked, 0, "a secret is in a log");
        assert!(n_logged > 0, "or nobody logged");
        let report = {
            served.platform.ledger().flush().await.expect("durable");
            served.platform.store().reconcile().await.expect("it reads")
        };
        assert!(report.is_balanced(), "{report:?}");
    });
}

/// Time to a first token, and how many of the prompt's the cache had.
async fn first_token(served: &Served, key: &str, prompt: &str) -> (Duration, u64) {
    let body = json!({ "model": "sim", "prompt": prompt, "max_tokens": 1, "temperature": 0 });
    let start = Instant::now();
    let answer = served.post("/v1/completions", key, &body).await;
    let time = start.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let details = answer.json()["usage"]["prompt_tokens_details"].clone();
    (time, details["cached_tokens"].as_u64().expect("a number"))
}

/// How well a threshold on the time tells two kinds of prompts apart: 0.5 is a coin, 1 is certain.
fn area_under_curve(fast: &[Duration], slow: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> = fast.iter().map(|time| (*time, true)).chain(slow.iter().map(|time| (*time, false))).collect();
    all.sort_unstable();
    let (mut n_slow_left, mut n_right) = (slow.len() as u64, 0);
    for (_, is_fast) in all {
        if is_fast { n_right += n_slow_left } else { n_slow_left -= 1 }
    }
    n_right as f64 / (fast.len() * slow.len()) as f64
}

#[test]
fn time_to_a_first_token_does_not_tell_what_another_account_has_asked() {
    // A machine that is busy with something else hides in its times what there is to see: then only what the cache had is looked at.
    let n_pairs = if is_long() { 10_000_u64 } else { 100 };
    let pace = SimulatedPace { per_token: Duration::from_micros(60), ..SimulatedPace::default() };
    on_sqlite(pace, async |served| {
        let keys = accounts(&served).await;
        let prompt = |what: &str, n: u64| format!("{what} {n} {}", "x".repeat(130));
        let mut times: [Vec<Duration>; 4] = Default::default();
        for n in 0..n_pairs {
            first_token(&served, &keys[0], &prompt("said by the first account", n)).await;
            // Of one length, which a time tells, too.
            let probes = [
                (1, "said by the first account", 0),
                (1, "said by nobody whatsoever", 1),
                (0, "said by the first account", 2),
                (0, "said by no one whatsoever", 3),
            ];
            // In turns, so that nothing is always the later one.
            for index in 0..4 {
                let (account, what, list) = probes[if n.is_multiple_of(2) { index } else { 3 - index }];
                let (time, n_cached) = first_token(&served, &keys[account], &prompt(what, n)).await;
                times[list].push(time);
                // What begins alike may be one's own from before; of the rest, each has what it has said itself.
                assert_eq!(n_cached > 100, list == 2, "{n_cached} of “{what}” for account {account}");
            }
        }
        let (foreign, own) = (area_under_curve(&times[0], &times[1]), area_under_curve(&times[2], &times[3]));
        println!("{n_pairs} pairs: {foreign:.3} for what another account asked, {own:.3} for what the own did");
        if is_long() {
            assert!((foreign - 0.5).abs() <= 0.02, "{foreign}");
            assert!(own > 0.9, "or there is no cache to be seen: {own}");
        }
    });
}
