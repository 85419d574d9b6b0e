//! Hugging Face folders that must open: the small models with golden outputs, and every way in which a folder says "ternary".

use std::path::{Path, PathBuf};

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture};
use bitnet_checkpoint::{Checkpoint, CheckpointError, Tensor, Vocabulary};
use bitnet_ternary::{Scales, TernaryMatrix};
use serde_json::json;

use crate::small_model::{HIDDEN, SmallModel, bf16, file, trit};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

pub(crate) fn open(model: &SmallModel) -> Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().expect("temporary folder");
    model.write(folder.path());
    // The files stay open, so the folder may go.
    Checkpoint::open(folder.path())
}

pub(crate) fn ternary(checkpoint: &Checkpoint, name: &str) -> TernaryMatrix {
    match checkpoint.load(name).expect("loads") {
        Tensor::Ternary(matrix) => matrix,
        Tensor::Dense(_) => panic!("{name} is dense"),
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, CheckpointError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn packed_bitlinear_model_divides_by_its_scale() {
    let checkpoint = Checkpoint::open(&fixture("tiny-llama-bitlinear")).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.activation), (Architecture::Llama, Activation::Silu));
    assert_eq!(config.activation_policy, ActivationPolicy::Int8PerToken);
    assert_eq!((config.sub_norms, config.qk_norm, config.tied_head), (false, false, false));
    let matrix = ternary(&checkpoint, "model.layers.0.mlp.down_proj.weight");
    assert_eq!((matrix.n_rows(), matrix.n_cols(), matrix.scales()), (256, 768, &Scales::Tensor(1.0 / 25.125)));
    assert_eq!(checkpoint.tensors().len(), 3 + 3 * 9);
    for tensor in checkpoint.tensors() {
        assert_eq!(checkpoint.load(&tensor.name).expect("loads").shape(), tensor.shape, "{}", tensor.name);
    }
}

#[test]
fn online_model_is_ternarised() {
    let checkpoint = Checkpoint::open(&fixture("tiny-bitnet-online")).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.activation, config.sub_norms), (Architecture::Bitnet, Activation::Relu2, true));
    assert_eq!((config.head_dim, config.rope.theta, config.rms_norm_eps), (64, 500_000.0, 1e-5));
    let matrix = ternary(&checkpoint, "model.layers.2.mlp.gate_proj.weight");
    assert!(matches!(matrix.scales(), Scales::Tensor(scale) if (0.01..0.1).contains(scale)), "{:?}", matrix.scales());
    let zeros = matrix.n_zeros() as f64 / (256.0 * 640.0);
    assert!((0.25..0.40).contains(&zeros), "about 31% of normal weights are below half their mean magnitude, got {zeros}");
}

#[test]
fn group_scaled_model_published_as_bf16_is_detected() {
    let checkpoint = Checkpoint::open(&fixture("tiny-qwen3-group128")).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.qk_norm, config.head_dim), (Architecture::Qwen3, true, 128));
    assert_eq!(config.activation_policy, ActivationPolicy::Unquantised);
    for name in ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"] {
        assert_eq!(ternary(&checkpoint, name).group_size(), 128, "{name}");
    }
    assert!(matches!(checkpoint.load("model.norm.weight"), Ok(Tensor::Dense(_))));
}

#[test]
fn linear_class_decides_what_the_scale_means() {
    let name = "model.layers.0.mlp.gate_proj.weight";
    for (class, scale) in [(None, 0.25), (Some("bitlinear"), 0.25), (Some("autobitlinear"), 4.0)] {
        let matrix = ternary(&open(&SmallModel::packed(class)).expect("opens"), name);
        assert_eq!(matrix.scales(), &Scales::Tensor(scale), "{class:?}");
        assert_eq!(matrix.to_trits(), (0..4 * HIDDEN).map(trit).collect::<Vec<_>>());
    }
    let mut wrong = SmallModel::packed(Some("autobitlinear"));
    wrong.tensor("model.layers.0.mlp.gate_proj.weight_scale").bytes = bf16([512.0]);
    assert!(reason(open(&wrong)).contains("linear_class"));
}

#[test]
fn packed_and_fake_quantised_files_of_one_model_load_the_same() {
    let packed = open(&SmallModel::packed(None)).expect("opens");
    let dense = open(&SmallModel::fake_quantised()).expect("opens");
    for tensor in packed.tensors() {
        assert_eq!(packed.load(&tensor.name).expect("loads"), dense.load(&tensor.name).expect("loads"), "{}", tensor.name);
    }
    assert_eq!(packed.config().activation_policy, ActivationPolicy::Int8PerToken);
    assert_eq!(dense.config().activation_policy, ActivationPolicy::Unquantised);
}

