//! A server over a simulated model, for all tests: one token for each byte, a chat template, and requests that go through the router
//! as a connection's would.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{EngineHandle, EngineModel, EngineOptions, Fault, SimulatedPace, SimulatedRunner, Usage};
use bitnet_model::TokenId;
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::{bytes_and_end, small_config};
use bitnet_model::text::ChatTemplate;
use bitnet_server::admission::{Admission, BoxFuture, Caller, Ceiling, RateLimits, Reservation, StaticKeys, Used, Voided};
use bitnet_server::{App, Config, ModelTask, ServedModel, ServerError, router};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// The token that ends a text.
pub(crate) const END: TokenId = TokenId(256);
/// What [`poisoned_model`] cannot read.
pub(crate) const POISON: TokenId = TokenId(7);
/// Rows of logits.
const N_VOCAB: usize = 257;
/// Tokens of a prompt and its text.
pub(crate) const CONTEXT: usize = 2048;

const TEMPLATE: &str =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// A model of one byte a token.
pub(crate) fn model(name: &str, pace: SimulatedPace, options: EngineOptions) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: CONTEXT, ..small_config() };
    served(name, config, (pace, options), ModelTask::Text)
}

/// A model that embeds.
pub(crate) fn embedding_model(name: &str) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: CONTEXT, last_token_pooling: true, ..small_config() };
    let width = config.hidden_size;
    served(name, config, (SimulatedPace::default(), EngineOptions::default()), ModelTask::Embedding { width })
}

fn served(name: &str, config: ModelConfig, (pace, options): (SimulatedPace, EngineOptions), task: ModelTask) -> ServedModel {
    let limits = BatchLimits { n_tokens_max: 512, n_vocab: N_VOCAB, context_length: CONTEXT, n_blocks: 1024 };
    let runner = SimulatedRunner::new(config, limits).with_pace(pace);
    served_by(runner, name, options, task)
}

/// A model that panics when it reads [`POISON`], be it that it drew that itself.
pub(crate) fn poisoned_model(name: &str, pace: SimulatedPace) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: CONTEXT, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 512, n_vocab: N_VOCAB, context_length: CONTEXT, n_blocks: 1024 };
    let runner = SimulatedRunner::new(config, limits).with_pace(pace).with_fault(POISON, Fault::Panic);
    served_by(runner, name, EngineOptions::default(), ModelTask::Text)
}

/// A model on several devices, each of which is lost once it reads [`POISON`].
pub(crate) fn replicated_model(name: &str, n_replicas: usize) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: CONTEXT, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 512, n_vocab: N_VOCAB, context_length: CONTEXT, n_blocks: 1024 };
    let runners = (0..n_replicas).map(|_| SimulatedRunner::new(config.clone(), limits).with_fault(POISON, Fault::Lost));
    served_by_replicas(runners, name, EngineOptions::default(), ModelTask::Text)
}

fn served_by(runner: SimulatedRunner, name: &str, options: EngineOptions, task: ModelTask) -> ServedModel {
    served_by_replicas([runner], name, options, task)
}

fn served_by_replicas(
    runners: impl IntoIterator<Item = SimulatedRunner>,
    name: &str,
    options: EngineOptions,
    task: ModelTask,
) -> ServedModel {
    let tokenizer = Arc::new(bytes_and_end().expect("a valid tokenizer"));
    let engine_model = |runner| EngineModel { runner: Box::new(runner), draft: None, tokenizer: Some(tokenizer.clone()), eos: vec![END] };
    let engine = EngineHandle::start_replicas(runners.into_iter().map(engine_model).collect(), options).expect("an engine");
    ServedModel {
        name: name.into(),
        created_unix_seconds: 1_700_000_000,
        context_length: engine.context_length(),
        engine,
        tokenizer,
        template: Some(ChatTemplate::compile(TEMPLATE, None, None).expect("a valid template")),
        defaults: Default::default(),
        task,
    }
}

/// A server under test.
pub(crate) struct World {
    pub(crate) app: App,
    pub(crate) router: Router,
    /// Absent where a test has one already.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// `data:` of each event, in order, `[DONE]` left out.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }

    /// Names of the events.
    pub(crate) fn event_names(&self) -> Vec<&str> {
        self.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
    }
}

fn midnight() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

impl World {
    /// With this configuration, and a fast model called `sim`.
    pub(crate) fn new(config: Config) -> Self {
        let keys = StaticKeys::new(config.api_keys.clone(), [1; 32]);
        Self::with(config, Box::new(keys), SimulatedPace::default(), EngineOptions::default())
    }

