//! `Session`: one sequence on one runner, as the command line uses it: prefill, decode, take back. Blocks are handed out in
//! order; sharing them between sequences is the engine's business, not done here.

use crate::batch::{Batch, BatchLimits, BatchSequence, BestLogits, BlockId, Rows};
use crate::limits::BLOCK_TOKENS;
use crate::numerics;
use crate::runner::{Runner, RunnerError};
use crate::token::TokenId;

/// How long an embedding is, as a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingLength {
    /// Scaled to length 1 (a zero vector stays), so that a dot product is the cosine: what published embedding models expect.
    One,
    /// As the model computed it.
    AsComputed,
}

/// One sequence whose keys and values are in the runner's cache.
pub struct Session {
    runner: Box<dyn Runner>,
    history: Vec<TokenId>,
    wanted: Option<BestLogits>,
    batch: Batch,
}

impl Session {
    /// An empty sequence.
    pub fn new(runner: Box<dyn Runner>) -> Self {
        let sequence = BatchSequence { n_tokens: 0, first_position: 0, block_table: Vec::new(), rows: Rows::Last };
        Self { runner, history: Vec::new(), wanted: None, batch: Batch { token_ids: Vec::new(), sequences: vec![sequence] } }
    }

    /// The runner.
    pub fn runner(&self) -> &dyn Runner {
        &*self.runner
    }

    /// From now on, of the logits of a last token only the best are needed; `None`: all of them. The others may be −∞.
    pub fn want(&mut self, best: Option<BestLogits>) {
        self.wanted = best;
    }

    /// The row of a last token.
    fn last(&self) -> Rows {
        self.wanted.map_or(Rows::Last, Rows::LastBest)
    }

    /// Tokens whose keys and values are cached.
    pub fn history(&self) -> &[TokenId] {
        &self.history
    }

    /// Tokens that still fit.
    pub fn n_tokens_left(&self) -> usize {
        self.runner.limits().context_length - self.history.len()
    }

    /// Forgets all but the first `n_tokens`; nothing if there are fewer.
    pub fn truncate(&mut self, n_tokens: usize) {
        self.history.truncate(n_tokens);
    }

    /// Appends `token_ids`, in chunks as large as the runner takes, and returns the output row of the last: logits
    /// `[n_vocab]`, or the hidden state of an embedding model.
    /// Errors: an empty list, an id outside the vocabulary, a full context — found before anything is computed.
    pub fn prefill(&mut self, token_ids: &[TokenId]) -> Result<&[f32], RunnerError> {
        self.check(token_ids)?;
        let chunk = self.runner.limits().n_tokens_max;
        let n_inner = (token_ids.len() - 1) / chunk * chunk;
        let (inner, last) = token_ids.split_at(n_inner);
        for tokens in inner.chunks(chunk) {
            self.step(tokens, Rows::None)?;
        }
        self.step(last, self.last())
    }

    /// Appends one token and returns the logits of the next.
    pub fn decode(&mut self, token_id: TokenId) -> Result<&[f32], RunnerError> {
        self.step(&[token_id], self.last())
    }

    /// Appends `token_ids` and shows every output row to `visit` with its position in `token_ids`.
    pub fn score(&mut self, token_ids: &[TokenId], visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), RunnerError> {
        self.check(token_ids)?;
        let chunk = self.runner.limits().n_tokens_max.min(SCORE_CHUNK);
        let width = self.row_width();
        for (index, tokens) in token_ids.chunks(chunk).enumerate() {
            let rows = self.step(tokens, Rows::All)?;
            rows.chunks_exact(width).enumerate().for_each(|(row, values)| visit(index * chunk + row, values));
        }
        Ok(())
    }

    /// The embedding of `token_ids` by an embedding model: the last token's hidden state after the final norm, `[hidden_size]`.
    /// Forgets whatever was cached before. Errors: those of [`Self::prefill`], and a model that yields logits.
    pub fn embed(&mut self, token_ids: &[TokenId], length: EmbeddingLength) -> Result<Vec<f32>, RunnerError> {
        if !self.runner.config().last_token_pooling {
            return Err(RunnerError::NoPooling);
        }
        self.truncate(0);
        let mut embedding = self.prefill(token_ids)?.to_vec();
        let norm = numerics::sum_of_squares(&embedding).sqrt();
        if length == EmbeddingLength::One && norm > 0.0 {
            embedding.iter_mut().for_each(|value| *value /= norm);
        }
        Ok(embedding)
    }

    fn row_width(&self) -> usize {
        let config = self.runner.config();
        if config.last_token_pooling { config.hidden_size } else { config.n_vocab }
    }

