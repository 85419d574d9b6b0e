//! The `tokenizer.json` format of huggingface/tokenizers, read with bounds: texts are borrowed from the file, component
//! descriptions stay unparsed until their size is known, and truncation and padding (which belong to training batches, and make
//! the reference implementation panic when they contradict each other) are not read at all.

use std::borrow::Cow;
use std::fmt;

use bitnet_checkpoint::tokenizer_json::{GgufBpe, GgufTokenizer};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::limits;
use crate::text::TextError;

/// The file, as far as it is read.
#[derive(Deserialize)]
pub(super) struct TokenizerFile<'f> {
    #[serde(borrow, default)]
    pub(super) added_tokens: Vec<AddedTokenEntry<'f>>,
    #[serde(borrow, default)]
    normalizer: Option<&'f RawValue>,
    #[serde(borrow, default)]
    pre_tokenizer: Option<&'f RawValue>,
    #[serde(borrow, default)]
    post_processor: Option<&'f RawValue>,
    #[serde(borrow, default)]
    decoder: Option<&'f RawValue>,
    #[serde(borrow)]
    pub(super) model: ModelEntry<'f>,
}

#[derive(Deserialize)]
pub(super) struct AddedTokenEntry<'f> {
    pub(super) id: u32,
    #[serde(borrow)]
    pub(super) content: Cow<'f, str>,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(Deserialize)]
pub(super) struct ModelEntry<'f> {
    #[serde(rename = "type", borrow, default)]
    pub(super) kind: Option<Cow<'f, str>>,
    #[serde(default)]
    pub(super) dropout: Option<f64>,
    #[serde(borrow, default)]
    pub(super) unk_token: Option<Cow<'f, str>>,
    #[serde(borrow, default)]
    pub(super) continuing_subword_prefix: Option<Cow<'f, str>>,
    #[serde(borrow, default)]
    pub(super) end_of_word_suffix: Option<Cow<'f, str>>,
    #[serde(default)]
    pub(super) fuse_unk: Option<bool>,
    #[serde(default)]
    pub(super) byte_fallback: Option<bool>,
    #[serde(default)]
    pub(super) ignore_merges: Option<bool>,
    #[serde(borrow)]
    pub(super) vocab: VocabularyEntries<'f>,
    #[serde(borrow, default)]
    pub(super) merges: Vec<MergeEntry<'f>>,
}

/// Component descriptions, parsed.
pub(super) struct Components {
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) decoder: Option<Value>,
}

/// Reads the file's structure.
pub(super) fn parse(json: &[u8]) -> Result<TokenizerFile<'_>, TextError> {
    if json.len() > limits::TOKENIZER_JSON_BYTES_MAX {
        let reason = format!("{} bytes, more than {}", json.len(), limits::TOKENIZER_JSON_BYTES_MAX);
        return Err(TextError::malformed("tokenizer.json", reason));
    }
    let file: TokenizerFile<'_> =
        serde_json::from_slice(json).map_err(|error| TextError::malformed("tokenizer.json", error.to_string()))?;
    match file.model.kind.as_deref() {
        None | Some("BPE") => Ok(file),
        Some(other) => Err(TextError::unsupported("model.type", format!("{other:?}; only BPE vocabularies are run"))),
    }
}

/// The file that a GGUF vocabulary stands for, without writing it.
pub(super) fn from_gguf<'v>(gguf: &'v GgufTokenizer<'v>) -> (Vec<AddedTokenEntry<'v>>, ModelEntry<'v>, Components) {
    let added_tokens = gguf.added_tokens.iter().map(|token| AddedTokenEntry {
        id: token.id,
        content: Cow::Borrowed(token.content),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: token.special,
    });
    let GgufBpe { unk_token, fuse_unk, byte_fallback, ignore_merges, vocab, merges, .. } = &gguf.model;
    let tokens = vocab.iter().zip(0..).filter(|(text, _)| !text.is_empty()).map(|(text, id)| (Cow::Borrowed(text.as_str()), id));
    let merges = merges.iter().map(|(left, right)| MergeEntry { left: Cow::Borrowed(left), right: Cow::Borrowed(right) });
    let model = ModelEntry {
        kind: None,
        dropout: None,
        unk_token: unk_token.map(Cow::Borrowed),
        continuing_subword_prefix: None,
        end_of_word_suffix: None,
        fuse_unk: Some(*fuse_unk),
        byte_fallback: Some(*byte_fallback),
        ignore_merges: Some(*ignore_merges),
        vocab: VocabularyEntries(tokens.collect()),
        merges: merges.collect(),
    };
    let present = |component: &Value| (!component.is_null()).then(|| component.clone());
    let components = Components {
        normalizer: present(&gguf.normalizer),
        pre_tokenizer: present(&gguf.pre_tokenizer),
        post_processor: present(&gguf.post_processor),
        decoder: present(&gguf.decoder),
    };
    (added_tokens.collect(), model, components)
}

