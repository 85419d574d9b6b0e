//! `Batch`: what the engine hands to a runner — token ids, whose they are, where their keys and values go — and `Step`, the
//! same flattened per token for the walk. Nothing here knows a request.

use thiserror::Error;

use crate::limits::BLOCK_TOKENS;
use crate::rope::{RopeRows, RopeTable};
use crate::token::TokenId;

/// Index of a block of the paged KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// As much of a row of logits as sampling can reach: the `n` largest, all that equal the last of these, and all that are at most
/// `within` below the largest. The others may be given as −∞.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestLogits {
    pub n: usize,
    pub within: f32,
}

impl BestLogits {
    /// The largest, and all that equal it.
    pub const GREATEST: Self = Self { n: 1, within: 0.0 };
}

/// For which of a sequence's tokens in this batch an output row is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rows {
    /// None: an inner chunk of a prompt.
    None,
    /// The last token: a decode step, or the last chunk of a prompt.
    Last,
    /// The last token, and of its logits the best only.
    LastBest(BestLogits),
    /// The last token, and of its logits only which is the largest: greedy decoding. `StepOutput::greedy` says it, `StepOutput::values` has no
    /// row for it, and no logits leave the device.
    LastGreedy,
    /// Every token: perplexity, prompt log-probabilities.
    All,
    /// Every token, and of the logits of each the best only: drafted tokens to be verified.
    AllBest(BestLogits),
}

/// One sequence's part of a batch: the next `n_tokens` of `Batch::token_ids`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSequence {
    /// Tokens of this sequence in the batch, at least 1.
    pub n_tokens: usize,
    /// Position of the first of them; everything before is in the cache.
    pub first_position: usize,
    /// Blocks that hold positions 0.. of this sequence, `BLOCK_TOKENS` each; covers the new tokens too.
    pub block_table: Vec<BlockId>,
    /// Output rows wanted.
    pub rows: Rows,
}

/// One step's work: sequences' tokens one after another.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// All tokens, `[n_tokens]`, sequence by sequence.
    pub token_ids: Vec<TokenId>,
    /// Whose they are, in the same order.
    pub sequences: Vec<BatchSequence>,
}

/// Why a batch cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BatchError {
    #[error("the batch holds no token")]
    Empty,
    #[error("the batch holds {got} tokens; the runner takes at most {limit}")]
    TooManyTokens { got: usize, limit: usize },
    #[error("sequences account for {expected} tokens, the batch holds {got}")]
    TokenCount { expected: usize, got: usize },
    #[error("sequence {sequence} has no token in the batch")]
    EmptySequence { sequence: usize },
    #[error("token id {token_id} is outside the vocabulary of {n_vocab}")]
    TokenOutsideVocabulary { token_id: TokenId, n_vocab: usize },
    #[error("sequence {sequence} reaches position {position}; the model's context is {context_length} tokens")]
    ContextExceeded { sequence: usize, position: usize, context_length: usize },
    #[error("sequence {sequence} needs {expected} cache blocks and names {got}")]
    BlockTableShort { sequence: usize, expected: usize, got: usize },
    #[error("sequence {sequence} names cache block {}, of {n_blocks}", block.0)]
    BlockOutsideCache { sequence: usize, block: BlockId, n_blocks: usize },
}

/// What a runner can take; batches are checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens in one step.
    pub n_tokens_max: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Positions of the model.
    pub context_length: usize,
    /// Blocks in the cache.
    pub n_blocks: usize,
}

impl Batch {
    /// Checks every count, id and position, so that the walk and the devices can index without asking.
    pub fn validate(&self, limits: BatchLimits) -> Result<(), BatchError> {
        let got = self.token_ids.len();
        if got == 0 {
            return Err(BatchError::Empty);
        }
        if got > limits.n_tokens_max {
            return Err(BatchError::TooManyTokens { got, limit: limits.n_tokens_max });
        }
        let expected = self.sequences.iter().fold(0usize, |total, sequence| total.saturating_add(sequence.n_tokens));
        if expected != got {
            return Err(BatchError::TokenCount { expected, got });
        }
        if let Some(&token_id) = self.token_ids.iter().find(|token_id| token_id.index() >= limits.n_vocab) {
            return Err(BatchError::TokenOutsideVocabulary { token_id, n_vocab: limits.n_vocab });
        }
        self.sequences.iter().enumerate().try_for_each(|(index, sequence)| sequence.validate(index, limits))
    }

    /// Output rows that this batch asks for.
    pub fn n_rows(&self) -> usize {
        self.sequences.iter().map(BatchSequence::n_rows).sum()
    }
}

impl BatchSequence {
    /// Output rows that this sequence asks for.
    pub fn n_rows(&self) -> usize {
        match self.rows {
            Rows::None => 0,
            Rows::Last | Rows::LastBest(_) | Rows::LastGreedy => 1,
            Rows::All | Rows::AllBest(_) => self.n_tokens,
        }
    }

    fn validate(&self, sequence: usize, limits: BatchLimits) -> Result<(), BatchError> {
        if self.n_tokens == 0 {
            return Err(BatchError::EmptySequence { sequence });
        }
        let end = self.first_position.saturating_add(self.n_tokens);
        if end > limits.context_length {
            return Err(BatchError::ContextExceeded { sequence, position: end - 1, context_length: limits.context_length });
        }
        let expected = end.div_ceil(BLOCK_TOKENS);
        if self.block_table.len() < expected {
            return Err(BatchError::BlockTableShort { sequence, expected, got: self.block_table.len() });
        }
        match self.block_table.iter().find(|block| block.0 as usize >= limits.n_blocks) {
            Some(&block) => Err(BatchError::BlockOutsideCache { sequence, block, n_blocks: limits.n_blocks }),
            None => Ok(()),
        }
    }
}

