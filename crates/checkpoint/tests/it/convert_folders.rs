//! Conversion between folders: nothing is lost, the same model gives the same bytes, and nothing is left behind or overwritten.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_checkpoint::config::{ActivationPolicy, ModelConfig};
use bitnet_checkpoint::{
    Checkpoint, CheckpointError, ConvertReport, ConvertStage, ConvertTarget, ExistingOutput, Tensor, convert, inspect,
};
use serde_json::json;

use crate::hf_models::{fixture, open};
use crate::small_model::{HIDDEN, SmallModel, bf16, trit};

const FIXTURES: [&str; 3] = ["tiny-bitnet-online", "tiny-llama-bitlinear", "tiny-qwen3-group128"];

pub(crate) fn to_folder(checkpoint: &Checkpoint, out: &Path, target: ConvertTarget) -> Result<ConvertReport, CheckpointError> {
    convert(checkpoint, out, target, ExistingOutput::Refuse, &mut |_| {})
}

/// Name and contents of every file.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| (path.file_name().expect("named").to_string_lossy().into_owned(), std::fs::read(path).expect("read"))).collect()
}

/// Asserts that two checkpoints are the same model: configuration, text, and every weight's value. A norm may change its precision.
pub(crate) fn assert_same_model(left: &Checkpoint, right: &Checkpoint) {
    assert_eq!(left.config(), right.config());
    assert_eq!(left.tokenizer_files(), right.tokenizer_files());
    assert_eq!(left.tensors().len(), right.tensors().len());
    for tensor in left.tensors() {
        match (left.load(&tensor.name).expect("loads"), right.load(&tensor.name).expect("loads")) {
            (Tensor::Dense(left), Tensor::Dense(right)) => assert_eq!(left.to_f32(), right.to_f32(), "{}", tensor.name),
            (left, right) => assert_eq!(left, right, "{}", tensor.name),
        }
    }
}

#[test]
fn models_converted_there_and_back_are_the_same_bytes() {
    for name in FIXTURES {
        let folder = tempfile::tempdir().expect("temporary folder");
        let original = Checkpoint::open(&fixture(name)).expect("opens");
        let path = |step: &str| folder.path().join(step);
        let mut from = original;
        for (step, target) in
            [("a", ConvertTarget::Safetensors), ("b", ConvertTarget::Mlx), ("c", ConvertTarget::Safetensors), ("d", ConvertTarget::Mlx)]
        {
            to_folder(&from, &path(step), target).expect("converts");
            let converted = Checkpoint::open(&path(step)).expect("opens");
            assert_same_model(&from, &converted);
            from = converted;
        }
        assert_eq!(files(&path("a")), files(&path("c")), "{name}: safetensors → MLX → safetensors");
        assert_eq!(files(&path("b")), files(&path("d")), "{name}: MLX → safetensors → MLX");
    }
}

#[test]
fn packed_model_keeps_its_codes_and_bf16_scale() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open(&SmallModel::packed(Some("autobitlinear"))).expect("opens");
    to_folder(&original, &folder.path().join("out"), ConvertTarget::Safetensors).expect("converts");
    let again = Checkpoint::open(&folder.path().join("out")).expect("opens");
    assert_eq!(again.tensors(), original.tensors(), "types and sizes are as they were");
    assert_same_model(&original, &again);
}

