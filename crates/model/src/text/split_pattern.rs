//! A pre-tokenizer's pattern, compiled so that it cannot be made to run away.
//!
//! Published patterns are alternations with one construct that automata lack: `\s+(?!\S)`, "whitespace, but leave the last
//! character to the word behind it". Such an alternative is compiled as `\s+` and its match shortened afterwards, so the rest is
//! regular and runs on a lazy DFA (regex-automata) instead of a backtracker. We step the DFA ourselves and count: a pattern
//! that makes the scan super-linear, such as `a*b|a` on a run of `a`, runs out of steps and is an error. Other look-around,
//! back-references and possessive quantifiers are refused when the tokenizer is loaded.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use crate::limits;
use crate::text::TextError;

/// The alternative that is handled outside the automaton, and what it is compiled as.
const WHITESPACE_BUT_THE_LAST: &str = r"\s+(?!\S)";
const WHITESPACE: &str = r"\s+";

/// Steps that remain for one text. Shared by all patterns of a pre-tokenizer.
pub(super) struct Steps {
    left: u64,
    limit: u64,
    text_bytes: usize,
}

impl Steps {
    pub(super) fn for_text(text_bytes: usize) -> Self {
        let limit = (text_bytes as u64 + 64) * limits::PATTERN_STEPS_PER_BYTE_MAX;
        Self { left: limit, limit, text_bytes }
    }

    fn spend(&mut self, n_steps: usize) -> Result<(), TextError> {
        let slow = TextError::PatternTooSlow { text_bytes: self.text_bytes, limit: self.limit };
        self.left = self.left.checked_sub(n_steps as u64).ok_or(slow)?;
        Ok(())
    }
}

/// A compiled pattern.
pub(super) struct SplitPattern {
    /// All alternatives, as one automaton of several patterns.
    all: DFA,
    /// Which of the automaton's patterns is `\s+(?!\S)`.
    whitespace_index: Option<usize>,
    /// The alternatives after `\s+(?!\S)`, tried where that one does not match after all.
    after: Option<DFA>,
    /// States built so far, kept from text to text; two texts at once build their own.
    caches: Mutex<Vec<(Cache, Option<Cache>)>>,
}

struct Scan {
    end: usize,
    alternative: usize,
}

impl SplitPattern {
    /// Compiles a pattern in the syntax of `tokenizer.json`.
    pub(super) fn new(pattern: &str) -> Result<Self, TextError> {
        if pattern.is_empty() || pattern.len() > limits::PATTERN_BYTES_MAX {
            let reason = format!("{} bytes long, not in 1..={}", pattern.len(), limits::PATTERN_BYTES_MAX);
            return Err(TextError::malformed("pre_tokenizer pattern", reason));
        }
        let alternatives = top_level_alternatives(pattern)?;
        let position = alternatives.iter().position(|&alternative| alternative == WHITESPACE_BUT_THE_LAST);
        let Some(position) = position else {
            return Self::compile(&[pattern], None, &[]);
        };
        let (before, after) = (alternatives[..position].join("|"), alternatives[position + 1..].join("|"));
        let mut patterns = vec![];
        if position > 0 {
            patterns.push(before.as_str());
        }
        let whitespace_index = Some(patterns.len());
        patterns.push(WHITESPACE);
        let after: Vec<&str> = if after.is_empty() { vec![] } else { vec![after.as_str()] };
        patterns.extend(&after);
        Self::compile(&patterns, whitespace_index, &after)
    }

    /// Matches `literal` and nothing else.
    pub(super) fn literal(literal: &str) -> Result<Self, TextError> {
        let mut escaped = String::with_capacity(literal.len() * 2);
        for character in literal.chars() {
            if character.is_ascii_punctuation() {
                escaped.push('\\');
            }
            escaped.push(character);
        }
        Self::new(&escaped)
    }

    fn compile(patterns: &[&str], whitespace_index: Option<usize>, after: &[&str]) -> Result<Self, TextError> {
        let all = automaton(patterns)?;
        let after = if after.is_empty() { None } else { Some(automaton(after)?) };
        let pattern = Self { all, whitespace_index, after, caches: Mutex::default() };
        let mut caches = pattern.take_caches();
        if scan(&pattern.all, &mut caches.0, "", 0, &mut Steps::for_text(0))?.is_some() {
            return Err(TextError::unsupported("pre_tokenizer pattern", "it matches the empty text"));
        }
        Ok(pattern)
    }

    /// All matches of the pattern, in order. What lies between them is unmatched.
    pub(super) fn matches(&self, text: &str, steps: &mut Steps, found: &mut Vec<Range<usize>>) -> Result<(), TextError> {
        let mut caches = self.take_caches();
        let outcome = self.matches_with(text, steps, &mut caches, found);
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(caches);
        outcome
    }

