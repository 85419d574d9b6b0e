//! Stop strings: ends a stream of text where one of them is complete, and holds back what may yet become one, so that no part of
//! a stop string is ever shown. Each byte costs one step of Knuth–Morris–Pratt for each stop string (Knuth, Morris & Pratt 1977).

use crate::limits;
use crate::text::TextError;

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// Text that can be shown; may be empty.
    Text(String),
    /// The last text, before the stop string of this index.
    Stopped { text: String, stop_index: usize },
}

struct Pattern {
    bytes: Vec<u8>,
    /// For each prefix, the length of its longest proper suffix that is a prefix too.
    fallback: Vec<usize>,
    /// How much of the pattern the text so far ends with.
    n_matched: usize,
}

/// Watches a stream of text for stop strings.
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text that is not shown yet.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Prepares the matcher.
    ///
    /// # Errors
    /// `StopStrings` if there are too many, or one is empty or too long.
    pub fn new(stops: &[String]) -> Result<Self, TextError> {
        let wrong = |reason: String| TextError::StopStrings { reason };
        if stops.len() > limits::N_STOP_STRINGS_MAX {
            return Err(wrong(format!("{} of them, more than {}", stops.len(), limits::N_STOP_STRINGS_MAX)));
        }
        if let Some(stop) = stops.iter().find(|stop| stop.is_empty() || stop.len() > limits::STOP_STRING_BYTES_MAX) {
            return Err(wrong(format!("one is {} bytes long, not in 1..={}", stop.len(), limits::STOP_STRING_BYTES_MAX)));
        }
        Ok(Self { patterns: stops.iter().map(|stop| Pattern::new(stop)).collect(), held: String::new(), stopped: false })
    }

    /// Takes text and gives what can be shown. After a stop, everything is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::Text(String::new());
        }
        let n_before = self.held.len();
        self.held.push_str(text);
        for (index, byte) in text.bytes().enumerate() {
            if let Some((stop_index, n_bytes)) = self.step(byte) {
                // The pattern is whole characters and so is the text, so a match begins at a character's first byte.
                self.held.truncate(n_before + index + 1 - n_bytes);
                self.stopped = true;
                return StopOutcome::Stopped { text: std::mem::take(&mut self.held), stop_index };
            }
        }
        let n_kept = self.patterns.iter().map(|pattern| pattern.n_matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - n_kept);
        StopOutcome::Text(std::mem::replace(&mut self.held, kept))
    }

    /// The stream ended by itself: what was held back can be shown.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that `byte` completes, the longest if several.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut complete: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let n_bytes = pattern.bytes.len();
            if pattern.step(byte) && complete.is_none_or(|(_, longest)| n_bytes > longest) {
                complete = Some((index, n_bytes));
            }
        }
        complete
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut n_matched = 0;
        for index in 1..bytes.len() {
            while n_matched > 0 && bytes[index] != bytes[n_matched] {
                n_matched = fallback[n_matched - 1];
            }
            n_matched += usize::from(bytes[index] == bytes[n_matched]);
            fallback[index] = n_matched;
        }
        Self { bytes, fallback, n_matched: 0 }
    }

    /// Whether `byte` completes the pattern.
    fn step(&mut self, byte: u8) -> bool {
        while self.n_matched > 0 && self.bytes[self.n_matched] != byte {
            self.n_matched = self.fallback[self.n_matched - 1];
        }
        self.n_matched += usize::from(self.bytes[self.n_matched] == byte);
        let is_complete = self.n_matched == self.bytes.len();
        if is_complete {
            self.n_matched = 0;
        }
        is_complete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn stop_string_across_pieces_is_never_shown() {
        let mut matcher = stops(&["</s>", "User:"]);
        assert_eq!(matcher.push("hello <"), StopOutcome::Text("hello ".into()));
        assert_eq!(matcher.push("/b> U"), StopOutcome::Text("</b> ".into()));
        assert_eq!(matcher.push("se"), StopOutcome::Text("".into()));
        assert_eq!(matcher.push("r: x"), StopOutcome::Stopped { text: "".into(), stop_index: 1 });
        assert_eq!(matcher.push("more"), StopOutcome::Text("".into()));
    }

    #[test]
    fn stop_string_that_never_completes_is_shown_at_the_end() {
        let mut matcher = stops(&["aab", "é!"]);
        assert_eq!(matcher.push("xaaaa"), StopOutcome::Text("xaa".into()));
        assert_eq!(matcher.finish(), "aa");
    }

    #[test]
    fn stop_strings_out_of_bounds_are_refused() {
        assert!(StopStrings::new(&[String::new()]).is_err());
        assert!(StopStrings::new(&["x".repeat(limits::STOP_STRING_BYTES_MAX + 1)]).is_err());
        assert!(StopStrings::new(&vec!["x".to_string(); limits::N_STOP_STRINGS_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn stop_strings_in_pieces_equal_a_search_of_the_whole(pieces in prop::collection::vec("[abé]{0,4}", 0..12), wanted in prop::collection::vec("[abé]{1,4}", 1..4)) {
            let whole = pieces.concat();
            let ends = wanted.iter().filter_map(|stop| whole.find(stop.as_str()).map(|start| (start + stop.len(), start)));
            let expected = ends.min().map_or(whole.as_str(), |(_, start)| &whole[..start]);
            let mut matcher = StopStrings::new(&wanted).unwrap();
            let mut shown = String::new();
            for piece in &pieces {
                match matcher.push(piece) {
                    StopOutcome::Text(text) | StopOutcome::Stopped { text, .. } => shown.push_str(&text),
                }
            }
            shown.push_str(&matcher.finish());
            prop_assert_eq!(shown, expected);
        }
    }
}
