//! A server on a platform, over a simulated model of one token for each byte; requests go through the router as a connection's would.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{EngineHandle, EngineModel, EngineOptions, Fault, SimulatedPace, SimulatedRunner};
use bitnet_model::TokenId;
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::{bytes_and_end, small_config};
use bitnet_model::text::ChatTemplate;
use bitnet_platform::directory::{KeyAccess, KeyScope, NewAccount, NewApiKey};
use bitnet_platform::ids::{AccountId, ApiKeyId};
use bitnet_platform::ledger::Overage;
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use bitnet_platform::{InstallationSecret, Platform};
use bitnet_server::{App, Config, ModelTask, Presence, ServedModel, router_with};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::store::by;

const N_VOCAB: usize = 257;
/// The byte at which a model loses its device, and so breaks down.
pub(crate) const BREAKS: u8 = 7;
const TEMPLATE: &str =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn model(name: &str, pace: SimulatedPace) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: 2048, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 512, n_vocab: N_VOCAB, context_length: 2048, n_blocks: 1024 };
    let runner = SimulatedRunner::new(config, limits).with_pace(pace);
    // The second model bears everything.
    let runner = if name == "other" { runner } else { runner.with_fault(TokenId(BREAKS.into()), Fault::Lost) };
    let runner = Box::new(runner);
    let tokenizer = Arc::new(bytes_and_end().expect("a valid tokenizer"));
    let engine_model = EngineModel { runner, draft: None, tokenizer: Some(tokenizer.clone()), eos: vec![TokenId(256)] };
    let engine = EngineHandle::start(engine_model, EngineOptions::default()).expect("an engine");
    ServedModel {
        name: name.into(),
        created_unix_seconds: 1_700_000_000,
        context_length: engine.context_length(),
        engine,
        tokenizer,
        template: Some(ChatTemplate::compile(TEMPLATE, None, None).expect("a valid template")),
        defaults: Default::default(),
        task: ModelTask::Text,
    }
}

/// A server under test.
pub(crate) struct Served {
    pub(crate) platform: Platform,
    pub(crate) router: Router,
    pub(crate) app: App,
    running: JoinSet<()>,
}

impl Served {
    /// On a database that may be empty. Runs inside a runtime.
    pub(crate) async fn start(url: &str, pace: SimulatedPace) -> Self {
        Self::start_with(url, pace, |platform| platform).await
    }

    /// The same, set up as a test wants it.
    pub(crate) async fn start_with(url: &str, pace: SimulatedPace, set_up: impl FnOnce(Platform) -> Platform) -> Self {
        let platform = Platform::open(url, &InstallationSecret::new([5; 32]), Timestamp::now).await.expect("it opens");
        let platform = set_up(platform);
        let running = platform.start();
        // A portal has a page of its own at /.
        let config = Config { chat_page: Presence::Off, ..Config::default() };
        let app = App::new(config, platform.admission(), std::time::SystemTime::now).expect("a server");
        app.models().insert(model("sim", pace));
        app.models().insert(model("other", SimulatedPace::default()));
        Self { router: router_with(app.clone(), platform.routes()), app, platform, running }
    }

    pub(crate) async fn end(self) {
        self.platform.end(self.running).await;
    }

    /// An account on a plan, with credit.
    pub(crate) async fn account(&self, plan: &str, (overage, spending_cap): (Overage, Micros)) -> AccountId {
        let account = NewAccount { name: "Ann".into(), plan: plan.into(), overage, spending_cap };
        let by = by(Timestamp::now());
        let account = self.platform.store().create_account(account, &by).await.expect("created");
        self.platform.store().create_project(account, "default", ScopeLimits::default(), &by).await.expect("created");
        account
    }

    /// A key of its project that is changed as the test wants it, and is known to the server.
    pub(crate) async fn key(&self, account: AccountId, change: impl FnOnce(&mut NewApiKey)) -> (ApiKeyId, String) {
        let project = self.platform.store().projects(Some(account)).await.expect("read")[0].id;
        let (name, access) = ("k".into(), KeyAccess::Inference);
        let (scope, limits) = (KeyScope::default(), ScopeLimits::default());
        let mut key = NewApiKey { account, project, name, access, scope, limits, expires_at: None };
        change(&mut key);
        let made = self.platform.store().create_api_key(key, self.platform.hasher(), &by(Timestamp::now())).await.expect("created");
        self.refresh().await;
        (made.0, made.1.reveal().to_string())
    }

    /// Learns what has changed, now and not within a moment.
    pub(crate) async fn refresh(&self) {
        self.platform.directory().refresh(Timestamp::now()).await.expect("it reads");
    }

    /// Sends a request and reads all of the answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        answer(&self.router, request).await
    }

    /// Posts with a key.
    pub(crate) async fn post(&self, url: &str, key: &str, body: &Value) -> Answer {
        self.send(post(url, key, body)).await
    }

    /// Gets with a key.
    pub(crate) async fn get(&self, url: &str, key: &str) -> Answer {
        let request = Request::get(url).header("authorization", format!("Bearer {key}"));
        self.send(request.body(Body::empty()).expect("a request")).await
    }
}

/// What a router answers.
pub(crate) async fn answer(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).expect("text") }
}

/// A request with a key.
pub(crate) fn post(url: &str, key: &str, body: &Value) -> Request<Body> {
    let request = Request::post(url).header("content-type", "application/json").header("authorization", format!("Bearer {key}"));
    request.body(Body::from(body.to_string())).expect("a request")
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status and OpenAI's `code`.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status.as_u16(), self.json()["error"]["code"].as_str().unwrap_or("none").to_string())
    }
}
