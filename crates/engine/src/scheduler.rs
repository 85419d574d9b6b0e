//! Who computes what in a step: decodes first, then drafts where there is room, then chunks of prompts, then new sequences. Pure:
//! no clock, no threads, no model. Source of the shape: vllm-project/vllm `v1/core/sched/scheduler.py` (a sequence is computed
//! up to its last token; prompt and decode are the same thing).
//!
//! Nobody starves. Waiting sequences are admitted one by one in the order of `fair_share`, without overtaking, preempted ones first;
//! running ones have a fixed rank, and when blocks run out the largest rank is preempted. The smallest is never preempted, and
//! alone it fits (that is checked when a request is submitted), so it ends, and the next is the smallest. A preempted sequence
//! is promoted one priority, so that it cannot be preempted for ever by those who come later.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bitnet_model::TokenId;

use crate::block_pool::{BlockPool, blocks_for};
use crate::fair_share::FairShare;
use crate::request::{Priority, TenantSalt};
use crate::sequence::{CacheReading, Rank, Sequence, SequenceId};

/// What a scheduler may hand out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerLimits {
    /// Sequences that run at once.
    pub(crate) n_running: usize,
    /// Tokens of a step; at least `n_running`.
    pub(crate) n_tokens: usize,
    /// Drafted tokens of a step.
    pub(crate) n_draft_tokens: usize,
}

/// What a sequence could use in this step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) readiness: Readiness,
    /// Drafted tokens to verify behind its last.
    pub(crate) n_drafts: usize,
    /// Most tokens at once.
    pub(crate) n_tokens_max: usize,
}

/// Whether a sequence may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Its reader is behind: it waits, and is the first to lose its blocks and its place.
    Parked,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) id: SequenceId,
    /// Known tokens from the first that is not computed.
    pub(crate) n_tokens: usize,
    /// Drafted tokens behind them.
    pub(crate) n_drafts: usize,
}

/// Counts since the beginning.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SchedulerCounts {
    pub(crate) n_preemptions: u64,
    /// Tokens looked up in the prefix cache, and found there.
    pub(crate) n_queried_tokens: u64,
    pub(crate) n_hit_tokens: u64,
}

type Demands<'a> = &'a dyn Fn(SequenceId) -> Demand;

/// Sequences, their order and their blocks.
pub(crate) struct Scheduler {
    limits: SchedulerLimits,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// By rank.
    running: Vec<SequenceId>,
    waiting: Vec<SequenceId>,
    fair_share: FairShare,
    n_admissions: u64,
    counts: SchedulerCounts,
    /// The step being made.
    plan: Vec<Share>,
    n_tokens_left: usize,
}

impl Scheduler {
    pub(crate) fn new(limits: SchedulerLimits, pool: BlockPool) -> Self {
        assert!(limits.n_tokens >= limits.n_running, "every running sequence can decode in every step");
        Self {
            limits,
            pool,
            sequences: BTreeMap::new(),
            running: Vec::new(),
            waiting: Vec::new(),
            fair_share: FairShare::default(),
            n_admissions: 0,
            counts: SchedulerCounts::default(),
            plan: Vec::new(),
            n_tokens_left: 0,
        }
    }

