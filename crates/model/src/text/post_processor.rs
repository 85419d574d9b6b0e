//! Post-processors: the tokens that a model expects around every text, such as the beginning-of-sequence token. Only what
//! concerns a single text is read; pairs of texts belong to other kinds of model.

use serde_json::Value;

use crate::TokenId;
use crate::limits;
use crate::text::TextError;
use crate::text::tokenizer_file::{component_sequence, text_field};

/// Tokens to put around a text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Surroundings {
    pub(super) before: Vec<TokenId>,
    pub(super) after: Vec<TokenId>,
}

impl Surroundings {
    /// Reads the `post_processor` field.
    pub(super) fn new(description: Option<&Value>) -> Result<Self, TextError> {
        let mut surroundings = Self::default();
        for component in component_sequence("post_processor", "processors", description)? {
            let inner = match text_field("post_processor", component, "type")? {
                // Only moves offsets.
                "ByteLevel" => Self::default(),
                "TemplateProcessing" => template(component)?,
                "BertProcessing" | "RobertaProcessing" => {
                    Self { before: vec![named_token(component, "cls")?], after: vec![named_token(component, "sep")?] }
                }
                kind => return Err(TextError::unsupported("post_processor", format!("component {kind:?}"))),
            };
            // A later component wraps what the earlier ones made.
            surroundings.before.splice(0..0, inner.before);
            surroundings.after.extend(inner.after);
        }
        if surroundings.before.len() + surroundings.after.len() > limits::N_TEMPLATE_TOKENS_MAX {
            return Err(TextError::malformed("post_processor", format!("more than {} tokens", limits::N_TEMPLATE_TOKENS_MAX)));
        }
        Ok(surroundings)
    }
}

fn token_id(value: Option<&Value>) -> Result<TokenId, TextError> {
    let id = value.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    id.map(TokenId).ok_or_else(|| TextError::malformed("post_processor", "a token id is missing or out of range"))
}

/// `"cls": ["<s>", 0]`.
fn named_token(component: &Value, key: &str) -> Result<TokenId, TextError> {
    token_id(component.get(key).and_then(|pair| pair.get(1)))
}

/// `"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]`, with `"special_tokens": {"<s>": {"ids": [0]}}`.
fn template(component: &Value) -> Result<Surroundings, TextError> {
    let wrong = |reason: String| TextError::malformed("post_processor.single", reason);
    let Some(pieces) = component.get("single").and_then(Value::as_array) else { return Err(wrong("missing".into())) };
    let mut surroundings = Surroundings::default();
    let mut n_sequences = 0;
    for piece in pieces {
        if let Some(sequence) = piece.get("Sequence") {
            if sequence.get("id").and_then(Value::as_str) != Some("A") {
                return Err(wrong("a sequence other than A".into()));
            }
            n_sequences += 1;
            continue;
        }
        let Some(name) = piece.get("SpecialToken").and_then(|token| token.get("id")).and_then(Value::as_str) else {
            return Err(wrong(format!("neither Sequence nor SpecialToken: {piece}")));
        };
        let ids = component.get("special_tokens").and_then(|tokens| tokens.get(name)).and_then(|token| token.get("ids"));
        let Some(ids) = ids.and_then(Value::as_array) else { return Err(wrong(format!("{name:?} is not among special_tokens"))) };
        let side = if n_sequences == 0 { &mut surroundings.before } else { &mut surroundings.after };
        for id in ids {
            side.push(token_id(Some(id))?);
        }
    }
    if n_sequences != 1 {
        return Err(wrong(format!("{n_sequences} sequences, not 1")));
    }
    Ok(surroundings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn template_gives_tokens_before_and_after() {
        let description = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [6, 7], "tokens": ["</s>"]}}}]});
        let surroundings = Surroundings::new(Some(&description)).unwrap();
        assert_eq!(surroundings, Surroundings { before: vec![TokenId(5)], after: vec![TokenId(6), TokenId(7)] });
    }

    #[test]
    fn template_that_names_unknown_tokens_is_refused() {
        for description in [
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {}}),
            json!({"type": "TemplateProcessing", "single": [], "special_tokens": {}}),
            json!({"type": "TemplateProcessing"}),
            json!({"type": "BertProcessing", "cls": ["[CLS]", -1], "sep": ["[SEP]", 2]}),
            json!({"type": "Other"}),
        ] {
            assert!(Surroundings::new(Some(&description)).is_err(), "{description}");
        }
    }
}
