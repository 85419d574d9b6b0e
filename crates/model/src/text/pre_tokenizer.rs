//! Pre-tokenizers: text into words, which merging never crosses. The components and their semantics are those of
//! huggingface/tokenizers (`pre_tokenizers/*`); the ones that no ternary model uses are refused.
//!
//! Words are handed to a sink one by one; nothing tracks where in the text a word came from, since nobody asks.

use std::ops::Range;

use serde_json::Value;

use crate::limits;
use crate::text::TextError;
use crate::text::byte_level::push_encoded;
use crate::text::split_pattern::{SplitPattern, Steps};
use crate::text::tokenizer_file::{component_sequence, flag, text_field};

/// The pattern inside the byte-level component: GPT-2's.
const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const PUNCTUATION_PATTERN: &str = r"[\p{P}!-/:-@\[-`{-~]";

/// What becomes of a match.
#[derive(Clone, Copy, PartialEq)]
enum Behavior {
    Isolated,
    Removed,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

#[derive(Clone, Copy, PartialEq)]
enum Prepend {
    Always,
    First,
    Never,
}

enum Stage {
    Split {
        pattern: Box<SplitPattern>,
        behavior: Behavior,
        invert: bool,
    },
    /// Puts a space before a word that has none.
    PrefixSpace,
    Metaspace {
        replacement: char,
        prepend: Prepend,
        split: bool,
    },
}

/// Where a piece of text stands.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    /// At the very start of the text.
    Start,
    /// Behind other text or an added token.
    Later,
}

/// All stages of a pre-tokenizer.
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
    /// Stages after the byte-level component. They see the byte-level alphabet, in which a byte of a longer character may be a digit.
    encoded_stages: Vec<Stage>,
    /// Words are then written in the byte-level alphabet.
    pub(super) byte_level: bool,
}

