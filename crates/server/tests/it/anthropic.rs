//! Anthropic's messages: shapes, the exact sequence of events, tools, errors in its own notation.

use serde_json::{Value, json};

use crate::world::{World, shape};

fn request(more: Value) -> Value {
    let mut request = json!({ "model": "sim", "max_tokens": 8, "temperature": 0, "system": "Be brief.", "messages": [{ "role": "user", "content": "Hello" }] });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

fn tools() -> Value {
    json!([{ "name": "f", "input_schema": { "type": "object", "properties": { "x": { "enum": [1, 2] } }, "required": ["x"], "additionalProperties": false } }])
}

#[test]
fn message_has_the_shape_of_anthropics() {
    let answer = World::plain().post("/v1/messages", request(json!({ "max_tokens": 2 })));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("request-id").starts_with("req_"));
    insta::assert_json_snapshot!(shape(answer.json()));
}

#[test]
fn events_come_in_anthropics_sequence() {
    let world = World::plain();
    let answer = world.post("/v1/messages", request(json!({ "stream": true, "max_tokens": 2 })));
    insta::assert_json_snapshot!(shape(answer.events().into()));
    let kinds: Vec<Value> = answer.events().iter().map(|event| event["type"].clone()).collect();
    assert_eq!(answer.event_names(), kinds.iter().map(|kind| kind.as_str().expect("text")).collect::<Vec<_>>());
    let calls = world.post("/v1/messages", request(json!({ "stream": true, "max_tokens": 300, "tools": tools(), "tool_choice": { "type": "any", "disable_parallel_tool_use": true } })));
    let mut names = calls.event_names();
    names.dedup();
    let expected = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"];
    assert_eq!(names, expected, "{}", calls.body);
}

/// Puts a message's blocks together as a client does.
fn add(blocks: &mut Vec<Value>, event: &Value) {
    match event["type"].as_str().expect("a type") {
        "content_block_start" if event["content_block"]["type"] == "text" => blocks.push(json!({ "type": "text", "text": "" })),
        "content_block_start" => blocks.push(json!({ "type": "tool_use", "name": event["content_block"]["name"], "input": "" })),
        "content_block_delta" => {
            let block = &mut blocks[event["index"].as_u64().expect("an index") as usize];
            let (member, piece) = match event["delta"]["text"].as_str() {
                Some(text) => ("text", text),
                None => ("input", event["delta"]["partial_json"].as_str().expect("JSON")),
            };
            block[member] = (block[member].as_str().expect("text").to_string() + piece).into();
        }
        _ => {}
    }
}

#[test]
fn stream_and_whole_message_are_equal() {
    let world = World::plain();
    for more in [json!({}), json!({ "tools": tools(), "tool_choice": { "type": "tool", "name": "f" }, "max_tokens": 300 })] {
        let whole = world.post("/v1/messages", request(more.clone())).json();
        let mut streamed = more.clone();
        streamed["stream"] = true.into();
        let mut blocks: Vec<Value> = Vec::new();
        for event in world.post("/v1/messages", request(streamed)).events() {
            add(&mut blocks, &event);
            if event["type"] == "message_delta" {
                assert_eq!(event["delta"]["stop_reason"], whole["stop_reason"]);
            }
        }
        for block in blocks.iter_mut().filter(|block| block["type"] == "tool_use") {
            block["input"] = serde_json::from_str(block["input"].as_str().expect("text")).expect("JSON");
        }
        let mut expected = whole["content"].clone();
        expected.as_array_mut().expect("blocks").iter_mut().for_each(|block| drop(block.as_object_mut().expect("an object").remove("id")));
        assert_eq!(Value::from(blocks), expected, "{more}");
    }
}

#[test]
fn tool_results_and_prefill_become_turns() {
    let world = World::plain();
    let messages = json!([
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": [{ "type": "text", "text": "I look." }, { "type": "tool_use", "id": "t1", "name": "f", "input": { "x": 1 } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1", "content": "sun" }, { "type": "text", "text": "and?" }] },
        { "role": "assistant", "content": "It is" },
    ]);
    let counted = world.post("/v1/messages/count_tokens", json!({ "model": "sim", "messages": messages })).json();
    let prompt = "<user>weather?\n<assistant>I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\":1}}\n</tool_call>\n\
                  <user><tool_response>\nsun\n</tool_response>\n<user>and?\n<assistant>It is";
    assert_eq!(counted, json!({ "input_tokens": prompt.len() }));
}

#[test]
fn stop_sequence_is_named_in_the_reply() {
    let world = World::plain();
    let text =
        world.post("/v1/messages", request(json!({ "max_tokens": 40 }))).json()["content"][0]["text"].as_str().expect("text").to_string();
    let stop = text.chars().find(char::is_ascii_graphic).expect("a plain character").to_string();
    let stopped = world.post("/v1/messages", request(json!({ "max_tokens": 40, "stop_sequences": [stop] }))).json();
    assert_eq!((stopped["stop_reason"].clone(), stopped["stop_sequence"].clone()), (json!("stop_sequence"), json!(stop)));
}

#[test]
fn refusal_is_in_anthropics_notation() {
    let world = World::plain();
    for (body, status, kind, words) in [
        (json!({ "model": "sim", "messages": [] }), 400, "invalid_request_error", "max_tokens"),
        (request(json!({ "model": "none" })), 404, "not_found_error", "none"),
        (request(json!({ "thinking": {} })), 400, "invalid_request_error", "thinking"),
        (request(json!({ "temperature": 1.5 })), 400, "invalid_request_error", "temperature"),
    ] {
        let answer = world.post("/v1/messages", body);
        let error = answer.json();
        assert_eq!((answer.status, error["type"].as_str(), error["error"]["type"].as_str()), (status, Some("error"), Some(kind)));
        assert!(error["error"]["message"].as_str().expect("text").contains(words), "{error}");
        assert_eq!(error["request_id"].as_str().expect("text"), answer.header("request-id"));
    }
}
