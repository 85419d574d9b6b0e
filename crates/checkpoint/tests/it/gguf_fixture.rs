//! A GGUF file builder for tests, independent of the crate's writer, that can also lie: any count, length, type, offset or
//! dimension may be set to anything.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bitnet_checkpoint::CheckpointError;
use bitnet_checkpoint::gguf::{GgufOptions, GgufSource};

pub(crate) const U8: u32 = 0;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

/// Time within which a bad file must be refused.
const REFUSAL: Duration = Duration::from_millis(50);

pub(crate) fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

pub(crate) fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

pub(crate) fn strings<S: AsRef<str>>(values: &[S]) -> Vec<u8> {
    array(STRING, values.len() as u64, &values.iter().flat_map(|value| text(value.as_ref())).collect::<Vec<u8>>())
}

#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) n_dims: Option<u32>,
    pub(crate) dims: Vec<u64>,
    pub(crate) type_id: u32,
    pub(crate) offset: Option<u64>,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) n_keys: Option<u64>,
    pub(crate) n_tensors: Option<u64>,
    pub(crate) alignment: u64,
}

impl GgufFile {
    pub(crate) fn empty() -> Self {
        Self { version: 3, keys: Vec::new(), tensors: Vec::new(), n_keys: None, n_tensors: None, alignment: 32 }
    }

    /// Sets a key, replacing one of that name.
    pub(crate) fn set(&mut self, key: &str, value_type: u32, payload: Vec<u8>) -> &mut Self {
        match self.keys.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => *entry = (key.into(), value_type, payload),
            None => self.keys.push((key.into(), value_type, payload)),
        }
        self
    }

    pub(crate) fn remove(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|entry| entry.0 != key);
        self
    }

    pub(crate) fn set_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.set(key, U32, value.to_le_bytes().to_vec())
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) -> &mut Self {
        self.set(key, STRING, text(value))
    }

    pub(crate) fn tensor(&mut self, name: &str, dims: &[u64], type_id: u32, data: Vec<u8>) -> &mut Self {
        self.tensors.push(Tensor { name: name.into(), n_dims: None, dims: dims.to_vec(), type_id, offset: None, data });
        self
    }

    pub(crate) fn find(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the fixture has it")
    }

    /// The file. No padding follows the last tensor, so that every byte counts.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value_type, payload) in &self.keys {
            bytes.extend(text(key));
            bytes.extend_from_slice(&value_type.to_le_bytes());
            bytes.extend_from_slice(payload);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment as usize), 0);
            bytes.extend(text(&tensor.name));
            bytes.extend_from_slice(&tensor.n_dims.unwrap_or(tensor.dims.len() as u32).to_le_bytes());
            bytes.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend_from_slice(&tensor.type_id.to_le_bytes());
            bytes.extend_from_slice(&tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend_from_slice(&tensor.data);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        bytes.extend(data);
        bytes
    }

    pub(crate) fn open(&self) -> Result<GgufSource, CheckpointError> {
        open(self.build())
    }

    /// The error with which the file is refused, in time.
    pub(crate) fn refusal(&self, what: &str) -> CheckpointError {
        refusal(leak(self.build()), what)
    }
}

pub(crate) fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

pub(crate) fn open(bytes: Vec<u8>) -> Result<GgufSource, CheckpointError> {
    GgufSource::from_bytes(leak(bytes), GgufOptions::default())
}

/// Processor time of this thread so far, so that what else the machine does is not counted; the time of day where the system does
/// not tell.
pub(crate) fn processor_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let scheduler = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = scheduler.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// The error with which bytes are refused. The best of three counts, since tests share their processors.
pub(crate) fn refusal(bytes: &'static [u8], what: &str) -> CheckpointError {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = processor_time();
        let result = GgufSource::from_bytes(bytes, GgufOptions::default());
        best = best.min(processor_time().saturating_sub(start));
        let error = result.err().unwrap_or_else(|| panic!("{what}: was accepted"));
        if best < REFUSAL {
            return error;
        }
    }
    panic!("{what}: took {best:?}");
}

