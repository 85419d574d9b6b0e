//! Tokens of one choice into text that is certain: whole characters, and no beginning of what may become a stop string.

use std::sync::Arc;

use bitnet_model::TokenId;
use bitnet_model::text::{Detokenizer, SpecialTokens, StopOutcome, StopStrings, TextError, Tokenizer};

/// Whether stop strings count yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopWatch {
    On,
    Off,
}

/// Text that came of a token, and the stop string that ended it.
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) stop: Option<String>,
}

/// The text of one choice.
pub(crate) struct TextStream {
    /// Absent for checkpoints without vocabulary: tokens then have no text.
    detokenizer: Option<Detokenizer<Arc<Tokenizer>>>,
    stops: StopStrings,
    stop_strings: Arc<[String]>,
}

impl TextStream {
    /// Nothing yet.
    pub(crate) fn new(tokenizer: Option<&Arc<Tokenizer>>, stop_strings: &Arc<[String]>) -> Result<Self, TextError> {
        let detokenizer = tokenizer.map(|tokenizer| Detokenizer::after_prompt(Arc::clone(tokenizer), SpecialTokens::Skip));
        Ok(Self { detokenizer, stops: StopStrings::new(stop_strings)?, stop_strings: Arc::clone(stop_strings) })
    }

    /// One more token.
    pub(crate) fn push(&mut self, token_id: TokenId, watch: StopWatch) -> Piece {
        let text = self.detokenizer.as_mut().map_or("", |detokenizer| detokenizer.push(token_id));
        match watch {
            StopWatch::On => piece(&self.stop_strings, self.stops.push(text)),
            StopWatch::Off => Piece { text: text.to_string(), stop: None },
        }
    }

    /// The end: what was held back.
    pub(crate) fn finish(&mut self) -> Piece {
        let rest = self.detokenizer.as_mut().map_or("", |detokenizer| detokenizer.finish());
        let mut last = piece(&self.stop_strings, self.stops.push(rest));
        if last.stop.is_none() {
            last.text.push_str(&self.stops.finish());
        }
        last
    }
}

fn piece(stop_strings: &[String], outcome: StopOutcome) -> Piece {
    match outcome {
        StopOutcome::Text(text) => Piece { text, stop: None },
        StopOutcome::Stopped { text, stop_index } => Piece { text, stop: stop_strings.get(stop_index).cloned() },
    }
}
