//! `Runner`: the coarse seam. The engine hands over a [`Batch`] of token ids and gets output rows back. Above it nobody knows a
//! tensor. A `Box<dyn Runner>` is chosen once, at start-up.

use bitnet_checkpoint::ModelConfig;
use thiserror::Error;

use crate::batch::{Batch, BatchError, BatchLimits, Step};
use crate::device::{Device, DeviceDescription, DeviceError, DeviceMemory, KvLayout, KvType, Repeated};
use crate::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use crate::rope::RopeTable;
use crate::token::TokenId;
use crate::transformer::{Transformer, Workspace};
use crate::weights::{LoadError, WeightSource, Weights};

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RunnerError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the model computed a value that is not finite in output row {row}: its weights or scales are damaged")]
    NotFinite { row: usize },
    #[error("this model has no pooling: it yields logits of the next token, not embeddings")]
    NoPooling,
}

/// What a step yields: one row for each output token the batch asked for, in batch order; none for those of `Rows::LastGreedy`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// `[n_rows, width]`: logits over the vocabulary, or hidden states of an embedding model.
    pub values: Vec<f32>,
    /// Row length: `n_vocab`, or `hidden_size` of an embedding model.
    pub width: usize,
    /// Most likely token of each output token, those of `Rows::LastGreedy` among them; empty for an embedding model.
    pub greedy: Vec<TokenId>,
}

impl StepOutput {
    /// Row by row.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width)
    }
}

/// Runs batches of one model on one device.
pub trait Runner: Send {
    /// The model.
    fn config(&self) -> &ModelConfig;
    /// The device.
    fn device(&self) -> DeviceDescription;
    /// What a batch may hold.
    fn limits(&self) -> BatchLimits;
    /// Bytes of weights that a decode step reads at least, however many sequences share it.
    fn decode_bytes(&self) -> u64;
    /// What the model and its buffers take on a device with memory of its own, so far.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }
    /// Takes all memory of the cache now: a server shall neither wait for it nor run out of it later.
    fn commit(&mut self) -> Result<(), RunnerError> {
        Ok(())
    }
    /// One step. A failed step leaves the cache slots that it named undefined and everything else untouched.
    fn step(&mut self, batch: &Batch) -> Result<&StepOutput, RunnerError>;
}

/// How large a runner's buffers and cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Tokens in one step.
    pub n_tokens_max: usize,
    /// Tokens the KV cache holds, over all sequences; rounded up to whole blocks.
    pub n_cached_tokens: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

impl RunnerOptions {
    /// Room for one sequence of `context_length` tokens, keys and values as computed.
    pub fn single_sequence(context_length: usize) -> Self {
        Self { n_tokens_max: STEP_TOKENS_MAX, n_cached_tokens: context_length, kv_type: KvType::F32 }
    }
}

/// The runner of every model on every [`Device`].
pub struct TransformerRunner<D: Device> {
    transformer: Transformer<D>,
    rope: RopeTable,
    limits: BatchLimits,
    step: Step,
    output: StepOutput,
    /// Most likely tokens of the rows at hand.
    greedy: Vec<TokenId>,
}

