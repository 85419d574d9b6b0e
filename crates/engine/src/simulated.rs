//! `SimulatedRunner`: a model that costs nothing, for tests of the scheduler and for measuring what a server adds. Its logits are a
//! function of the whole history, which it can see only through the block table, as a real one: a wrong, stale or foreign block
//! changes them. It can be told to fail, so that faults can be planted.

use std::panic::panic_any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitnet_checkpoint::ModelConfig;
use bitnet_model::batch::{Batch, BatchLimits, BatchSequence, BestLogits, Rows};
use bitnet_model::device::{DeviceDescription, DeviceError};
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::{Runner, RunnerError, StepOutput, TokenId};

/// Logits that stand out of each row; the others are far below.
const N_PEAKS: u64 = 8;

/// What happens when a token is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step panics.
    Panic,
    /// The step reports a failed device.
    Error,
    /// The row of the token is not finite.
    NotFinite,
    /// The device is gone, and every step after it fails too.
    Lost,
}

/// How long steps take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimulatedPace {
    pub per_step: Duration,
    pub per_token: Duration,
}

/// Deterministic logits from a hash of the history.
pub struct SimulatedRunner {
    config: ModelConfig,
    limits: BatchLimits,
    pace: SimulatedPace,
    faults: Vec<(TokenId, Fault)>,
    /// Hash of the history up to each slot, `[n_blocks · BLOCK_TOKENS]`.
    slots: Vec<u64>,
    output: StepOutput,
    n_steps: u64,
    is_lost: bool,
    gate: Arc<Mutex<()>>,
}

impl SimulatedRunner {
    /// A model of this shape (only vocabulary, context and pooling matter) that takes batches within `limits`.
    pub fn new(config: ModelConfig, limits: BatchLimits) -> Self {
        let width = if config.last_token_pooling { config.hidden_size } else { config.n_vocab };
        let output = StepOutput { width, ..StepOutput::default() };
        let slots = vec![0; limits.n_blocks * BLOCK_TOKENS];
        Self {
            config,
            limits,
            pace: SimulatedPace::default(),
            faults: Vec::new(),
            slots,
            output,
            n_steps: 0,
            is_lost: false,
            gate: Arc::default(),
        }
    }

    /// The same, at a pace.
    pub fn with_pace(self, pace: SimulatedPace) -> Self {
        Self { pace, ..self }
    }

    /// The same, that computes no step while somebody holds the gate.
    pub fn with_gate(self, gate: Arc<Mutex<()>>) -> Self {
        Self { gate, ..self }
    }

    /// The same, with a fault whenever `token_id` is computed.
    pub fn with_fault(mut self, token_id: TokenId, fault: Fault) -> Self {
        self.faults.push((token_id, fault));
        self
    }

    /// The first fault that a batch runs into, and the row where it shows.
    fn fault(&self, batch: &Batch) -> Option<(Fault, usize)> {
        let (mut first, mut n_rows) = (0, 0);
        for sequence in &batch.sequences {
            let tokens = &batch.token_ids[first..first + sequence.n_tokens];
            for (index, token_id) in tokens.iter().enumerate() {
                // The row of a token is the last one, or one of one each.
                let row = (index + sequence.n_rows()).checked_sub(sequence.n_tokens);
                let fault = self.faults.iter().find(|(faulty, _)| faulty == token_id).map(|&(_, fault)| fault);
                match (fault, row) {
                    (None, _) | (Some(Fault::NotFinite), None) => {}
                    (Some(fault), row) => return Some((fault, n_rows + row.unwrap_or(0))),
                }
            }
            first += sequence.n_tokens;
            n_rows += sequence.n_rows();
        }
        None
    }

