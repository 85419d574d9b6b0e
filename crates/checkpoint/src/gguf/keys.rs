//! Names of GGUF metadata keys. Those that begin with `bitnet.` are this project's: they say what the public keys cannot, are
//! always written, and win when read; none is spelt as a public key of the architecture `bitnet`. Public ones: ggml-org/ggml:docs/gguf.md, ggml-org/llama.cpp:gguf-py/gguf/constants.py.

pub(super) const ARCHITECTURE: &str = "general.architecture";
pub(super) const FILE_TYPE: &str = "general.file_type";
pub(super) const QUANTIZATION_VERSION: &str = "general.quantization_version";
pub(super) const SPLIT_COUNT: &str = "split.count";
/// Keys of PrismML's rotated weights. Its other keys change nothing that is computed.
pub(super) const PRISM_PREFIX: &str = "prism.hadamard.";
pub(super) const PRISM_TRANSFORM: &str = "prism.hadamard.transform";
pub(super) const PRISM_WEIGHT_NAMES: &str = "prism.hadamard.weight_names";

/// After the architecture and a dot.
pub(super) const VOCAB_SIZE: &str = "vocab_size";
pub(super) const CONTEXT_LENGTH: &str = "context_length";
pub(super) const EMBEDDING_LENGTH: &str = "embedding_length";
pub(super) const BLOCK_COUNT: &str = "block_count";
pub(super) const FEED_FORWARD_LENGTH: &str = "feed_forward_length";
pub(super) const HEAD_COUNT: &str = "attention.head_count";
pub(super) const HEAD_COUNT_KV: &str = "attention.head_count_kv";
pub(super) const KEY_LENGTH: &str = "attention.key_length";
pub(super) const VALUE_LENGTH: &str = "attention.value_length";
pub(super) const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";
pub(super) const SLIDING_WINDOW: &str = "attention.sliding_window";
pub(super) const EXPERT_COUNT: &str = "expert_count";
pub(super) const POOLING_TYPE: &str = "pooling_type";
pub(super) const ROPE_DIMENSIONS: &str = "rope.dimension_count";
pub(super) const ROPE_BASE: &str = "rope.freq_base";
pub(super) const ROPE_SCALE_LINEAR: &str = "rope.scale_linear";
pub(super) const ROPE_SCALING_TYPE: &str = "rope.scaling.type";
pub(super) const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
pub(super) const ROPE_SCALING_CONTEXT: &str = "rope.scaling.original_context_length";
pub(super) const ROPE_SCALING_ATTENTION: &str = "rope.scaling.attn_factor";
pub(super) const ROPE_SCALING_BETA_FAST: &str = "rope.scaling.yarn_beta_fast";
pub(super) const ROPE_SCALING_BETA_SLOW: &str = "rope.scaling.yarn_beta_slow";
pub(super) const ROPE_SCALING_LOG: &str = "rope.scaling.yarn_log_multiplier";

pub(super) const BITNET_HIDDEN_ACT: &str = "bitnet.hidden_act";
pub(super) const BITNET_ACTIVATION_POLICY: &str = "bitnet.activation_policy";
pub(super) const BITNET_PROJECTION_EPSILON: &str = "bitnet.projection_norm_epsilon";
pub(super) const BITNET_TIED_HEAD: &str = "bitnet.tied_head";
pub(super) const BITNET_ROPE_BASE: &str = "bitnet.config.rope_theta";
pub(super) const BITNET_ROPE_SCALING: &str = "bitnet.config.rope_scaling.type";
pub(super) const BITNET_ROPE_FACTOR: &str = "bitnet.config.rope_scaling.factor";
pub(super) const BITNET_ROPE_CONTEXT: &str = "bitnet.config.rope_scaling.original_context_length";
pub(super) const BITNET_ROPE_LOW: &str = "bitnet.config.rope_scaling.low_freq_factor";
pub(super) const BITNET_ROPE_HIGH: &str = "bitnet.config.rope_scaling.high_freq_factor";
pub(super) const BITNET_ROPE_BETA_FAST: &str = "bitnet.config.rope_scaling.beta_fast";
pub(super) const BITNET_ROPE_BETA_SLOW: &str = "bitnet.config.rope_scaling.beta_slow";
pub(super) const BITNET_ROPE_ATTENTION: &str = "bitnet.config.rope_scaling.attention_factor";
pub(super) const BITNET_EOS_IDS: &str = "bitnet.generation.eos_token_ids";
pub(super) const BITNET_TEMPERATURE: &str = "bitnet.generation.temperature";
pub(super) const BITNET_TOP_P: &str = "bitnet.generation.top_p";
pub(super) const BITNET_TOP_K: &str = "bitnet.generation.top_k";
pub(super) const BITNET_MIN_P: &str = "bitnet.generation.min_p";
pub(super) const BITNET_REPETITION_PENALTY: &str = "bitnet.generation.repetition_penalty";
pub(super) const BITNET_DO_SAMPLE: &str = "bitnet.generation.do_sample";
pub(super) const BITNET_BOS_TOKEN: &str = "bitnet.tokenizer.bos_token";
pub(super) const BITNET_EOS_TOKEN: &str = "bitnet.tokenizer.eos_token";
/// Before the name of another special token.
pub(super) const BITNET_SPECIAL_TOKENS: &str = "bitnet.tokenizer.";

pub(super) const HUGGING_FACE_JSON: &str = "tokenizer.huggingface.json";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
pub(super) const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
pub(super) const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
pub(super) const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
pub(super) const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
pub(super) const PADDING_ID: &str = "tokenizer.ggml.padding_token_id";