    /// Refuses all of `token_ids` before the first chunk is computed.
    fn check(&self, token_ids: &[TokenId]) -> Result<(), RunnerError> {
        let limits = self.runner.limits();
        let whole = Batch { token_ids: token_ids.to_vec(), sequences: vec![sequence(self.history.len(), token_ids.len(), Rows::None)] };
        let any_length = BatchLimits { n_tokens_max: usize::MAX, ..limits };
        Ok(whole.validate(any_length)?)
    }

    fn step(&mut self, token_ids: &[TokenId], rows: Rows) -> Result<&[f32], RunnerError> {
        self.batch.token_ids.clear();
        self.batch.token_ids.extend_from_slice(token_ids);
        self.batch.sequences[0] = sequence(self.history.len(), token_ids.len(), rows);
        let output = self.runner.step(&self.batch)?;
        self.history.extend_from_slice(token_ids);
        Ok(&output.values)
    }
}

/// Tokens scored in one step: bounds the logits held at once.
const SCORE_CHUNK: usize = 64;

fn sequence(first_position: usize, n_tokens: usize, rows: Rows) -> BatchSequence {
    let n_blocks = first_position.saturating_add(n_tokens).div_ceil(BLOCK_TOKENS);
    BatchSequence { n_tokens, first_position, block_table: (0..n_blocks as u32).map(BlockId).collect(), rows }
}

#[cfg(test)]
mod tests {
    use bitnet_checkpoint::ModelConfig;

    use super::*;
    use crate::batch::BatchError;
    use crate::random::{RandomWeights, small_config};
    use crate::reference::ReferenceDevice;
    use crate::runner::{RunnerOptions, TransformerRunner};

    fn session(last_token_pooling: bool) -> Session {
        let config = ModelConfig { context_length: 40, last_token_pooling, ..small_config() };
        let options = RunnerOptions { n_tokens_max: 8, ..RunnerOptions::single_sequence(64) };
        let runner = TransformerRunner::load(ReferenceDevice, &RandomWeights::new(config, 1), options, &mut |_| {});
        Session::new(Box::new(runner.expect("a random model loads")))
    }

    fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    #[test]
    fn prefill_decode_and_score_agree() {
        let mut session = session(false);
        let prompt = tokens(3..23);
        let mut scored = Vec::new();
        session.score(&prompt, &mut |index, row| scored.push((index, row.to_vec()))).expect("fits");
        assert_eq!(scored.len(), 20);
        session.truncate(0);
        assert_eq!(session.prefill(&prompt).expect("fits"), scored[19].1);
        session.truncate(18);
        assert_eq!(session.decode(prompt[18]).expect("fits"), scored[18].1);
        assert_eq!(session.history(), &prompt[..19]);
        assert_eq!(session.n_tokens_left(), 21);
    }

    #[test]
    fn prefill_that_does_not_fit_is_refused_before_anything_is_computed() {
        let mut session = session(false);
        let error = session.prefill(&tokens(0..41)).expect_err("41 tokens do not fit 40");
        assert!(matches!(error, RunnerError::Batch(BatchError::ContextExceeded { position: 40, .. })));
        assert!(matches!(session.prefill(&[]), Err(RunnerError::Batch(BatchError::Empty))));
        let mut outside = tokens(0..20);
        outside[19] = TokenId(50);
        assert!(matches!(session.prefill(&outside), Err(RunnerError::Batch(BatchError::TokenOutsideVocabulary { .. }))));
        assert!(session.history().is_empty());
    }

    #[test]
    fn embedding_has_length_one_and_does_not_depend_on_the_past() {
        let mut session = session(true);
        let first = session.embed(&tokens(0..11), EmbeddingLength::One).expect("fits");
        session.embed(&tokens(20..33), EmbeddingLength::One).expect("fits");
        assert_eq!(session.embed(&tokens(0..11), EmbeddingLength::One).expect("fits"), first);
        let length: f32 = first.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
        let computed = session.embed(&tokens(0..11), EmbeddingLength::AsComputed).expect("fits");
        let norm = numerics::sum_of_squares(&computed).sqrt();
        assert!(norm > 1.1, "the final norm leaves a length of about √64");
        assert_eq!(computed.iter().map(|value| value / norm).collect::<Vec<_>>(), first);
    }

    #[test]
    fn embedding_by_a_generative_model_is_refused() {
        let mut session = session(false);
        assert_eq!(session.embed(&tokens(0..3), EmbeddingLength::One), Err(RunnerError::NoPooling));
        assert!(session.history().is_empty());
    }
}
