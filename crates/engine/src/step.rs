//! The second half of a step: the plan becomes a batch, and the batch rows of output. What goes wrong is charged to the request whose
//! work it was: a failed batch is halved until it is known which, and everybody else's part is computed again, which gives the
//! same bits.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bitnet_model::batch::{Batch, BatchSequence, Rows};
use bitnet_model::device::DeviceError;
use bitnet_model::{Runner, RunnerError, StepOutput, TokenId};

use crate::choice::{Choice, LogitsRow};
use crate::engine::{EngineCore, EventSink};
use crate::error::RequestError;
use crate::limits::N_FAILED_IN_TURN_MAX;
use crate::live::Work;
use crate::request::RequestId;
use crate::scheduler::Share;
use crate::state::EngineState;

/// Output rows of one share, `[n_rows, width]`.
#[derive(Clone, Copy)]
pub(crate) struct ShareRows<'a> {
    values: &'a [f32],
    width: usize,
    /// Empty for an embedding model.
    greedy: &'a [TokenId],
}

impl<'a> ShareRows<'a> {
    /// Row by row.
    pub(crate) fn values(self) -> impl Iterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.width)
    }

    /// The last `n` rows, as logits.
    pub(crate) fn last(self, n: usize) -> impl Iterator<Item = LogitsRow<'a>> {
        let first = self.greedy.len() - n;
        let row_values = move |row: usize| self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default();
        (first..).zip(&self.greedy[first..]).map(move |(row, &greedy)| LogitsRow { logits: row_values(row), greedy })
    }
}

impl EngineCore {
    /// Computes a plan, in one batch if all goes well.
    pub(crate) fn run(&mut self, plan: Vec<Share>, sink: &mut dyn EventSink) -> RunEnd {
        let mut parts = vec![plan];
        while let Some(mut part) = parts.pop() {
            part.retain(|share| self.state.live.contains_key(&share.id.request));
            if part.is_empty() {
                continue;
            }
            self.state.fill_batch(&part, &mut self.batch);
            self.state.stats.n_computed_tokens += self.batch.token_ids.len() as u64;
            match guarded_step(&mut *self.runner, &self.batch) {
                Ok(output) => {
                    self.n_failed_in_turn = 0;
                    self.state.apply(&part, (&self.batch, output), sink);
                }
                // Whose work it was does not matter: nobody's goes on.
                Err(error) if is_lost(&error) || self.n_failed_in_turn >= N_FAILED_IN_TURN_MAX => {
                    if is_lost(&error) {
                        self.lose(error, sink);
                    } else {
                        self.fail_all(&error, sink);
                    }
                    return RunEnd::Lost;
                }
                Err(error) => self.isolate(part, error, &mut parts, sink),
            }
        }
        RunEnd::Computed
    }

    /// Fails everybody. A device is lost once: one request hears why, whose error is logged; to the others the engine is broken.
    fn lose(&mut self, error: RequestError, sink: &mut dyn EventSink) {
        if let Some(&first) = self.state.live.keys().next() {
            self.state.fail(first, error, sink);
        }
        self.fail_all(&RequestError::Broken, sink);
    }

    /// Fails the request that made a step fail if it is known, else sets up smaller steps that will tell.
    fn isolate(&mut self, mut part: Vec<Share>, error: RequestError, parts: &mut Vec<Vec<Share>>, sink: &mut dyn EventSink) {
        if part.iter().any(|share| share.n_drafts > 0) {
            // Perhaps a guess was at fault, for which nobody is to blame.
            part.iter_mut().for_each(|share| share.n_drafts = 0);
            return parts.push(part);
        }
        let mut requests: Vec<RequestId> = part.iter().map(|share| share.id.request).collect();
        requests.sort_unstable();
        requests.dedup();
        let culprit = match (&error, requests.as_slice()) {
            (_, &[only]) => Some(only),
            (RequestError::Runner(RunnerError::NotFinite { row }), _) => self.owner_of_row(&part, *row),
            _ => None,
        };
        match culprit {
            Some(culprit) => {
                self.n_failed_in_turn += usize::from(is_of_device(&error));
                self.state.fail(culprit, error, sink);
                parts.push(part);
            }
            None => {
                let second = &requests[requests.len() / 2..];
                let (first, second): (Vec<Share>, Vec<Share>) = part.into_iter().partition(|share| !second.contains(&share.id.request));
                parts.extend([second, first]);
            }
        }
    }

    fn owner_of_row(&self, part: &[Share], row: usize) -> Option<RequestId> {
        let mut n_rows = 0;
        let mut owners = part.iter().zip(&self.batch.sequences);
        let owner = owners.find(|(_, sequence)| {
            n_rows += sequence.n_rows();
            row < n_rows
        });
        owner.map(|(share, _)| share.id.request)
    }
}

