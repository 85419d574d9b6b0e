//! safetensors files that must be refused: cut anywhere, and with every lie that a header or an index can tell.

use std::path::Path;

use bitnet_checkpoint::{Checkpoint, CheckpointError};
use serde_json::{Value, json};

use crate::small_model::{SmallModel, file};

fn open_file(folder: &Path, bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    std::fs::write(folder.join("model.safetensors"), bytes).expect("written");
    Checkpoint::open(folder)
}

fn folder() -> (tempfile::TempDir, SmallModel) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let model = SmallModel::packed(None);
    model.write(folder.path());
    (folder, model)
}

#[test]
fn file_cut_at_every_byte_is_refused() {
    let (folder, model) = folder();
    let whole = model.safetensors();
    assert!((2000..5000).contains(&whole.len()), "{} bytes", whole.len());
    assert!(open_file(folder.path(), &whole).is_ok());
    for length in 0..whole.len() {
        let error = open_file(folder.path(), &whole[..length]).expect_err("refused");
        assert!(matches!(error, CheckpointError::Malformed { .. }), "{length}: {error}");
    }
}

#[test]
fn every_flipped_header_byte_opens_or_is_refused_without_panic() {
    let (folder, model) = folder();
    let whole = model.safetensors();
    let header_length = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    for at in (0..8 + header_length).step_by(3) {
        for flip in [1u8, 0x10, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let _ = open_file(folder.path(), &bytes);
        }
    }
}

/// A valid header's object changed by `change`, and what the refusal says.
#[test]
fn every_lie_of_a_header_is_refused_by_name() {
    let (folder, model) = folder();
    let (header, data) = model.header_and_data();
    let name = "model.norm.weight";
    let [begin, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().expect("an offset"));
    let entry = |dtype: &str, shape: Value, offsets: [u64; 2]| json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
    let cases = [
        (entry("BF16", json!([32]), [begin + 2, end]), "hole"),
        (entry("BF16", json!([32]), [begin - 2, end]), "overlaps"),
        (entry("BF16", json!([32]), [end, begin]), "hole"),
        (entry("BF16", json!([32]), [begin, u64::MAX]), "outside"),
        (entry("BF16", json!([31]), [begin, end]), "is 62 bytes"),
        (entry("F32", json!([32]), [begin, end]), "is 128 bytes"),
        (entry("BF16", json!([u64::MAX, u64::MAX]), [begin, end]), "not a whole number"),
        (entry("BF16", json!([1u64 << 63, 2]), [begin, end]), "not a whole number"),
        (entry("F4", json!([32]), [begin, end]), "not a whole number"),
        (entry("BF16", json!([2, 2, 2, 2, 2]), [begin, end]), "more than 4 dimensions"),
        (entry("BF16", json!([-1]), [begin, end]), "header"),
        (entry("BF16", json!([32.0]), [begin, end]), "header"),
        (entry("BF16", json!("32"), [begin, end]), "header"),
        (entry("Q8", json!([32]), [begin, end]), "header"),
        (json!({ "dtype": "BF16", "shape": [32] }), "data_offsets"),
        (json!(null), "header"),
        (json!([]), "header"),
    ];
    for (entry, expected) in cases {
        let mut changed = header.clone();
        changed[name] = entry.clone();
        let bytes = file(&serde_json::to_vec(&changed).expect("serialises"), &data);
        let error = open_file(folder.path(), &bytes).expect_err("refused").to_string();
        assert!(error.contains(expected) && error.contains("safetensors"), "{entry}: {error}");
    }
    let longer = [data.clone(), vec![0; 3]].concat();
    let bytes = file(&serde_json::to_vec(&header).expect("serialises"), &longer);
    assert!(open_file(folder.path(), &bytes).expect_err("refused").to_string().contains("3 bytes after the last tensor"));
}