    /// Writes the slots of a sequence's tokens and returns the hash of each token's history.
    fn compute(&mut self, sequence: &BatchSequence, token_ids: &[TokenId]) -> Vec<u64> {
        let slot = |position: usize| sequence.block_table[position / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS;
        let mut hashes = Vec::with_capacity(token_ids.len());
        for (offset, token_id) in token_ids.iter().enumerate() {
            let position = sequence.first_position + offset;
            let before = if position == 0 { 0 } else { self.slots[slot(position - 1)] };
            self.slots[slot(position)] = mix(before ^ mix(u64::from(token_id.0) + 1));
            // The last slot of every earlier block: each holds the hash of all before it, and all must be right.
            let ends = (0..position / BLOCK_TOKENS).map(|block| self.slots[slot(block * BLOCK_TOKENS + BLOCK_TOKENS - 1)]);
            hashes.push(ends.fold(self.slots[slot(position)], |hash, end| mix(hash ^ end)));
        }
        hashes
    }

    fn push_row(&mut self, hash: u64, wanted: Option<BestLogits>) {
        let start = self.output.values.len();
        let width = self.output.width;
        let n_vocab = width as u64;
        if self.config.last_token_pooling {
            self.output.values.extend((0..n_vocab).map(|index| (mix(hash ^ index) % 1000) as f32 / 1000.0 + 0.001));
            return;
        }
        let peak_id = |peak: u64| (mix(hash.wrapping_add(peak)) % n_vocab) as usize;
        let peak_logit = |peak: u64| peak as f32 / 2.0 + (hash >> 60) as f32 / 64.0;
        // Later peaks are higher, and may stand on earlier ones.
        let highest = N_PEAKS - 1;
        if wanted == Some(BestLogits::GREATEST) {
            self.output.values.resize(start + width, f32::NEG_INFINITY);
            self.output.values[start + peak_id(highest)] = peak_logit(highest);
        } else {
            self.output.values.extend((0..n_vocab).map(|id| -12.0 - (mix(hash ^ id) % 997) as f32 / 500.0));
            let row = &mut self.output.values[start..];
            (0..N_PEAKS).for_each(|peak| row[peak_id(peak)] = peak_logit(peak));
            wanted.into_iter().for_each(|best| keep_best(row, best));
        }
        self.output.greedy.push(TokenId(peak_id(highest) as u32));
    }

    fn push_rows(&mut self, sequence: &BatchSequence, hashes: &[u64]) {
        let last = hashes[hashes.len() - 1];
        match sequence.rows {
            Rows::None => {}
            Rows::Last => self.push_row(last, None),
            Rows::LastBest(best) => self.push_row(last, Some(best)),
            Rows::LastGreedy => {
                let n_values = self.output.values.len();
                self.push_row(last, Some(BestLogits::GREATEST));
                self.output.values.truncate(n_values);
            }
            Rows::All => hashes.iter().for_each(|&hash| self.push_row(hash, None)),
            Rows::AllBest(best) => hashes.iter().for_each(|&hash| self.push_row(hash, Some(best))),
        }
    }

    /// Leaves the slots of a batch undefined, as a failed step may.
    fn scramble(&mut self, batch: &Batch) {
        self.n_steps += 1;
        for sequence in &batch.sequences {
            for position in sequence.first_position..sequence.first_position + sequence.n_tokens {
                let block = sequence.block_table[position / BLOCK_TOKENS].0 as usize;
                self.slots[block * BLOCK_TOKENS + position % BLOCK_TOKENS] = mix(self.n_steps);
            }
        }
    }

    fn wait(&self, n_tokens: usize) {
        let duration = self.pace.per_step + self.pace.per_token * u32::try_from(n_tokens).unwrap_or(u32::MAX);
        if !duration.is_zero() {
            std::thread::sleep(duration);
        }
    }
}

impl Runner for SimulatedRunner {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> DeviceDescription {
        DeviceDescription { name: "simulated", isa: "none", n_threads: 1 }
    }

    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn decode_bytes(&self) -> u64 {
        0
    }

    fn step(&mut self, batch: &Batch) -> Result<&StepOutput, RunnerError> {
        batch.validate(self.limits)?;
        drop(self.gate.lock());
        self.wait(batch.token_ids.len());
        self.output.values.clear();
        self.output.greedy.clear();
        let lost = || Err(DeviceError::Lost { reason: "planted".into() }.into());
        if self.is_lost {
            return lost();
        }
        if let Some((fault, row)) = self.fault(batch) {
            self.scramble(batch);
            match fault {
                Fault::Panic => panic_any("planted"),
                Fault::Error => return Err(DeviceError::Failed { reason: "planted".into() }.into()),
                Fault::NotFinite => return Err(RunnerError::NotFinite { row }),
                Fault::Lost => {
                    self.is_lost = true;
                    return lost();
                }
            }
        }
        let mut first = 0;
        for sequence in &batch.sequences {
            let hashes = self.compute(sequence, &batch.token_ids[first..first + sequence.n_tokens]);
            self.push_rows(sequence, &hashes);
            first += sequence.n_tokens;
        }
        Ok(&self.output)
    }
}

/// Gives as −∞ all that a device may give as −∞.
fn keep_best(row: &mut [f32], best: BestLogits) {
    let mut descending = row.to_vec();
    descending.sort_unstable_by(|a, b| b.total_cmp(a));
    let within = descending[0] - best.within;
    let least = descending[best.n.clamp(1, row.len()) - 1].min(within);
    row.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f32::NEG_INFINITY);
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
