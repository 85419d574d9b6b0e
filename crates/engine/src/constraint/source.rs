//! A constraint's source, checked for what would make a compiler recurse or unroll without bound, and turned into what llguidance
//! compiles. The compilers of schemas and grammars recurse along nesting (Trail of Bits, "Don't recurse on untrusted input"), so
//! nesting is bounded before they see it.

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use crate::error::SubmitError;
use crate::limits::{CONSTRAINT_BYTES_MAX, CONSTRAINT_DEPTH_MAX};
use crate::request::Constraint;

/// A source within bounds, as text: what compiled constraints are found by.
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    JsonSchema,
    Regex,
    Grammar,
}

pub(super) fn refused(reason: impl Into<String>) -> SubmitError {
    SubmitError::BadConstraint { reason: reason.into() }
}

impl Source {
    /// Checks the bounds.
    pub(super) fn new(constraint: &Constraint) -> Result<Self, SubmitError> {
        let (kind, text) = match constraint {
            Constraint::JsonSchema(schema) => {
                check_schema_depth(schema)?;
                (Kind::JsonSchema, schema.to_string())
            }
            Constraint::JsonObject => (Kind::JsonSchema, r#"{"type":"object"}"#.to_string()),
            Constraint::Regex(expression) => (Kind::Regex, expression.clone()),
            Constraint::Grammar(grammar) => (Kind::Grammar, grammar.clone()),
            Constraint::Choice(texts) if texts.is_empty() => return Err(refused("a choice of no texts")),
            Constraint::Choice(texts) => {
                // JSON's quoting is also the grammar's.
                let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                (Kind::Grammar, format!("start: {}", quoted.join(" | ")))
            }
        };
        if text.len() > CONSTRAINT_BYTES_MAX {
            return Err(refused(format!("its source is {} bytes long, more than {CONSTRAINT_BYTES_MAX}", text.len())));
        }
        if kind != Kind::JsonSchema {
            check_bracket_depth(&text)?;
        }
        Ok(Self { kind, text })
    }

    /// For the compiler.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, SubmitError> {
        Ok(match self.kind {
            Kind::JsonSchema => {
                TopLevelGrammar::from_json_schema(serde_json::from_str(&self.text).map_err(|error| refused(error.to_string()))?)
            }
            Kind::Regex => TopLevelGrammar::from_regex(&self.text),
            Kind::Grammar => TopLevelGrammar::from_lark(self.text.clone()),
        })
    }
}

/// Walks a schema without recursion: the stack holds what is still to be seen, with its depth.
fn check_schema_depth(schema: &Value) -> Result<(), SubmitError> {
    let mut left = vec![(schema, 0)];
    while let Some((value, depth)) = left.pop() {
        if depth > CONSTRAINT_DEPTH_MAX {
            return Err(refused(format!("the schema is nested more than {CONSTRAINT_DEPTH_MAX} levels deep")));
        }
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => left.extend(fields.values().map(|field| (field, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Brackets anywhere count, those in literals too: nobody writes more of them than this.
fn check_bracket_depth(text: &str) -> Result<(), SubmitError> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > CONSTRAINT_DEPTH_MAX {
            return Err(refused(format!("it is nested more than {CONSTRAINT_DEPTH_MAX} levels deep")));
        }
    }
    Ok(())
}