#[test]
fn header_lengths_and_forms_that_lie_are_refused() {
    let (folder, model) = folder();
    let (header, data) = model.header_and_data();
    let text = serde_json::to_string(&header).expect("serialises");
    for length in [u64::MAX, 1 << 63, 100_000_001, model.safetensors().len() as u64, 0, 1] {
        let mut bytes = model.safetensors();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(open_file(folder.path(), &bytes).is_err(), "{length}");
    }
    let norm = serde_json::to_string(&header["model.norm.weight"]).expect("serialises");
    let twice = text.replacen('{', &format!("{{\"model.norm.weight\":{norm},"), 1);
    let cases = [
        (twice.as_str(), "occurs twice"),
        (&format!(" {text}"), "does not begin"),
        (&format!("{text}x"), "trailing"),
        (&text.replacen('{', "{\"__metadata__\":{\"a\":1},", 1), "header"),
        (&text.replacen('{', "{\"__metadata__\":{},\"__metadata__\":{},", 1), "occurs twice"),
        (&"[".repeat(100_000), "does not begin"),
        (&format!("{{\"a\":{}", "[".repeat(100_000)), "header"),
    ];
    for (header, expected) in cases {
        let error = open_file(folder.path(), &file(header.as_bytes(), &data)).expect_err("refused").to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let padded = file(format!("{text}   ").as_bytes(), &data);
    assert!(open_file(folder.path(), &padded).is_ok(), "spaces after the header are padding");
}

/// Writes the model as two shards with an index that `change` may falsify, and opens it.
fn open_sharded(change: impl Fn(&mut Value)) -> Result<Checkpoint, CheckpointError> {
    let (folder, model) = folder();
    std::fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    let mut index = json!({ "metadata": {}, "weight_map": {} });
    for (shard, tensors) in model.tensors.chunks(model.tensors.len().div_ceil(2)).enumerate() {
        let shard_name = format!("model-0000{}-of-00002.safetensors", shard + 1);
        for tensor in tensors {
            index["weight_map"][&tensor.name] = json!(shard_name);
        }
        let part = SmallModel { config: Value::Null, tensors: tensors.to_vec() };
        std::fs::write(folder.path().join(shard_name), part.safetensors()).expect("written");
    }
    change(&mut index);
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("written");
    Checkpoint::open(folder.path())
}

#[test]
fn sharded_model_opens_and_loads() {
    let checkpoint = open_sharded(|_| {}).expect("opens");
    for tensor in checkpoint.tensors() {
        checkpoint.load(&tensor.name).expect("loads");
    }
}

#[test]
fn index_that_leaves_the_folder_is_refused() {
    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..",
        "",
        ".safetensors",
        "C:model.safetensors",
        "model\0.safetensors",
        "model.safetensors\n",
        "model.bin",
        "\u{202e}model.safetensors",
        "absent.safetensors",
    ] {
        let error = open_sharded(|index| index["weight_map"]["model.norm.weight"] = json!(name)).expect_err("refused").to_string();
        assert!(error.contains("index.json"), "{name:?}: {error}");
    }
}

#[test]
fn index_and_shards_that_disagree_are_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("is not in", |index| index["weight_map"]["ghost"] = json!("model-00001-of-00002.safetensors")),
        ("not in", |index| index["weight_map"]["model.norm.weight"] = json!("model-00002-of-00002.safetensors")),
        ("not listed", |index| drop(index["weight_map"].as_object_mut().expect("object").remove("model.norm.weight"))),
        ("expected a file name", |index| index["weight_map"]["model.norm.weight"] = json!(1)),
        ("expected an object", |index| index["weight_map"] = json!([])),
        ("expected an object", |index| *index = json!([])),
    ];
    for (expected, change) in cases {
        let error = open_sharded(change).expect_err("refused").to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn tensor_in_two_shards_is_refused() {
    let (folder, model) = folder();
    std::fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    let mut index = json!({ "weight_map": {} });
    for tensor in &model.tensors {
        index["weight_map"][&tensor.name] = json!("a.safetensors");
    }
    index["weight_map"]["model.norm.weight"] = json!("b.safetensors");
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("written");
    for shard in ["a.safetensors", "b.safetensors"] {
        std::fs::write(folder.path().join(shard), model.safetensors()).expect("written");
    }
    let error = Checkpoint::open(folder.path()).expect_err("refused").to_string();
    assert!(error.contains("index.json"), "{error}");
}
