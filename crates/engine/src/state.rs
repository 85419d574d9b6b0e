//! Everything an engine knows but its model: who lives, who is scheduled, what is drafted, what was counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::admission::{Admission, Prepared};
use crate::engine::EventSink;
use crate::error::RequestError;
use crate::limits;
use crate::live::{Live, Turn, Work};
use crate::request::{Event, RequestEnd, RequestId, Usage};
use crate::scheduler::{Demand, Readiness, Scheduler, Share};
use crate::sequence::{CacheReading, SequenceId};
use crate::speculation::{DraftRequest, Drafter};
use crate::stats::EngineStats;
use crate::step::caught;

/// The state between steps.
pub(crate) struct EngineState {
    pub(crate) scheduler: Scheduler,
    pub(crate) drafter: Drafter,
    pub(crate) live: BTreeMap<RequestId, Live>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    pub(crate) stats: EngineStats,
    admission: Arc<Admission>,
    /// A row of logits that is being changed; kept for its memory.
    pub(crate) scratch: Vec<f32>,
}

impl EngineState {
    pub(crate) fn new(scheduler: Scheduler, drafter: Drafter, admission: Arc<Admission>) -> Self {
        let (live, deadlines) = (BTreeMap::new(), BTreeSet::new());
        Self { scheduler, drafter, live, deadlines, stats: EngineStats::default(), admission, scratch: Vec::new() }
    }

    /// Lets a request wait that was found sound. Ids are never used twice.
    pub(crate) fn enqueue(&mut self, id: RequestId, prepared: Prepared) {
        let Prepared { request, work } = prepared;
        let cache_reading = match &work {
            Work::Generate(writing) if writing.prompt_scores.is_some() => CacheReading::Forbidden,
            Work::Generate(_) | Work::Embed => CacheReading::Allowed,
        };
        let usage = Usage { n_prompt_tokens: request.prompt.len(), ..Usage::default() };
        self.stats.n_prompt_tokens += usage.n_prompt_tokens as u64;
        self.deadlines.extend(request.deadline.map(|deadline| (deadline, id)));
        let live = Live { deadline: request.deadline, usage, usage_sink: request.usage_sink, work, turn: Turn::Awaited };
        let previous = self.live.insert(id, live);
        assert!(previous.is_none(), "request ids are unique");
        let first = SequenceId { request: id, choice: 0 };
        self.scheduler.enqueue(first, request.prompt, (request.tenant, request.priority), cache_reading);
    }

    /// Ends a request whose stream nobody reads. Its blocks are free at once.
    pub(crate) fn cancel(&mut self, id: RequestId, sink: &mut dyn EventSink) {
        if self.live.contains_key(&id) {
            self.stats.n_cancelled += 1;
            self.end(id, RequestEnd::Cancelled, sink);
        }
    }

    /// Ends a request that cannot go on.
    pub(crate) fn fail(&mut self, id: RequestId, error: RequestError, sink: &mut dyn EventSink) {
        if self.live.contains_key(&id) {
            match error {
                RequestError::DeadlineExceeded => self.stats.n_expired += 1,
                _ => self.stats.n_failed += 1,
            }
            if error == RequestError::Panicked {
                self.quarantine(id);
            }
            sink.send(id, Event::Failed(error));
            self.end(id, RequestEnd::Failed, sink);
        }
    }

    /// Remembers a prompt that panicked.
    fn quarantine(&self, id: RequestId) {
        let Some(live) = self.live.get(&id) else { return };
        // Some choice of the request is still there: the one that panicked.
        let of_request = SequenceId { request: id, choice: 0 }..=SequenceId { request: id, choice: u32::MAX };
        if let Some(sequence) = self.scheduler.first_of(of_request) {
            self.admission.quarantine.record(sequence.tenant, &sequence.token_ids[..live.usage.n_prompt_tokens]);
        }
    }

    /// Ends every request.
    pub(crate) fn fail_all(&mut self, error: &RequestError, sink: &mut dyn EventSink) {
        let ids: Vec<RequestId> = self.live.keys().copied().collect();
        for id in ids {
            self.fail(id, error.clone(), sink);
        }
        self.deadlines.clear();
    }

