//! What a stranger may send: nesting, giant values, hostile schemas and templates' arguments. The server answers 400 and goes on.

use serde_json::{Value, json};

use crate::world::World;

fn still_serves(world: &World) {
    let answer = world.post("/v1/completions", json!({ "model": "sim", "prompt": "a", "max_tokens": 1 }));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn deep_nesting_is_refused_wherever_it_stands() {
    let world = World::plain();
    for depth in [129, 10_000, 1_000_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for body in [
            deep.clone(),
            format!(r#"{{"model":"sim","messages":{deep}}}"#),
            format!(r#"{{"model":"sim","ignored":{deep}}}"#),
            format!(r#"{{"model":"sim","prompt":"a","metadata":{deep}}}"#),
            format!(
                r#"{{"model":"sim","messages":[{{"role":"user","content":"a"}}],"tools":[{{"type":"function","function":{{"name":"f","parameters":{deep}}}}}]}}"#
            ),
        ] {
            for url in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"] {
                assert_eq!(world.post_raw(url, body.clone()).status, 400, "{url}");
            }
        }
    }
    still_serves(&world);
}

#[test]
fn hostile_schema_is_refused_or_followed() {
    let world = World::plain();
    let nested = (0..60).fold(json!({ "type": "string" }), |inner, _| json!({ "type": "array", "items": inner }));
    let schemas = [
        json!({ "$ref": "#" }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
        json!({ "type": "string", "pattern": "(a+)+$" }),
        json!({ "type": "string", "pattern": "(" }),
        json!({ "type": "string", "minLength": 1_000_000_000 }),
        json!({ "type": "array", "minItems": 1_000_000_000, "items": { "type": "integer" } }),
        json!({ "enum": [] }),
        json!({ "type": "integer", "minimum": 5, "maximum": 1 }),
        nested,
    ];
    for schema in schemas {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": schema } });
        let body = json!({ "model": "sim", "messages": [{ "role": "user", "content": "a" }], "max_tokens": 5, "response_format": format });
        let answer = world.post("/v1/chat/completions", body);
        assert!([200, 400].contains(&answer.status), "{schema}: {} {}", answer.status, answer.body);
    }
    still_serves(&world);
}

#[test]
fn grammar_of_sixty_thousand_groups_is_refused() {
    let world = World::plain();
    let grammar = format!("start: {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000));
    let body = json!({ "model": "sim", "messages": [{ "role": "user", "content": "a" }], "structured_outputs": { "grammar": grammar } });
    assert_eq!(world.post("/v1/chat/completions", body).status, 400);
    still_serves(&world);
}

#[test]
fn numbers_at_every_edge_are_refused_or_honoured() {
    let world = World::plain();
    let names = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "max_tokens",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "top_logprobs",
        "min_tokens",
    ];
    for name in names {
        for value in [json!(i64::MIN), json!(-1), json!(0), json!(1e308), json!(u64::MAX), json!("1"), json!([]), json!({}), Value::Null] {
            let mut body = json!({ "model": "sim", "messages": [{ "role": "user", "content": "a" }] });
            body[name] = value.clone();
            if name != "max_tokens" {
                body["max_tokens"] = 2.into();
            }
            let answer = world.post("/v1/chat/completions", body);
            assert!([200, 400].contains(&answer.status), "{name} {value}: {} {}", answer.status, answer.body);
            if answer.status == 400 {
                assert_eq!(answer.json()["error"]["param"], name, "{value}: {}", answer.body);
            }
        }
    }
}

#[test]
fn text_in_odd_characters_is_answered() {
    let world = World::plain();
    for text in ["\u{0}", "\u{feff}", "🦊\u{200d}🦊", "<|end|>", "{{ 7 * 7 }}{% for %}", &"a".repeat(1500)] {
        let body = json!({ "model": "sim", "messages": [{ "role": "user", "content": text }], "max_tokens": 2 });
        assert_eq!(world.post("/v1/chat/completions", body).status, 200, "{text:?}");
    }
}

#[test]
fn request_id_that_could_break_a_log_is_replaced() {
    let world = World::plain();
    for id in ["a b", "a\"b", &"x".repeat(500)] {
        let mut request = crate::world::post("/v1/completions", &json!({}));
        request.headers_mut().insert("x-request-id", id.parse().expect("a value"));
        assert!(world.send(request).header("x-request-id").starts_with("req_"), "{id}");
    }
}
