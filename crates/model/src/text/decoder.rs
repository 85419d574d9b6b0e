//! Decoders: what bytes a token stands for. The components of huggingface/tokenizers (`decoders/*`) rewrite a whole list of token
//! strings; for the decoders that BPE models publish this comes down to fixed bytes for each token and some spaces to drop
//! at the start of the text, so decoding is a table look-up and can go on token by token.
//!
//! One difference is deliberate: bytes that are not UTF-8 become U+FFFD as in `String::from_utf8_lossy`, also where the
//! reference's byte fallback would write one for each byte.

use serde_json::Value;

use crate::limits;
use crate::text::TextError;
use crate::text::byte_level::byte_of;
use crate::text::tokenizer_file::{component_sequence, flag, literal_pattern, text_field};

#[derive(Debug, PartialEq)]
enum Stage {
    /// Characters are bytes.
    ByteLevel,
    /// `<0x0A>` is a byte.
    ByteFallback,
    Replace {
        from: String,
        to: String,
    },
}

/// How token texts become bytes.
#[derive(Debug, PartialEq, Default)]
pub(super) struct Decoder {
    stages: Vec<Stage>,
    /// Which spaces at the start of a text are artefacts of encoding.
    pub(super) artificial_spaces: ArtificialSpaces,
}

/// Spaces at the start of a text that encoding put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ArtificialSpaces {
    #[default]
    None,
    /// One, as component `Strip` says.
    One,
    /// All of the first token, as component `Metaspace` does it.
    FirstToken,
}

impl Decoder {
    /// Reads the `decoder` field. A file without one (which would put a space between all tokens) is refused only where the model
    /// is of another kind; for BPE it is read as "tokens are their text".
    pub(super) fn new(description: Option<&Value>) -> Result<Self, TextError> {
        let mut decoder = Self::default();
        for component in component_sequence("decoder", "decoders", description)? {
            match text_field("decoder", component, "type")? {
                "ByteLevel" => decoder.stages.push(Stage::ByteLevel),
                "ByteFallback" => decoder.stages.push(Stage::ByteFallback),
                "Fuse" => {}
                "Replace" => {
                    let (from, to) = (literal_pattern("decoder", component)?, text_field("decoder", component, "content")?);
                    decoder.push_replacement(from, to)?;
                }
                "Strip" => decoder.push_strip(component)?,
                "Metaspace" => {
                    decoder.push_replacement(text_field("decoder", component, "replacement")?, " ")?;
                    let default = if flag(component, "add_prefix_space").unwrap_or(true) { "always" } else { "never" };
                    if component.get("prepend_scheme").and_then(Value::as_str).unwrap_or(default) != "never" {
                        decoder.artificial_spaces = ArtificialSpaces::FirstToken;
                    }
                }
                kind => return Err(TextError::unsupported("decoder", format!("component {kind:?}"))),
            }
        }
        Ok(decoder)
    }

    fn push_replacement(&mut self, from: &str, to: &str) -> Result<(), TextError> {
        if from.is_empty() || from.len().max(to.len()) > limits::REPLACEMENT_BYTES_MAX {
            return Err(TextError::malformed("decoder", "replacement is empty or too long"));
        }
        self.stages.push(Stage::Replace { from: from.to_string(), to: to.to_string() });
        Ok(())
    }

    /// `{"content": " ", "start": 1, "stop": 0}` after everything is fused.
    fn push_strip(&mut self, component: &Value) -> Result<(), TextError> {
        let number = |key: &str| component.get(key).and_then(Value::as_u64);
        let is_first_space = text_field("decoder", component, "content")? == " " && number("stop") == Some(0);
        match number("start") {
            Some(0) if is_first_space => {}
            Some(1) if is_first_space => self.artificial_spaces = ArtificialSpaces::One,
            _ => return Err(TextError::unsupported("decoder", "a Strip other than of one space at the start")),
        }
        Ok(())
    }

    /// Appends the bytes of a token.
    pub(super) fn push_bytes(&self, text: &str, bytes: &mut Vec<u8>) {
        let mut replaced: Option<String> = None;
        for stage in &self.stages {
            let current = replaced.as_deref().unwrap_or(text);
            match stage {
                Stage::Replace { from, to } => replaced = Some(current.replace(from, to)),
                Stage::ByteFallback => {
                    if let Some(byte) = fallback_byte(current) {
                        return bytes.push(byte);
                    }
                }
                Stage::ByteLevel => {
                    let start = bytes.len();
                    for character in current.chars() {
                        let Some(byte) = byte_of(character) else {
                            // A token of other characters (an added token) stands for itself.
                            bytes.truncate(start);
                            return bytes.extend(current.as_bytes());
                        };
                        bytes.push(byte);
                    }
                    return;
                }
            }
        }
        bytes.extend(replaced.as_deref().unwrap_or(text).as_bytes());
    }
}

/// The byte of a fallback token, such as `<0x0A>`.
fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(description: &Value, text: &str) -> Vec<u8> {
        let mut bytes = vec![];
        Decoder::new(Some(description)).unwrap().push_bytes(text, &mut bytes);
        bytes
    }

    #[test]
    fn byte_level_token_is_its_bytes() {
        assert_eq!(bytes(&json!({"type": "ByteLevel"}), "Ġhi"), b" hi");
        assert_eq!(bytes(&json!({"type": "ByteLevel"}), "<|x y|>"), b"<|x y|>");
    }

    #[test]
    fn sentencepiece_token_is_its_bytes() {
        let description = json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(Decoder::new(Some(&description)).unwrap().artificial_spaces, ArtificialSpaces::One);
        assert_eq!(bytes(&description, "▁hi"), b" hi");
        assert_eq!(bytes(&description, "<0xE2>"), [0xE2]);
        assert_eq!(bytes(&description, "<0x+2>"), b"<0x+2>");
    }

    #[test]
    fn unsupported_decoder_is_refused() {
        for description in [
            json!({"type": "WordPiece"}),
            json!({"type": "CTC"}),
            json!({"type": "Strip", "content": "x", "start": 1, "stop": 0}),
            json!({"type": "Strip", "content": " ", "start": 1u64 << 40, "stop": 9}),
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "y"}),
        ] {
            assert!(Decoder::new(Some(&description)).is_err(), "{description}");
        }
    }
}
