//! Completions: prompts of every kind, echo, log-probabilities, several prompts at once.

use serde_json::{Value, json};

use crate::world::{World, shape};

fn request(more: Value) -> Value {
    let mut request = json!({ "model": "sim", "prompt": "Once", "max_tokens": 6, "temperature": 0 });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

#[test]
fn completion_has_the_shape_of_openais() {
    let answer = World::plain().post("/v1/completions", request(json!({ "logprobs": 1, "echo": true, "max_tokens": 1 })));
    assert_eq!(answer.status, 200, "{answer:?}");
    insta::assert_json_snapshot!(shape(answer.json()));
}

#[test]
fn prompt_as_tokens_is_the_same_prompt() {
    let world = World::plain();
    let text = |prompt: Value| world.post("/v1/completions", request(json!({ "prompt": prompt }))).json()["choices"][0]["text"].clone();
    let tokens: Vec<u8> = b"Once".to_vec();
    assert_eq!(text("Once".into()), text(json!(tokens)));
    assert_eq!(text("Once".into()), text(json!([tokens])));
}

#[test]
fn several_prompts_answer_as_each_alone() {
    let world = World::plain();
    let choices = |prompt: Value, n: u32| {
        let reply = world.post("/v1/completions", request(json!({ "prompt": prompt, "n": n, "seed": 3, "temperature": 1 }))).json();
        reply["choices"].as_array().expect("choices").iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    let together = choices(json!(["one", "two"]), 2);
    assert_eq!(together, [choices("one".into(), 2), choices("two".into(), 2)].concat());
}

#[test]
fn echo_alone_scores_the_prompt() {
    let world = World::plain();
    let reply = world.post("/v1/completions", request(json!({ "echo": true, "logprobs": 0, "max_tokens": 0 }))).json();
    let choice = &reply["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("Once"), Some("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["O", "n", "c", "e"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!(reply["usage"]["completion_tokens"], 0, "nothing is written, and nothing billed");
    assert!(choice["logprobs"]["token_logprobs"][0].is_null() && choice["logprobs"]["token_logprobs"][1].is_number());
}

#[test]
fn stream_and_whole_completion_are_equal() {
    let world = World::plain();
    for more in [json!({}), json!({ "echo": true }), json!({ "prompt": ["a", "b"], "n": 2 }), json!({ "logprobs": 2, "echo": true })] {
        let reply = world.post("/v1/completions", request(more.clone())).json();
        let mut streamed = more.clone();
        streamed["stream"] = true.into();
        let events = world.post("/v1/completions", request(streamed)).events();
        for choice in reply["choices"].as_array().expect("choices") {
            let pieces: Vec<&Value> = events
                .iter()
                .flat_map(|event| event["choices"].as_array().expect("choices"))
                .filter(|piece| piece["index"] == choice["index"])
                .collect();
            let text: String = pieces.iter().map(|piece| piece["text"].as_str().expect("text")).collect();
            assert_eq!(text, choice["text"].as_str().expect("text"), "{more}");
            let tokens: Vec<&Value> =
                pieces.iter().flat_map(|piece| piece["logprobs"]["tokens"].as_array().into_iter().flatten()).collect();
            let whole: Vec<&Value> = choice["logprobs"]["tokens"].as_array().into_iter().flatten().collect();
            assert_eq!(tokens, whole, "{more}");
        }
    }
}
