//! Structured output: what comes out fits, what cannot be followed is refused, and hostile sources cost little.

use std::time::{Duration, Instant};

use bitnet_engine::{Constraint, EngineCore, EngineOptions, FinishReason, Generate, Priority, Request, RequestId, SubmitError, Task};
use bitnet_model::sampler::SamplingParams;
use serde_json::{Value, json};

use crate::support::{Recorder, bare, finish_all, greedy, ids, request, simulated, tenant, writing_model};

/// Generous, since tests share a machine; a hang is what it must catch.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

fn core() -> EngineCore {
    EngineCore::new(writing_model(256), EngineOptions::default()).expect("valid options")
}

fn constrained(constraint: Constraint, seed: u64, n_tokens_max: usize) -> Generate {
    let sampling = SamplingParams { seed, temperature: 1.5, ..SamplingParams::default() };
    Generate { constraint: Some(constraint), ..Generate::plain(sampling, n_tokens_max) }
}

/// Texts of many seeds at once.
fn texts(constraint: &Constraint, n: u64) -> Vec<(String, Option<FinishReason>)> {
    let (mut core, mut recorder) = (core(), Recorder::default());
    for seed in 0..n {
        let generate = constrained(constraint.clone(), seed, 800);
        core.submit(RequestId(seed), request(ids([seed as u32 % 256, 65]), generate)).expect("sound");
    }
    finish_all(&mut core, &mut recorder);
    (0..n).map(|seed| recorder.text(RequestId(seed), 0)).collect()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

#[test]
fn json_schema_is_followed_to_the_end() {
    for (text, finish) in texts(&Constraint::JsonSchema(schema()), 24) {
        assert_eq!(finish, Some(FinishReason::EndOfSequence), "{text}");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(value["name"].as_str().expect("a string").chars().count() <= 6);
        assert!(value["age"].as_u64().expect("a number") <= 120);
        let tags = value["tags"].as_array().expect("an array");
        assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "bc"));
        assert_eq!(value.as_object().expect("an object").len(), 3);
    }
}

#[test]
fn regex_grammar_and_choice_are_followed_to_the_end() {
    for (text, finish) in texts(&Constraint::Regex("[ab]{3}-[0-9]{2}".into()), 8) {
        assert_eq!(finish, Some(FinishReason::EndOfSequence));
        let bytes = text.as_bytes();
        assert!(text.len() == 6 && bytes[..3].iter().all(|byte| b"ab".contains(byte)) && bytes[3] == b'-', "{text}");
    }
    let choice = Constraint::Choice(vec!["yes".into(), "no \"quoted\"\n".into()]);
    let choices = texts(&choice, 16);
    assert!(choices.iter().all(|(text, _)| text == "yes" || text == "no \"quoted\"\n"), "{choices:?}");
    assert!(choices.iter().any(|(text, _)| text == "yes") && choices.iter().any(|(text, _)| text != "yes"));
    let grammar = Constraint::Grammar("start: pair+\npair: /[0-9]/ \",\"".into());
    for (text, finish) in texts(&grammar, 8) {
        assert!(matches!(finish, Some(FinishReason::EndOfSequence | FinishReason::Length)));
        assert!(text.as_bytes().chunks(2).all(|pair| pair[0].is_ascii_digit() && pair.get(1).is_none_or(|&byte| byte == b',')), "{text}");
    }
}

#[test]
fn constraint_that_cannot_be_followed_is_refused_by_name() {
    let mut core = core();
    let bad = [
        Constraint::JsonSchema(json!({"type": "no such type"})),
        Constraint::JsonSchema(json!({"type": "string", "pattern": "(("})),
        Constraint::JsonSchema(json!({"$ref": "#/nowhere"})),
        Constraint::JsonSchema(json!({"$ref": "https://example.org/schema.json"})),
        Constraint::JsonSchema(json!(false)),
        Constraint::JsonSchema(json!(3)),
        Constraint::Regex("(a".into()),
        Constraint::Regex("(?=a)b".into()),
        Constraint::Grammar("start: nothing_of_the_kind".into()),
        Constraint::Grammar(String::new()),
        Constraint::Choice(vec![]),
    ];
    for (number, constraint) in bad.into_iter().enumerate() {
        let refused = core.submit(RequestId(number as u64), request(ids([1]), constrained(constraint.clone(), 1, 5)));
        assert!(matches!(refused, Err(SubmitError::BadConstraint { .. })), "{constraint:?}: {refused:?}");
    }
    let without_text = Generate { constraint: Some(Constraint::JsonObject), ..greedy(3) };
    let mut bare = EngineCore::new(bare(simulated(8, 16)), EngineOptions::default()).expect("valid options");
    assert!(matches!(bare.submit(RequestId(1), request(ids([1]), without_text)), Err(SubmitError::NoTokenizer { .. })));
}

fn nested(depth: usize, inner: Value, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(inner, |value, _| wrap(value))
}