    fn take_caches(&self) -> (Cache, Option<Cache>) {
        let kept = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| (self.all.create_cache(), self.after.as_ref().map(DFA::create_cache)))
    }

    fn matches_with(
        &self,
        text: &str,
        steps: &mut Steps,
        caches: &mut (Cache, Option<Cache>),
        found: &mut Vec<Range<usize>>,
    ) -> Result<(), TextError> {
        let mut position = 0;
        while position < text.len() {
            let end = self.match_at(text, position, steps, caches)?;
            if let Some(end) = end.filter(|&end| end > position) {
                found.push(position..end);
                position = end;
            } else {
                position += text[position..].chars().next().map_or(1, char::len_utf8);
            }
        }
        Ok(())
    }

    /// End of the match that starts at `start`.
    fn match_at(
        &self,
        text: &str,
        start: usize,
        steps: &mut Steps,
        caches: &mut (Cache, Option<Cache>),
    ) -> Result<Option<usize>, TextError> {
        let Some(found) = scan(&self.all, &mut caches.0, text, start, steps)? else { return Ok(None) };
        if self.whitespace_index != Some(found.alternative) || found.end == text.len() {
            return Ok(Some(found.end));
        }
        // Text follows, and not whitespace: leave the last character of the run to it.
        let last = text[start..found.end].chars().next_back().map_or(0, char::len_utf8);
        if found.end - last > start {
            return Ok(Some(found.end - last));
        }
        match (&self.after, &mut caches.1) {
            (Some(after), Some(cache)) => Ok(scan(after, cache, text, start, steps)?.map(|found| found.end)),
            _ => Ok(None),
        }
    }
}

fn automaton(patterns: &[&str]) -> Result<DFA, TextError> {
    DFA::builder()
        .configure(
            DFA::config()
                .match_kind(MatchKind::LeftmostFirst)
                .cache_capacity(limits::PATTERN_PROGRAM_BYTES_MAX)
                .skip_cache_capacity_check(false),
        )
        .syntax(syntax::Config::new().nest_limit(64))
        .thompson(thompson::Config::new().nfa_size_limit(Some(limits::PATTERN_PROGRAM_BYTES_MAX)))
        .build_many(patterns)
        .map_err(|error| TextError::unsupported("pre_tokenizer pattern", error.to_string()))
}

/// Runs an automaton anchored at `start`: the leftmost-first match there.
fn scan(automaton: &DFA, cache: &mut Cache, text: &str, start: usize, steps: &mut Steps) -> Result<Option<Scan>, TextError> {
    let gave_up = |reason: String| TextError::unsupported("pre_tokenizer pattern", reason);
    let input = Input::new(text).range(start..).anchored(Anchored::Yes);
    let mut state = automaton.start_state_forward(cache, &input).map_err(|error| gave_up(error.to_string()))?;
    let mut found = None;
    let mut at = start;
    for &byte in &text.as_bytes()[start..] {
        state = automaton.next_state(cache, state, byte).map_err(|error| gave_up(error.to_string()))?;
        if state.is_tagged() {
            if state.is_match() {
                found = Some(Scan { end: at, alternative: automaton.match_pattern(cache, state, 0).as_usize() });
            } else if state.is_dead() {
                steps.spend(at - start + 1)?;
                return Ok(found);
            } else if state.is_quit() {
                return Err(gave_up(format!("it gives up at byte {byte:#04x}")));
            }
        }
        at += 1;
    }
    steps.spend(at - start + 1)?;
    state = automaton.next_eoi_state(cache, state).map_err(|error| gave_up(error.to_string()))?;
    if state.is_match() {
        found = Some(Scan { end: at, alternative: automaton.match_pattern(cache, state, 0).as_usize() });
    }
    Ok(found)
}

/// Splits at the `|` that stand outside every group and class, and refuses what an automaton would read differently from a
/// backtracking engine.
fn top_level_alternatives(pattern: &str) -> Result<Vec<&str>, TextError> {
    let bytes = pattern.as_bytes();
    let (mut n_groups, mut n_classes, mut start, mut position) = (0usize, 0usize, 0, 0);
    let mut alternatives = vec![];
    while position < bytes.len() {
        match bytes[position] {
            b'\\' => position += 1,
            b'[' => n_classes += 1,
            b']' => n_classes = n_classes.saturating_sub(1),
            _ if n_classes > 0 => {}
            b'(' => n_groups += 1,
            b')' => n_groups = n_groups.saturating_sub(1),
            b'|' if n_groups == 0 => {
                alternatives.push(&pattern[start..position]);
                start = position + 1;
            }
            b'+' if is_possessive(bytes, position) => {
                return Err(TextError::unsupported("pre_tokenizer pattern", format!("possessive quantifier at byte {position}")));
            }
            _ => {}
        }
        position += 1;
    }
    alternatives.push(&pattern[start..]);
    let scoped_flags = alternatives.len() > 1 && alternatives.iter().any(|alternative| has_unscoped_flags(alternative));
    if scoped_flags {
        return Err(TextError::unsupported("pre_tokenizer pattern", "flags that are not scoped to a group"));
    }
    Ok(alternatives)
}