    /// Forgets a request and reports what it used.
    pub(crate) fn end(&mut self, id: RequestId, end: RequestEnd, sink: &mut dyn EventSink) {
        let Some(mut live) = self.live.remove(&id) else { return };
        // Whose turn never came has used nothing.
        if live.turn == Turn::Awaited {
            live.usage = Usage::default();
        }
        let n_choices = match &live.work {
            Work::Embed => 1,
            Work::Generate(writing) => writing.plan.n_choices,
        };
        for choice in 0..n_choices {
            self.forget(SequenceId { request: id, choice });
        }
        if let Some(deadline) = live.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(usage_sink) = live.usage_sink {
            // Whoever bills may be wrong; the stream must end all the same.
            drop(caught(|| usage_sink.finished(id, live.usage, end)));
        }
        sink.send(id, Event::Finished(live.usage));
    }

    /// Forgets a sequence.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.drafter.forget(id);
    }

    pub(crate) fn n_live(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Ends the requests whose time has come.
    pub(crate) fn expire(&mut self, now: Instant, sink: &mut dyn EventSink) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.fail(id, RequestError::DeadlineExceeded, sink);
        }
    }

    /// Drafts for the running sequences that are about to decode.
    pub(crate) fn draft(&mut self, sink: &dyn EventSink) {
        if !self.drafter.is_on() {
            return;
        }
        let Self { scheduler, live, drafter, .. } = self;
        let mut requests = Vec::with_capacity(scheduler.running().len());
        for &id in scheduler.running() {
            let Some(sequence) = scheduler.sequence(id).filter(|sequence| sequence.n_left() == 1) else { continue };
            let Some(Live { work: Work::Generate(writing), .. }) = live.get(&id.request) else { continue };
            let Some(Some(choice)) = writing.choices.get(id.choice as usize) else { continue };
            // The last token needs no draft behind it, and every draft a position.
            let n_drafts_max = choice.n_left(sequence.token_ids.len()).saturating_sub(1);
            if readiness(id, sink) == Readiness::Ready && choice.n_generated > 0 {
                requests.push(DraftRequest { id, history: &sequence.token_ids, n_drafts_max });
            }
        }
        drafter.draft(requests);
    }

    /// Who computes what next.
    pub(crate) fn plan(&mut self, sink: &mut dyn EventSink) -> Vec<Share> {
        loop {
            let Self { scheduler, live, drafter, .. } = self;
            let demands = |id: SequenceId| Demand {
                readiness: readiness(id, sink),
                n_drafts: drafter.of(id).len(),
                n_tokens_max: n_tokens_max(live.get(&id.request)),
            };
            let n_live = live.len();
            let mut plan = scheduler.schedule(&demands);
            plan.retain(|share| self.take_turn(share.id.request, sink));
            // Where all that were planned could not even begin, others have the step.
            if !plan.is_empty() || self.live.len() == n_live {
                return plan;
            }
        }
    }

    /// Makes what a request needs to be computed, if this is its first time. Whether it can be computed.
    fn take_turn(&mut self, id: RequestId, sink: &mut dyn EventSink) -> bool {
        let Some(live) = self.live.get_mut(&id) else { return false };
        if live.turn == Turn::Begun {
            return true;
        }
        live.turn = Turn::Begun;
        sink.began(id);
        let tokenizer = self.admission.tokenizer.as_ref();
        let begun = match &mut live.work {
            Work::Embed => Ok(Ok(())),
            Work::Generate(writing) => caught(|| writing.begin(tokenizer)).map(|begun| begun.map_err(|error| error.to_string())),
        };
        let error = match begun {
            Ok(Ok(())) => return true,
            Ok(Err(reason)) => RequestError::Begin { reason },
            Err(panicked) => panicked,
        };
        self.fail(id, error, sink);
        false
    }

    /// Counts and levels.
    pub(crate) fn stats(&self) -> EngineStats {
        let (pool, counts) = (self.scheduler.pool(), self.scheduler.counts());
        EngineStats {
            n_running: self.scheduler.running().len(),
            n_waiting: self.scheduler.n_waiting(),
            n_blocks: pool.n_blocks(),
            n_used_blocks: pool.n_used(),
            n_idle_blocks: pool.n_idle(),
            n_prefix_queried_tokens: counts.n_queried_tokens,
            n_prefix_hit_tokens: counts.n_hit_tokens,
            n_preemptions: counts.n_preemptions,
            ..self.stats.clone()
        }
    }
}

fn readiness(id: SequenceId, sink: &dyn EventSink) -> Readiness {
    if sink.has_room(id.request) { Readiness::Ready } else { Readiness::Parked }
}

/// Most tokens of a request's sequence in one step: rows of logits are bounded.
fn n_tokens_max(live: Option<&Live>) -> usize {
    match live.map(|live| &live.work) {
        Some(Work::Generate(writing)) if writing.prompt_scores.is_some() => limits::N_SCORED_TOKENS_PER_STEP,
        _ => usize::MAX,
    }
}
