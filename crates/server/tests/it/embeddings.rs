//! Embeddings, and the two routes that turn text to tokens and back.

use base64::Engine;
use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::Config;
use bitnet_server::admission::{ApiKey, ApiKeyDigest};
use serde_json::{Value, json};

use crate::world::{Book, Bookkeeper, World, post};

#[test]
fn vectors_in_both_encodings_are_the_same() {
    let world = World::plain();
    let list = |format: &str| {
        world.post("/v1/embeddings", json!({ "model": "emb", "input": ["a fox", "a king"], "encoding_format": format })).json()
    };
    let (numbers, text) = (list("float"), list("base64"));
    assert_eq!(numbers["data"].as_array().expect("vectors").len(), 2);
    for (index, vector) in numbers["data"].as_array().expect("vectors").iter().enumerate() {
        let vector: Vec<f32> = serde_json::from_value(vector["embedding"].clone()).expect("numbers");
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-3, "of length 1");
        let bytes = text["data"][index]["embedding"].as_str().expect("text");
        let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).expect("Base64");
        let same: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect();
        assert_eq!(vector, same);
    }
    assert_eq!(numbers["usage"], json!({ "prompt_tokens": 11, "total_tokens": 11 }));
}

#[test]
fn long_list_of_inputs_is_answered_in_order() {
    let world = World::plain();
    let inputs: Vec<String> = (0..40).map(|index| format!("text {index}")).collect();
    let all = world.post("/v1/embeddings", json!({ "model": "emb", "input": inputs })).json();
    let one = world.post("/v1/embeddings", json!({ "model": "emb", "input": "text 37" })).json();
    assert_eq!(all["data"][37]["embedding"], one["data"][0]["embedding"]);
    assert_eq!(all["data"][37]["index"], 37);
}

#[test]
fn long_list_of_inputs_is_one_request() {
    let key = ApiKey { name: "a".into(), digest: ApiKeyDigest::of_key("k"), requests_per_minute: Some(2) };
    let world = World::new(Config { api_keys: vec![key], ..Config::default() });
    let inputs: Vec<String> = (0..100).map(|index| format!("text {index}")).collect();
    let mut request = post("/v1/embeddings", &json!({ "model": "emb", "input": inputs }));
    request.headers_mut().insert("authorization", "Bearer k".parse().expect("a value"));
    let answer = world.send(request);
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining-requests")), (200, "1"), "it counts once");
    let book = Book::default();
    let world =
        World::with(Config::default(), Box::new(Bookkeeper(book.clone(), None)), SimulatedPace::default(), EngineOptions::default());
    let answer = world.post("/v1/embeddings", json!({ "model": "emb", "input": inputs })).json();
    world.settle();
    let book = book.0.lock().unwrap();
    let settled: Vec<usize> = book.values().flatten().map(|usage| usage.expect("settled").n_prompt_tokens).collect();
    assert_eq!(settled, [answer["usage"]["prompt_tokens"].as_u64().expect("a number") as usize], "and is settled once");
}

#[test]
fn model_of_another_kind_is_refused() {
    let world = World::plain();
    for (url, body) in [
        ("/v1/embeddings", json!({ "model": "sim", "input": "a" })),
        ("/v1/completions", json!({ "model": "emb", "prompt": "a" })),
        ("/v1/chat/completions", json!({ "model": "emb", "messages": [{ "role": "user", "content": "a" }] })),
    ] {
        let answer = world.post(url, body);
        assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (400, json!("model_not_supported")), "{url}");
    }
    let answer = world.post("/v1/embeddings", json!({ "model": "emb", "input": "a", "dimensions": 3 }));
    assert_eq!(answer.json()["error"]["param"], "dimensions");
}

#[test]
fn text_goes_to_tokens_and_back() {
    let world = World::plain();
    let tokens = world.post("/tokenize", json!({ "model": "sim", "prompt": "héllo", "return_token_strs": true })).json();
    assert_eq!((tokens["count"].clone(), tokens["tokens"].as_array().map(Vec::len)), (json!(6), Some(6)), "{tokens}");
    let text = world.post("/detokenize", json!({ "model": "sim", "tokens": tokens["tokens"] })).json();
    assert_eq!(text["prompt"], "héllo");
    let chat = world.post("/tokenize", json!({ "model": "sim", "messages": [{ "role": "user", "content": "hi" }] })).json();
    let expected = "<user>hi\n<assistant>";
    assert_eq!(chat["count"], Value::from(expected.len()));
    assert_eq!(world.post("/detokenize", json!({ "model": "sim", "tokens": [999] })).json()["error"]["param"], "tokens");
}
