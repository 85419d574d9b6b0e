//! Random ternary models of published shapes: honest work for a speed test, since values do not change speed; they say nothing
//! of quality. Weights come from a counter-based generator, so a shape and a seed always give the same model.

mod vocabulary;

use std::ops::Range;
use std::sync::Arc;

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, ExpectedTensor, Rope, RopeScaling, TensorRole};
use bitnet_checkpoint::{CheckpointError, DenseTensor, DenseType, ModelConfig, RowSource, StoredTable, Tensor, read_all};
use bitnet_ternary::{Scales, TernaryMatrix};
use half::{bf16, f16};

use crate::weights::WeightSource;

pub use vocabulary::{bytes_and_end, vocabulary};

/// Weights of a shape.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomWeights {
    config: ModelConfig,
    /// Columns that share a scale; `None`: one scale a tensor.
    group_size: Option<usize>,
    /// Embedding and head are ternary too.
    ternary_tables: bool,
    seed: u64,
}

/// Names of the published shapes that [`RandomWeights::published`] knows.
pub const PUBLISHED_SHAPES: [&str; 4] = ["0.7b", "2b4t", "3b", "8b"];

impl RandomWeights {
    /// Random weights for any configuration, one scale a tensor, bfloat16 tables. `config` must be valid.
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, group_size: None, ternary_tables: false, seed }
    }

    /// The same with a scale for each `group_size` columns (where it divides the row), and ternary tables.
    pub fn grouped(config: ModelConfig, seed: u64, group_size: usize) -> Self {
        Self { config, group_size: Some(group_size), ternary_tables: true, seed }
    }

    /// The same weights, computed with other activations.
    pub fn with_activation_policy(mut self, policy: ActivationPolicy) -> Self {
        self.config.activation_policy = policy;
        self
    }

    /// A published shape: `0.7b` (1bitLLM/bitnet_b1_58-large), `2b4t` (microsoft/bitnet-b1.58-2B-4T), `3b`
    /// (1bitLLM/bitnet_b1_58-3B), `8b` (prism-ml/Ternary-Bonsai-8B, groups of 128, weight-only, ternary tables).
    pub fn published(name: &str, seed: u64) -> Option<Self> {
        let (config, group_size) = match name {
            "0.7b" => (bitnet([1536, 4096, 24, 16, 16, 96], 32_002, 2048), None),
            "2b4t" => (ModelConfig { rope: rope(500_000.0), ..bitnet([2560, 6912, 30, 20, 5, 128], 128_256, 4096) }, None),
            "3b" => (bitnet([3200, 8640, 26, 32, 32, 100], 32_002, 2048), None),
            "8b" => (qwen3_8b(), Some(128)),
            _ => return None,
        };
        Some(Self { config, group_size, ternary_tables: group_size.is_some(), seed })
    }

    /// What a tensor is, and a number of its own to draw it with.
    fn expected(&self, name: &str) -> Result<(ExpectedTensor, u64), CheckpointError> {
        let mut tensors = self.config.expected_tensors().into_iter().zip(0u64..);
        let found = tensors.find(|(expected, _)| expected.name == name);
        let (expected, index) = found.ok_or_else(|| CheckpointError::MissingTensor { name: name.to_string() })?;
        Ok((expected, index << 32))
    }

    fn matrix(&self, n_rows: usize, n_cols: usize, stream: u64) -> Result<TernaryMatrix, bitnet_ternary::MatrixError> {
        let table = four_trits_of_a_byte();
        let mut counter = Counter::new(self.seed ^ stream, 0);
        let row_bytes = TernaryMatrix::row_bytes(n_cols);
        let mut codes = vec![0u8; n_rows * row_bytes];
        for chunk in codes.chunks_mut(8) {
            let random = counter.next().to_le_bytes();
            chunk.iter_mut().zip(random).for_each(|(code, byte)| *code = table[usize::from(byte)]);
        }
        // Two thirds of random trits are ±1: this scale keeps a unit input at unit variance.
        let scale = (1.5 / n_cols as f32).sqrt();
        let scales = match self.group_size {
            Some(group_size) if n_cols.is_multiple_of(group_size) => {
                // Files with groups store halves.
                let scale = f16::from_f32(scale).to_f32();
                Scales::Group { group_size, scales: vec![scale; n_rows * (n_cols / group_size)] }
            }
            _ => Scales::Tensor(scale),
        };
        TernaryMatrix::from_codes(n_rows, n_cols, codes, scales)
    }
}

