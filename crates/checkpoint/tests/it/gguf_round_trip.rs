//! What `GgufWriter` writes, `GgufSource` reads back: every configuration, every type, every weight and scale, the tokenizer, and
//! a report of whatever a type could not hold.

use std::path::Path;

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, Rope, RopeScaling, TensorRole};
use bitnet_checkpoint::gguf::write::{GgufTensorType, GgufWriter, Loss, PlannedTensor};
use bitnet_checkpoint::gguf::{GgufOptions, GgufSource};
use bitnet_checkpoint::{
    CheckpointError, DenseTensor, DenseType, GenerationDefaults, GgufVocabulary, ModelConfig, Tensor, TokenizerFiles, Vocabulary,
};
use bitnet_ternary::{Scales, TernaryMatrix};

use crate::gguf_fixture::{leak, trits};

const PATH: &str = "test.gguf";

fn config(architecture: Architecture) -> ModelConfig {
    let bitnet = architecture == Architecture::Bitnet;
    ModelConfig {
        architecture,
        hidden_size: 256,
        intermediate_size: 512,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: if architecture == Architecture::Qwen3 { 128 } else { 64 },
        n_vocab: 24,
        context_length: 128,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 1_000_042.0, scaling: RopeScaling::None },
        activation: if bitnet { Activation::Relu2 } else { Activation::Silu },
        sub_norms: bitnet,
        qk_norm: architecture == Architecture::Qwen3,
        projection_norms: false,
        projection_norm_eps: 1e-6,
        tied_head: bitnet,
        activation_policy: if architecture == Architecture::Qwen3 { ActivationPolicy::Unquantised } else { ActivationPolicy::Int8PerToken },
        last_token_pooling: false,
    }
}

fn absent_tokenizer() -> TokenizerFiles {
    TokenizerFiles::default()
}

/// A model of trits with scales that every type holds, dense tables and norms.
fn tensors(config: &ModelConfig, scales: impl Fn(usize, usize) -> Scales) -> Vec<(String, Tensor)> {
    let make = |(seed, expected): (usize, bitnet_checkpoint::config::ExpectedTensor)| {
        let n: usize = expected.shape.iter().product();
        let tensor = match expected.role {
            TensorRole::Linear => {
                let [n_rows, n_cols] = expected.shape[..] else { panic!("a matrix") };
                let matrix = TernaryMatrix::from_trits(n_rows, n_cols, &trits(n, seed as u64), scales(n_rows, n_cols));
                Tensor::Ternary(matrix.expect("valid"))
            }
            TensorRole::Table => {
                let bytes = (0..n).flat_map(|i| (0x3C00u16 + i as u16 % 512).to_le_bytes()).collect();
                Tensor::Dense(DenseTensor::from_bytes(expected.shape, DenseType::Bf16, bytes).expect("fits"))
            }
            TensorRole::Vector => {
                let values: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 * 0.1).collect();
                Tensor::Dense(DenseTensor::from_f32(expected.shape, &values).expect("fits"))
            }
        };
        (expected.name, tensor)
    };
    config.expected_tensors().into_iter().enumerate().map(make).collect()
}

fn plan(tensors: &[(String, Tensor)], ternary: GgufTensorType) -> Vec<PlannedTensor> {
    let planned = |(name, tensor): &(String, Tensor)| PlannedTensor {
        name: name.clone(),
        shape: tensor.shape(),
        tensor_type: match tensor {
            Tensor::Ternary(_) => ternary,
            Tensor::Dense(dense) => GgufTensorType::of_dense(dense.dtype()),
        },
    };
    tensors.iter().map(planned).collect()
}

fn write(
    config: &ModelConfig,
    files: &TokenizerFiles,
    tensors: &[(String, Tensor)],
    ternary: GgufTensorType,
) -> Result<(Vec<u8>, Vec<Loss>), CheckpointError> {
    let mut writer = GgufWriter::new(Vec::new(), Path::new(PATH), config, files, &plan(tensors, ternary))?;
    for (name, tensor) in tensors {
        writer.write_tensor(name, tensor)?;
    }
    writer.finish()
}

fn read(bytes: Vec<u8>) -> GgufSource {
    GgufSource::from_bytes(leak(bytes), GgufOptions::default()).expect("what is written can be read")
}

fn tensor_scale(_: usize, _: usize) -> Scales {
    Scales::Tensor(0.031_25)
}

