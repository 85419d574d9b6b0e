//! A database that goes away while a reply is streamed, or under load: nothing is lost, nothing more is shown than is recorded, who comes
//! is told to come again, and when the database is there again everything goes on by itself. `cargo xtask endure` takes it away for half
//! a minute, the tests for three seconds.

use std::future::poll_fn;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use bitnet_engine::SimulatedPace;
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use http_body::Body as _;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;

use super::postgres;
use super::served::{Served, post};

/// A server that can be ended and started again.
struct Restartable {
    server: postgres::Server,
    child: Child,
}

impl Restartable {
    /// Its own; `None` where tests of PostgreSQL may be left out.
    fn start() -> Option<Self> {
        let server = postgres::make()?;
        let child = server.start();
        Some(Self { server, child })
    }

    /// A fresh database's URL.
    fn url(&self) -> String {
        self.server.create("away")
    }

    /// Breaks every connection and ends.
    fn stop(&mut self) {
        let ended = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(ended.is_ok_and(|status| status.success()), "kill failed");
        self.child.wait().expect("it ends");
    }

    /// The server's processes; each is a session of its own, so that there is no group to send a signal to.
    fn processes(&self) -> Vec<u32> {
        let first = self.child.id();
        let parent = |id: u32| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok())
        };
        let all = std::fs::read_dir("/proc").expect("Linux").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        std::iter::once(first).chain(all.filter(|id| parent(*id) == Some(first))).collect()
    }

    /// Lets it hang, or go on: no connection breaks, and nothing answers.
    fn signal(&self, signal: &str) {
        let ids: Vec<String> = self.processes().iter().map(ToString::to_string).collect();
        // One that has just ended is no failure.
        let _ = Command::new("kill").arg(signal).args(&ids).stderr(std::process::Stdio::null()).status();
    }

    /// Starts again, with what it had.
    fn start_again(&mut self) {
        self.child = self.server.start();
    }
}

impl Drop for Restartable {
    fn drop(&mut self) {
        // Whoever hangs hears nothing of its end.
        self.signal("-CONT");
    }
}

/// The next frame's text; `None` at the end.
async fn frame(body: &mut Body) -> Option<String> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    let bytes = frame.expect("a frame").into_data().expect("data");
    Some(String::from_utf8(bytes.to_vec()).expect("text"))
}

#[test]
fn server_outlives_a_database_that_goes_away() {
    let Some(mut database) = Restartable::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let served = Served::start(&database.url(), SimulatedPace { per_step: Duration::from_millis(20), ..Default::default() }).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, key) = served.key(account, |_| {}).await;
        let body = |n: u32, stream: bool| {
            json!({ "model": "sim", "prompt": "Once", "max_tokens": n, "ignore_eos": true, "temperature": 0, "stream": stream })
        };
        let response = served.router.clone().oneshot(post("/v1/completions", &key, &body(150, true))).await.expect("infallible");
        let mut stream = response.into_body();
        let mut text = frame(&mut stream).await.expect("it begins");
        tokio::task::block_in_place(|| database.stop());
        // What was recorded before may still come, then nothing does.
        while let Ok(Some(more)) = timeout(Duration::from_millis(300), frame(&mut stream)).await {
            text.push_str(&more);
        }
        assert!(!text.contains("[DONE]"), "nothing is shown that is not recorded");
        let refused = loop {
            // Whoever is let in before the server knows waits, and leaves.
            let asked = timeout(Duration::from_millis(200), served.post("/v1/completions", &key, &body(1, false))).await;
            if let Ok(answer) = asked {
                break answer;
            }
        };
        assert_eq!(refused.refusal(), (503, "server_is_overloaded".into()));
        assert!(refused.headers.contains_key("retry-after"));
        tokio::task::block_in_place(|| database.start_again());
        while let Some(more) = frame(&mut stream).await {
            text.push_str(&more);
        }
        assert!(text.ends_with("data: [DONE]\n\n"), "it goes on to its end: {text}");
        let answer = loop {
            let answer = served.post("/v1/completions", &key, &body(1, false)).await;
            if answer.status != 503 {
                break answer;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(answer.status, 200, "{}", answer.body);
        served.platform.ledger().flush().await.expect("durable");
        let report = served.platform.store().reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        let balance = served.platform.ledger().ledger().balance(account, Timestamp::now());
        assert_eq!((balance.held, balance.used.charge), (Default::default(), report.charge));
        served.end().await;
    });
}

/// How the database goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// It ends, and its connections break.
    Ends,
    /// It hangs, and its connections stay.
    Hangs,
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    n_served: u64,
    n_tokens: u64,
    n_refused: u64,
}