/// `x++`, `x*+`, `x?+`, `x{2}+`: the automaton's syntax would read the last as a repetition of the repetition.
fn is_possessive(bytes: &[u8], position: usize) -> bool {
    let Some(before) = position.checked_sub(1) else { return false };
    match bytes[before] {
        b'+' | b'*' | b'?' => !is_escaped(bytes, before),
        b'}' => is_counted_repetition(bytes, before),
        _ => false,
    }
}

fn is_escaped(bytes: &[u8], position: usize) -> bool {
    bytes[..position].iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// The brace at `position` closes `{2,3}` rather than `\p{L}`.
fn is_counted_repetition(bytes: &[u8], position: usize) -> bool {
    let Some(opening) = bytes[..position].iter().rposition(|&byte| byte == b'{') else { return false };
    let is_argument = opening.checked_sub(1).is_some_and(|letter| bytes[letter].is_ascii_alphabetic() && is_escaped(bytes, letter));
    !is_argument && !is_escaped(bytes, opening)
}

/// `(?i)` rather than `(?i:…)`.
fn has_unscoped_flags(alternative: &str) -> bool {
    alternative.split("(?").skip(1).any(|rest| {
        let flags = rest.bytes().take_while(|byte| byte.is_ascii_alphabetic() || *byte == b'-').count();
        flags > 0 && rest.as_bytes().get(flags) == Some(&b')')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn split<'t>(pattern: &str, text: &'t str) -> Vec<&'t str> {
        let mut found = vec![];
        SplitPattern::new(pattern).unwrap().matches(text, &mut Steps::for_text(text.len()), &mut found).unwrap();
        found.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn pattern_of_llama3_splits_words_numbers_and_whitespace() {
        assert_eq!(split(LLAMA3, "Hello   world's 12345!\n\n  x"), ["Hello", "  ", " world", "'s", " ", "123", "45", "!\n\n", " ", " x"]);
        assert_eq!(split(LLAMA3, "a \n \u{A0} "), ["a", " \n", " \u{A0} "]);
        assert_eq!(split(LLAMA3, " 1"), [" ", "1"]);
    }

    #[test]
    fn pattern_without_a_last_alternative_leaves_single_whitespace_unmatched() {
        assert_eq!(split(r"\p{L}+|\s+(?!\S)", "a  b c"), ["a", " ", "b", "c"]);
    }

    #[test]
    fn pattern_beyond_automata_is_refused() {
        for pattern in [r"\p{L}++", r"a?+b", r"(?=a)b", r"(a)\1", r"(?<=a)b", r"a*", r"(?!\S)\s", r"[", r"(?i)a|\s+(?!\S)", r"\p{N}{1,3}+"]
        {
            assert!(matches!(SplitPattern::new(pattern), Err(TextError::Unsupported { .. })), "{pattern}");
        }
        assert!(SplitPattern::new("").is_err());
        assert!(SplitPattern::new(&"a".repeat(limits::PATTERN_BYTES_MAX + 1)).is_err());
        assert!(SplitPattern::new(&format!("{}a{}", "(".repeat(5_000), ")".repeat(5_000))).is_err());
        assert!(SplitPattern::new(r"(\p{L}{1000}){1000}").is_err());
    }

    #[test]
    fn pattern_that_would_backtrack_is_linear_or_refused() {
        let mut found = vec![];
        let nested = SplitPattern::new(r"(a+)+$").unwrap();
        let text = "a".repeat(100_000) + "b";
        assert!(matches!(nested.matches(&text, &mut Steps::for_text(text.len()), &mut found), Err(TextError::PatternTooSlow { .. })));
        let long_lookahead = SplitPattern::new(r"a*c|a").unwrap();
        assert!(matches!(
            long_lookahead.matches(&text, &mut Steps::for_text(text.len()), &mut found),
            Err(TextError::PatternTooSlow { .. })
        ));
        assert_eq!(split(r"\s*[\r\n]+|\s+(?!\S)|\s+", &" ".repeat(100_000)).len(), 1);
    }

    #[test]
    fn literal_with_punctuation_matches_itself() {
        let mut found = vec![];
        SplitPattern::literal("a.+").unwrap().matches("xa.+abc", &mut Steps::for_text(7), &mut found).unwrap();
        assert_eq!(found.as_slice(), std::slice::from_ref(&(1..4)));
    }
}