#[test]
fn dense_model_is_refused() {
    let mut model = SmallModel::fake_quantised();
    model.tensor("model.layers.0.mlp.up_proj.weight").bytes = bf16((0..4 * HIDDEN).map(|i| 1.0 + (i % 64) as f32));
    let checkpoint = open(&model).expect("opens: weights are looked at when they are loaded");
    let error = checkpoint.load("model.layers.0.mlp.up_proj.weight");
    assert!(matches!(error, Err(CheckpointError::NotTernary { .. })), "{error:?}");
    assert!(reason(error).contains("row 0 columns 0..32 holds 32 distinct magnitudes"));
}

#[test]
fn one_bit_llm_names_and_keys_are_understood() {
    let mut model = SmallModel::fake_quantised();
    model.config["weight_bits"] = json!(1);
    model.config["input_bits"] = json!(8);
    model.push("model.layers.0.self_attn.inner_attn_ln.weight", "BF16", vec![8], bf16([1.0; 8]));
    model.push("model.layers.0.mlp.ffn_layernorm.weight", "BF16", vec![4], bf16([1.0; 4]));
    model.push("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", vec![2], vec![0; 8]);
    let checkpoint = open(&model).expect("opens");
    assert!(checkpoint.config().sub_norms);
    assert_eq!(checkpoint.config().architecture, Architecture::Bitnet, "a llama graph with sub-norms would be misread by others");
    assert_eq!(checkpoint.config().activation_policy, ActivationPolicy::Int8PerToken);
    assert!(checkpoint.load("model.layers.0.mlp.ffn_sub_norm.weight").is_ok());
    assert!(matches!(ternary(&checkpoint, "model.layers.0.mlp.up_proj.weight").scales(), Scales::Tensor(_)));
}

#[test]
fn embedding_model_without_prefix_and_head_is_understood() {
    let mut model = SmallModel::fake_quantised();
    model.config["architectures"] = json!(["Qwen3Model"]);
    model.config["model_type"] = json!("qwen3");
    model.config["tie_word_embeddings"] = json!(false);
    model.push_projection_norms("norm");
    for norm in ["q_norm", "k_norm"] {
        model.push(&format!("model.layers.0.self_attn.{norm}.weight"), "BF16", vec![4], bf16([1.0; 4]));
    }
    model.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("model.", ""));
    let checkpoint = open(&model).expect("opens");
    let config = checkpoint.config();
    assert!(config.projection_norms && config.last_token_pooling && config.qk_norm);
    assert_eq!(config.activation_policy, ActivationPolicy::Int8PerToken);
    // Its projections are published as master weights, and written by us as trit × scale: both load.
    let up = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(ternary(&checkpoint, up).scales(), &Scales::Tensor(0.25), "exact, not the mean with its zeros");
    let masters = |i: usize| [-0.75, 0.125, 0.5, 1.125, -0.0625, 0.1875, -1.0, 0.25][i % 8];
    model.tensor("layers.0.mlp.up_proj.weight").bytes = bf16((0..4 * HIDDEN).map(masters));
    let matrix = ternary(&open(&model).expect("opens"), up);
    assert_eq!((matrix.scales(), &matrix.to_trits()[..8]), (&Scales::Tensor(0.5), &[-1, 0, 1, 1, 0, 0, -1, 0][..]));
    model.tensor("layers.0.mlp.up_proj.weight").bytes = bf16((0..4 * HIDDEN).map(|i| if i == 5 { f32::NAN } else { masters(i) }));
    let error = open(&model).expect("opens").load(up);
    assert!(matches!(error, Err(CheckpointError::NotTernary { .. })), "{error:?}");
}

