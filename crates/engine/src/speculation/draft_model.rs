//! Drafts from a smaller model of the same vocabulary, on a runner and a cache of its own. All sequences are drafted for together: one
//! step that catches up with what was written since, then one step for each further token. Greedy, whatever the request's sampling:
//! a guess needs no generator. A failure here costs drafts, never a request.

use std::collections::BTreeMap;

use bitnet_model::batch::{Batch, BatchSequence, BestLogits, BlockId, Rows};
use bitnet_model::{Runner, TokenId};

use crate::block_pool::blocks_for;
use crate::sequence::SequenceId;
use crate::speculation::DraftRequest;
use crate::step::guarded_step;

const GREEDY: Rows = Rows::LastBest(BestLogits::GREATEST);

/// What the draft model has of a sequence.
#[derive(Default)]
struct Follower {
    /// Tokens whose keys and values it has; some may be guesses that came out otherwise.
    computed: Vec<TokenId>,
    block_table: Vec<BlockId>,
    /// A step with it failed: it gets no more drafts.
    is_excluded: bool,
}

/// The draft model.
pub(crate) struct DraftModel {
    runner: Box<dyn Runner>,
    free: Vec<BlockId>,
    followers: BTreeMap<SequenceId, Follower>,
}

/// A sequence in the round of drafts being made.
struct Guess {
    id: SequenceId,
    n_wanted: usize,
    /// Tokens to compute next, and how many come before them.
    next: Vec<TokenId>,
    n_before: usize,
    rows: Rows,
    drafted: Vec<TokenId>,
}

impl DraftModel {
    pub(crate) fn new(runner: Box<dyn Runner>) -> Self {
        let free = (0..runner.limits().n_blocks as u32).rev().map(BlockId).collect();
        Self { runner, free, followers: BTreeMap::new() }
    }

    pub(super) fn draft(&mut self, requests: &[DraftRequest<'_>], drafts: &mut BTreeMap<SequenceId, Vec<TokenId>>) {
        let mut n_left = self.runner.limits().n_tokens_max;
        let mut guesses: Vec<Guess> = requests.iter().filter_map(|request| self.begin(request, &mut n_left)).collect();
        while !guesses.is_empty() {
            if self.step(&mut guesses).is_none() {
                for guess in &guesses {
                    self.followers.entry(guess.id).or_default().is_excluded = true;
                }
                return;
            }
            let is_done = |guess: &Guess| guess.drafted.len() == guess.n_wanted || guess.rows == Rows::None;
            let (done, left) = guesses.into_iter().partition(is_done);
            let done: Vec<Guess> = done;
            drafts.extend(done.into_iter().map(|guess| (guess.id, guess.drafted)));
            guesses = left;
        }
    }

    pub(super) fn forget(&mut self, id: SequenceId) {
        if let Some(follower) = self.followers.remove(&id) {
            self.free.extend(follower.block_table);
        }
    }

    /// Makes room, and takes as much of what the follower lacks as fits the step.
    fn begin(&mut self, request: &DraftRequest<'_>, n_left: &mut usize) -> Option<Guess> {
        let history = request.history;
        let n_positions = history.len() + request.n_drafts_max - 1;
        let follower = self.followers.entry(request.id).or_default();
        if follower.is_excluded || n_positions > self.runner.limits().context_length || *n_left == 0 {
            return None;
        }
        let n_missing = blocks_for(n_positions).saturating_sub(follower.block_table.len());
        if n_missing > self.free.len() {
            return None;
        }
        follower.block_table.extend(self.free.drain(self.free.len() - n_missing..));
        let n_same = follower.computed.iter().zip(history).take_while(|(computed, actual)| computed == actual).count();
        // The last token is always computed: what follows it is the question.
        let n_before = n_same.min(history.len() - 1);
        follower.computed.truncate(n_before);
        let end = history.len().min(n_before + *n_left);
        *n_left -= end - n_before;
        let rows = if end == history.len() { GREEDY } else { Rows::None };
        let (id, n_wanted) = (request.id, request.n_drafts_max);
        Some(Guess { id, n_wanted, next: history[n_before..end].to_vec(), n_before, rows, drafted: Vec::new() })
    }

    /// Computes every guess's next tokens and takes down what the model would write. `None` if that failed.
    fn step(&mut self, guesses: &mut [Guess]) -> Option<()> {
        let mut batch = Batch::default();
        for guess in guesses.iter() {
            let block_table = self.followers.get(&guess.id)?.block_table.clone();
            batch.token_ids.extend_from_slice(&guess.next);
            batch.sequences.push(BatchSequence {
                n_tokens: guess.next.len(),
                first_position: guess.n_before,
                block_table,
                rows: guess.rows,
            });
        }
        let output = guarded_step(&mut *self.runner, &batch).ok()?;
        let mut greedy = output.greedy.iter();
        for guess in guesses {
            guess.n_before += guess.next.len();
            self.followers.get_mut(&guess.id)?.computed.append(&mut guess.next);
            if guess.rows == GREEDY {
                let &token_id = greedy.next()?;
                guess.drafted.push(token_id);
                guess.next.push(token_id);
            }
        }
        Some(())
    }
}