impl Seen {
    fn plus(self, other: Self) -> Self {
        Self {
            n_served: self.n_served + other.n_served,
            n_tokens: self.n_tokens + other.n_tokens,
            n_refused: self.n_refused + other.n_refused,
        }
    }
}

/// Sends a request. It is served, or refused with a clear error; nothing else happens.
async fn ask(served: &Served, key: &str) -> Seen {
    let body = json!({ "model": "sim", "prompt": "Once", "max_tokens": 3, "ignore_eos": true, "temperature": 0 });
    let answer = served.post("/v1/completions", key, &body).await;
    if answer.status == 200 {
        let n_tokens = answer.json()["usage"]["completion_tokens"].as_u64().expect("a number");
        return Seen { n_served: 1, n_tokens, n_refused: 0 };
    }
    assert_eq!(answer.refusal(), (503, "server_is_overloaded".into()));
    assert!(answer.headers.contains_key("retry-after"));
    Seen { n_refused: 1, ..Seen::default() }
}

/// Clients until told to stop: some that ask again as soon as they are answered, and a new one every quarter of a second.
async fn ask_on(served: Arc<Served>, key: String, is_over: Arc<AtomicBool>) -> Seen {
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (served, key, is_over) = (served.clone(), key.clone(), is_over.clone());
        clients.spawn(async move {
            let mut seen = Seen::default();
            while !is_over.load(Ordering::Relaxed) {
                let one = ask(&served, &key).await;
                if one.n_refused > 0 {
                    // As a client does, who is told to.
                    next_tick(Duration::from_millis(100)).await;
                }
                seen = seen.plus(one);
            }
            seen
        });
    }
    while !is_over.load(Ordering::Relaxed) {
        let (served, key) = (served.clone(), key.clone());
        clients.spawn(async move { ask(&served, &key).await });
        next_tick(Duration::from_millis(250)).await;
    }
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        all = all.plus(seen.expect("a client saw something else"));
    }
    all
}

async fn next_tick(after: Duration) {
    tokio::time::interval_at(tokio::time::Instant::now() + after, Duration::from_secs(1)).tick().await;
}

fn outlive_under_load(outage: Outage) {
    let Some(mut database) = Restartable::start() else { return };
    let is_long = std::env::var_os("BITNET_ENDURE").is_some();
    let lasts = Duration::from_secs(if is_long { 30 } else { 3 });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let served = Served::start(&database.url(), SimulatedPace { per_step: Duration::from_millis(2), ..Default::default() }).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1000))).await;
        let (_, key) = served.key(account, |_| {}).await;
        let (served, is_over) = (Arc::new(served), Arc::new(AtomicBool::new(false)));
        let clients = tokio::spawn(ask_on(served.clone(), key.clone(), is_over.clone()));
        let pass = |time| tokio::task::block_in_place(move || std::thread::park_timeout(time));
        pass(Duration::from_millis(500));
        match outage {
            Outage::Ends => tokio::task::block_in_place(|| database.stop()),
            Outage::Hangs => database.signal("-STOP"),
        }
        pass(lasts);
        match outage {
            Outage::Ends => tokio::task::block_in_place(|| database.start_again()),
            Outage::Hangs => database.signal("-CONT"),
        }
        let back = Instant::now();
        let body = json!({ "model": "sim", "prompt": "Once", "max_tokens": 1 });
        while served.post("/v1/completions", &key, &body).await.status != 200 {
            assert!(back.elapsed() < Duration::from_secs(30), "it does not recover");
            tokio::task::yield_now().await;
        }
        let recovered = back.elapsed();
        pass(Duration::from_millis(500));
        is_over.store(true, Ordering::Relaxed);
        let all = clients.await.expect("they end");
        println!("{outage:?} for {lasts:?}: {all:?}, served again after {recovered:?}");
        assert!(!is_long || all.n_refused > 0, "who comes after some seconds is told to come again");
        served.platform.ledger().flush().await.expect("durable");
        let report = served.platform.store().reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        let balance = served.platform.ledger().ledger().balance(account, Timestamp::now());
        assert_eq!((balance.held, balance.used.charge), (Default::default(), report.charge));
        // Whoever waited longer than anybody waits was refused late, and what it had produced is booked.
        let booked = all.n_served + 1..=all.n_served + 1 + all.n_refused;
        assert!(booked.contains(&report.n_events), "what was served is booked, once: {} events, {all:?}", report.n_events);
        let served = Arc::into_inner(served).expect("the clients are gone");
        served.end().await;
    });
}

#[test]
fn server_under_load_outlives_a_database_that_ends() {
    outlive_under_load(Outage::Ends);
}

#[test]
fn server_under_load_outlives_a_database_that_hangs() {
    outlive_under_load(Outage::Hangs);
}
