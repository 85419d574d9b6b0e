//! What a reply may be, as a constraint for the engine: JSON, calls of tools with arguments of their schemas, or any text with
//! calls in it. The notation is llguidance's dialect of Lark (guidance-ai/llguidance docs/syntax.md, "Tool calling").
//!
//! A reply that was to be constrained is never generated without: whatever cannot be compiled is an error of the engine's.

use bitnet_engine::Constraint;
use serde_json::{Map, Value, json};

use crate::conversation::{CALL_END, CALL_START, CallCount, Conversation, ReplyFormat, Tool, ToolChoice};

/// The constraint of a reply to `conversation`; none if anything goes.
pub(crate) fn constraint(conversation: &Conversation) -> Option<Constraint> {
    let tools: Vec<&Tool> = match &conversation.tool_choice {
        ToolChoice::Named(name) => conversation.tools.iter().filter(|tool| &tool.name == name).collect(),
        _ => conversation.callable().iter().collect(),
    };
    if tools.is_empty() {
        return match &conversation.format {
            ReplyFormat::Text => None,
            ReplyFormat::JsonObject => Some(Constraint::JsonSchema(terse(json!({ "type": "object" })))),
            ReplyFormat::JsonSchema(schema) => Some(Constraint::JsonSchema(terse(schema.clone()))),
            ReplyFormat::Constrained(constraint) => Some(constraint.clone()),
        };
    }
    Some(Constraint::Grammar(grammar(conversation, &tools)))
}

