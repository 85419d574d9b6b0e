//! THE WALK: one decoder step, written once for every architecture and every device. Architectures are data
//! ([`ModelConfig`]); what differs between families is which norms exist and which activation stands in the feed-forward layer.
//!
//! Source of the graph: BitNet b1.58 2B4T technical report (arXiv 2504.12285 §2), LLaMA (arXiv 2302.13971), Qwen3
//! (arXiv 2505.09388). Shapes: m = tokens of the step, h = hidden, q = n_heads·head_dim, kv = n_kv_heads·head_dim, f = ffn.

use bitnet_checkpoint::ModelConfig;

use crate::batch::{BestLogits, Step};
use crate::device::{Device, DeviceError, Heads};
use crate::weights::{Layer, Weights};

/// Buffers of a step, made once.
pub(crate) struct Workspace<D: Device> {
    /// Residual stream, `[m, h]`.
    x: D::Hidden,
    /// What the next linear layer reads.
    activations: D::Activations,
    /// Queries, keys, values, `[m, q + 2·kv]`.
    qkv: D::Hidden,
    /// Attention output, `[m, q]`.
    attended: D::Hidden,
    /// gate | up, `[m, 2·f]`.
    gate_up: D::Hidden,
    /// activation(gate)·up, `[m, f]`.
    gated: D::Hidden,
    /// Rows after the last norm, `[n_output_rows, h]`.
    pub(crate) normed: D::Hidden,
    /// `[n_output_rows, n_vocab]`; absent in embedding models.
    pub(crate) logits: Option<D::Hidden>,
}

impl<D: Device> Workspace<D> {
    pub(crate) fn new(device: &mut D, config: &ModelConfig, n_tokens_max: usize) -> Result<Self, DeviceError> {
        let width_max = config.hidden_size.max(config.intermediate_size).max(config.q_size());
        let n_output_rows = device.n_output_rows().min(n_tokens_max);
        Ok(Self {
            x: device.hidden(n_tokens_max, config.hidden_size)?,
            activations: device.activations(n_tokens_max, width_max, config.activation_policy)?,
            qkv: device.hidden(n_tokens_max, config.q_size() + 2 * config.kv_size())?,
            attended: device.hidden(n_tokens_max, config.q_size())?,
            gate_up: device.hidden(n_tokens_max, 2 * config.intermediate_size)?,
            gated: device.hidden(n_tokens_max, config.intermediate_size)?,
            normed: device.hidden(n_output_rows, config.hidden_size)?,
            logits: if config.last_token_pooling { None } else { Some(device.hidden(n_output_rows, config.n_vocab)?) },
        })
    }
}

/// A model, its buffers and the device they are on.
pub(crate) struct Transformer<D: Device> {
    pub(crate) device: D,
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights<D>,
    pub(crate) workspace: Workspace<D>,
    pub(crate) cache: D::KvCache,
}

impl<D: Device> Transformer<D> {
    /// Runs all tokens of `step` through all layers; their keys and values are in the cache afterwards and the residual stream
    /// is ready for [`Self::outputs`].
    pub(crate) fn forward(&mut self, step: &Step) -> Result<(), DeviceError> {
        self.device.embed(&self.weights.embedding, &step.token_ids, &mut self.workspace.x)?;
        for layer_index in 0..self.config.n_layers {
            self.attention_block(step, layer_index)?;
            self.feed_forward_block(layer_index)?;
        }
        Ok(())
    }

    /// x += o(attention(rope(qkv(norm(x)))))
    fn attention_block(&mut self, step: &Step, layer_index: usize) -> Result<(), DeviceError> {
        let Self { device, config, weights, workspace: buffers, cache } = self;
        let layer = &weights.layers[layer_index];
        let heads = heads(config, layer);
        for projection in &layer.qkv {
            device.norm_quantize(&buffers.x, &projection.norms, &mut buffers.activations)?;
            device.bit_linear(&buffers.activations, &projection.weights, &mut buffers.qkv, projection.first_column)?;
        }
        device.rope_append(&mut buffers.qkv, &heads, step, (cache, layer_index))?;
        device.attention(&buffers.qkv, &heads, step, (cache, layer_index), &mut buffers.attended)?;
        device.norm_quantize(&buffers.attended, &layer.o.norms, &mut buffers.activations)?;
        device.bit_linear_add(&buffers.activations, &layer.o.weights, &mut buffers.x)
    }

    /// x += down(activation(gate(norm(x))) · up(norm(x)))
    fn feed_forward_block(&mut self, layer_index: usize) -> Result<(), DeviceError> {
        let Self { device, config, weights, workspace: buffers, .. } = self;
        let layer = &weights.layers[layer_index];
        for projection in &layer.gate_up {
            device.norm_quantize(&buffers.x, &projection.norms, &mut buffers.activations)?;
            device.bit_linear(&buffers.activations, &projection.weights, &mut buffers.gate_up, projection.first_column)?;
        }
        device.gate(&buffers.gate_up, config.activation, &mut buffers.gated)?;
        device.norm_quantize(&buffers.gated, &layer.down.norms, &mut buffers.activations)?;
        device.bit_linear_add(&buffers.activations, &layer.down.weights, &mut buffers.x)
    }

    /// Final norm of the rows `tokens` (at most `Device::n_output_rows`) of the last step, and their logits as far as `wanted`, unless this is
    /// an embedding model. Results are in `workspace.normed` and `workspace.logits`.
    pub(crate) fn outputs(&mut self, tokens: &[usize], wanted: &[Option<BestLogits>]) -> Result<(), DeviceError> {
        let Self { device, weights, workspace: buffers, .. } = self;
        device.final_norm(&buffers.x, &weights.final_norm, tokens, &mut buffers.normed)?;
        match &mut buffers.logits {
            Some(logits) => device.logits(&buffers.normed, weights.head.as_mut().unwrap_or(&mut weights.embedding), wanted, logits),
            None => Ok(()),
        }
    }
}

fn heads<'a, D: Device>(config: &ModelConfig, layer: &'a Layer<D>) -> Heads<'a, D::Vector> {
    Heads {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        qk_norms: layer.qk_norms.as_ref().map(|(q, k)| (q, k)),
        epsilon: config.rms_norm_eps,
    }
}
