//! Conversion to GGUF and back: lossless where the type has the words, refused or reported where it has not.

use std::path::Path;

use bitnet_checkpoint::gguf::write::{GgufTensorType, GgufWriter, PlannedTensor};
use bitnet_checkpoint::{Checkpoint, CheckpointError, ConvertTarget, ExistingOutput, GgufVocabulary, Tensor, Vocabulary, convert};
use bitnet_ternary::{Scales, TernaryMatrix};
use serde_json::json;

use crate::convert_folders::{assert_same_model, files, to_folder as converted};
use crate::hf_models::{fixture, ternary};
use crate::small_model::{SmallModel, bf16};

const LOSSLESS: [(&str, ConvertTarget); 4] = [
    ("tiny-bitnet-online", ConvertTarget::GgufI2S),
    ("tiny-llama-bitlinear", ConvertTarget::GgufI2S),
    ("tiny-qwen3-group128", ConvertTarget::GgufPq2_0),
    ("tiny-qwen3-group128", ConvertTarget::GgufQ2_0),
];

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).expect("opens")
}

#[test]
fn models_through_gguf_and_back_are_the_same_bytes() {
    for (name, target) in LOSSLESS {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |step: &str| folder.path().join(step);
        let original = open(&fixture(name));
        let steps = [("a", ConvertTarget::Safetensors), ("b.gguf", target), ("c", ConvertTarget::Safetensors), ("d.gguf", target)];
        let mut from = path("unused");
        for (step, target) in steps {
            let source = if step == "a" { open(&fixture(name)) } else { open(&from) };
            converted(&source, &path(step), target).expect("converts");
            assert_same_model(&original, &open(&path(step)));
            from = path(step);
        }
        assert_eq!(files(&path("a")), files(&path("c")), "{name} {target:?}: safetensors → GGUF → safetensors");
        let read = |step: &str| std::fs::read(path(step)).expect("read");
        assert!(read("b.gguf") == read("d.gguf"), "{name} {target:?}: GGUF → safetensors → GGUF");
        converted(&open(&path("b.gguf")), &path("e"), ConvertTarget::Mlx).expect("converts");
        assert_same_model(&original, &open(&path("e")));
    }
}

#[test]
fn scales_rounded_to_f16_are_reported_and_then_stay() {
    for target in [ConvertTarget::GgufTq1_0, ConvertTarget::GgufTq2_0] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = |step: &str| folder.path().join(step);
        let original = open(&fixture("tiny-llama-bitlinear"));
        let report = converted(&original, &path("a.gguf"), target).expect("converts");
        assert!(report.losses.iter().any(|loss| loss.what.contains("rounded to f16")), "{:?}", report.losses);
        let rounded = open(&path("a.gguf"));
        let name = "model.layers.0.mlp.down_proj.weight";
        let [before, after] = [&original, &rounded].map(|checkpoint| ternary(checkpoint, name));
        assert_eq!(before.to_trits(), after.to_trits());
        let (Scales::Tensor(before), Scales::Tensor(after)) = (before.scales(), after.scales()) else { panic!("one scale") };
        assert!((before / after - 1.0).abs() < 1e-3, "{before} {after}");
        converted(&rounded, &path("b"), ConvertTarget::Safetensors).expect("converts");
        converted(&open(&path("b")), &path("c.gguf"), target).expect("converts");
        assert!(std::fs::read(path("a.gguf")).expect("read") == std::fs::read(path("c.gguf")).expect("read"));
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, target) in [
        ("tiny-qwen3-group128", ConvertTarget::GgufI2S),
        ("tiny-qwen3-group128", ConvertTarget::GgufTq2_0),
        ("tiny-bitnet-online", ConvertTarget::GgufTq1_0),
    ] {
        let error = converted(&open(&fixture(name)), &folder.path().join("out.gguf"), target).expect_err("refused");
        assert!(matches!(error, CheckpointError::CannotRepresent { .. }) && error.to_string().contains("_proj.weight"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left");
}

#[test]
fn text_survives_gguf() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |step: &str| folder.path().join(step);
    let tokenizer = json!({
        "model": { "type": "BPE", "vocab": { "a": 0, "<s>": 1, "</s>": 2, "b": 3 }, "merges": [] },
        "added_tokens": [{ "id": 1, "content": "<s>", "special": true }, { "id": 2, "content": "</s>", "special": true }],
        "pre_tokenizer": { "type": "ByteLevel", "use_regex": true },
    });
    std::fs::create_dir(path("a")).expect("made");
    let mut model = SmallModel::packed(Some("autobitlinear"));
    model.config["eos_token_id"] = json!([2, 3]);
    model.write(&path("a"));
    let write = |name: &str, text: String| std::fs::write(path("a").join(name), text).expect("written");
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}" }).to_string());
    write("generation_config.json", json!({ "temperature": 0.7, "top_p": 0.9, "top_k": 40, "do_sample": true }).to_string());
    let original = open(&path("a"));
    converted(&original, &path("b.gguf"), ConvertTarget::GgufI2S).expect("converts");
    assert_same_model(&original, &open(&path("b.gguf")));
    converted(&open(&path("b.gguf")), &path("c"), ConvertTarget::Safetensors).expect("converts");
    assert_same_model(&original, &open(&path("c")));
}

