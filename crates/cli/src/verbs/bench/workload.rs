//! What a bench runs: prompts to read, or tokens to write, for some sequences at once. The runner is driven as the engine drives it:
//! every sequence has blocks of its own, and all that write share each step.

use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::{Runner, RunnerError, TokenId};

/// Greedy decoding: which logit is the largest is enough, and is exact.
const GREEDY: Rows = Rows::LastGreedy;

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) kind: Kind,
    /// Sequences at once.
    pub(super) n_sequences: usize,
}

/// Reading or writing, and how many tokens of each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Prompt(usize),
    Generate(usize),
}

impl Workload {
    /// Tokens of all sequences.
    pub(super) fn n_tokens(self) -> usize {
        match self.kind {
            Kind::Prompt(n_tokens) | Kind::Generate(n_tokens) => n_tokens * self.n_sequences,
        }
    }

    /// As llama-bench names it, and the number of sequences if there are several.
    pub(super) fn name(self) -> String {
        let test = match self.kind {
            Kind::Prompt(n_tokens) => format!("pp{n_tokens}"),
            Kind::Generate(n_tokens) => format!("tg{n_tokens}"),
        };
        if self.n_sequences == 1 { test } else { format!("{test} b{}", self.n_sequences) }
    }

    /// Runs it once, from empty sequences.
    pub(super) fn run(self, runner: &mut dyn Runner) -> Result<(), RunnerError> {
        match self.kind {
            Kind::Prompt(n_tokens) => {
                let n_tokens_max = runner.limits().n_tokens_max;
                let chunks = (0..n_tokens).step_by(n_tokens_max).map(|first| first..n_tokens.min(first + n_tokens_max));
                for (sequence, chunk) in (0..self.n_sequences).flat_map(|sequence| chunks.clone().map(move |chunk| (sequence, chunk))) {
                    let rows = if chunk.end == n_tokens { GREEDY } else { Rows::None };
                    runner.step(&self.batch(runner, sequence..sequence + 1, chunk, rows))?;
                }
            }
            Kind::Generate(n_tokens) => {
                for position in 0..n_tokens {
                    runner.step(&self.batch(runner, 0..self.n_sequences, position..position + 1, GREEDY))?;
                }
            }
        }
        Ok(())
    }

    /// Positions `positions` of every one of `sequences`. Token ids are arbitrary: values do not change speed.
    fn batch(self, runner: &dyn Runner, sequences: std::ops::Range<usize>, positions: std::ops::Range<usize>, rows: Rows) -> Batch {
        let n_vocab = runner.config().n_vocab as u64;
        let n_blocks = runner.limits().n_blocks / self.n_sequences;
        let block_table = |sequence: usize| {
            let first = sequence * n_blocks;
            (first..first + positions.end.div_ceil(BLOCK_TOKENS)).map(|block| BlockId(block as u32)).collect()
        };
        let sequence = |sequence| BatchSequence {
            n_tokens: positions.len(),
            first_position: positions.start,
            block_table: block_table(sequence),
            rows,
        };
        let token = |sequence: usize, position: usize| TokenId(((sequence as u64 * 104_729 + position as u64 * 7919) % n_vocab) as u32);
        Batch {
            token_ids: sequences.clone().flat_map(|index| positions.clone().map(move |position| token(index, position))).collect(),
            sequences: sequences.map(sequence).collect(),
        }
    }
}

/// Blocks that a sequence of `n_context` tokens fills.
pub(super) fn blocks_of_a_sequence(n_context: usize) -> usize {
    n_context.div_ceil(BLOCK_TOKENS)
}