    /// Ready for anything.
    pub(crate) fn plain() -> Self {
        Self::new(Config::default())
    }

    pub(crate) fn with(config: Config, admission: Box<dyn Admission>, pace: SimulatedPace, options: EngineOptions) -> Self {
        let app = App::new(config, admission, midnight).expect("a server");
        app.models().insert(model("sim", pace, options));
        app.models().insert(embedding_model("emb"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        Self { router: router(app.clone()), app, runtime: Some(runtime) }
    }

    /// For a test that is in a runtime already.
    pub(crate) fn detached(config: Config) -> Self {
        let app = App::new(config, Box::new(StaticKeys::new(Vec::new(), [1; 32])), midnight).expect("a server");
        app.models().insert(model("sim", SimulatedPace::default(), EngineOptions::default()));
        Self { router: router(app.clone()), app, runtime: None }
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("not within another").block_on(work)
    }

    /// Sends a request and reads all of the answer.
    pub(crate) fn send(&self, request: Request<Body>) -> Answer {
        self.block_on(self.send_async(request))
    }

    pub(crate) async fn send_async(&self, request: Request<Body>) -> Answer {
        answer(&self.router, request).await
    }

    pub(crate) fn post(&self, url: &str, body: Value) -> Answer {
        self.send(post(url, &body))
    }

    pub(crate) fn post_raw(&self, url: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::post(url).header("content-type", "application/json").body(body.into()).expect("a request"))
    }

    pub(crate) fn get(&self, url: &str) -> Answer {
        self.send(Request::get(url).body(Body::empty()).expect("a request"))
    }

    /// Waits until no request is at work and the engine of `sim` holds nothing.
    pub(crate) fn settle(&self) {
        self.block_on(async {
            self.app.lifecycle().idle().await;
            let engine = &self.app.models().all().into_iter().find(|model| model.name == "sim").expect("there").engine;
            while engine.stats().n_used_blocks > 0 || engine.stats().n_running > 0 || engine.stats().n_waiting > 0 {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// All of the answer to a request.
pub(crate) async fn answer(router: &Router, request: Request<Body>) -> Answer {
    read(router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})).await
}

/// A JSON request.
pub(crate) fn post(url: &str, body: &Value) -> Request<Body> {
    Request::post(url).header("content-type", "application/json").body(Body::from(body.to_string())).expect("a request")
}

async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(bytes.to_vec()).expect("text") }
}

/// Identifiers, which are random, as what they begin with, so that shapes can be compared.
pub(crate) fn shape(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::String(text) => {
                let hex = |text: &str| text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                if let Some(at) = text.rfind(['-', '_']).filter(|&at| hex(&text[at + 1..])) {
                    text.truncate(at + 1);
                    text.push('…');
                }
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::Object(members) => members.values_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

/// What became of reservations: for each request id, the usage that was settled or `None` for void.
#[derive(Clone, Default)]
pub(crate) struct Book(pub(crate) Arc<Mutex<BTreeMap<String, Vec<Option<Usage>>>>>);

struct Entry {
    book: Book,
    id: String,
}

impl Entry {
    fn write(self, outcome: Option<Usage>) {
        self.book.0.lock().unwrap().entry(self.id).or_default().push(outcome);
    }
}

impl Reservation for Entry {
    fn settle(self: Box<Self>, used: Used) {
        self.write(Some(used.usage));
    }

    fn void(self: Box<Self>, _why: Voided) {
        self.write(None);
    }

    fn rate_limits(&self) -> Option<RateLimits> {
        None
    }
}

/// Admits everybody and keeps the book.
pub(crate) struct Bookkeeper(pub(crate) Book, pub(crate) Option<fn() -> ServerError>);

impl Admission for Bookkeeper {
    fn authenticate<'a>(&'a self, _: &'a HeaderMap, _: &'a str) -> BoxFuture<'a, Result<Caller, ServerError>> {
        let tenant = bitnet_engine::TenantSalt([3; 32]);
        let caller = Caller { name: "ann".into(), tenant, priority_best: bitnet_engine::Priority::High, api_key: None };
        Box::pin(std::future::ready(Ok(caller)))
    }

    fn admit<'a>(&'a self, _: &'a Caller, ceiling: Ceiling) -> BoxFuture<'a, Result<Box<dyn Reservation>, ServerError>> {
        let entry = Entry { book: self.0.clone(), id: ceiling.request_id };
        let admitted = match self.1 {
            None => Ok(Box::new(entry) as Box<dyn Reservation>),
            Some(refusal) => Err(refusal()),
        };
        Box::pin(std::future::ready(admitted))
    }
}