/// How the computing of a plan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Computed,
    /// The device is gone, and with it every request.
    Lost,
}

/// Whether the device said that it failed, and nothing of why.
fn is_of_device(error: &RequestError) -> bool {
    matches!(error, RequestError::Runner(RunnerError::Device(DeviceError::Failed { .. })))
}

/// Whether no step will succeed any more.
fn is_lost(error: &RequestError) -> bool {
    matches!(error, RequestError::Runner(RunnerError::Device(DeviceError::Lost { .. })))
}

/// Rows of values that a sequence gets.
fn n_value_rows(sequence: &BatchSequence) -> usize {
    if sequence.rows == Rows::LastGreedy { 0 } else { sequence.n_rows() }
}

/// A step whose panic is an error.
pub(crate) fn guarded_step<'a>(runner: &'a mut dyn Runner, batch: &Batch) -> Result<&'a StepOutput, RequestError> {
    // A runner refills its buffers in each step, and slots of the cache that a failed step named are written again before they are read.
    Ok(caught(move || runner.step(batch))??)
}

/// Work whose panic is an error. What it leaves half done belongs to a request that is then ended.
pub(crate) fn caught<R>(work: impl FnOnce() -> R) -> Result<R, RequestError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| RequestError::Panicked)
}

impl EngineState {
    /// The batch of a plan.
    fn fill_batch(&self, part: &[Share], batch: &mut Batch) {
        batch.token_ids.clear();
        batch.sequences.resize_with(part.len(), || BatchSequence {
            n_tokens: 0,
            first_position: 0,
            block_table: Vec::new(),
            rows: Rows::None,
        });
        for (share, target) in part.iter().zip(&mut batch.sequences) {
            let Some(sequence) = self.scheduler.sequence(share.id) else { continue };
            let end = sequence.n_computed + share.n_tokens;
            batch.token_ids.extend_from_slice(&sequence.token_ids[sequence.n_computed..end]);
            batch.token_ids.extend(self.drafter.of(share.id).iter().take(share.n_drafts));
            target.n_tokens = share.n_tokens + share.n_drafts;
            target.first_position = sequence.n_computed;
            target.block_table.clear();
            target.block_table.extend_from_slice(&sequence.block_table);
            target.rows = if end == sequence.token_ids.len() { self.rows(share, end) } else { self.inner_rows(share, sequence.n_computed) };
        }
    }

    /// Rows of a share that reaches the sequence's last token, `n_history` tokens from its beginning.
    fn rows(&self, share: &Share, n_history: usize) -> Rows {
        let Some(Work::Generate(writing)) = self.live.get(&share.id.request).map(|live| &live.work) else { return Rows::Last };
        if writing.prompt_scores.is_some() {
            return Rows::All;
        }
        // While one sequence reads the prompt for all choices, its last row is for all of them; they differ in their seeds only.
        let choice = writing.choices.get(share.id.choice as usize).and_then(Option::as_ref);
        if share.n_drafts == 0 && writing.rules.logprobs.is_none() && choice.is_some_and(Choice::is_greedy) {
            return Rows::LastGreedy;
        }
        let reach = choice.and_then(|choice| choice.reach(n_history, share.n_drafts + 1));
        match (reach, share.n_drafts) {
            (None, 0) => Rows::Last,
            (None, _) => Rows::All,
            (Some(best), 0) => Rows::LastBest(best),
            (Some(best), _) => Rows::AllBest(best),
        }
    }

    /// Rows of a share that ends within what is known: of the prompt, or of a text that is computed again.
    fn inner_rows(&self, share: &Share, first_position: usize) -> Rows {
        match self.live.get(&share.id.request).map(|live| &live.work) {
            Some(Work::Generate(writing)) if writing.prompt_scores.is_some() && first_position < writing.n_prompt_tokens => Rows::All,
            _ => Rows::None,
        }
    }

    /// Takes a batch's output.
    fn apply(&mut self, part: &[Share], (batch, output): (&Batch, &StepOutput), sink: &mut dyn EventSink) {
        let (mut values, mut greedy) = (output.values.as_slice(), output.greedy.as_slice());
        for (share, sequence) in part.iter().zip(&batch.sequences) {
            let rows = ShareRows {
                values: values.split_off(..n_value_rows(sequence) * output.width).unwrap_or_default(),
                width: output.width,
                greedy: greedy.split_off(..sequence.n_rows().min(greedy.len())).unwrap_or_default(),
            };
            if let Err(error) = caught(|| self.apply_share(*share, rows, sink)).and_then(|outcome| outcome) {
                self.fail(share.id.request, error, sink);
            }
        }
    }
}