/// Trits that follow no pattern.
pub(crate) fn trits(n: usize, seed: u64) -> Vec<i8> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 3) as i8 - 1
        })
        .collect()
}

/// I2_S in blocks of 128, as the Python converter lays it out.
pub(crate) fn i2_s(trits: &[i8], scale: f32) -> Vec<u8> {
    let mut bytes = vec![0u8; trits.len() / 4 + 32];
    for (weight, &trit) in trits.iter().enumerate() {
        let (block, within) = (weight / 128, weight % 128);
        bytes[block * 32 + within % 32] |= ((trit + 1) as u8) << (6 - 2 * (within / 32));
    }
    let end = trits.len() / 4;
    bytes[end..end + 4].copy_from_slice(&scale.to_le_bytes());
    bytes
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) const HIDDEN: usize = 32;
pub(crate) const FFN: usize = 32;
pub(crate) const N_VOCAB: usize = 16;
pub(crate) const HEAD_DIM: usize = 16;

/// A complete `bitnet-b1.58` model of one layer in about 5 KB, I2_S with F16 embedding, tied.
pub(crate) fn tiny_model() -> GgufFile {
    let mut file = GgufFile::empty();
    file.set_text("general.architecture", "bitnet-b1.58").set_u32("general.file_type", 40).set_u32("general.alignment", 32);
    for (key, value) in [
        ("vocab_size", N_VOCAB),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("block_count", 1),
        ("feed_forward_length", FFN),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        file.set_u32(&format!("bitnet-b1.58.{key}"), value as u32);
    }
    file.set("bitnet-b1.58.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes().to_vec());
    file.set("bitnet-b1.58.rope.freq_base", F32, 500_000.0f32.to_le_bytes().to_vec());
    let tokens: Vec<String> = (0..N_VOCAB).map(|id| if id == 2 { "<|eot_id|>".into() } else { format!("t{id}") }).collect();
    file.set_text("tokenizer.ggml.model", "gpt2").set_text("tokenizer.ggml.pre", "llama-bpe");
    file.set("tokenizer.ggml.tokens", ARRAY, strings(&tokens));
    let types: Vec<u8> = (0..N_VOCAB as i32).flat_map(|id| (if id < 3 { 3i32 } else { 1 }).to_le_bytes()).collect();
    file.set("tokenizer.ggml.token_type", ARRAY, array(I32, N_VOCAB as u64, &types));
    file.set("tokenizer.ggml.merges", ARRAY, strings(&["t 3", "t 4"]));
    file.set_u32("tokenizer.ggml.bos_token_id", 0).set_u32("tokenizer.ggml.eos_token_id", 1);
    file.set("tokenizer.ggml.add_bos_token", BOOL, vec![1]);
    file.set_text("tokenizer.chat_template", "{{ messages }}");
    let embedding: Vec<u8> = (0..N_VOCAB * HIDDEN).flat_map(|i| (0x2000u16 + i as u16).to_le_bytes()).collect();
    file.tensor("token_embd.weight", &[HIDDEN as u64, N_VOCAB as u64], 1, embedding);
    file.tensor("output_norm.weight", &[HIDDEN as u64], 0, f32s(&[1.5; HIDDEN]));
    for name in ["attn_norm", "ffn_norm", "attn_sub_norm", "ffn_sub_norm"] {
        file.tensor(&format!("blk.0.{name}.weight"), &[HIDDEN as u64], 0, f32s(&[1.0; HIDDEN]));
    }
    for (seed, (name, n_rows)) in
        [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32), ("ffn_up", 32), ("ffn_down", 32)]
            .into_iter()
            .enumerate()
    {
        let packed = i2_s(&trits(n_rows * HIDDEN, seed as u64), 0.5 + seed as f32);
        file.tensor(&format!("blk.0.{name}.weight"), &[HIDDEN as u64, n_rows as u64], 36, packed);
    }
    file
}