#[test]
fn hostile_constraints_end_soon_one_way_or_the_other() {
    let any_of = |n: usize| json!({"anyOf": (0..n).map(|index| json!({"const": format!("value {index}")})).collect::<Vec<_>>()});
    let all_of = nested(
        12,
        json!({"type": "string"}),
        |value| json!({"allOf": [{"anyOf": [value.clone(), {"minLength": 1}]}, {"anyOf": [value, {"maxLength": 9}]}]}),
    );
    let properties: serde_json::Map<String, Value> = (0..2000).map(|index| (format!("p{index}"), json!({"type": "integer"}))).collect();
    let schemas = [
        nested(60, json!({"type": "null"}), |value| json!({"type": "array", "items": value})),
        nested(8_000, Value::Null, |value| Value::Array(vec![value])),
        nested(30, json!({"type": "null"}), |value| json!({"type": "object", "properties": {"a": value}, "required": ["a"]})),
        json!({"$ref": "#"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"type": "array", "items": {"$ref": "#"}}),
        json!({"type": "array", "minItems": 1, "maxItems": 1_000_000_000}),
        json!({"type": "array", "minItems": 1_000_000_000}),
        json!({"type": "string", "minLength": 1, "maxLength": 1_000_000_000}),
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "string", "pattern": "^(a{1,1000000000}b)+$"}),
        json!({"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100})$"}),
        json!({"type": "string", "pattern": "^(a|aa)+(b|bb)*(.*c.*){50}$"}),
        json!({"type": "object", "minProperties": 1_000_000_000}),
        json!({"type": "object", "properties": properties, "required": ["p1999"]}),
        json!({"type": "object", "properties": properties, "required": properties.keys().collect::<Vec<_>>(), "additionalProperties": false}),
        json!({"type": "object", "properties": properties, "additionalProperties": false}),
        json!({"type": "object", "properties": properties.iter().take(400).map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Map<_, _>>()}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
        any_of(5_000),
        all_of,
    ];
    let texts = [
        Constraint::Regex("(a{1,1000000000})".into()),
        Constraint::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Constraint::Regex("(.{0,500}x){500}".into()),
        Constraint::Regex(format!("{}a{}", "(".repeat(60_000), ")".repeat(60_000))),
        Constraint::Regex("a|".repeat(50_000)),
        Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000))),
        Constraint::Grammar("start: a\na: b | a\nb: a | \"x\"".into()),
        Constraint::Grammar("start: a{1,1000000000}\na: \"x\"".into()),
        Constraint::Grammar("start: x\nx: (x x)*".into()),
        Constraint::Grammar(format!("start: {}", "\"a\"? ".repeat(20_000))),
        Constraint::Grammar("start: %json {\"type\": \"object\"}".into()),
    ];
    let (mut core, mut recorder) = (core(), Recorder::default());
    let hostile = schemas.into_iter().map(Constraint::JsonSchema).chain(texts);
    let mut slow = Vec::new();
    for (number, constraint) in hostile.enumerate() {
        let start = Instant::now();
        let label: String = format!("{constraint:?}").chars().take(120).collect();
        let outcome = core.submit(RequestId(number as u64), request(ids([1]), constrained(constraint, 1, 12)));
        let compiled = start.elapsed();
        let is_refused = matches!(&outcome, Err(SubmitError::BadConstraint { .. }));
        assert!(outcome.is_ok() || is_refused, "{label}: {outcome:?}");
        finish_all(&mut core, &mut recorder);
        println!("{:>8.1?} then {:>8.1?} {} {label}", compiled, start.elapsed() - compiled, if is_refused { "refused" } else { "taken" });
        if start.elapsed() > REFUSED_WITHIN {
            slow.push((label, start.elapsed()));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

#[test]
fn forks_of_a_constrained_request_follow_their_own_copies() {
    let (mut core, mut recorder) = (core(), Recorder::default());
    let generate =
        Generate { n_choices: std::num::NonZeroU32::new(5).expect("five"), ..constrained(Constraint::JsonSchema(schema()), 9, 800) };
    core.submit(RequestId(1), request(ids([1]), generate)).expect("sound");
    finish_all(&mut core, &mut recorder);
    let texts: Vec<String> = (0..5).map(|choice| recorder.text(RequestId(1), choice).0).collect();
    texts.iter().for_each(|text| assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}"));
    assert_ne!(texts[0], texts[1], "seeds differ");
}

#[test]
fn constraint_ends_a_text_even_where_the_end_of_sequence_is_ignored() {
    let (mut core, mut recorder) = (core(), Recorder::default());
    let generate = Generate {
        end_of_sequence: bitnet_engine::EndOfSequence::Ignore,
        n_tokens_min: 0,
        ..constrained(Constraint::Regex("a|ab|abc".into()), 3, 50)
    };
    let task = Task::Generate(Box::new(generate));
    let request = Request { prompt: ids([1]), task, tenant: tenant(2), priority: Priority::Low, deadline: None, usage_sink: None };
    core.submit(RequestId(1), request).expect("sound");
    finish_all(&mut core, &mut recorder);
    let (text, finish) = recorder.text(RequestId(1), 0);
    assert!(["a", "ab", "abc"].contains(&text.as_str()), "{text}");
    assert_eq!(finish, Some(FinishReason::EndOfSequence));
}