const TERNARY: [GgufTensorType; 5] =
    [GgufTensorType::I2S, GgufTensorType::Tq1_0, GgufTensorType::Tq2_0, GgufTensorType::Q2_0, GgufTensorType::Pq2_0];

#[test]
fn every_architecture_in_every_type_comes_back_equal() {
    for architecture in [Architecture::Bitnet, Architecture::Llama, Architecture::Qwen3] {
        let config = config(architecture);
        let tensors = tensors(&config, tensor_scale);
        for ternary in TERNARY {
            let (bytes, losses) = write(&config, &absent_tokenizer(), &tensors, ternary).expect("writes");
            assert_eq!(losses, [], "{architecture:?} {ternary:?}");
            let source = read(bytes.clone());
            assert_eq!(source.config(), &config, "{architecture:?} {ternary:?}");
            assert_eq!(source.tokenizer_files(), &absent_tokenizer());
            for (name, tensor) in &tensors {
                assert_eq!(&source.load(name).expect("loads"), tensor, "{architecture:?} {ternary:?} {name}");
            }
            let (again, _) = write(&config, &absent_tokenizer(), &tensors, ternary).expect("writes");
            assert!(again == bytes, "writing is deterministic");
        }
    }
}

#[test]
fn every_option_of_a_configuration_comes_back_equal() {
    let base = config(Architecture::Qwen3);
    let yarn = RopeScaling::Yarn { factor: 4.0, original_context: 32768, beta_fast: 32.0, beta_slow: 1.0, attention_factor: 1.2345 };
    let llama3 = RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let rope = |scaling| Rope { theta: 1.0e6 + 1.0 / 3.0, scaling };
    for config in [
        ModelConfig { rope: rope(yarn), ..base.clone() },
        ModelConfig { rope: rope(RopeScaling::Linear { factor: 2.5 }), ..base.clone() },
        ModelConfig { rope: rope(llama3), ..config(Architecture::Llama) },
        ModelConfig { rope: rope(llama3), ..base.clone() },
        ModelConfig { projection_norms: true, last_token_pooling: true, tied_head: true, ..base.clone() },
        ModelConfig { projection_norms: true, projection_norm_eps: 1e-4, ..base.clone() },
        ModelConfig { last_token_pooling: true, tied_head: false, ..base.clone() },
        ModelConfig { activation: Activation::Silu, ..config(Architecture::Bitnet) },
        ModelConfig { activation_policy: ActivationPolicy::Unquantised, ..config(Architecture::Bitnet) },
        ModelConfig { activation_policy: ActivationPolicy::Int8PerToken, ..base.clone() },
        ModelConfig { activation: Activation::Relu2, sub_norms: true, ..base },
    ] {
        let tensors = tensors(&config, tensor_scale);
        let (bytes, losses) = write(&config, &absent_tokenizer(), &tensors, GgufTensorType::Tq2_0).expect("writes");
        let relu2_elsewhere = config.activation == Activation::Relu2 && config.architecture != Architecture::Bitnet;
        let other_epsilon = config.projection_norm_eps != config.rms_norm_eps;
        assert_eq!(losses.len(), usize::from(relu2_elsewhere) + usize::from(other_epsilon), "{losses:?}");
        assert_eq!(read(bytes).config(), &config);
    }
}

#[test]
fn llama3_factors_are_recovered_without_our_keys() {
    let llama3 = RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let config = ModelConfig { rope: Rope { theta: 500_000.0, scaling: llama3 }, ..config(Architecture::Llama) };
    let (mut bytes, _) = write(&config, &absent_tokenizer(), &tensors(&config, tensor_scale), GgufTensorType::I2S).expect("writes");
    // Other programs' files have no such keys: rename them, keeping every length.
    let needle = b"bitnet.config.rope_scaling.type";
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("written");
    bytes[at] = b'x';
    assert_eq!(read(bytes).config(), &config);
}