    /// Goes on counting where another left off.
    pub(crate) fn with_counts(self, counts: SchedulerCounts) -> Self {
        Self { counts, ..self }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub(crate) fn counts(&self) -> SchedulerCounts {
        self.counts
    }

    pub(crate) fn running(&self) -> &[SequenceId] {
        &self.running
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// The first sequence in a range of ids.
    pub(crate) fn first_of(&self, ids: RangeInclusive<SequenceId>) -> Option<&Sequence> {
        self.sequences.range(ids).next().map(|(_, sequence)| sequence)
    }

    /// A new sequence waits.
    pub(crate) fn enqueue(&mut self, id: SequenceId, token_ids: Vec<TokenId>, of: (TenantSalt, Priority), cache_reading: CacheReading) {
        assert!(!token_ids.is_empty(), "a sequence has tokens");
        let arrival = self.fair_share.enter(of.0);
        self.sequences.insert(id, Sequence::new(token_ids, of, cache_reading, arrival));
        self.waiting.push(id);
    }

    /// `child` goes on from `parent`'s first `n_tokens` tokens, at once if there is a place and else when there is one.
    pub(crate) fn fork(&mut self, parent: SequenceId, child: SequenceId, n_tokens: usize) {
        let Some(parent) = self.sequences.get(&parent) else { return };
        let mut forked = parent.fork(n_tokens, self.fair_share.enter(parent.tenant));
        let beginning = parent.full_blocks(n_tokens);
        if self.running.len() < self.limits.n_running {
            forked.begin_on(beginning, &mut self.pool);
            self.sequences.insert(child, forked);
            self.run(child);
        } else {
            self.sequences.insert(child, forked);
            self.waiting.push(child);
        }
    }

    /// Forgets a sequence and frees its blocks.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else { return };
        sequence.release(&mut self.pool);
        self.fair_share.leave(sequence.tenant);
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
    }

    /// A drawn token.
    pub(crate) fn append(&mut self, id: SequenceId, token_id: TokenId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.token_ids.push(token_id);
        self.fair_share.charge(sequence.tenant, 1);
    }

    /// Keys and values of `n_tokens` more tokens are in the cache.
    pub(crate) fn computed(&mut self, id: SequenceId, n_tokens: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed(n_tokens, &mut self.pool);
        }
    }

    /// Makes the next step's plan; it stays valid until the next call.
    pub(crate) fn schedule(&mut self, demands: Demands<'_>) -> Vec<Share> {
        self.plan.clear();
        self.n_tokens_left = self.limits.n_tokens;
        self.plan_decodes(demands);
        self.plan_drafts(demands);
        self.plan_prefills(demands);
        self.admit(demands);
        self.plan.clone()
    }

    fn plan_decodes(&mut self, demands: Demands<'_>) {
        for id in self.running.clone() {
            if self.n_left(id) == 1 && demands(id).readiness == Readiness::Ready {
                self.plan_share(id, 1, demands);
            }
        }
    }

    fn plan_drafts(&mut self, demands: Demands<'_>) {
        let mut n_left = self.limits.n_draft_tokens;
        for index in 0..self.plan.len() {
            let id = self.plan[index].id;
            let n_wanted = demands(id).n_drafts.min(n_left).min(self.n_tokens_left);
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            let n_known = sequence.token_ids.len();
            // A draft is a guess: it takes blocks that nobody will miss soon, and preempts nobody.
            while blocks_for(n_known + n_wanted) > sequence.block_table.len() && self.pool.n_available() > self.running.len() {
                sequence.block_table.extend(self.pool.allocate());
            }
            let n_room = sequence.block_table.len() * bitnet_model::limits::BLOCK_TOKENS - n_known;
            let n_drafts = n_wanted.min(n_room);
            self.plan[index].n_drafts = n_drafts;
            n_left -= n_drafts;
            self.n_tokens_left -= n_drafts;
        }
    }

    fn plan_prefills(&mut self, demands: Demands<'_>) {
        for id in self.running.clone() {
            if self.n_left(id) > 1 && demands(id).readiness == Readiness::Ready {
                self.plan_chunk(id, demands);
            }
        }
    }

    fn plan_chunk(&mut self, id: SequenceId, demands: Demands<'_>) {
        let n_tokens = self.n_left(id).min(self.n_tokens_left).min(demands(id).n_tokens_max);
        if n_tokens > 0 {
            self.plan_share(id, n_tokens, demands);
        }
    }

    fn plan_share(&mut self, id: SequenceId, n_tokens: usize, demands: Demands<'_>) {
        if self.n_tokens_left >= n_tokens && self.ensure_blocks(id, n_tokens, demands) {
            self.plan.push(Share { id, n_tokens, n_drafts: 0 });
            self.n_tokens_left -= n_tokens;
        }
    }

    /// Tokens of a running sequence that are not computed; none if it does not run (any more).
    fn n_left(&self, id: SequenceId) -> usize {
        match self.sequences.get(&id) {
            Some(sequence) if self.running.contains(&id) => sequence.n_left(),
            _ => 0,
        }
    }