/// A validated batch, flattened per token. Buffers are kept from step to step.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Token ids, `[n_tokens]`.
    pub token_ids: Vec<TokenId>,
    /// Position of each token in its sequence, `[n_tokens]`.
    pub positions: Vec<usize>,
    /// Index into `block_tables` of each token's sequence, `[n_tokens]`.
    pub sequences: Vec<usize>,
    /// Block table of each sequence.
    pub block_tables: Vec<Vec<BlockId>>,
    /// Tokens whose output row is wanted, ascending.
    pub output_tokens: Vec<usize>,
    /// How much of the logits of each of those is wanted; all of them for `None`.
    pub wanted: Vec<Option<BestLogits>>,
    /// Whether the logits of each of those leave the device.
    pub has_values: Vec<bool>,
    /// Rotary angles of each token.
    pub rope: RopeRows,
}

impl Step {
    /// Tokens in this step.
    pub fn n_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Refills the step from a batch that `validate` has passed.
    pub fn fill(&mut self, batch: &Batch, rope: &RopeTable) {
        self.token_ids.clear();
        self.token_ids.extend_from_slice(&batch.token_ids);
        self.positions.clear();
        self.sequences.clear();
        self.output_tokens.clear();
        self.wanted.clear();
        self.has_values.clear();
        self.block_tables.resize_with(batch.sequences.len(), Vec::new);
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let first_token = self.positions.len();
            self.positions.extend(sequence.first_position..sequence.first_position + sequence.n_tokens);
            self.sequences.extend(std::iter::repeat_n(index, sequence.n_tokens));
            self.block_tables[index].clone_from(&sequence.block_table);
            let end = self.positions.len();
            match sequence.rows {
                Rows::None => {}
                Rows::Last | Rows::LastBest(_) | Rows::LastGreedy => self.output_tokens.push(end - 1),
                Rows::All | Rows::AllBest(_) => self.output_tokens.extend(first_token..end),
            }
            let wanted = match sequence.rows {
                Rows::LastBest(best) | Rows::AllBest(best) => Some(best),
                Rows::LastGreedy => Some(BestLogits::GREATEST),
                Rows::None | Rows::Last | Rows::All => None,
            };
            self.wanted.resize(self.output_tokens.len(), wanted);
            self.has_values.resize(self.output_tokens.len(), sequence.rows != Rows::LastGreedy);
        }
        rope.fill(&self.positions, &mut self.rope);
    }

    /// Whether of all outputs, of which there are up to `n_rows_max`, only the most likely token is asked for.
    pub(crate) fn wants_tokens_alone(&self, n_rows_max: usize) -> bool {
        (1..=n_rows_max).contains(&self.output_tokens.len()) && !self.has_values.contains(&true)
    }

    /// Where the key and value of `token` lie: block and row within the block.
    pub fn slot(&self, token: usize) -> (BlockId, usize) {
        let position = self.positions[token];
        (self.block_tables[self.sequences[token]][position / BLOCK_TOKENS], position % BLOCK_TOKENS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits { n_tokens_max: 8, n_vocab: 100, context_length: 40, n_blocks: 4 };

    fn batch(n_tokens: usize, first_position: usize, blocks: u32) -> Batch {
        let block_table = (0..blocks).map(BlockId).collect();
        Batch {
            token_ids: vec![TokenId(1); n_tokens],
            sequences: vec![BatchSequence { n_tokens, first_position, block_table, rows: Rows::Last }],
        }
    }

    #[test]
    fn batch_outside_its_limits_is_refused_by_name() {
        assert_eq!(batch(3, 30, 3).validate(LIMITS), Ok(()));
        assert_eq!(Batch::default().validate(LIMITS), Err(BatchError::Empty));
        assert!(matches!(batch(9, 0, 3).validate(LIMITS), Err(BatchError::TooManyTokens { .. })));
        assert!(matches!(batch(8, 33, 4).validate(LIMITS), Err(BatchError::ContextExceeded { position: 40, .. })));
        assert!(matches!(batch(8, 30, 1).validate(LIMITS), Err(BatchError::BlockTableShort { .. })));
        assert!(matches!(batch(1, 0, 5).validate(LIMITS), Err(BatchError::BlockOutsideCache { .. })));
        assert!(matches!(batch(1, usize::MAX, 4).validate(LIMITS), Err(BatchError::ContextExceeded { .. })));
        let mut wrong = batch(2, 0, 1);
        wrong.token_ids[1] = TokenId(100);
        assert!(matches!(wrong.validate(LIMITS), Err(BatchError::TokenOutsideVocabulary { .. })));
        wrong.sequences[0].n_tokens = 1;
        assert!(matches!(wrong.validate(LIMITS), Err(BatchError::TokenCount { expected: 1, got: 2 })));
        wrong.sequences.push(BatchSequence { n_tokens: 0, ..wrong.sequences[0].clone() });
        wrong.token_ids.truncate(1);
        assert!(matches!(wrong.validate(LIMITS), Err(BatchError::EmptySequence { sequence: 1 })));
    }
}
