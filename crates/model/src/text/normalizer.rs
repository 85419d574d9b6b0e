//! Normalizers: text into the form that a vocabulary was trained on. Components as in huggingface/tokenizers (`normalizers/*`);
//! the ones that no ternary model uses (BERT's, compiled character maps, replacement by pattern) are refused.

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick};

use crate::limits;
use crate::text::TextError;
use crate::text::tokenizer_file::{component_sequence, literal_pattern, text_field};

enum Stage {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    Prepend(String),
    Replace { from: String, to: String },
}

/// All stages of a normalizer.
pub(super) struct Normalizer {
    stages: Vec<Stage>,
}

impl Normalizer {
    /// Reads the `normalizer` field.
    pub(super) fn new(description: Option<&Value>) -> Result<Self, TextError> {
        let components = component_sequence("normalizer", "normalizers", description)?;
        Ok(Self { stages: components.into_iter().map(stage).collect::<Result<_, _>>()? })
    }

    /// Normalizes one piece of text.
    pub(super) fn apply<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, TextError> {
        let mut text = Cow::Borrowed(text);
        for stage in &self.stages {
            if let Some(changed) = stage.apply(&text)? {
                text = Cow::Owned(changed);
            }
            if text.len() > 2 * limits::TEXT_BYTES_MAX {
                return Err(TextError::TextTooLong { got: text.len(), limit: 2 * limits::TEXT_BYTES_MAX });
            }
        }
        Ok(text)
    }
}

fn stage(component: &Value) -> Result<Stage, TextError> {
    let kind = text_field("normalizer", component, "type")?;
    match kind {
        "NFC" => Ok(Stage::Nfc),
        "NFD" => Ok(Stage::Nfd),
        "NFKC" => Ok(Stage::Nfkc),
        "NFKD" => Ok(Stage::Nfkd),
        "Lowercase" => Ok(Stage::Lowercase),
        "Prepend" => Ok(Stage::Prepend(short(text_field("normalizer", component, "prepend")?)?)),
        "Replace" => {
            let from = short(literal_pattern("normalizer", component)?)?;
            Ok(Stage::Replace { from, to: short(text_field("normalizer", component, "content")?)? })
        }
        _ => Err(TextError::unsupported("normalizer", format!("component {kind:?}"))),
    }
}

fn short(text: &str) -> Result<String, TextError> {
    if text.len() > limits::REPLACEMENT_BYTES_MAX {
        return Err(TextError::malformed(
            "normalizer",
            format!("{} bytes of replacement, more than {}", text.len(), limits::REPLACEMENT_BYTES_MAX),
        ));
    }
    Ok(text.to_string())
}

impl Stage {
    /// The changed text, or nothing where there is nothing to change.
    fn apply(&self, text: &str) -> Result<Option<String>, TextError> {
        let unless = |normalized: IsNormalized, change: fn(&str) -> String| (normalized != IsNormalized::Yes).then(|| change(text));
        Ok(match self {
            Self::Nfc => unless(is_nfc_quick(text.chars()), |text| text.nfc().collect()),
            Self::Nfd => unless(is_nfd_quick(text.chars()), |text| text.nfd().collect()),
            Self::Nfkc => unless(is_nfkc_quick(text.chars()), |text| text.nfkc().collect()),
            Self::Nfkd => unless(is_nfkd_quick(text.chars()), |text| text.nfkd().collect()),
            // Character by character, as the reference does: a final sigma is not special.
            Self::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
            Self::Prepend(prefix) => (!text.is_empty()).then(|| format!("{prefix}{text}")),
            Self::Replace { from, to } => replace(text, from, to)?,
        })
    }
}

fn replace(text: &str, from: &str, to: &str) -> Result<Option<String>, TextError> {
    let n_matches = if from.is_empty() { 0 } else { text.matches(from).count() };
    let n_bytes = text.len() + n_matches * to.len();
    if n_bytes > 8 * limits::TEXT_BYTES_MAX {
        return Err(TextError::TextTooLong { got: n_bytes, limit: 8 * limits::TEXT_BYTES_MAX });
    }
    Ok((n_matches > 0).then(|| text.replace(from, to)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sequence_of_prepend_and_replace_marks_words() {
        let description = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        let normalizer = Normalizer::new(Some(&description)).unwrap();
        assert_eq!(normalizer.apply("a b").unwrap(), "▁a▁b");
        assert_eq!(normalizer.apply("").unwrap(), "");
    }

    #[test]
    fn nfc_composes_and_leaves_composed_text_alone() {
        let normalizer = Normalizer::new(Some(&json!({"type": "NFC"}))).unwrap();
        assert_eq!(normalizer.apply("e\u{301}").unwrap(), "é");
        assert!(matches!(normalizer.apply("été").unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn unsupported_or_bombing_normalizer_is_refused() {
        for description in [
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            json!({"type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""}),
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(1 << 12)}),
            json!({"type": "Prepend"}),
            json!("NFC"),
        ] {
            assert!(Normalizer::new(Some(&description)).is_err(), "{description}");
        }
    }
}