    /// Room for `n_tokens` more of `id`, if need be at the cost of others. Not if it was itself the one to go.
    fn ensure_blocks(&mut self, id: SequenceId, n_tokens: usize, demands: Demands<'_>) -> bool {
        loop {
            let Some(sequence) = self.sequences.get_mut(&id) else { return false };
            if blocks_for(sequence.n_computed + n_tokens) <= sequence.block_table.len() {
                return true;
            }
            if let Some(block) = self.pool.allocate() {
                sequence.block_table.push(block);
                continue;
            }
            match self.victim(demands) {
                Some(victim) => {
                    self.preempt(victim);
                    if victim == id {
                        return false;
                    }
                }
                None => return false,
            }
        }
    }

    /// Who loses its blocks next: one whose reader is behind, else the largest rank.
    fn victim(&self, demands: Demands<'_>) -> Option<SequenceId> {
        self.parked(demands).or_else(|| self.running.last().copied())
    }

    /// The running sequence of the largest rank whose reader is behind.
    fn parked(&self, demands: Demands<'_>) -> Option<SequenceId> {
        self.running.iter().rev().find(|&&id| demands(id).readiness == Readiness::Parked).copied()
    }

    /// Takes a running sequence's blocks. Its tokens stay; they will be computed again.
    fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.release(&mut self.pool);
        if let Some(rank) = &mut sequence.rank {
            rank.priority = promoted(rank.priority);
        }
        self.counts.n_preemptions += 1;
        self.running.retain(|&other| other != id);
        self.waiting.push(id);
        let planned: usize = self.plan.iter().filter(|share| share.id == id).map(|share| share.n_tokens + share.n_drafts).sum();
        self.n_tokens_left += planned;
        self.plan.retain(|share| share.id != id);
    }

    /// Takes in waiting sequences while there are places, tokens and blocks.
    fn admit(&mut self, demands: Demands<'_>) {
        while self.n_tokens_left > 0
            && let Some(id) = self.next_waiting(demands)
        {
            if self.running.len() == self.limits.n_running || !self.fits(id) {
                let Some(parked) = self.parked(demands) else { return };
                self.preempt(parked);
                continue;
            }
            self.waiting.retain(|&other| other != id);
            self.begin(id);
            self.plan_chunk(id, demands);
        }
    }

    /// Preempted sequences first, by rank; then by fair share.
    fn next_waiting(&self, demands: Demands<'_>) -> Option<SequenceId> {
        let ready = self.waiting.iter().filter(|&&id| demands(id).readiness == Readiness::Ready);
        ready.copied().min_by_key(|id| {
            let sequence = &self.sequences[id];
            let fair = self.fair_share.key(sequence.tenant, sequence.priority, sequence.arrival);
            (sequence.rank.is_none(), sequence.rank, fair, *id)
        })
    }

    /// Whether all of a waiting sequence's tokens and one more would fit beside what running ones still need for theirs.
    fn fits(&self, id: SequenceId) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let need = |sequence: &Sequence| blocks_for(sequence.token_ids.len() + 1).saturating_sub(sequence.block_table.len());
        let promised: usize = self.running.iter().map(|id| need(&self.sequences[id])).sum();
        let sequence = &self.sequences[&id];
        let (cached, _) = sequence.cached_beginning(&self.pool);
        let n_new = need(sequence).saturating_sub(cached.len()) + self.pool.n_idle_among(&cached);
        promised + n_new <= self.pool.n_available()
    }

    /// Lets a waiting sequence run, on whatever of it is cached.
    fn begin(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let beginning = sequence.cached_beginning(&self.pool);
        sequence.begin_on(beginning, &mut self.pool);
        if sequence.rank.is_none() {
            let n_new = sequence.n_left();
            if sequence.cache_reading == CacheReading::Allowed {
                self.counts.n_queried_tokens += sequence.token_ids.len() as u64;
                self.counts.n_hit_tokens += sequence.n_computed as u64;
            }
            sequence.n_cached = sequence.n_computed;
            self.fair_share.charge(sequence.tenant, n_new);
        }
        self.run(id);
    }

    /// Puts a sequence among the running, by rank.
    fn run(&mut self, id: SequenceId) {
        self.n_admissions += 1;
        let admission = self.n_admissions;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let rank = *sequence.rank.get_or_insert(Rank { priority: sequence.priority, admission });
        let place = self.running.partition_point(|other| self.sequences[other].rank < Some(rank));
        self.running.insert(place, id);
    }
}

fn promoted(priority: Priority) -> Priority {
    match priority {
        Priority::Low => Priority::Normal,
        Priority::Normal | Priority::High => Priority::High,
    }
}