impl WeightSource for RandomWeights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let (expected, stream) = self.expected(name)?;
        let ternary = |n_rows, n_cols| {
            let matrix = self.matrix(n_rows, n_cols, stream);
            matrix.map(Tensor::Ternary).map_err(|source| CheckpointError::Matrix { name: name.to_string(), source })
        };
        let bytes = match (expected.role, expected.shape.as_slice()) {
            (TensorRole::Linear, &[n_rows, n_cols]) => return ternary(n_rows, n_cols),
            (TensorRole::Table, &[n_rows, n_cols]) if self.ternary_tables => return ternary(n_rows, n_cols),
            (TensorRole::Vector, &[n]) => bf16::ONE.to_le_bytes().repeat(n),
            (_, shape) => {
                let n_cols = shape.last().copied().unwrap_or(1);
                let rows = RandomRows { seed: self.seed ^ stream, n_rows: shape.iter().product::<usize>() / n_cols, n_cols };
                read_all(&rows)?.into_bytes()
            }
        };
        DenseTensor::from_bytes(expected.shape, DenseType::Bf16, bytes)
            .map(Tensor::Dense)
            .ok_or_else(|| CheckpointError::tensor(name, "random bytes do not fill the shape"))
    }

    fn table(&self, name: &str) -> Result<StoredTable, CheckpointError> {
        let (expected, stream) = self.expected(name)?;
        match expected.shape.as_slice() {
            &[n_rows, n_cols] if !self.ternary_tables => {
                Ok(StoredTable::Dense(Arc::new(RandomRows { seed: self.seed ^ stream, n_rows, n_cols })))
            }
            _ => self.load(name).map(StoredTable::from),
        }
    }
}

/// bfloat16 rows of magnitude 1/64 to 1/16, sign and two mantissa-and-exponent bits at random, made whenever they are read: which
/// takes about as long as to read them from a cached file.
#[derive(Debug)]
struct RandomRows {
    seed: u64,
    n_rows: usize,
    n_cols: usize,
}

impl RowSource for RandomRows {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn dtype(&self) -> DenseType {
        DenseType::Bf16
    }

    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        assert!(rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        assert_eq!(bytes.len(), rows.len() * self.row_bytes(), "a buffer of the rows' size");
        // One draw makes four numbers. The first may belong to the row before.
        let (first, skipped) = (rows.start * self.n_cols / 4, rows.start * self.n_cols % 4);
        let mut counter = Counter::new(self.seed, first as u64);
        let (begin, rest) = bytes.split_at_mut(((4 - skipped) % 4 * 2).min(bytes.len()));
        if !begin.is_empty() {
            let values = four_bf16(counter.next());
            begin.copy_from_slice(&values[2 * skipped..][..begin.len()]);
        }
        for chunk in rest.chunks_mut(8) {
            chunk.copy_from_slice(&four_bf16(counter.next())[..chunk.len()]);
        }
        Ok(())
    }
}

/// Four numbers of one draw: the sign and the low bit of the high byte, and all of the low byte.
fn four_bf16(random: u64) -> [u8; 8] {
    ((random & 0x81ff_81ff_81ff_81ff) | 0x3c00_3c00_3c00_3c00).to_le_bytes()
}