#[test]
fn group_scaled_and_unquantised_models_are_written_as_floating_point() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let qwen3 = Checkpoint::open(&fixture("tiny-qwen3-group128")).expect("opens");
    let report = to_folder(&qwen3, &folder.path().join("qwen3"), ConvertTarget::Safetensors).expect("converts");
    assert!(report.losses.is_empty(), "{:?}", report.losses);
    let written = Checkpoint::open(&folder.path().join("qwen3")).expect("opens");
    assert!(written.tensors().iter().all(|tensor| tensor.stored.type_name == "BF16"));
    assert_eq!(written.tensors(), qwen3.tensors());
    // Group scales with int8 activations: no packed form exists, and another reader would not quantise activations.
    let mut model = SmallModel::fake_quantised();
    model.config["bitnet_activation_policy"] = json!("int8_per_token");
    let values = (0..4 * HIDDEN).map(|i| f32::from(trit(i)) * if i < HIDDEN { 0.5 } else { 0.25 });
    model.tensor("model.layers.0.mlp.up_proj.weight").bytes = bf16(values);
    let report = to_folder(&open(&model).expect("opens"), &folder.path().join("rows"), ConvertTarget::Safetensors).expect("converts");
    assert_eq!(report.losses.len(), 1);
    let written = Checkpoint::open(&folder.path().join("rows")).expect("opens");
    assert_eq!(written.config().activation_policy, ActivationPolicy::Int8PerToken);
}

#[test]
fn matrix_of_zeros_survives_every_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut model = SmallModel::packed(None);
    model.tensor("model.layers.0.mlp.up_proj.weight").bytes = vec![0x55; HIDDEN];
    let mut from = open(&model).expect("opens");
    let first = from.load("model.layers.0.mlp.up_proj.weight").expect("loads");
    for (step, target) in [("a", ConvertTarget::Safetensors), ("b", ConvertTarget::Safetensors)] {
        to_folder(&from, &folder.path().join(step), target).expect("converts");
        from = Checkpoint::open(&folder.path().join(step)).expect("opens");
        assert_eq!(from.load("model.layers.0.mlp.up_proj.weight").expect("loads"), first);
    }
}

#[test]
fn configurations_survive_writing_and_reading() {
    let changes = [
        json!({}),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.5 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } }),
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 8192 } }),
        json!({ "rms_norm_eps": 1.1e-5, "rope_theta": 1000042.7, "hidden_act": "relu2", "eos_token_id": [1, 2], "bos_token_id": null }),
        json!({ "bitnet_activation_policy": "unquantised" }),
    ];
    for change in changes {
        let mut model = SmallModel::packed(None);
        change.as_object().expect("object").iter().for_each(|(key, value)| model.config[key] = value.clone());
        let folder = tempfile::tempdir().expect("temporary folder");
        let original = open(&model).expect("opens");
        to_folder(&original, &folder.path().join("out"), ConvertTarget::Safetensors).expect("converts");
        assert_same_model(&original, &Checkpoint::open(&folder.path().join("out")).expect("opens"));
    }
}

#[test]
fn embedding_model_with_projection_norms_survives() {
    let mut model = SmallModel::packed(None);
    model.config["quantization_config"]["use_rms_norm"] = json!(true);
    model.config["quantization_config"]["rms_norm_eps"] = json!(1e-3);
    model.config["architectures"] = json!(["LlamaModel"]);
    model.push_projection_norms("rms_norm");
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open(&model).expect("opens");
    let has_all = |config: &ModelConfig| config.projection_norms && config.last_token_pooling;
    assert!(has_all(original.config()));
    to_folder(&original, &folder.path().join("out"), ConvertTarget::Safetensors).expect("converts");
    assert_same_model(&original, &Checkpoint::open(&folder.path().join("out")).expect("opens"));
    // Without a packed form there is no quantization_config to say the norms' epsilon.
    model.config["bitnet_activation_policy"] = json!("unquantised");
    let original = open(&model).expect("opens");
    to_folder(&original, &folder.path().join("dense"), ConvertTarget::Safetensors).expect("converts");
    assert_same_model(&original, &Checkpoint::open(&folder.path().join("dense")).expect("opens"));
}