impl TokenizerFile<'_> {
    /// Parses the component descriptions.
    pub(super) fn components(&self) -> Result<Components, TextError> {
        Ok(Components {
            normalizer: component("normalizer", self.normalizer)?,
            pre_tokenizer: component("pre_tokenizer", self.pre_tokenizer)?,
            post_processor: component("post_processor", self.post_processor)?,
            decoder: component("decoder", self.decoder)?,
        })
    }
}

fn component(field: &str, description: Option<&RawValue>) -> Result<Option<Value>, TextError> {
    let Some(description) = description else { return Ok(None) };
    if description.get().len() > limits::COMPONENT_JSON_BYTES_MAX {
        return Err(TextError::malformed(
            field,
            format!("{} bytes, more than {}", description.get().len(), limits::COMPONENT_JSON_BYTES_MAX),
        ));
    }
    let value: Value = serde_json::from_str(description.get()).map_err(|error| TextError::malformed(field, error.to_string()))?;
    Ok((!value.is_null()).then_some(value))
}

/// The components of a field, with sequences laid flat.
pub(super) fn component_sequence<'v>(field: &str, list: &str, description: Option<&'v Value>) -> Result<Vec<&'v Value>, TextError> {
    let mut flat = vec![];
    // Last first, since the top of the stack is read next.
    let mut waiting: Vec<&Value> = description.into_iter().collect();
    let mut n_seen = 0;
    while let Some(component) = waiting.pop() {
        n_seen += 1;
        if n_seen > limits::N_COMPONENTS_MAX {
            return Err(TextError::malformed(field, format!("more than {} components", limits::N_COMPONENTS_MAX)));
        }
        if text_field(field, component, "type")? != "Sequence" {
            flat.push(component);
            continue;
        }
        let Some(parts) = component.get(list).and_then(Value::as_array) else {
            return Err(TextError::malformed(field, format!("a Sequence without {list}")));
        };
        waiting.extend(parts.iter().rev().take(limits::N_COMPONENTS_MAX + 1));
    }
    Ok(flat)
}

/// A required string of a component.
pub(super) fn text_field<'v>(field: &str, component: &'v Value, key: &str) -> Result<&'v str, TextError> {
    component.get(key).and_then(Value::as_str).ok_or_else(|| TextError::malformed(format!("{field}.{key}"), "missing or not a string"))
}

/// An optional flag of a component.
pub(super) fn flag(component: &Value, key: &str) -> Option<bool> {
    component.get(key).and_then(Value::as_bool)
}

/// The `pattern` of a replacement, which must be literal.
pub(super) fn literal_pattern<'v>(field: &str, component: &'v Value) -> Result<&'v str, TextError> {
    let pattern = component.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    pattern.ok_or_else(|| TextError::unsupported(format!("{field}.pattern"), "only literal replacement is supported"))
}

/// `vocab`: tokens and ids, in file order.
pub(super) struct VocabularyEntries<'f>(pub(super) Vec<(Cow<'f, str>, u32)>);

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'f>(#[serde(borrow)] Cow<'f, str>);

impl<'de: 'f, 'f> Deserialize<'de> for VocabularyEntries<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabularyEntries<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a BPE vocabulary: an object of token texts and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = vec![];
                while let Some((Text(text), id)) = map.next_entry()? {
                    entries.push((text, id));
                }
                Ok(VocabularyEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// One of `merges`: `"left right"` in older files, `["left", "right"]` in newer ones.
pub(super) struct MergeEntry<'f> {
    pub(super) left: Cow<'f, str>,
    pub(super) right: Cow<'f, str>,
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = MergeEntry<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, merge: &'de str) -> Result<Self::Value, E> {
        let (left, right) = halves(merge)?;
        Ok(MergeEntry { left: Cow::Borrowed(left), right: Cow::Borrowed(right) })
    }

    fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<Self::Value, E> {
        let (left, right) = halves(merge)?;
        Ok(MergeEntry { left: Cow::Owned(left.to_string()), right: Cow::Owned(right.to_string()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut side = || sequence.next_element::<Text<'de>>()?.ok_or_else(|| A::Error::custom("a merge of fewer than two tokens"));
        let (Text(left), Text(right)) = (side()?, side()?);
        if sequence.next_element::<serde::de::IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("a merge of more than two tokens"));
        }
        Ok(MergeEntry { left, right })
    }
}

fn halves<E: serde::de::Error>(merge: &str) -> Result<(&str, &str), E> {
    let halves = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
    halves.ok_or_else(|| E::custom(format!("merge {merge:?} is not two tokens with a space between")))
}

impl<'de: 'f, 'f> Deserialize<'de> for MergeEntry<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}