impl<D: Device> TransformerRunner<D> {
    /// Loads `source` onto `device`; `progress` hears of each loaded layer.
    pub fn load(
        mut device: D,
        source: &dyn WeightSource,
        options: RunnerOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LoadError> {
        let config = source.config().clone();
        let n_blocks = options.n_cached_tokens.div_ceil(BLOCK_TOKENS);
        let layout = KvLayout {
            n_layers: config.n_layers,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            n_blocks,
            kv_type: options.kv_type,
        };
        let limits = BatchLimits {
            n_tokens_max: options.n_tokens_max,
            n_vocab: config.n_vocab,
            context_length: config.context_length.min(n_blocks * BLOCK_TOKENS),
            n_blocks,
        };
        let cache = device.kv_cache(layout)?;
        let workspace = Workspace::new(&mut device, &config, options.n_tokens_max)?;
        let weights = Weights::load(&mut device, source, progress)?;
        let width = if config.last_token_pooling { config.hidden_size } else { config.n_vocab };
        Ok(Self {
            rope: RopeTable::new(&config.rope, config.head_dim),
            transformer: Transformer { device, config, weights, workspace, cache },
            limits,
            step: Step::default(),
            output: StepOutput { width, ..StepOutput::default() },
            greedy: Vec::new(),
        })
    }

    /// Appends what `Transformer::outputs` left on the device for output tokens `range` to `output`.
    fn collect_outputs(&mut self, range: std::ops::Range<usize>) -> Result<(), RunnerError> {
        let Transformer { device, workspace, .. } = &mut self.transformer;
        let output = &mut self.output;
        let has_values = &self.step.has_values[range.clone()];
        if let Some(logits) = &workspace.logits {
            if !has_values.contains(&true) {
                let damaged = device.argmax_checked(logits, &mut self.greedy)?;
                output.greedy.extend_from_slice(&self.greedy);
                return damaged.map_or(Ok(()), |row| Err(RunnerError::NotFinite { row: range.start + row }));
            }
            device.argmax(logits, &mut self.greedy)?;
            output.greedy.extend_from_slice(&self.greedy);
        }
        // Logits that are not wanted are −∞.
        let is_damaged = |value: f32, is_partial: bool| !(value.is_finite() || is_partial && value == f32::NEG_INFINITY);
        let rows = device.finish(workspace.logits.as_ref().unwrap_or(&workspace.normed))?.chunks_exact(output.width);
        for (index, (row, has_values)) in range.zip(rows.zip(has_values)) {
            let is_partial = self.step.wanted[index].is_some();
            if row.iter().any(|&value| is_damaged(value, is_partial)) {
                return Err(RunnerError::NotFinite { row: index });
            }
            if *has_values || workspace.logits.is_none() {
                output.values.extend_from_slice(row);
            }
        }
        Ok(())
    }
}

impl<D: Device> Runner for TransformerRunner<D> {
    fn config(&self) -> &ModelConfig {
        &self.transformer.config
    }

    fn device(&self) -> DeviceDescription {
        self.transformer.device.describe()
    }

    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn decode_bytes(&self) -> u64 {
        let Transformer { device, weights, workspace, .. } = &self.transformer;
        let projections =
            weights.layers.iter().flat_map(|layer| layer.qkv.iter().chain([&layer.o]).chain(&layer.gate_up).chain([&layer.down]));
        let head = workspace.logits.as_ref().map_or(0, |_| device.head_bytes(weights.head.as_ref().unwrap_or(&weights.embedding)));
        projections.map(|projection| device.linear_bytes(&projection.weights)).sum::<u64>() + head
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.transformer.device.memory(&self.transformer.cache)
    }

    fn commit(&mut self) -> Result<(), RunnerError> {
        let Transformer { device, cache, .. } = &mut self.transformer;
        Ok(device.commit(cache)?)
    }

    fn step(&mut self, batch: &Batch) -> Result<&StepOutput, RunnerError> {
        batch.validate(self.limits)?;
        self.step.fill(batch, &self.rope);
        self.output.values.clear();
        self.output.greedy.clear();
        let n_output_rows = self.transformer.device.n_output_rows().min(self.limits.n_tokens_max);
        if self.step.wants_tokens_alone(n_output_rows)
            && let Repeated::Whole { damaged } = self.transformer.device.repeat(&self.step, &mut self.output.greedy)?
        {
            return damaged.map_or(Ok(&self.output), |row| Err(RunnerError::NotFinite { row }));
        }
        self.transformer.forward(&self.step)?;
        for first in (0..self.step.output_tokens.len()).step_by(n_output_rows) {
            let range = first..self.step.output_tokens.len().min(first + n_output_rows);
            self.transformer.outputs(&self.step.output_tokens[range.clone()], &self.step.wanted[range.clone()])?;
            self.collect_outputs(range)?;
        }
        Ok(&self.output)
    }
}