fn grammar(conversation: &Conversation, tools: &[&Tool]) -> String {
    let must_call = matches!(conversation.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
    let more = match conversation.call_count {
        CallCount::Many => " (\"\\n\" direct_call)*",
        CallCount::One => "",
    };
    let mut lines = Vec::new();
    match (must_call, answer(&conversation.format)) {
        (true, _) => lines.push(format!("start: direct_call{more}")),
        // An answer of a given form, or calls: the two begin differently, so nothing need be looked for in a text.
        (false, Some(answer)) => lines.extend([format!("start: answer | direct_call{more}"), answer]),
        (false, None) => lines.extend([
            match conversation.call_count {
                CallCount::Many => "start: call* tail".to_string(),
                CallCount::One => "start: call | tail".to_string(),
            },
            "tail: TEXT".to_string(),
            "TEXT: /(.|\\n)*/".to_string(),
            format!("head[lazy]: TEXT {}", literal(CALL_START)),
            "call: head body".to_string(),
        ]),
    }
    lines.push(format!("direct_call: {} body", literal(CALL_START)));
    let names: Vec<String> = (0..tools.len()).map(|index| format!("tool_{index}")).collect();
    lines.push(format!("body: \"\\n\" ({}) {}", names.join(" | "), literal(&format!("\n{CALL_END}"))));
    for (index, tool) in tools.iter().enumerate() {
        // The schema stands as a document of its own, so that its `$ref`s mean what their author meant.
        let before = literal(&format!("{{\"name\": {}, \"arguments\": ", Value::from(tool.name.as_str())));
        lines.push(format!("tool_{index}: {before} arguments_{index} \"}}\""));
        lines.push(format!("arguments_{index}: %json {}", arguments_schema(&tool.parameters)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The rule of an answer that is not just any text.
fn answer(format: &ReplyFormat) -> Option<String> {
    match format {
        ReplyFormat::JsonObject => Some(format!("answer: %json {}", terse(json!({ "type": "object" })))),
        ReplyFormat::JsonSchema(schema) => Some(format!("answer: %json {}", terse(schema.clone()))),
        // The routes refuse other constraints beside tools.
        ReplyFormat::Text | ReplyFormat::Constrained(_) => None,
    }
}

/// Arguments are an object, even where a schema says nothing.
fn arguments_schema(parameters: &Value) -> Value {
    let mut schema = parameters.clone();
    if let Some(schema) = schema.as_object_mut()
        && !["type", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key))
    {
        schema.insert("type".into(), "object".into());
    }
    terse(schema)
}

/// Members of a schema that say nothing of what fits it. A model has read them with the prompt; in a grammar, whose length is bounded,
/// the descriptions of a dozen tools would leave no room.
const ANNOTATIONS: [&str; 9] =
    ["$comment", "$schema", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"];

fn drop_annotations(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(drop_annotations),
        Value::Object(members) => {
            members.retain(|name, _| !ANNOTATIONS.contains(&name.as_str()));
            members.iter_mut().for_each(|(name, value)| drop_annotations_of_member(name, value));
        }
        _ => {}
    }
}

fn drop_annotations_of_member(name: &str, value: &mut Value) {
    match name {
        "const" | "enum" | "required" => {}
        // Names in these are the author's, and may be those of annotations.
        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" | "dependentRequired" | "dependencies" => {
            value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(drop_annotations);
        }
        _ => drop_annotations(value),
    }
}

/// JSON on one line, with a space at most between its signs: a small model that may write line breaks writes them until its tokens
/// are used up. Replaces what a client says about llguidance's options, one of which makes it ignore what it does not understand.
fn terse(mut schema: Value) -> Value {
    drop_annotations(&mut schema);
    if let Some(members) = schema.as_object_mut() {
        members.insert("x-guidance".into(), json!({ "whitespace_pattern": " " }));
    }
    schema
}

/// A text as Lark writes it, which is as JSON does.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Turn;

    fn conversation(choice: ToolChoice, count: CallCount) -> Conversation {
        let tool =
            |name: &str| Tool { name: name.into(), description: None, parameters: json!({"properties": {"x": {"type": "integer"}}}) };
        Conversation {
            turns: vec![Turn::User("hi".into())],
            tools: vec![tool("f"), tool("g")],
            tool_choice: choice,
            call_count: count,
            ..Conversation::default()
        }
    }

    fn lark(conversation: &Conversation) -> String {
        match constraint(conversation) {
            Some(Constraint::Grammar(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn grammar_of_free_choice_allows_text_and_calls() {
        insta::assert_snapshot!(lark(&conversation(ToolChoice::Auto, CallCount::Many)), @r#"
        start: call* tail
        tail: TEXT
        TEXT: /(.|\n)*/
        head[lazy]: TEXT "<tool_call>"
        call: head body
        direct_call: "<tool_call>" body
        body: "\n" (tool_0 | tool_1) "\n</tool_call>"
        tool_0: "{\"name\": \"f\", \"arguments\": " arguments_0 "}"
        arguments_0: %json {"properties":{"x":{"type":"integer"}},"type":"object","x-guidance":{"whitespace_pattern":" "}}
        tool_1: "{\"name\": \"g\", \"arguments\": " arguments_1 "}"
        arguments_1: %json {"properties":{"x":{"type":"integer"}},"type":"object","x-guidance":{"whitespace_pattern":" "}}
        "#);
    }

    #[test]
    fn grammar_of_a_named_tool_allows_that_one_only() {
        insta::assert_snapshot!(lark(&conversation(ToolChoice::Named("g".into()), CallCount::One)), @r#"
        start: direct_call
        direct_call: "<tool_call>" body
        body: "\n" (tool_0) "\n</tool_call>"
        tool_0: "{\"name\": \"g\", \"arguments\": " arguments_0 "}"
        arguments_0: %json {"properties":{"x":{"type":"integer"}},"type":"object","x-guidance":{"whitespace_pattern":" "}}
        "#);
    }

    #[test]
    fn annotations_are_left_out_and_properties_of_their_names_are_not() {
        let schema = json!({
            "description": "long", "properties": { "title": { "description": "long", "enum": [{ "description": 1 }] } }, "required": ["title"],
        });
        let expected = json!({
            "properties": { "title": { "enum": [{ "description": 1 }] } }, "required": ["title"], "type": "object",
            "x-guidance": { "whitespace_pattern": " " },
        });
        assert_eq!(arguments_schema(&schema), expected);
    }

    #[test]
    fn reply_without_tools_has_the_format_alone() {
        let forbidden = |format| constraint(&Conversation { format, ..conversation(ToolChoice::Forbidden, CallCount::Many) });
        assert_eq!(forbidden(ReplyFormat::Text), None);
        let any_object = terse(json!({ "type": "object" }));
        assert_eq!(forbidden(ReplyFormat::JsonObject), Some(Constraint::JsonSchema(any_object)));
        let lenient = ReplyFormat::JsonSchema(json!({ "x-guidance": { "lenient": true } }));
        assert_eq!(forbidden(lenient), Some(Constraint::JsonSchema(terse(json!({})))), "a client does not loosen its constraint");
        let with_format = Conversation { format: ReplyFormat::JsonObject, ..conversation(ToolChoice::Auto, CallCount::Many) };
        assert!(lark(&with_format).starts_with("start: answer | direct_call (\"\\n\" direct_call)*\nanswer: %json"));
    }
}
