//! `ModelConfig`: architectures as data. Read from `config.json` (`hf_config`) or GGUF metadata (`gguf::model_config`), written to
//! either by `convert`, and all that the transformer walk knows of a model. It lives here and not in `model` because both
//! directions of every conversion need it.
//!
//! A key that decides the arithmetic is read, never guessed: its absence is an error.

use crate::error::CheckpointError;
use crate::json::shown;
use crate::limits;

/// Which family's names and file conventions a checkpoint uses. The walk never looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BitNet b1.58 2B4T and 1bitLLM.
    Bitnet,
    /// Falcon-E, Falcon3-1.58bit, HF1BitLLM, TriLM.
    Llama,
    /// Ternary-Bonsai and BitNet-embedding.
    Qwen3,
}

/// What stands between gate and up: `activation(gate) · up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// max(x, 0)².
    Relu2,
}

/// What a ternary linear layer reads: how the model was trained, or for a weight-only model what its user chose; never a property of the
/// device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationPolicy {
    /// One int8 scale for each token: 127 / max|x| (BitNet b1.58).
    Int8PerToken,
    /// int8 with a scale for each group of 128 activations of a token: how a weight-only model runs fast, at a bounded error
    /// (`docs/decisions/0010`).
    Int8PerGroup,
    /// Activations stay f32 (TriLM, Ternary-Bonsai).
    Unquantised,
}

impl ActivationPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Int8PerToken, Self::Int8PerGroup, Self::Unquantised];

    /// Its name in files that we write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8PerToken => "int8_per_token",
            Self::Int8PerGroup => "int8_per_group",
            Self::Unquantised => "unquantised",
        }
    }

    /// The policy of that name, or what else was expected.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let policy = Self::ALL.into_iter().find(|policy| policy.name() == name);
        policy.ok_or_else(|| format!("expected {}, got {}", Self::ALL.map(Self::name).join(", "), shown(name)))
    }
}

/// How rotary frequencies are stretched for contexts longer than trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Every frequency divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3: low frequencies divided by `factor`, high kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: usize },
    /// YaRN (arXiv 2309.00071). `attention_factor` multiplies cos and sin; when a file leaves it out, readers compute
    /// 0.1·ln(factor) + 1 as the paper does.
    Yarn { factor: f64, original_context: usize, beta_fast: f64, beta_slow: f64, attention_factor: f64 },
}

/// Rotary position embedding, rotate-half convention (rows in Hugging Face order).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

/// Everything the forward pass needs to know of a model besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family, for file conventions only.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even. Not always `hidden_size / n_heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// ε of every RMSNorm but those inside projections.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Feed-forward activation.
    pub activation: Activation,
    /// RMSNorm before o_proj and down_proj (`attn_sub_norm`, `ffn_sub_norm`).
    pub sub_norms: bool,
    /// RMSNorm on each query and key head (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// RMSNorm inside every projection, before its quantisation (`<proj>.norm.weight`; `use_rms_norm`, BitNet-embedding).
    pub projection_norms: bool,
    /// ε of the norms inside projections; `rms_norm_eps` where there are none.
    pub projection_norm_eps: f32,
    /// The head is the embedding.
    pub tied_head: bool,
    /// What linear layers read.
    pub activation_policy: ActivationPolicy,
    /// The model yields an embedding (last token's hidden state after the final norm, L2-normalised), not logits.
    pub last_token_pooling: bool,
}