#[test]
fn failed_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut dense = SmallModel::fake_quantised();
    dense.tensor("model.layers.0.mlp.down_proj.weight").bytes = bf16((0..4 * HIDDEN).map(|i| 1.0 + (i % 64) as f32));
    let error = to_folder(&open(&dense).expect("opens"), &folder.path().join("out"), ConvertTarget::Safetensors);
    assert!(matches!(error, Err(CheckpointError::NotTernary { .. })), "{error:?}");
    // Four columns do not make a group of 32.
    let error = to_folder(&open(&SmallModel::packed(None)).expect("opens"), &folder.path().join("out"), ConvertTarget::Mlx);
    assert!(matches!(error, Err(CheckpointError::CannotRepresent { .. })), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn existing_output_is_refused_or_replaced_only_if_it_is_a_model() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("out");
    let model = open(&SmallModel::packed(None)).expect("opens");
    to_folder(&model, &out, ConvertTarget::Safetensors).expect("converts");
    let first = files(&out);
    let again = to_folder(&model, &out, ConvertTarget::Safetensors).expect_err("refused").to_string();
    assert!(again.contains("exists already"), "{again}");
    std::fs::write(out.join("stale.txt"), "stale").expect("written");
    let replace = || convert(&model, &out, ConvertTarget::Safetensors, ExistingOutput::Replace, &mut |_| {});
    replace().expect("replaces a model");
    assert_eq!(files(&out), first);
    std::fs::create_dir(out.join("photos")).expect("made");
    assert!(replace().is_err(), "a folder with folders is not a model");
    std::fs::remove_dir(out.join("photos")).expect("removed");
    std::fs::remove_file(out.join("config.json")).expect("removed");
    assert!(replace().is_err(), "a folder without config.json is not a model");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no temporary folder is left");
}

#[test]
fn model_converted_onto_itself_is_whole() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("out");
    to_folder(&open(&SmallModel::packed(None)).expect("opens"), &out, ConvertTarget::Safetensors).expect("converts");
    let first = files(&out);
    let source = Checkpoint::open(&out).expect("opens");
    convert(&source, &out, ConvertTarget::Safetensors, ExistingOutput::Replace, &mut |_| {}).expect("the open file stays readable");
    assert_eq!(files(&out), first);
}

#[test]
fn progress_counts_both_passes_to_their_end() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let model = open(&SmallModel::packed(None)).expect("opens");
    let mut seen = Vec::new();
    let mut note = |progress: bitnet_checkpoint::ConvertProgress| seen.push((progress.stage, progress.n_done, progress.n_total));
    let report =
        convert(&model, &folder.path().join("out"), ConvertTarget::Safetensors, ExistingOutput::Refuse, &mut note).expect("converts");
    assert_eq!(report.n_tensors, 11);
    let expected = (0..11).map(|i| (ConvertStage::Examining, i, 11)).chain((0..18).map(|i| (ConvertStage::Writing, i, 18)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
    let on_disk: u64 = files(&folder.path().join("out")).values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(report.size_bytes, on_disk);
}

#[test]
fn inspection_adds_up() {
    let inspection = inspect(&Checkpoint::open(&fixture("tiny-qwen3-group128")).expect("opens")).expect("inspects");
    let totals = &inspection.totals;
    assert_eq!(inspection.format, "safetensors");
    assert_eq!(totals.bytes_at_32_bits, 4 * totals.n_parameters);
    assert_eq!(totals.stored_bits_per_weight, 16.0);
    let scales = |name: &str| {
        inspection.tensors.iter().find(|tensor| tensor.name == name).and_then(|tensor| tensor.ternary.as_ref()).map(|t| t.scales.as_str())
    };
    assert_eq!(scales("model.embed_tokens.weight"), Some("group 128"));
    assert_eq!(scales("model.norm.weight"), None);
    let n_ternary: usize =
        inspection.tensors.iter().filter(|tensor| tensor.ternary.is_some()).map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!(totals.n_ternary_parameters, n_ternary as u64);
    assert!((0.2..0.6).contains(&totals.share_of_zeros), "{}", totals.share_of_zeros);
    assert!(totals.ternary_bytes * 6 < totals.bytes_at_16_bits);
    let json = serde_json::to_value(&inspection).expect("serialises");
    assert_eq!(json["tensors"][0]["name"], "model.embed_tokens.weight");
}
