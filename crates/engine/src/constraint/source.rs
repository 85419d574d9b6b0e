//! A constraint's source, checked for what would make a compiler recurse or work without bound, and turned into what llguidance
//! compiles. The compilers of schemas and grammars recurse along nesting (Trail of Bits, "Don't recurse on untrusted input") and
//! take quadratic time for some of what they read, which their own budgets do not count, so both are bounded before they see it.

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use crate::error::SubmitError;
use crate::limits::{CONSTRAINT_DEPTH_MAX, GRAMMAR_BYTES_MAX, N_GRAMMAR_SYMBOLS_MAX, SCHEMA_BYTES_MAX, SCHEMA_NUMBER_MAX, SCHEMA_WORK_MAX};
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
                check_schema(schema)?;
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
        let limit = if kind == Kind::JsonSchema { SCHEMA_BYTES_MAX } else { GRAMMAR_BYTES_MAX };
        if text.len() > limit {
            return Err(refused(format!("its source is {} bytes long, more than {limit}", text.len())));
        }
        if kind != Kind::JsonSchema {
            check_bracket_depth(&text)?;
        }
        // A choice is as many alternatives, which cost nothing.
        if matches!(constraint, Constraint::Grammar(_)) {
            check_symbols(&text)?;
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

/// Schema keywords whose number becomes an expression over its digits.
const NUMBER_BOUNDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Walks a schema without recursion: the stack holds what is still to be seen, with its depth.
fn check_schema(schema: &Value) -> Result<(), SubmitError> {
    let (mut left, mut work) = (vec![(schema, 0)], 0usize);
    while let Some((value, depth)) = left.pop() {
        if depth > CONSTRAINT_DEPTH_MAX {
            return Err(refused(format!("the schema is nested more than {CONSTRAINT_DEPTH_MAX} levels deep")));
        }
        match value {
            Value::Array(items) => {
                work += items.len();
                left.extend(items.iter().map(|item| (item, depth + 1)));
            }
            Value::Object(fields) => {
                work += 1 + fields.len() + fields.len() * fields.len() / 64;
                check_number_bounds(fields)?;
                left.extend(fields.values().map(|field| (field, depth + 1)));
            }
            _ => {}
        }
        if work > SCHEMA_WORK_MAX {
            return Err(refused(format!("the schema has too many parts: more than {SCHEMA_WORK_MAX}, properties counting more than once")));
        }
    }
    Ok(())
}

fn check_number_bounds(fields: &serde_json::Map<String, Value>) -> Result<(), SubmitError> {
    let numbers = NUMBER_BOUNDS.iter().filter_map(|name| Some((name, fields.get(*name)?.as_f64()?)));
    match numbers.into_iter().find(|(_, number)| number.abs() > SCHEMA_NUMBER_MAX) {
        Some((name, number)) => Err(refused(format!("`{name}` is {number}, beyond {SCHEMA_NUMBER_MAX}"))),
        None => Ok(()),
    }
}

/// Names, literals and operators, roughly: what stands in literals counts too.
fn check_symbols(text: &str) -> Result<(), SubmitError> {
    let (mut n_symbols, mut in_word) = (0usize, false);
    for character in text.chars() {
        let is_word = character.is_alphanumeric() || character == '_';
        n_symbols += usize::from(is_word && !in_word || "?*+|~".contains(character));
        in_word = is_word;
    }
    if n_symbols > N_GRAMMAR_SYMBOLS_MAX {
        return Err(refused(format!("the grammar has {n_symbols} names and operators, more than {N_GRAMMAR_SYMBOLS_MAX}")));
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