#[test]
fn scales_by_row_and_group_come_back_where_blocks_hold_them() {
    let config = config(Architecture::Llama);
    let by_row = tensors(&config, |n_rows, _| Scales::Row((0..n_rows).map(|row| (row + 1) as f32 / 64.0).collect()));
    let by_group = tensors(&config, |n_rows, n_cols| Scales::Group {
        group_size: 128,
        scales: (0..n_rows * n_cols / 128).map(|group| (group % 100 + 1) as f32 / 64.0).collect(),
    });
    for (tensors, works) in [(&by_row, &TERNARY[1..]), (&by_group, &[GgufTensorType::Q2_0, GgufTensorType::Pq2_0][..])] {
        for ternary in TERNARY {
            let result = write(&config, &absent_tokenizer(), tensors, ternary);
            if !works.contains(&ternary) {
                assert!(matches!(result, Err(CheckpointError::CannotRepresent { .. })), "{ternary:?}: {result:?}");
                continue;
            }
            let source = read(result.expect("writes").0);
            for (name, tensor) in tensors {
                let (Tensor::Ternary(expected), Tensor::Ternary(got)) = (tensor, source.load(name).expect("loads")) else { continue };
                assert_eq!(got.to_trits(), expected.to_trits(), "{ternary:?} {name}");
                let same = |column: usize| (0..got.n_rows()).all(|row| got.scale_at(row, column) == expected.scale_at(row, column));
                assert!((0..got.n_cols()).step_by(32).all(same), "{ternary:?} {name}");
            }
        }
    }
}

#[test]
fn scales_that_f16_rounds_are_reported_and_those_it_cannot_hold_refused() {
    let config = config(Architecture::Bitnet);
    let odd = tensors(&config, |_, _| Scales::Tensor(0.017_345_678));
    let (bytes, losses) = write(&config, &absent_tokenizer(), &odd, GgufTensorType::Tq2_0).expect("writes");
    let linear = config.expected_tensors().iter().filter(|tensor| tensor.role == TensorRole::Linear).count();
    assert_eq!(losses.len(), linear);
    assert!(losses[0].tensor.as_deref() == Some("model.layers.0.self_attn.q_proj.weight") && losses[0].what.contains("256 of 256 scales"));
    let Tensor::Ternary(matrix) = read(bytes).load("model.layers.0.self_attn.q_proj.weight").expect("loads") else { panic!("ternary") };
    assert!((matrix.scale_at(0, 0) / 0.017_345_678 - 1.0).abs() < 1e-3);
    let (_, losses) = write(&config, &absent_tokenizer(), &odd, GgufTensorType::I2S).expect("writes");
    assert_eq!(losses, [], "I2_S keeps f32");
    for scale in [1e-9, 1e9] {
        let extreme = tensors(&config, |_, _| Scales::Tensor(scale));
        assert!(matches!(
            write(&config, &absent_tokenizer(), &extreme, GgufTensorType::Tq1_0),
            Err(CheckpointError::CannotRepresent { .. })
        ));
    }
}

#[test]
fn dense_tensors_convert_exactly_or_say_what_they_round() {
    let config = ModelConfig { n_layers: 1, ..config(Architecture::Bitnet) };
    let tensors = tensors(&config, tensor_scale);
    let write_as = |table: GgufTensorType| {
        let mut planned = plan(&tensors, GgufTensorType::I2S);
        planned[0].tensor_type = table;
        let mut writer = GgufWriter::new(Vec::new(), Path::new(PATH), &config, &absent_tokenizer(), &planned)?;
        for (name, tensor) in &tensors {
            writer.write_tensor(name, tensor)?;
        }
        writer.finish()
    };
    let Tensor::Dense(original) = &tensors[0].1 else { panic!("dense") };
    let (bytes, losses) = write_as(GgufTensorType::F32).expect("writes");
    assert_eq!(losses, [], "every bf16 is an f32");
    let Tensor::Dense(wide) = read(bytes).load("model.embed_tokens.weight").expect("loads") else { panic!("dense") };
    assert_eq!((wide.dtype(), wide.to_f32()), (DenseType::F32, original.to_f32()));
    // bf16 0x3D80 and above is from 0.06 to 1e4 or so; f16 has more mantissa bits there, so nothing is rounded.
    let (bytes, losses) = write_as(GgufTensorType::F16).expect("writes");
    let Tensor::Dense(half) = read(bytes).load("model.embed_tokens.weight").expect("loads") else { panic!("dense") };
    let n_rounded = half.to_f32().iter().zip(original.to_f32()).filter(|(a, b)| **a != *b).count();
    assert_eq!(losses.len(), usize::from(n_rounded > 0), "{losses:?}");
}

