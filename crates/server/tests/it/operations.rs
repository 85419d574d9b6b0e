//! What operators see: health, metrics, the description, the pages.

use serde_json::json;

use crate::world::{POISON, World, replicated_model};

#[test]
fn health_routes_say_how_the_server_is() {
    let world = World::plain();
    assert_eq!(world.get("/health").json(), json!({ "status": "ok", "models": 2, "requests": 0 }));
    for url in ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/v2/models/sim/ready"] {
        assert_eq!(world.get(url).status, 200, "{url}");
    }
    assert_eq!(world.get("/v2/models/none/ready").status, 404);
    world.app.models().remove("sim");
    world.app.models().remove("emb");
    assert_eq!((world.get("/health/ready").status, world.get("/health").json()["status"].clone()), (503, json!("starting")));
}

#[test]
fn models_are_listed_while_they_can_serve() {
    let world = World::plain();
    insta::assert_json_snapshot!(world.get("/v1/models").json());
    assert_eq!(world.get("/v1/models/sim").json()["id"], "sim");
    assert_eq!(world.get("/v1/models/a/b").json()["error"]["code"], "model_not_found");
    world.app.models().remove("sim");
    assert_eq!(world.get("/v1/models").json()["data"].as_array().map(Vec::len), Some(1));
}

#[test]
fn metrics_have_our_names_and_vllms() {
    let world = World::plain();
    world.post("/v1/completions", json!({ "model": "sim", "prompt": "abc", "max_tokens": 5 }));
    world.post("/v1/completions", json!({ "model": "sim", "prompt": "abc", "nonsense": 5 }));
    let page = world.get("/metrics").body;
    for line in [
        "bitnet_http_responses_total{route=\"/v1/completions\",status=\"200\"} 1",
        "bitnet_http_responses_total{route=\"/v1/completions\",status=\"400\"} 1",
        "bitnet_refusals_total{code=\"unknown_parameter\"} 1",
        "bitnet_generations_total{model_name=\"sim\",outcome=\"succeeded\"} 1",
        "bitnet_time_to_first_token_seconds_count{model_name=\"sim\"} 1",
        "vllm:num_requests_running{model_name=\"sim\"} 0",
        "vllm:num_requests_waiting{model_name=\"sim\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"sim\"} 0",
    ] {
        assert!(page.lines().any(|got| got == line), "{line} is not in\n{page}");
    }
    assert!(page.contains("vllm:cache_config_info{model_name=\"sim\",block_size=\"16\",num_gpu_blocks=\"1024\""));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn description_names_every_reference_it_uses() {
    let openapi = bitnet_server::openapi();
    let text = openapi.to_string();
    let schemas = openapi["components"]["schemas"].as_object().expect("schemas");
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(schemas.contains_key(name), "{name}");
    }
    let paths: Vec<&String> = openapi["paths"].as_object().expect("paths").keys().collect();
    insta::assert_json_snapshot!(paths);
}

#[test]
fn pages_load_nothing_from_elsewhere() {
    let world = World::plain();
    for url in ["/", "/docs"] {
        let page = world.get(url);
        assert_eq!(page.status, 200);
        assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
        assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{url}");
    }
    let without = World::new(bitnet_server::Config { chat_page: bitnet_server::Presence::Off, ..Default::default() });
    assert_eq!(without.get("/").status, 404);
}

#[test]
fn origins_may_call_only_if_they_are_named() {
    let origin = |world: &World| {
        let request = axum::http::Request::get("/v1/models").header("origin", "https://a.example");
        let answer = world.send(request.body(axum::body::Body::empty()).expect("a request"));
        answer.header("access-control-allow-origin").to_string()
    };
    assert_eq!(origin(&World::plain()), "");
    let config = bitnet_server::Config { cors_origins: vec!["https://a.example".into()], ..Default::default() };
    assert_eq!(origin(&World::new(config)), "https://a.example");
}

struct Breaking;

impl std::task::Wake for Breaking {
    fn wake(self: std::sync::Arc<Self>) {
        std::panic::panic_any("planted");
    }
}

#[test]
fn engine_that_has_broken_down_is_not_ready_and_not_live() {
    let world = World::plain();
    let engine = world.app.models().all().into_iter().find(|model| model.name == "sim").expect("there").engine.clone();
    let request = || bitnet_engine::Request {
        prompt: vec![bitnet_model::TokenId(5)],
        task: bitnet_engine::Task::Generate(Box::new(bitnet_engine::Generate::plain(Default::default(), 500))),
        tenant: bitnet_engine::TenantSalt([1; 32]),
        priority: Default::default(),
        deadline: None,
        usage_sink: None,
    };
    let mut stream = engine.submit(request()).expect("accepted");
    let waker = std::task::Waker::from(std::sync::Arc::new(Breaking));
    while !engine.is_broken() {
        // Whoever always finds an event waiting is never woken: then it is tried again.
        if stream.poll_next_event(&mut std::task::Context::from_waker(&waker)) == std::task::Poll::Ready(None)
            && let Ok(another) = engine.submit(request())
        {
            stream = another;
        }
    }
    for url in ["/health", "/health/ready", "/health/live", "/v2/health/live", "/v2/models/sim/ready"] {
        assert_eq!(world.get(url).status, 503, "{url}");
    }
    assert_eq!(world.get("/health").json()["status"], "broken");
    let answer = world.post("/v1/completions", json!({ "model": "sim", "prompt": "a" }));
    assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (503, json!("engine_broken")), "{}", answer.body);
    assert!(answer.body.contains("must be started again"), "{}", answer.body);
    let other = world.post("/v1/embeddings", json!({ "model": "emb", "input": "a" }));
    assert_eq!(other.status, 200, "another model still answers");
}

#[test]
fn model_that_loses_its_devices_one_by_one_degrades_and_then_answers_503_while_others_answer() {
    let world = World::plain();
    world.app.models().insert(replicated_model("twice", 2));
    let ask = |prompt: serde_json::Value| world.post("/v1/completions", json!({ "model": "twice", "prompt": prompt, "max_tokens": 3 }));
    assert_eq!((ask(json!("a")).status, world.get("/health").json()["status"].clone()), (200, json!("ok")));
    let replicas = || {
        world
            .get("/metrics")
            .body
            .lines()
            .filter(|line| line.starts_with("bitnet_replicas") && line.contains("twice"))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(replicas(), ["bitnet_replicas{model_name=\"twice\"} 2", "bitnet_replicas_broken{model_name=\"twice\"} 0"]);
    let engine = world.app.models().all().into_iter().find(|model| model.name == "twice").expect("there").engine.clone();
    for n_lost in 1..=2 {
        let answer = ask(json!([POISON.0]));
        assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (503, json!("engine_broken")), "{}", answer.body);
        while engine.n_broken_replicas() < n_lost {
            std::thread::yield_now();
        }
        if n_lost == 1 {
            assert_eq!((world.get("/health").status, world.get("/health").json()["status"].clone()), (200, json!("degraded")));
            assert!((0..4).all(|_| ask(json!("a")).status == 200), "the other answers for both");
            assert!(replicas()[1].ends_with(" 1"));
        }
    }
    assert_eq!((world.get("/health").status, world.get("/health").json()["status"].clone()), (503, json!("broken")));
    let answer = ask(json!("a"));
    assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (503, json!("engine_broken")), "{}", answer.body);
    let other = world.post("/v1/completions", json!({ "model": "sim", "prompt": "a", "max_tokens": 3 }));
    assert_eq!(other.status, 200, "another model still answers");
}
