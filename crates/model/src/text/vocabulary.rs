//! The vocabulary: tokens by id and ids by text, without an allocation for each token. Texts lie end to end in one buffer; the
//! index is an open-addressing table of ids. A vocabulary of 300,000 loads in milliseconds, which `HashMap<String, u32>` and its
//! inverse do not.

use std::ops::Range;

use ahash::RandomState;

use crate::limits;
use crate::text::TextError;

/// Marks an empty slot of the index; no id reaches it because of `N_VOCAB_MAX`.
const EMPTY: u32 = u32::MAX;

/// A slot of the index. It repeats the span, so that a look-up touches the slot and the text and nothing else: both are cache misses.
#[derive(Clone, Copy)]
struct Slot {
    id: u32,
    start: u32,
    len: u32,
}

const EMPTY_SLOT: Slot = Slot { id: EMPTY, start: 0, len: 0 };

/// Texts and ids; gone through more than once.
pub(super) trait Tokens<'t>: Iterator<Item = (&'t str, u32)> + Clone {}

impl<'t, I: Iterator<Item = (&'t str, u32)> + Clone> Tokens<'t> for I {}

/// Tokens by id and ids by text.
pub(super) struct Vocabulary {
    /// All token texts, end to end.
    texts: String,
    /// Where each id's text lies in `texts`; empty for an id that no token holds.
    spans: Vec<Range<u32>>,
    /// Open addressing; a power of two, at most three quarters full.
    index: Vec<Slot>,
    /// Seeded anew for each vocabulary, so that no file can be built to collide.
    hasher: RandomState,
}

impl Vocabulary {
    /// Builds from the model's tokens, whose texts and ids must be unique, and the added tokens, which may be among them: then
    /// with the same id.
    pub(super) fn new<'t>(model: impl Tokens<'t>, added: impl Tokens<'t>) -> Result<Self, TextError> {
        let all = || model.clone().chain(added.clone());
        let (n_tokens, n_bytes) = all().fold((0, 0), |(n_tokens, n_bytes), (text, _)| (n_tokens + 1, n_bytes + text.len()));
        let n_ids = all().map(|(_, id)| id as usize + 1).max().unwrap_or(0);
        if model.clone().next().is_none() {
            return Err(TextError::malformed("model.vocab", "no tokens"));
        }
        if n_ids > limits::N_VOCAB_MAX.min(n_tokens + limits::N_VOCAB_HOLES_MAX) {
            return Err(TextError::malformed("model.vocab", format!("id {} is out of range for {n_tokens} tokens", n_ids - 1)));
        }
        if u32::try_from(n_bytes).is_err() {
            return Err(TextError::malformed("model.vocab", format!("{n_bytes} bytes of text")));
        }
        let mut vocabulary = Self {
            texts: String::with_capacity(n_bytes),
            spans: vec![0..0; n_ids],
            index: vec![EMPTY_SLOT; (n_tokens * 4 / 3 + 2).next_power_of_two()],
            hasher: RandomState::new(),
        };
        for (text, id) in model {
            vocabulary.insert(text, id)?;
        }
        for (text, id) in added {
            if vocabulary.id(text) != Some(id) {
                vocabulary.insert(text, id)?;
            }
        }
        Ok(vocabulary)
    }

    fn insert(&mut self, text: &str, id: u32) -> Result<(), TextError> {
        if text.is_empty() || text.len() > limits::TOKEN_BYTES_MAX {
            let reason = format!("token {id} is {} bytes long, not in 1..={}", text.len(), limits::TOKEN_BYTES_MAX);
            return Err(TextError::malformed("model.vocab", reason));
        }
        if !self.spans[id as usize].is_empty() {
            let reason = format!("id {id} is given to both {:?} and {text:?}", self.text(id).unwrap_or_default());
            return Err(TextError::malformed("model.vocab", reason));
        }
        let slot = self.slot(text);
        if self.index[slot].id != EMPTY {
            let reason = format!("token {text:?} has both id {} and id {id}", self.index[slot].id);
            return Err(TextError::malformed("model.vocab", reason));
        }
        let start = self.texts.len() as u32;
        self.texts.push_str(text);
        self.spans[id as usize] = start..self.texts.len() as u32;
        self.index[slot] = Slot { id, start, len: text.len() as u32 };
        Ok(())
    }

    /// Where `text` is in the index, or the empty slot where it would be.
    fn slot(&self, text: &str) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        loop {
            let Slot { id, start, len } = self.index[slot];
            let is_same = || len as usize == text.len() && self.texts.as_bytes()[start as usize..][..len as usize] == *text.as_bytes();
            if id == EMPTY || is_same() {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The id of a token.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let id = self.index[self.slot(text)].id;
        (id != EMPTY).then_some(id)
    }

    /// The ids of several tokens: their cache misses overlap, which one look-up after another does not let them.
    pub(super) fn ids<const N: usize>(&self, texts: [&str; N]) -> [Option<u32>; N] {
        let mask = self.index.len() - 1;
        let places = texts.map(|text| self.hasher.hash_one(text) as usize & mask);
        let slots = places.map(|place| self.index[place]);
        let starts = slots.map(|slot| self.texts.as_bytes().get(slot.start as usize).copied());
        std::array::from_fn(|index| {
            // The slot is that of another token if the first byte differs, or seldom the whole text: then look on.
            let (text, Slot { id, start, len }) = (texts[index].as_bytes(), slots[index]);
            let is_same = id != EMPTY
                && len as usize == text.len()
                && starts[index] == text.first().copied()
                && self.texts.as_bytes()[start as usize..][..len as usize] == *text;
            if is_same { Some(id) } else { self.id(texts[index]) }
        })
    }

    /// The text of an id.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let span = self.spans.get(id as usize).filter(|span| !span.is_empty())?;
        self.texts.get(span.start as usize..span.end as usize)
    }

    /// One more than the largest id.
    pub(super) fn n_ids(&self) -> usize {
        self.spans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabulary_finds_ids_by_text_and_texts_by_id() {
        let vocabulary = Vocabulary::new([("a", 0), ("bc", 3), ("é", 1)].into_iter(), [("bc", 3), ("d", 4)].into_iter()).unwrap();
        assert_eq!((vocabulary.id("bc"), vocabulary.id("é"), vocabulary.id("b")), (Some(3), Some(1), None));
        assert_eq!((vocabulary.text(3), vocabulary.text(2), vocabulary.text(9)), (Some("bc"), None, None));
        assert_eq!((vocabulary.n_ids(), vocabulary.text(4)), (5, Some("d")));
        assert_eq!(vocabulary.ids(["d", "x", "", "bc"]), [Some(4), None, None, Some(3)]);
    }

    #[test]
    fn vocabulary_with_bad_tokens_is_refused() {
        let cases: [&[(&str, u32)]; 5] = [&[], &[("a", 0), ("a", 1)], &[("a", 0), ("b", 0)], &[("", 0)], &[("a", u32::MAX), ("b", 0)]];
        for case in cases {
            assert!(matches!(Vocabulary::new(case.iter().copied(), std::iter::empty()), Err(TextError::Malformed { .. })), "{case:?}");
        }
        let disagreeing = Vocabulary::new([("a", 0)].into_iter(), [("a", 1)].into_iter());
        assert!(matches!(disagreeing, Err(TextError::Malformed { .. })));
    }
}
