//! JSON values that are a text or a list, as both APIs write contents, prompts and stop strings. Read with visitors and not as
//! untagged enums, so that an error inside still knows its path, and a value of a third kind is refused by name.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text, or a list of `T`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TextOrList<T> {
    /// A text.
    Text(String),
    /// A list.
    List(Vec<T>),
}

struct TextOrListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrListVisitor<T> {
    type Value = TextOrList<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or a list")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(TextOrList::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(items)).map(TextOrList::List)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrListVisitor(PhantomData))
    }
}

impl TextOrList<String> {
    /// The text alone, or all of the list.
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::Text(text) => vec![text],
            Self::List(list) => list,
        }
    }
}

/// What completions and embeddings read: texts or token ids, one or several.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum PromptInput {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// One prompt as token ids.
    Tokens(Vec<u32>),
    /// Prompts as token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One element of a list of prompts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "not a string, token id or list of token ids")]
enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

struct PromptInputVisitor;

impl<'de> Visitor<'de> for PromptInputVisitor {
    type Value = PromptInput;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a list of strings, a list of token ids, or a list of such lists")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PromptInput, E> {
        Ok(PromptInput::Text(text.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<PromptInput, A::Error> {
        let Some(first) = items.next_element()? else { return Ok(PromptInput::Texts(Vec::new())) };
        fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = vec![first];
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
        match first {
            PromptElement::Text(text) => rest(text, items).map(PromptInput::Texts),
            PromptElement::Token(token) => rest(token, items).map(PromptInput::Tokens),
            PromptElement::Tokens(tokens) => rest(tokens, items).map(PromptInput::TokenLists),
        }
    }
}

impl<'de> Deserialize<'de> for PromptInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptInputVisitor)
    }
}

/// One prompt of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// To be tokenised.
    Text(String),
    /// Tokens already.
    Tokens(Vec<u32>),
}

impl PromptInput {
    /// The prompts in order.
    pub(crate) fn into_prompts(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_of_each_kind_is_read() {
        let read = |json: &str| serde_json::from_str::<PromptInput>(json).map(PromptInput::into_prompts);
        assert_eq!(read(r#""a""#).expect("valid"), [Prompt::Text("a".into())]);
        assert_eq!(read(r#"["a","b"]"#).expect("valid").len(), 2);
        assert_eq!(read("[1,2]").expect("valid"), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(read("[[1],[2,3]]").expect("valid").len(), 2);
        assert_eq!(read("[]").expect("valid"), []);
        for wrong in ["1", "{}", "null", "[1,\"a\"]", "[-1]", "[1.5]", "[[\"a\"]]", "[null]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_or_list_of_another_kind_is_refused() {
        let read = |json: &str| serde_json::from_str::<TextOrList<u32>>(json);
        assert_eq!(read("\"a\"").expect("valid"), TextOrList::Text("a".into()));
        assert_eq!(read("[1,2]").expect("valid"), TextOrList::List(vec![1, 2]));
        for wrong in ["1", "{}", "true", "[\"a\"]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
