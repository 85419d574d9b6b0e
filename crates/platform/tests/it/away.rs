//! A database that goes away while a reply is streamed: nothing is lost, nothing more is shown than is recorded, who comes is told to
//! come again, and when the database is there again everything goes on by itself.

use std::future::poll_fn;
use std::pin::Pin;
use std::process::{Child, Command};
use std::time::Duration;

use axum::body::Body;
use bitnet_engine::SimulatedPace;
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use http_body::Body as _;
use serde_json::json;
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

    /// Starts again, with what it had.
    fn start_again(&mut self) {
        self.child = self.server.start();
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