/// A word, as it is in the text or already in the byte-level alphabet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Word<'w> {
    Plain(&'w str),
    Encoded(&'w str),
}

impl PreTokenizer {
    /// Reads the `pre_tokenizer` field.
    pub(super) fn new(description: Option<&Value>) -> Result<Self, TextError> {
        let mut pre_tokenizer = Self { stages: vec![], encoded_stages: vec![], byte_level: false };
        for component in component_sequence("pre_tokenizer", "pretokenizers", description)? {
            let kind = text_field("pre_tokenizer", component, "type")?;
            if pre_tokenizer.byte_level && !["Digits", "Split"].contains(&kind) {
                return Err(TextError::unsupported("pre_tokenizer", format!("component {kind:?} after ByteLevel")));
            }
            pre_tokenizer.push(component)?;
        }
        Ok(pre_tokenizer)
    }

    fn push(&mut self, component: &Value) -> Result<(), TextError> {
        let split = |pattern, behavior, invert| {
            Ok::<_, TextError>(Stage::Split { pattern: Box::new(SplitPattern::new(pattern)?), behavior, invert })
        };
        let kind = text_field("pre_tokenizer", component, "type")?;
        let stage = match kind {
            "Split" => split_stage(component)?,
            "ByteLevel" => {
                self.byte_level = true;
                if flag(component, "add_prefix_space").unwrap_or(true) {
                    self.stages.push(Stage::PrefixSpace);
                }
                if !flag(component, "use_regex").unwrap_or(true) {
                    return Ok(());
                }
                split(GPT2_PATTERN, Behavior::Isolated, false)?
            }
            "Digits" if flag(component, "individual_digits").unwrap_or(false) => split(r"\p{N}", Behavior::Isolated, false)?,
            "Digits" => split(r"\p{N}", Behavior::Contiguous, false)?,
            "Punctuation" => split(PUNCTUATION_PATTERN, behavior(component, "Isolated")?, false)?,
            "Whitespace" => split(r"\w+|[^\w\s]+", Behavior::Removed, true)?,
            "WhitespaceSplit" => split(r"\s", Behavior::Removed, false)?,
            "Metaspace" => metaspace_stage(component)?,
            _ => return Err(TextError::unsupported("pre_tokenizer", format!("component {kind:?}"))),
        };
        // The byte-level component splits before it encodes.
        if self.byte_level && kind != "ByteLevel" {
            self.encoded_stages.push(stage)
        } else {
            self.stages.push(stage)
        }
        Ok(())
    }

    /// Hands every word of `text` to `sink`.
    pub(super) fn words(
        &self,
        text: &str,
        place: Place,
        steps: &mut Steps,
        sink: &mut dyn FnMut(Word<'_>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        if self.encoded_stages.is_empty() {
            return run(&self.stages, text, place, steps, &mut |word, _| sink(Word::Plain(word)));
        }
        let mut encoded = String::new();
        run(&self.stages, text, place, steps, &mut |word, steps| {
            encoded.clear();
            push_encoded(word, &mut encoded);
            run(&self.encoded_stages, &encoded, Place::Later, steps, &mut |word, _| sink(Word::Encoded(word)))
        })
    }
}

fn split_stage(component: &Value) -> Result<Stage, TextError> {
    let pattern = match component.get("pattern") {
        Some(Value::Object(pattern)) => match (pattern.get("Regex"), pattern.get("String")) {
            (Some(Value::String(pattern)), None) => SplitPattern::new(pattern)?,
            (None, Some(Value::String(literal))) => SplitPattern::literal(literal)?,
            _ => return Err(TextError::malformed("pre_tokenizer.pattern", "neither Regex nor String")),
        },
        _ => return Err(TextError::malformed("pre_tokenizer.pattern", "not an object")),
    };
    Ok(Stage::Split { pattern: Box::new(pattern), behavior: behavior(component, "")?, invert: flag(component, "invert").unwrap_or(false) })
}

fn behavior(component: &Value, default: &str) -> Result<Behavior, TextError> {
    match component.get("behavior").and_then(Value::as_str).unwrap_or(default) {
        "Isolated" => Ok(Behavior::Isolated),
        "Removed" => Ok(Behavior::Removed),
        "MergedWithPrevious" => Ok(Behavior::MergedWithPrevious),
        "MergedWithNext" => Ok(Behavior::MergedWithNext),
        "Contiguous" => Ok(Behavior::Contiguous),
        other => Err(TextError::malformed("pre_tokenizer.behavior", format!("unknown behavior {other:?}"))),
    }
}

fn metaspace_stage(component: &Value) -> Result<Stage, TextError> {
    let replacement = text_field("pre_tokenizer", component, "replacement")?;
    let mut characters = replacement.chars();
    let (Some(replacement), None) = (characters.next(), characters.next()) else {
        return Err(TextError::malformed("pre_tokenizer.replacement", format!("{replacement:?} is not one character")));
    };
    // Files older than `prepend_scheme` say `add_prefix_space`.
    let default = if flag(component, "add_prefix_space").unwrap_or(true) { "always" } else { "never" };
    let prepend = match component.get("prepend_scheme").and_then(Value::as_str).unwrap_or(default) {
        "always" => Prepend::Always,
        "first" => Prepend::First,
        "never" => Prepend::Never,
        other => return Err(TextError::malformed("pre_tokenizer.prepend_scheme", format!("unknown scheme {other:?}"))),
    };
    Ok(Stage::Metaspace { replacement, prepend, split: flag(component, "split").unwrap_or(true) })
}

fn run(
    stages: &[Stage],
    text: &str,
    place: Place,
    steps: &mut Steps,
    sink: &mut dyn FnMut(&str, &mut Steps) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let Some((stage, later_stages)) = stages.split_first() else {
        return if text.is_empty() { Ok(()) } else { sink(text, steps) };
    };
    match stage {
        Stage::Split { pattern, behavior, invert } => {
            let mut found = vec![];
            pattern.matches(text, steps, &mut found)?;
            each_piece(&pieces(text.len(), &found, *behavior, *invert), text, place, |piece, place| {
                run(later_stages, piece, place, steps, sink)
            })
        }
        Stage::PrefixSpace if text.starts_with(' ') => run(later_stages, text, place, steps, sink),
        Stage::PrefixSpace => run(later_stages, &format!(" {text}"), place, steps, sink),
        Stage::Metaspace { replacement, prepend, split } => {
            let text = metaspace(text, *replacement, *prepend, place);
            let starts = text.match_indices(*replacement).map(|(start, marker)| start..start + marker.len()).collect::<Vec<_>>();
            let ranges = if *split {
                pieces(text.len(), &starts, Behavior::MergedWithNext, false)
            } else {
                std::iter::once(0..text.len()).collect()
            };
            each_piece(&ranges, &text, place, |piece, place| run(later_stages, piece, place, steps, sink))
        }
    }
}

fn each_piece(
    ranges: &[Range<usize>],
    text: &str,
    place: Place,
    mut then: impl FnMut(&str, Place) -> Result<(), TextError>,
) -> Result<(), TextError> {
    for range in ranges {
        let place = if range.start == 0 { place } else { Place::Later };
        then(&text[range.clone()], place)?;
    }
    Ok(())
}

fn metaspace(text: &str, replacement: char, prepend: Prepend, place: Place) -> String {
    let mut replaced = String::with_capacity(text.len() + 8);
    let starts_with_marker = text.starts_with([' ', replacement]);
    let wanted = match prepend {
        Prepend::Always => true,
        Prepend::First => place == Place::Start,
        Prepend::Never => false,
    };
    if wanted && !starts_with_marker {
        replaced.push(replacement);
    }
    replaced.extend(text.chars().map(|character| if character == ' ' { replacement } else { character }));
    replaced
}

/// Cuts `0..len` by the matches found in it.
fn pieces(len: usize, found: &[Range<usize>], behavior: Behavior, invert: bool) -> Vec<Range<usize>> {
    let mut cuts: Vec<(Range<usize>, bool)> = Vec::with_capacity(found.len() * 2 + 1);
    let mut end = 0;
    for range in found {
        if range.start > end {
            cuts.push((end..range.start, invert));
        }
        cuts.push((range.clone(), !invert));
        end = range.end;
    }
    if end < len {
        cuts.push((end..len, invert));
    }
    let mut joined: Vec<(Range<usize>, bool)> = Vec::with_capacity(cuts.len());
    for (range, is_match) in cuts {
        let joins = joined.last().is_some_and(|&(_, before)| match behavior {
            Behavior::Isolated | Behavior::Removed => false,
            Behavior::Contiguous => before == is_match,
            Behavior::MergedWithPrevious => is_match && !before,
            Behavior::MergedWithNext => before && !is_match,
        });
        match joined.last_mut() {
            Some(last) if joins => *last = (last.0.start..range.end, is_match),
            _ => joined.push((range, is_match)),
        }
    }
    joined.into_iter().filter(|(_, is_match)| behavior != Behavior::Removed || !is_match).map(|(range, _)| range).collect()
}

const _: () = assert!(limits::N_COMPONENTS_MAX <= 64, "one frame of recursion for each stage");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(description: &Value, text: &str) -> Vec<String> {
        let mut words = vec![];
        let pre_tokenizer = PreTokenizer::new(Some(description)).unwrap();
        let mut steps = Steps::for_text(text.len());
        pre_tokenizer
            .words(text, Place::Start, &mut steps, &mut |word| {
                let (Word::Plain(word) | Word::Encoded(word)) = word;
                words.push(word.to_string());
                Ok(())
            })
            .unwrap();
        words
    }

    #[test]
    fn split_with_each_behavior_cuts_as_the_reference_documents() {
        let split = |behavior: &str| {
            words(&json!({"type": "Split", "pattern": {"String": "-"}, "behavior": behavior, "invert": false}), "the-final--countdown")
        };
        assert_eq!(split("Removed"), ["the", "final", "countdown"]);
        assert_eq!(split("Isolated"), ["the", "-", "final", "-", "-", "countdown"]);
        assert_eq!(split("MergedWithPrevious"), ["the-", "final-", "-", "countdown"]);
        assert_eq!(split("MergedWithNext"), ["the", "-final", "-", "-countdown"]);
        assert_eq!(split("Contiguous"), ["the", "-", "final", "--", "countdown"]);
    }

    #[test]
    fn metaspace_marks_words_and_the_start() {
        let metaspace = |scheme: &str, split: bool| {
            words(&json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}), "Hey  you")
        };
        assert_eq!(metaspace("always", true), ["▁Hey", "▁", "▁you"]);
        assert_eq!(metaspace("never", false), ["Hey▁▁you"]);
    }

    #[test]
    fn stages_after_byte_level_see_its_alphabet() {
        // As tiiuae/falcon-7b has them.
        let falcon = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            {"type": "Digits", "individual_digits": false},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false},
        ]});
        assert_eq!(words(&falcon, "in 12345, or"), ["in", "Ġ", "123", "45", ",", "Ġor"]);
        // The second byte of this letter is written as a superscript two, which counts as a digit.
        assert_eq!(words(&falcon, "xòy"), ["xÃ", "²", "y"]);
    }

    #[test]
    fn unknown_component_is_refused() {
        for kind in ["BertPreTokenizer", "FixedLength", "UnicodeScripts", "CharDelimiterSplit", "Nonsense"] {
            let refused = PreTokenizer::new(Some(&json!({"type": kind, "length": 0})));
            assert!(matches!(refused, Err(TextError::Unsupported { .. })), "{kind}");
        }
        let after = json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "use_regex": false}, {"type": "WhitespaceSplit"}]});
        assert!(PreTokenizer::new(Some(&after)).is_err());
    }
}