#[test]
fn norms_inside_projections_have_their_own_epsilon() {
    let epsilons = |key: &str, value: serde_json::Value| {
        let mut model = SmallModel::packed(None);
        model.push_projection_norms("rms_norm");
        model.config["rms_norm_eps"] = json!(1e-5);
        model.config["quantization_config"]["use_rms_norm"] = json!(true);
        model.config["quantization_config"][key] = value;
        open(&model).map(|checkpoint| (checkpoint.config().rms_norm_eps, checkpoint.config().projection_norm_eps))
    };
    assert_eq!(epsilons("modules_to_not_convert", json!(null)).expect("opens"), (1e-5, 1e-6), "as the class defaults");
    assert_eq!(epsilons("rms_norm_eps", json!(1e-3)).expect("opens"), (1e-5, 1e-3));
    for wrong in [json!(0.0), json!(2), json!("1e-6")] {
        assert!(reason(epsilons("rms_norm_eps", wrong.clone())).contains("norm_eps"), "{wrong}");
    }
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_found_when_opening() {
    let mut missing = SmallModel::packed(None);
    missing.remove("model.layers.0.mlp.up_proj.weight");
    assert!(matches!(open(&missing), Err(CheckpointError::MissingTensor { name }) if name == "model.layers.0.mlp.up_proj.weight"));
    let mut unscaled = SmallModel::packed(None);
    unscaled.remove("model.layers.0.mlp.up_proj.weight_scale");
    assert!(matches!(open(&unscaled), Err(CheckpointError::MissingTensor { name }) if name == "model.layers.0.mlp.up_proj.weight_scale"));
    for extra in
        ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.router.weight", "lm_head.weight"]
    {
        let mut model = SmallModel::packed(None);
        model.push(extra, "BF16", vec![4], bf16([1.0; 4]));
        assert!(reason(open(&model)).contains(extra), "{extra}");
    }
    let mut turned = SmallModel::fake_quantised();
    turned.tensor("model.layers.0.self_attn.q_proj.weight").shape = vec![HIDDEN, 8];
    assert!(reason(open(&turned)).contains("expected shape [8, 32], got [32, 8]"));
    let mut unpacked = SmallModel::fake_quantised();
    unpacked.config["quantization_config"] = json!({ "quant_method": "bitnet" });
    assert!(reason(open(&unpacked)).contains("expected packed U8"));
    let mut scaled = SmallModel::fake_quantised();
    scaled.push("model.layers.0.mlp.up_proj.weight_scale", "BF16", vec![1], bf16([4.0]));
    assert!(reason(open(&scaled)).contains("gives no meaning"));
}

#[test]
fn second_copy_of_a_tied_head_is_allowed_and_another_head_is_not() {
    let mut model = SmallModel::packed(None);
    let mut head = model.tensor("model.embed_tokens.weight").clone();
    head.name = "lm_head.weight".into();
    model.tensors.push(head);
    assert!(open(&model).is_ok());
    model.tensor("lm_head.weight").bytes[7] ^= 1;
    assert!(reason(open(&model)).contains("lm_head"));
}

#[test]
fn paths_that_are_no_model_get_advice() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name);
    let refused = |path: &Path| match Checkpoint::open(path) {
        Err(CheckpointError::NotAModel { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&path("absent")).contains("nothing"));
    assert!(refused(folder.path()).contains("config.json"));
    std::fs::write(path("pickle.bin"), b"PK\x03\x04....").expect("written");
    assert!(refused(&path("pickle.bin")).contains("pickle"));
    std::fs::write(path("pointer.gguf"), b"version https://git-lfs.github.com/spec/v1").expect("written");
    assert!(refused(&path("pointer.gguf")).contains("git lfs pull"));
    std::fs::write(path("empty"), b"").expect("written");
    assert!(refused(&path("empty")).contains("neither"));
    let alone = SmallModel::packed(None);
    std::fs::write(path("renamed.bin"), alone.safetensors()).expect("written");
    assert!(refused(&path("renamed.bin")).contains("config.json beside it"));
    std::fs::write(path("config.json"), alone.config.to_string()).expect("written");
    assert!(refused(folder.path()).contains("neither model.safetensors"));
    alone.write(folder.path());
    assert!(Checkpoint::open(&path("model.safetensors")).is_ok(), "a file stands for its folder");
    let (header, data) = alone.header_and_data();
    let mut header = serde_json::to_vec(&header).expect("serialises");
    assert!(header.len() < 640 + 65_536);
    header.resize(640 + 65_536 * usize::from(header.len() > 640), b' ');
    let like_a_pickle = file(&header, &data);
    assert!(like_a_pickle.starts_with(b"\x80\x02"));
    std::fs::write(path("model.safetensors"), like_a_pickle).expect("written");
    assert!(Checkpoint::open(&path("model.safetensors")).is_ok(), "its length begins as a pickle does");
    std::fs::write(path("pickle.bin"), b"\x80\x02}q\x00(X{\x05{{").expect("written");
    assert!(refused(&path("pickle.bin")).contains("pickle"));
    std::fs::write(path("adapter.safetensors"), alone.safetensors()).expect("written");
    assert!(refused(&path("adapter.safetensors")).contains("in \"model.safetensors\", which this file is no part of"));
    assert!(Checkpoint::open(&path("model.safetensors")).is_ok());
}

