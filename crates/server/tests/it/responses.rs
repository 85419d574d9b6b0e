//! Responses: shapes, the exact sequence of events, going on from a kept one.

use serde_json::{Value, json};

use crate::world::{World, shape};

fn request(more: Value) -> Value {
    let mut request = json!({ "model": "sim", "input": "Hello", "max_output_tokens": 16, "temperature": 0 });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

fn tools() -> Value {
    json!([{ "type": "function", "name": "f", "parameters": { "type": "object", "properties": { "x": { "enum": [1, 2] } }, "required": ["x"], "additionalProperties": false } }])
}

#[test]
fn response_has_the_shape_of_openais() {
    let answer = World::plain().post("/v1/responses", request(json!({ "max_output_tokens": 2, "metadata": { "a": "b" } })));
    assert_eq!(answer.status, 200, "{answer:?}");
    insta::assert_json_snapshot!(shape(answer.json()));
}

#[test]
fn events_come_in_openais_sequence() {
    let world = World::plain();
    let answer = world.post("/v1/responses", request(json!({ "stream": true, "max_output_tokens": 2 })));
    let events = answer.events();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], index, "{event}");
    }
    let mut names = answer.event_names();
    names.dedup();
    insta::assert_json_snapshot!(names);
    let calls = world.post(
        "/v1/responses",
        request(
            json!({ "stream": true, "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 300 }),
        ),
    );
    let mut names = calls.event_names();
    names.dedup();
    insta::assert_json_snapshot!("events_of_a_call", names);
}

#[test]
fn last_event_holds_what_an_unstreamed_response_does() {
    let world = World::plain();
    for more in [json!({}), json!({ "tools": tools(), "tool_choice": "required", "max_output_tokens": 300 })] {
        let whole = world.post("/v1/responses", request(more.clone())).json();
        let mut streamed = more.clone();
        streamed["stream"] = true.into();
        let events = world.post("/v1/responses", request(streamed)).events();
        let last = &events.last().expect("events")["response"];
        assert_eq!(shape(last.clone())["output"], shape(whole)["output"], "{more}");
    }
    let numbers = request(json!({ "temperature": 0.3, "top_p": 0.7, "stream": true, "max_output_tokens": 1 }));
    let events = world.post("/v1/responses", numbers).events();
    let last = &events.last().expect("events")["response"];
    assert_eq!((&last["temperature"], &last["top_p"]), (&json!(0.3), &json!(0.7)), "as they were sent");
}

#[test]
fn conversation_goes_on_from_a_kept_response() {
    let world = World::plain();
    let first = world.post("/v1/responses", request(json!({}))).json();
    let id = first["id"].as_str().expect("an id");
    let text = first["output"][0]["content"][0]["text"].as_str().expect("text");
    let next = world.post("/v1/responses", request(json!({ "input": "More", "previous_response_id": id }))).json();
    // A token is a byte, but for those that are no text.
    let prompt = "<user>Hello\n<assistant>\n<user>More\n<assistant>".len() + text.len();
    assert_eq!(next["usage"]["input_tokens"], prompt, "{next}");
    assert_eq!(world.get(&format!("/v1/responses/{id}")).json()["id"], id);
    assert_eq!(world.get(&format!("/v1/responses/{id}/input_items")).json()["data"][0]["content"][0]["text"], "Hello");
    let gone = axum::http::Request::delete(format!("/v1/responses/{id}")).body(axum::body::Body::empty()).expect("a request");
    assert_eq!(world.send(gone).json(), json!({ "id": id, "object": "response", "deleted": true }));
    assert_eq!(world.get(&format!("/v1/responses/{id}")).status, 404);
    let lost = world.post("/v1/responses", request(json!({ "input": "More", "previous_response_id": id })));
    assert_eq!(lost.status, 404, "never answered without what came before: {}", lost.body);
}

#[test]
fn response_that_is_not_to_be_kept_is_not() {
    let world = World::plain();
    let id = world.post("/v1/responses", request(json!({ "store": false }))).json()["id"].as_str().expect("an id").to_string();
    assert_eq!(world.get(&format!("/v1/responses/{id}")).status, 404);
}

#[test]
fn result_of_a_call_goes_back_in() {
    let world = World::plain();
    let more = json!({ "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 300 });
    let first = world.post("/v1/responses", request(more)).json();
    let call = &first["output"][0];
    assert_eq!(call["type"], "function_call", "{first}");
    let output = json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "42" }]);
    let next = world.post("/v1/responses", request(json!({ "input": output, "previous_response_id": first["id"], "tools": tools() })));
    assert_eq!(next.status, 200, "{}", next.body);
}