#[test]
fn tokenizer_json_template_and_generation_come_back_equal() {
    let json = serde_json::json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [{"id": 3, "content": "<s>", "special": true}, {"id": 4, "content": "</s>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel"},
    });
    let files = TokenizerFiles {
        vocabulary: Vocabulary::Json(json.to_string().into_bytes()),
        chat_template: Some("{{ bos_token }}ü".into()),
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        special_tokens: [("pad_token".into(), "ab".into())].into(),
        bos_token_id: Some(3),
        generation: GenerationDefaults {
            eos_token_ids: vec![4, 2],
            temperature: Some(0.7),
            top_p: Some(0.95),
            top_k: Some(20),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            do_sample: Some(true),
        },
        ..TokenizerFiles::default()
    };
    let config = config(Architecture::Qwen3);
    let tensors = tensors(&config, tensor_scale);
    let (bytes, losses) = write(&config, &files, &tensors, GgufTensorType::Q2_0).expect("writes");
    assert_eq!(losses, []);
    assert_eq!(read(bytes.clone()).tokenizer_files(), &files);
    // Other programs see arrays.
    let needle = b"tokenizer.huggingface.json";
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("written");
    let mut without = bytes;
    without[at] = b'x';
    let source = read(without);
    let Vocabulary::Gguf(vocabulary) = &source.tokenizer_files().vocabulary else { panic!("arrays") };
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref(), vocabulary.tokens.len()), ("gpt2", Some("gpt-2"), config.n_vocab));
    assert_eq!((vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.tokens[3].as_str()), (Some(3), Some(4), "<s>"));
}

#[test]
fn gguf_vocabulary_comes_back_equal() {
    let config = config(Architecture::Llama);
    let vocabulary = GgufVocabulary {
        model: "llama".into(),
        pre: Some("default".into()),
        tokens: (0..config.n_vocab).map(|id| format!("▁t{id}")).collect(),
        scores: (0..config.n_vocab).map(|id| -(id as f32)).collect(),
        token_types: vec![1; config.n_vocab],
        merges: vec![],
        add_bos: Some(true),
        add_eos: Some(false),
        add_space_prefix: Some(true),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        padding_token_id: None,
    };
    let files = TokenizerFiles {
        bos_token: Some("▁t1".into()),
        eos_token: Some("▁t2".into()),
        special_tokens: [("unk_token".into(), "▁t0".into())].into(),
        bos_token_id: Some(1),
        generation: GenerationDefaults { eos_token_ids: vec![2], ..GenerationDefaults::default() },
        vocabulary: Vocabulary::Gguf(vocabulary),
        ..absent_tokenizer()
    };
    let (bytes, losses) = write(&config, &files, &tensors(&config, tensor_scale), GgufTensorType::I2S).expect("writes");
    assert_eq!(losses, []);
    assert_eq!(read(bytes).tokenizer_files(), &files);
}

#[test]
fn tokenizer_that_has_no_arrays_is_said_to_be_lost_to_others() {
    let files = TokenizerFiles { vocabulary: Vocabulary::Json(br#"{"model": {"type": "Unigram"}}"#.to_vec()), ..absent_tokenizer() };
    let config = config(Architecture::Llama);
    let (bytes, losses) = write(&config, &files, &tensors(&config, tensor_scale), GgufTensorType::I2S).expect("writes");
    assert!(losses.len() == 1 && losses[0].tensor.is_none(), "{losses:?}");
    assert_eq!(read(bytes).tokenizer_files(), &files);
}

#[test]
fn tensors_out_of_plan_are_refused() {
    let config = config(Architecture::Bitnet);
    let tensors = tensors(&config, tensor_scale);
    let start = || {
        let plan = plan(&tensors, GgufTensorType::I2S);
        GgufWriter::new(Vec::new(), Path::new(PATH), &config, &absent_tokenizer(), &plan).expect("plans")
    };
    assert!(matches!(start().write_tensor(&tensors[1].0, &tensors[1].1), Err(CheckpointError::Tensor { .. })), "another order");
    assert!(matches!(start().write_tensor(&tensors[0].0, &tensors[1].1), Err(CheckpointError::Tensor { .. })), "another shape");
    assert!(matches!(start().finish(), Err(CheckpointError::MissingTensor { .. })), "too few");
    let mut unknown = plan(&tensors, GgufTensorType::I2S);
    unknown[0].name = "model.vision.weight".into();
    let result = GgufWriter::new(Vec::new(), Path::new(PATH), &config, &absent_tokenizer(), &unknown);
    assert!(matches!(result, Err(CheckpointError::CannotRepresent { .. })));
    let narrow = ModelConfig { hidden_size: 128, ..config.clone() };
    let narrow_tensors = self::tensors(&narrow, tensor_scale);
    let result = write(&narrow, &absent_tokenizer(), &narrow_tensors, GgufTensorType::Tq2_0);
    assert!(matches!(result, Err(CheckpointError::CannotRepresent { .. })), "rows of 128 in blocks of 256");
}