impl ModelConfig {
    /// Width of the query rows.
    pub fn q_size(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the key rows, and of the value rows.
    pub fn kv_size(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Checks every hyper-parameter against `limits` and against each other, and names the one that is wrong.
    /// Readers call it before any size is computed from these numbers, so that no later product can wrap.
    pub fn validate(&self) -> Result<(), CheckpointError> {
        let counts = [
            ("hidden_size", self.hidden_size, limits::WIDTH_MAX),
            ("intermediate_size", self.intermediate_size, limits::WIDTH_MAX),
            ("num_hidden_layers", self.n_layers, limits::N_LAYERS_MAX),
            ("num_attention_heads", self.n_heads, limits::N_HEADS_MAX),
            ("num_key_value_heads", self.n_kv_heads, limits::N_HEADS_MAX),
            ("head_dim", self.head_dim, limits::HEAD_DIM_MAX),
            ("vocab_size", self.n_vocab, limits::N_VOCAB_MAX),
            ("max_position_embeddings", self.context_length, limits::CONTEXT_MAX),
        ];
        for (key, value, limit) in counts {
            if value == 0 || value > limit {
                return Err(CheckpointError::config(key, format!("{value} is not in 1..={limit}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let reason = format!("{} query heads are not a multiple of {} key-value heads", self.n_heads, self.n_kv_heads);
            return Err(CheckpointError::config("num_key_value_heads", reason));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(CheckpointError::config("head_dim", format!("{} is odd; rotary embedding pairs dimensions", self.head_dim)));
        }
        for (key, epsilon) in [("rms_norm_eps", self.rms_norm_eps), ("projection_norm_eps", self.projection_norm_eps)] {
            if !(epsilon.is_finite() && epsilon > 0.0 && epsilon < 1.0) {
                return Err(CheckpointError::config(key, format!("{epsilon} is not in (0, 1)")));
            }
        }
        self.validate_rope()
    }

    fn validate_rope(&self) -> Result<(), CheckpointError> {
        let positive = |key: &'static str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(CheckpointError::config(key, format!("{value} is not positive"))) }
        };
        positive("rope_theta", self.rope.theta)?;
        match self.rope.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", high_freq_factor)?;
                positive("rope_scaling.original_max_position_embeddings", original_context as f64)?;
                positive("rope_scaling.high_freq_factor", high_freq_factor - low_freq_factor)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.original_max_position_embeddings", original_context as f64)?;
                positive("rope_scaling.beta_fast", beta_fast)?;
                positive("rope_scaling.beta_slow", beta_slow)?;
                positive("rope_scaling.attention_factor", attention_factor)
            }
        }
    }

    /// Canonical names and shapes `[n_rows, n_cols]` (vectors: `[n]`) of every tensor this model has, in walk order.
    /// `true` marks the linear layers that must be ternary.
    pub fn expected_tensors(&self) -> Vec<ExpectedTensor> {
        let (hidden, ffn, q, kv) = (self.hidden_size, self.intermediate_size, self.q_size(), self.kv_size());
        let mut tensors = vec![ExpectedTensor::table("model.embed_tokens.weight".into(), self.n_vocab, hidden)];
        for layer in 0..self.n_layers {
            let prefix = format!("model.layers.{layer}.");
            let mut vector = |name: &str, n: usize| tensors.push(ExpectedTensor::vector(format!("{prefix}{name}.weight"), n));
            vector("input_layernorm", hidden);
            vector("post_attention_layernorm", hidden);
            if self.sub_norms {
                vector("self_attn.attn_sub_norm", q);
                vector("mlp.ffn_sub_norm", ffn);
            }
            if self.qk_norm {
                vector("self_attn.q_norm", self.head_dim);
                vector("self_attn.k_norm", self.head_dim);
            }
            for (name, n_rows, n_cols) in [
                ("self_attn.q_proj", q, hidden),
                ("self_attn.k_proj", kv, hidden),
                ("self_attn.v_proj", kv, hidden),
                ("self_attn.o_proj", hidden, q),
                ("mlp.gate_proj", ffn, hidden),
                ("mlp.up_proj", ffn, hidden),
                ("mlp.down_proj", hidden, ffn),
            ] {
                if self.projection_norms {
                    tensors.push(ExpectedTensor::vector(format!("{prefix}{name}.norm.weight"), n_cols));
                }
                tensors.push(ExpectedTensor::linear(format!("{prefix}{name}.weight"), n_rows, n_cols));
            }
        }
        tensors.push(ExpectedTensor::vector("model.norm.weight".into(), hidden));
        if !self.tied_head && !self.last_token_pooling {
            tensors.push(ExpectedTensor::table("lm_head.weight".into(), self.n_vocab, hidden));
        }
        tensors
    }
}

/// What a tensor is for; decides whether it must, may or must not be ternary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// A norm weight: dense.
    Vector,
    /// A projection: must be ternary.
    Linear,
    /// Embedding or head: dense or ternary.
    Table,
}

impl TensorRole {
    /// The role that a canonical name tells.
    pub fn of(name: &str) -> Self {
        match name {
            "model.embed_tokens.weight" | "lm_head.weight" => Self::Table,
            name if name.ends_with("_proj.weight") => Self::Linear,
            _ => Self::Vector,
        }
    }
}

/// One tensor that a model of a given [`ModelConfig`] has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Canonical name.
    pub name: String,
    /// `[n]` or `[n_rows, n_cols]`.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
}

impl ExpectedTensor {
    fn vector(name: String, n: usize) -> Self {
        Self { name, shape: vec![n], role: TensorRole::Vector }
    }

    fn linear(name: String, n_rows: usize, n_cols: usize) -> Self {
        Self { name, shape: vec![n_rows, n_cols], role: TensorRole::Linear }
    }

    fn table(name: String, n_rows: usize, n_cols: usize) -> Self {
        Self { name, shape: vec![n_rows, n_cols], role: TensorRole::Table }
    }
}