#[test]
fn ids_and_counts_of_minus_one_mean_none() {
    let folder = tempfile::tempdir().expect("temporary folder");
    SmallModel::packed(None).write(folder.path());
    let generation = |text: &str| {
        std::fs::write(folder.path().join("generation_config.json"), text).expect("written");
        Checkpoint::open(folder.path()).map(|checkpoint| checkpoint.tokenizer_files().generation.clone())
    };
    let none = generation(r#"{"eos_token_id": [-1, 3], "top_k": -1}"#).expect("opens");
    assert_eq!((none.eos_token_ids.as_slice(), none.top_k), (&[3][..], None));
    assert_eq!(generation(r#"{"eos_token_id": -1}"#).expect("opens").eos_token_ids, [2], "as config.json says");
    assert!(reason(generation(r#"{"top_k": -2}"#)).contains("top_k"));
}

#[test]
fn single_file_goes_before_an_index_as_in_transformers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    SmallModel::packed(None).write(folder.path());
    let stale = json!({ "weight_map": { "model.norm.weight": "model-00001-of-00002.safetensors" } });
    std::fs::write(folder.path().join("model.safetensors.index.json"), stale.to_string()).expect("written");
    Checkpoint::open(folder.path()).expect("the single file is complete");
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("other.safetensors")).expect("renamed");
    assert!(reason(Checkpoint::open(folder.path())).contains("model-00001-of-00002.safetensors"));
}

#[test]
fn tokenizer_model_is_read_where_there_is_no_tokenizer_json() {
    let folder = tempfile::tempdir().expect("temporary folder");
    SmallModel::packed(None).write(folder.path());
    // One piece, `a`, of type 1; a BPE model.
    std::fs::write(folder.path().join("tokenizer.model"), b"\x0a\x05\x0a\x01a\x18\x01\x12\x02\x18\x02").expect("written");
    let vocabulary = || Checkpoint::open(folder.path()).map(|checkpoint| checkpoint.tokenizer_files().vocabulary.clone());
    let Vocabulary::Gguf(read) = vocabulary().expect("opens") else { panic!("no vocabulary") };
    assert_eq!((read.model.as_str(), read.tokens.as_slice()), ("llama", &["a".to_string()][..]));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("written");
    assert_eq!(vocabulary().expect("opens"), Vocabulary::Json(b"{}".to_vec()), "it says everything");
}

#[test]
fn text_files_are_carried() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let files = || Checkpoint::open(folder.path()).map(|checkpoint| checkpoint.tokenizer_files().clone());
    SmallModel::packed(None).write(folder.path());
    assert_eq!(files().expect("opens").generation.eos_token_ids, [2], "config.json, where nothing else says it");
    write(
        "generation_config.json",
        r#"{"eos_token_id": [3, 0], "temperature": 0.5, "top_k": 7, "do_sample": true, "min_p": 0.25, "repetition_penalty": 1.5}"#,
    );
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
    );
    let read = files().expect("opens");
    assert_eq!(read.generation.eos_token_ids, [3, 0]);
    assert_eq!((read.generation.temperature, read.generation.top_k, read.generation.do_sample), (Some(0.5), Some(7), Some(true)));
    assert_eq!((read.generation.min_p, read.generation.repetition_penalty), (Some(0.25), Some(1.5)));
    assert_eq!(
        (read.bos_token.as_deref(), read.eos_token.as_deref(), read.chat_template.as_deref()),
        (Some("<s>"), Some("</s>"), Some("d"))
    );
    write("special_tokens_map.json", r#"{"bos_token": "<old>", "pad_token": {"content": "<pad>"}, "additional_special_tokens": ["<x>"]}"#);
    let read = files().expect("opens");
    assert_eq!((read.bos_token.as_deref(), read.special_tokens["pad_token"].as_str()), (Some("<old>"), "<pad>"), "an older folder");
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "unk_token": "<unk>", "added_tokens_decoder": {}, "chat_template": "d"}"#);
    let read = files().expect("opens");
    assert_eq!(read.bos_token.as_deref(), Some("<s>"));
    assert_eq!(read.special_tokens, [("pad_token".into(), "<pad>".into()), ("unk_token".into(), "<unk>".into())].into());
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(files().expect("opens").chat_template.as_deref(), Some("json"));
    write("chat_template.jinja", "file");
    assert_eq!(files().expect("opens").chat_template.as_deref(), Some("file"));
    for (name, text) in [
        ("tokenizer_config.json", r#"{"bos_token": 5}"#),
        ("tokenizer_config.json", r#"{"bos_token": {"text": "<s>"}}"#),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", r#"{"eos_token_id": ["</s>"]}"#),
        ("generation_config.json", r#"{"eos_token_id": -2}"#),
        ("generation_config.json", r#"{"temperature": "hot"}"#),
        ("generation_config.json", "{"),
    ] {
        let kept = std::fs::read(folder.path().join(name)).expect("is there");
        write(name, text);
        assert!(files().is_err(), "{name} {text}");
        std::fs::write(folder.path().join(name), kept).expect("written");
    }
}
