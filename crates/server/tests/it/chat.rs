//! Chat completions: shapes, streams that say what an unstreamed reply says, tools, formats.

use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::Config;
use serde_json::{Value, json};

use crate::world::{Book, Bookkeeper, World, post, shape};

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "sim",
        "messages": [{ "role": "user", "content": "Hello" }],
        "max_completion_tokens": 12,
        "temperature": 0,
    });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

/// The choices of a stream, put together as a client does.
pub(crate) fn assembled(events: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for piece in events.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        let index = piece["index"].as_u64().expect("an index") as usize;
        choices.resize(choices.len().max(index + 1), json!({ "content": "", "calls": [], "logprobs": [], "finish_reason": null }));
        add(&mut choices[index], piece);
    }
    choices
}

fn add(choice: &mut Value, piece: &Value) {
    if let Some(text) = piece["delta"]["content"].as_str() {
        choice["content"] = (choice["content"].as_str().expect("text").to_string() + text).into();
    }
    for call in piece["delta"]["tool_calls"].as_array().into_iter().flatten() {
        let place = call["index"].as_u64().expect("an index") as usize;
        let calls = choice["calls"].as_array_mut().expect("calls");
        if calls.len() == place {
            calls.push(json!({ "name": call["function"]["name"], "arguments": "" }));
        }
        let before = calls[place]["arguments"].as_str().expect("text").to_string();
        calls[place]["arguments"] = (before + call["function"]["arguments"].as_str().unwrap_or_default()).into();
    }
    let logprobs = piece["logprobs"]["content"].as_array().into_iter().flatten().cloned();
    choice["logprobs"].as_array_mut().expect("a list").extend(logprobs);
    if !piece["finish_reason"].is_null() {
        choice["finish_reason"] = piece["finish_reason"].clone();
    }
}

/// The choices of an unstreamed reply in the same form.
fn whole(reply: &Value) -> Vec<Value> {
    let choice = |choice: &Value| {
        let calls = choice["message"]["tool_calls"].as_array().into_iter().flatten();
        let calls: Vec<Value> =
            calls.map(|call| json!({ "name": call["function"]["name"], "arguments": call["function"]["arguments"] })).collect();
        json!({
            "content": choice["message"]["content"].as_str().unwrap_or_default(),
            "calls": calls,
            "logprobs": choice["logprobs"]["content"].as_array().cloned().unwrap_or_default(),
            "finish_reason": choice["finish_reason"],
        })
    };
    reply["choices"].as_array().expect("choices").iter().map(choice).collect()
}

#[test]
fn reply_has_the_shape_of_openais() {
    let answer =
        World::plain().post("/v1/chat/completions", request(json!({ "logprobs": true, "top_logprobs": 1, "max_completion_tokens": 1 })));
    assert_eq!(answer.status, 200, "{answer:?}");
    insta::assert_json_snapshot!(shape(answer.json()));
}

#[test]
fn stream_has_the_shape_of_openais() {
    let answer = World::plain().post(
        "/v1/chat/completions",
        request(json!({ "stream": true, "stream_options": { "include_usage": true }, "max_completion_tokens": 2 })),
    );
    assert!(answer.header("content-type").starts_with("text/event-stream"), "{answer:?}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    insta::assert_json_snapshot!(shape(answer.events().into()));
}

#[test]
fn stream_and_whole_reply_are_equal() {
    let world = World::plain();
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": { "x": { "type": "integer" } } } } });
    for more in [
        json!({}),
        json!({ "n": 3, "seed": 5, "temperature": 1 }),
        json!({ "logprobs": true, "top_logprobs": 3 }),
        json!({ "stop": ["a", "b", "e"], "max_completion_tokens": 200 }),
        json!({ "tools": [tool], "tool_choice": "required", "max_completion_tokens": 300 }),
        json!({ "tools": [tool], "seed": 3, "temperature": 1, "max_completion_tokens": 100 }),
        json!({ "response_format": { "type": "json_object" }, "max_completion_tokens": 300 }),
        json!({ "tools": [tool], "tool_choice": { "type": "function", "function": { "name": "f" } }, "max_completion_tokens": 30 }),
    ] {
        let reply = world.post("/v1/chat/completions", request(more.clone()));
        assert_eq!(reply.status, 200, "{more}: {}", reply.body);
        let mut streamed = more.clone();
        streamed["stream"] = true.into();
        let stream = world.post("/v1/chat/completions", request(streamed));
        assert_eq!(assembled(&stream.events()), whole(&reply.json()), "{more}");
    }
}

#[test]
fn required_tool_is_called_with_arguments_of_its_schema() {
    let world = World::plain();
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Bern", "Rome"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    let tools = json!([{ "type": "function", "function": { "name": "weather", "parameters": parameters } }]);
    for seed in 0..5 {
        let more = json!({ "tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_completion_tokens": 400, "seed": seed, "temperature": 1 });
        let reply = world.post("/v1/chat/completions", request(more)).json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!((call["type"].as_str(), call["function"]["name"].as_str()), (Some("function"), Some("weather")));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().expect("text")).expect("JSON");
        assert!(["Bern", "Rome"].contains(&arguments["city"].as_str().expect("a city")), "{arguments}");
        assert!((1..=9).contains(&arguments["days"].as_i64().expect("an integer")), "{arguments}");
    }
}