/// Maps a random byte to four codes 0..=2 (81 combinations; 256 is not a multiple of 81, which a speed test does not notice).
fn four_trits_of_a_byte() -> [u8; 256] {
    std::array::from_fn(|byte| {
        let value = byte % 81;
        ((value % 3) | ((value / 3 % 3) << 2) | ((value / 9 % 3) << 4) | ((value / 27) << 6)) as u8
    })
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Counter {
    state: u64,
}

impl Counter {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The generator after `n_drawn` draws.
    fn new(seed: u64, n_drawn: u64) -> Self {
        Self { state: seed.wrapping_add(Self::STEP.wrapping_mul(n_drawn)) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(Self::STEP);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn rope(theta: f64) -> Rope {
    Rope { theta, scaling: RopeScaling::None }
}

/// hidden, ffn, layers, heads, key-value heads, head width.
fn bitnet(sizes: [usize; 6], n_vocab: usize, context_length: usize) -> ModelConfig {
    let [hidden_size, intermediate_size, n_layers, n_heads, n_kv_heads, head_dim] = sizes;
    ModelConfig {
        architecture: Architecture::Bitnet,
        hidden_size,
        intermediate_size,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        n_vocab,
        context_length,
        rms_norm_eps: 1e-5,
        rope: rope(10_000.0),
        activation: Activation::Relu2,
        sub_norms: true,
        qk_norm: false,
        projection_norms: false,
        projection_norm_eps: 1e-5,
        tied_head: true,
        activation_policy: ActivationPolicy::Int8PerToken,
        last_token_pooling: false,
    }
}

/// A shape small enough for scalar code in a test: the BitNet graph, two layers of 64, 50 tokens, a context of 128.
pub fn small_config() -> ModelConfig {
    bitnet([64, 96, 2, 2, 1, 32], 50, 128)
}

fn qwen3_8b() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen3,
        rms_norm_eps: 1e-6,
        projection_norm_eps: 1e-6,
        rope: rope(1_000_000.0),
        activation: Activation::Silu,
        sub_norms: false,
        qk_norm: true,
        tied_head: false,
        activation_policy: ActivationPolicy::Unquantised,
        ..bitnet([4096, 12_288, 36, 32, 8, 128], 151_936, 65_536)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_shapes_are_valid_and_complete() {
        for name in PUBLISHED_SHAPES {
            let weights = RandomWeights::published(name, 1).expect("known");
            weights.config().validate().expect("valid");
        }
        assert!(RandomWeights::published("70b", 1).is_none());
        let parameters: usize = RandomWeights::published("2b4t", 1)
            .expect("known")
            .config()
            .expected_tensors()
            .iter()
            .map(|tensor| tensor.shape.iter().product::<usize>())
            .sum();
        assert_eq!(parameters, 2_412_820_480, "the published parameter count");
    }

    #[test]
    fn random_rows_are_the_same_however_they_are_read() {
        for n_cols in [1, 2, 3, 4, 5, 64, 101] {
            let rows = RandomRows { seed: 9, n_rows: 13, n_cols };
            let all = read_all(&rows).expect("made");
            for begin in 0..13 {
                for end in begin..=13 {
                    let mut bytes = vec![0; (end - begin) * rows.row_bytes()];
                    rows.read_rows(begin..end, &mut bytes).expect("made");
                    assert_eq!(bytes, all.bytes()[begin * rows.row_bytes()..end * rows.row_bytes()], "{n_cols}: {begin}..{end}");
                }
            }
        }
    }

    #[test]
    fn random_tensors_have_their_shapes_and_repeat() {
        let weights = RandomWeights::new(small_config(), 7);
        for expected in weights.config().expected_tensors() {
            let tensor = weights.load(&expected.name).expect("every expected tensor exists");
            assert_eq!(tensor.shape(), expected.shape, "{}", expected.name);
            assert_eq!(tensor, weights.load(&expected.name).expect("again"));
        }
        assert!(matches!(weights.load("nothing"), Err(CheckpointError::MissingTensor { .. })));
    }
}
