//! What an engine has done and is doing, for metrics. Counters only rise; a server computes rates.

use std::time::Duration;

/// Upper bounds of the buckets of [`EngineStats::step_histogram`], in microseconds; one more bucket takes the rest.
pub const STEP_BUCKETS_US: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Sequences that run, and requests and forks that wait.
    pub n_running: usize,
    pub n_waiting: usize,
    /// Blocks of the KV cache: all, used by sequences, and idle but remembered.
    pub n_blocks: usize,
    pub n_used_blocks: usize,
    pub n_idle_blocks: usize,
    /// Prompt tokens looked up in the prefix cache, and found.
    pub n_prefix_queried_tokens: u64,
    pub n_prefix_hit_tokens: u64,
    /// Sequences that lost their blocks.
    pub n_preemptions: u64,
    /// Prompt tokens of accepted requests, and tokens drawn.
    pub n_prompt_tokens: u64,
    pub n_completion_tokens: u64,
    /// Tokens that steps computed, drafts and recomputations included.
    pub n_computed_tokens: u64,
    /// Tokens drafted and verified, and of these accepted.
    pub n_drafted_tokens: u64,
    pub n_accepted_tokens: u64,
    /// Requests by what became of them.
    pub n_finished: u64,
    pub n_failed: u64,
    pub n_cancelled: u64,
    pub n_expired: u64,
    pub n_refused: u64,
    /// Steps that computed something, their time, and how many took how long ([`STEP_BUCKETS_US`]).
    pub n_steps: u64,
    pub step_time: Duration,
    pub step_histogram: [u64; STEP_BUCKETS_US.len() + 1],
}

impl EngineStats {
    /// Counts and levels of two engines together.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.n_running += other.n_running;
        self.n_waiting += other.n_waiting;
        self.n_blocks += other.n_blocks;
        self.n_used_blocks += other.n_used_blocks;
        self.n_idle_blocks += other.n_idle_blocks;
        self.n_prefix_queried_tokens += other.n_prefix_queried_tokens;
        self.n_prefix_hit_tokens += other.n_prefix_hit_tokens;
        self.n_preemptions += other.n_preemptions;
        self.n_prompt_tokens += other.n_prompt_tokens;
        self.n_completion_tokens += other.n_completion_tokens;
        self.n_computed_tokens += other.n_computed_tokens;
        self.n_drafted_tokens += other.n_drafted_tokens;
        self.n_accepted_tokens += other.n_accepted_tokens;
        self.n_finished += other.n_finished;
        self.n_failed += other.n_failed;
        self.n_cancelled += other.n_cancelled;
        self.n_expired += other.n_expired;
        self.n_refused += other.n_refused;
        self.n_steps += other.n_steps;
        self.step_time += other.step_time;
        self.step_histogram.iter_mut().zip(other.step_histogram).for_each(|(own, other)| *own += other);
        self
    }

    /// Counts a step.
    pub(crate) fn record_step(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = STEP_BUCKETS_US.partition_point(|&bound| bound < micros);
        self.step_histogram[bucket] += 1;
        self.step_time += duration;
        self.n_steps += 1;
    }
}
