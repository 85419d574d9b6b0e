//! From a share's rows to events: the prompt's end, tokens with their text, drafts that were right, ends.

use bitnet_model::numerics;

use crate::choice::{Drawn, LogitsRow};
use crate::engine::EventSink;
use crate::error::RequestError;
use crate::live::{Progress, Work};
use crate::request::{Event, FinishReason, RequestEnd, RequestId};
use crate::scheduler::Share;
use crate::sequence::SequenceId;
use crate::state::EngineState;
use crate::step::ShareRows;

/// Whether a choice goes on after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Continuation {
    Open,
    Finished,
}

impl EngineState {
    /// Takes the output of one share. An error is the request's.
    pub(crate) fn apply_share(&mut self, share: Share, rows: ShareRows<'_>, sink: &mut dyn EventSink) -> Result<(), RequestError> {
        let Share { id, n_tokens, n_drafts } = share;
        let (Some(live), Some(sequence)) = (self.live.get_mut(&id.request), self.scheduler.sequence(id)) else { return Ok(()) };
        let first = sequence.n_computed;
        let is_last = first + n_tokens == sequence.token_ids.len();
        let Work::Generate(writing) = &mut live.work else {
            self.scheduler.computed(id, n_tokens);
            if is_last {
                self.finish_embedding(id.request, rows, sink);
            }
            return Ok(());
        };
        if let Some(scores) = &mut writing.prompt_scores {
            scores.take(first, rows.values(), &sequence.token_ids[..writing.n_prompt_tokens]);
        }
        let progress = writing.progress;
        self.scheduler.computed(id, n_tokens);
        match progress {
            _ if !is_last => Ok(()),
            Progress::Reading => self.start(id, rows, sink),
            Progress::Writing => self.write(id, n_drafts, rows, sink),
        }
    }

    fn finish_embedding(&mut self, id: RequestId, rows: ShareRows<'_>, sink: &mut dyn EventSink) {
        let first = SequenceId { request: id, choice: 0 };
        if let (Some(live), Some(sequence)) = (self.live.get_mut(&id), self.scheduler.sequence(first)) {
            live.usage.n_cached_tokens = sequence.n_cached;
        }
        if let Some(row) = rows.values().last() {
            // Published embedding models expect length 1, so that a dot product is the cosine.
            let norm = numerics::sum_of_squares(row).sqrt();
            let embedding = row.iter().map(|value| if norm > 0.0 { value / norm } else { *value }).collect();
            sink.send(id, Event::Embedding(embedding));
        }
        self.stats.n_finished += 1;
        self.end(id, RequestEnd::Complete, sink);
    }

    /// The prompt is read: every choice draws its first token from the same row and goes on by itself.
    fn start(&mut self, reader: SequenceId, rows: ShareRows<'_>, sink: &mut dyn EventSink) -> Result<(), RequestError> {
        let id = reader.request;
        let (Some(live), Some(sequence)) = (self.live.get_mut(&id), self.scheduler.sequence(reader)) else { return Ok(()) };
        let Work::Generate(writing) = &mut live.work else { return Ok(()) };
        live.usage.n_cached_tokens = sequence.n_cached;
        writing.progress = Progress::Writing;
        let prompt_logprobs = writing.prompt_scores.take().map(|scores| scores.into_scores());
        sink.send(id, Event::Started { n_cached_tokens: sequence.n_cached, prompt_logprobs });
        let (n_choices, n_tokens_max) = (writing.plan.n_choices, writing.rules.n_tokens_max);
        let n_prompt_tokens = writing.n_prompt_tokens;
        let choices = (0..n_choices).map(|choice| SequenceId { request: id, choice });
        if n_tokens_max == 0 {
            return choices.into_iter().try_for_each(|choice| self.finish_unwritten(choice, sink));
        }
        for choice in choices.clone().skip(1) {
            self.scheduler.fork(reader, choice, n_prompt_tokens);
        }
        for choice in choices {
            let Some(row) = rows.last(1).next() else { return Ok(()) };
            self.draw(choice, row, sink)?;
        }
        Ok(())
    }

    fn finish_unwritten(&mut self, id: SequenceId, sink: &mut dyn EventSink) -> Result<(), RequestError> {
        let Some(Work::Generate(writing)) = self.live.get_mut(&id.request).map(|live| &mut live.work) else { return Ok(()) };
        if let Some(Some(choice)) = writing.choices.get_mut(id.choice as usize) {
            let finish = choice.finish(FinishReason::Length);
            self.finish_choice(id, finish, sink);
        }
        Ok(())
    }

    /// Draws the next token, and as many more as were drafted right.
    fn write(&mut self, id: SequenceId, n_drafts: usize, rows: ShareRows<'_>, sink: &mut dyn EventSink) -> Result<(), RequestError> {
        let drafts = self.drafter.of(id)[..n_drafts].to_vec();
        let mut n_accepted = 0;
        for (index, row) in rows.last(n_drafts + 1).enumerate() {
            let (token_id, continuation) = self.draw(id, row, sink)?;
            let is_right = drafts.get(index) == Some(&token_id);
            n_accepted += usize::from(is_right);
            if continuation == Continuation::Finished || !is_right {
                break;
            }
            // The draft's keys and values are this token's.
            self.scheduler.computed(id, 1);
        }
        if n_drafts > 0 {
            self.stats.n_drafted_tokens += n_drafts as u64;
            self.stats.n_accepted_tokens += n_accepted as u64;
            self.drafter.verified(id, n_drafts, n_accepted);
        }
        Ok(())
    }

    /// Draws one token of a choice and tells of it.
    fn draw(
        &mut self,
        id: SequenceId,
        row: LogitsRow<'_>,
        sink: &mut dyn EventSink,
    ) -> Result<(bitnet_model::TokenId, Continuation), RequestError> {
        let gone = RequestError::Panicked;
        let (live, sequence) = (self.live.get_mut(&id.request).ok_or(gone.clone())?, self.scheduler.sequence(id).ok_or(gone.clone())?);
        let Work::Generate(writing) = &mut live.work else { return Err(gone) };
        let choice = writing.choices.get_mut(id.choice as usize).and_then(Option::as_mut).ok_or(gone)?;
        let Drawn { token_id, shown, finish } = choice.draw(row, &sequence.token_ids, &mut self.scratch)?;
        live.usage.n_completion_tokens += 1;
        self.stats.n_completion_tokens += 1;
        if let Some((text, logprob)) = shown {
            sink.send(id.request, Event::Token { choice: id.choice, token_id, text, logprob });
        }
        self.scheduler.append(id, token_id);
        match finish {
            Some(finish) => {
                self.finish_choice(id, finish, sink);
                Ok((token_id, Continuation::Finished))
            }
            None => Ok((token_id, Continuation::Open)),
        }
    }

    fn finish_choice(&mut self, id: SequenceId, (reason, text): (FinishReason, String), sink: &mut dyn EventSink) {
        sink.send(id.request, Event::ChoiceFinished { choice: id.choice, reason, text });
        self.forget(id);
        let Some(Work::Generate(writing)) = self.live.get_mut(&id.request).map(|live| &mut live.work) else { return };
        writing.choices[id.choice as usize] = None;
        if writing.is_complete() {
            self.stats.n_finished += 1;
            self.end(id.request, RequestEnd::Complete, sink);
        }
    }
}