#[test]
fn vocabulary_of_gguf_arrays_becomes_tokenizer_json() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open(&fixture("tiny-llama-bitlinear"));
    let mut text = original.tokenizer_files().clone();
    let mut tokens: Vec<String> = byte_tokens().collect();
    tokens.extend(["ab", "<s>", "</s>"].map(str::to_owned));
    let token_types = [vec![1; 257], vec![3; 2]].concat();
    let (model, pre, merges) = ("gpt2".to_owned(), Some("llama-bpe".to_owned()), vec!["a b".to_owned()]);
    text.vocabulary = Vocabulary::Gguf(GgufVocabulary { model, pre, tokens, token_types, merges, ..Default::default() });
    let plan: Vec<_> = original.tensors().iter().map(|tensor| planned(&original, &tensor.name)).collect();
    let path = folder.path().join("arrays.gguf");
    let file = std::fs::File::create(&path).expect("created");
    let mut writer = GgufWriter::new(file, &path, original.config(), &text, &plan).expect("header");
    for planned in &plan {
        writer.write_tensor(&planned.name, &original.load(&planned.name).expect("loads")).expect("written");
    }
    writer.finish().expect("finished");
    let arrays = open(&path);
    assert!(matches!(arrays.tokenizer_files().vocabulary, Vocabulary::Gguf(_)));
    converted(&arrays, &folder.path().join("folder"), ConvertTarget::Safetensors).expect("converts");
    let written = open(&folder.path().join("folder"));
    let Vocabulary::Json(bytes) = &written.tokenizer_files().vocabulary else { panic!("a tokenizer.json") };
    let json: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
    assert_eq!(json["model"]["vocab"]["ab"], 256);
}

/// The 256 tokens of byte-level BPE: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_tokens() -> impl Iterator<Item = String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    (0..256)
        .map(move |byte| if printable(byte) { byte } else { others.next().expect("endless") })
        .map(|c| char::from_u32(c).expect("a character").into())
}

/// A tensor as a GGUF file of type I2_S holds it.
fn planned(checkpoint: &Checkpoint, name: &str) -> PlannedTensor {
    let tensor = checkpoint.load(name).expect("loads");
    let tensor_type = match &tensor {
        Tensor::Ternary(_) => GgufTensorType::I2S,
        Tensor::Dense(dense) => GgufTensorType::of_dense(dense.dtype()),
    };
    PlannedTensor { name: name.to_owned(), shape: tensor.shape(), tensor_type }
}

#[test]
fn folder_with_one_gguf_opens_and_with_two_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open(&fixture("tiny-llama-bitlinear"));
    converted(&original, &folder.path().join("weights.bin"), ConvertTarget::GgufI2S).expect("converts");
    let opened = open(folder.path());
    assert_eq!(opened.format_name(), "GGUF");
    assert!(opened.gguf().is_some() && original.gguf().is_none());
    converted(&original, &folder.path().join("second.gguf"), ConvertTarget::GgufI2S).expect("converts");
    assert!(Checkpoint::open(folder.path()).expect_err("refused").to_string().contains("2 GGUF files"));
}

#[test]
fn embedded_gguf_is_the_same_model() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open(&fixture("tiny-llama-bitlinear"));
    converted(&original, &folder.path().join("a.gguf"), ConvertTarget::GgufI2S).expect("converts");
    let bytes: &'static [u8] = std::fs::read(folder.path().join("a.gguf")).expect("read").leak();
    assert_same_model(&original, &Checkpoint::from_gguf_bytes(bytes).expect("opens"));
}

#[test]
fn existing_file_is_replaced_only_if_it_is_gguf() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("out.gguf");
    let model = open(&fixture("tiny-llama-bitlinear"));
    let replace = || convert(&model, &out, ConvertTarget::GgufI2S, ExistingOutput::Replace, &mut |_| {});
    std::fs::write(&out, "my diary").expect("written");
    assert!(replace().is_err());
    assert_eq!(std::fs::read(&out).expect("read"), b"my diary");
    std::fs::write(&out, "GGUF of old").expect("written");
    replace().expect("replaces");
    assert!(converted(&model, &out, ConvertTarget::GgufI2S).is_err());
    assert_same_model(&model, &open(&out));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn ternary_embedding_in_an_i2s_file_stays_exact() {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::create_dir(folder.path().join("a")).expect("made");
    let mut model = SmallModel::packed(None);
    model.tensor("model.embed_tokens.weight").bytes = bf16((0..128).map(|i| [-0.5, 0.0, 0.5][i % 3]));
    model.write(&folder.path().join("a"));
    let original = open(&folder.path().join("a"));
    assert_eq!(ternary(&original, "model.embed_tokens.weight").scales(), &Scales::Tensor(0.5));
    converted(&original, &folder.path().join("b.gguf"), ConvertTarget::GgufI2S).expect("converts");
    let written = open(&folder.path().join("b.gguf"));
    assert_same_model(&original, &written);
    let stored = |name: &str| written.tensors().iter().find(|tensor| tensor.name == name).expect("there").stored.type_name.clone();
    assert_eq!(stored("model.embed_tokens.weight"), "BF16");
    assert!(matches!(written.load("model.embed_tokens.weight"), Ok(Tensor::Ternary(matrix)) if TernaryMatrix::n_rows(&matrix) == 4));
}