#[test]
fn schema_of_the_reply_is_followed() {
    let schema =
        json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "verdict", "schema": schema, "strict": true } });
    let world = World::plain();
    let reply = world.post("/v1/chat/completions", request(json!({ "response_format": format, "max_completion_tokens": 200 }))).json();
    let content: Value = serde_json::from_str(reply["choices"][0]["message"]["content"].as_str().expect("text")).expect("JSON");
    assert!(content["ok"].is_boolean(), "{content}");
    let choice = json!({ "structured_outputs": { "choice": ["left", "right"] } });
    let reply = world.post("/v1/chat/completions", request(choice)).json();
    assert!(["left", "right"].contains(&reply["choices"][0]["message"]["content"].as_str().expect("text")), "{reply}");
}

#[test]
fn same_seed_gives_the_same_text() {
    let world = World::plain();
    let text = |more: Value| world.post("/v1/chat/completions", request(more)).json()["choices"][0]["message"]["content"].clone();
    let seeded = json!({ "temperature": 1, "seed": 7 });
    assert_eq!(text(seeded.clone()), text(seeded));
    assert_ne!(text(json!({ "temperature": 1, "seed": 7 })), text(json!({ "temperature": 1, "seed": 8 })));
}

#[test]
fn request_id_is_the_clients_or_a_new_one() {
    let world = World::plain();
    let mut with_id = crate::world::post("/v1/chat/completions", &request(json!({})));
    with_id.headers_mut().insert("x-request-id", "mine-1".parse().expect("a value"));
    assert_eq!(world.send(with_id).header("x-request-id"), "mine-1");
    assert!(world.post("/v1/chat/completions", request(json!({}))).header("x-request-id").starts_with("req_"));
}

#[test]
fn usage_is_booked_under_an_id_that_no_client_chose() {
    let book = Book::default();
    let world =
        World::with(Config::default(), Box::new(Bookkeeper(book.clone(), None)), SimulatedPace::default(), EngineOptions::default());
    for _ in 0..2 {
        let mut with_id = post("/v1/chat/completions", &request(json!({})));
        with_id.headers_mut().insert("x-request-id", "mine-1".parse().expect("a value"));
        assert_eq!(world.send(with_id).status, 200);
    }
    let own = world.post("/v1/chat/completions", request(json!({})));
    world.settle();
    let book = book.0.lock().unwrap();
    assert!(book.len() == 3 && !book.contains_key("mine-1"), "{:?}", book.keys());
    assert!(book.contains_key(own.header("x-request-id")), "the server's own is what the client sees");
}

#[test]
fn service_tier_is_the_one_that_was_served() {
    let book = crate::world::Book::default();
    let world = World::with(Default::default(), Box::new(crate::world::Bookkeeper(book, None)), Default::default(), Default::default());
    // `auto` is the best class that the caller may have.
    for (asked, served) in [("auto", "priority"), ("default", "default"), ("flex", "flex"), ("priority", "priority")] {
        let body = json!({ "model": "sim", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2, "service_tier": asked });
        assert_eq!(world.post("/v1/chat/completions", body.clone()).json()["service_tier"], served);
        let mut streamed = body;
        streamed["stream"] = true.into();
        let events = world.post("/v1/chat/completions", streamed).events();
        assert!(!events.is_empty() && events.iter().all(|event| event["service_tier"] == served), "{asked}");
        let answer = world.post("/v1/responses", json!({ "model": "sim", "input": "hi", "max_output_tokens": 16, "service_tier": asked }));
        assert_eq!(answer.json()["service_tier"], served, "{}", answer.body);
    }
}
