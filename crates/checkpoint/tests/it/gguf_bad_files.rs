//! GGUF files that lie, are cut short, or ask for what is not computed. Each is a typed error, within 50 ms, and allocates nothing
//! that its bytes do not justify. The cases are those that brought down other readers (llama.cpp#14595, #18674, #19003, #25821,
//! #26318, #26690; CVE-2024-21802, -21825, -21836, -23496, -23605; CVE-2026-7482).

use bitnet_checkpoint::CheckpointError;
use bitnet_checkpoint::gguf::{GgufOptions, GgufSource};

use crate::gguf_fixture::*;

fn refused_with(file: &GgufFile, what: &str, part: &str) {
    let error = file.refusal(what).to_string();
    assert!(error.contains(part), "{what}: expected `{part}` in: {error}");
}

#[test]
fn tiny_model_is_a_valid_file_and_loads() {
    let source = tiny_model().open().expect("valid");
    for info in source.tensors() {
        assert_eq!(source.load(&info.name).expect("loads").shape(), info.shape, "{}", info.name);
    }
    assert!(matches!(source.load("model.layers.1.mlp.up_proj.weight"), Err(CheckpointError::MissingTensor { .. })));
}

#[test]
fn magic_and_versions_that_are_not_read_are_refused() {
    let mut bytes = tiny_model().build();
    bytes[0] = b'X';
    assert!(matches!(refusal(leak(bytes), "magic"), CheckpointError::Malformed { .. }));
    for version in [0, 1, 4, u32::MAX, 3u32.swap_bytes()] {
        let mut file = tiny_model();
        file.version = version;
        assert!(matches!(file.refusal("version"), CheckpointError::Unsupported { .. }), "{version}");
    }
}

#[test]
fn dimensions_whose_product_wraps_are_refused() {
    for dims in [
        vec![1u64 << 32, 1 << 32],
        vec![1 << 63, 2],
        vec![u64::MAX, u64::MAX],
        vec![1 << 62, 1, 1, 4],
        vec![1 << 61, 4],
        vec![0, 16],
        vec![32, 0],
        vec![0],
        vec![u64::MAX],
        vec![-32i64 as u64, 16],
    ] {
        for type_id in [0, 1, 8, 14, 30, 34, 35, 36, 41, 42, 142, 143] {
            let mut file = tiny_model();
            let tensor = file.find("token_embd.weight");
            (tensor.dims, tensor.type_id) = (dims.clone(), type_id);
            let error = file.refusal(&format!("{dims:?} of type {type_id}"));
            assert!(error.to_string().contains("token_embd.weight"), "{error}");
        }
    }
}

#[test]
fn sizes_that_fit_no_file_are_refused() {
    // The product fits 64 bits, the bytes do not; or the bytes do, their padded sum does not.
    for dims in [[1u64 << 31, 1 << 31], [1 << 61, 2], [i64::MAX as u64, 1], [(1 << 62) + 32, 1]] {
        for type_id in [0, 1, 8, 35, 36] {
            let mut file = tiny_model();
            let tensor = file.find("blk.0.ffn_up.weight");
            (tensor.dims, tensor.type_id) = (dims.to_vec(), type_id);
            file.refusal(&format!("{dims:?} of type {type_id}"));
        }
    }
}

#[test]
fn dimension_counts_outside_one_to_four_are_refused() {
    for n_dims in [0, 5, 6, 1 << 16, u32::MAX] {
        let mut file = tiny_model();
        file.find("blk.0.attn_q.weight").n_dims = Some(n_dims);
        refused_with(&file, "n_dims", "dimensions");
    }
}

#[test]
fn counts_that_the_file_is_too_short_for_are_refused() {
    for count in [1 << 17, 1 << 31, 1 << 40, 1 << 58, 1 << 60, u64::MAX / 41, u64::MAX] {
        let mut file = tiny_model();
        file.n_tensors = Some(count);
        refused_with(&file, "n_tensors", "tensor count");
        let mut file = tiny_model();
        file.n_keys = Some(count);
        refused_with(&file, "n_keys", "metadata key count");
    }
    for count in [0, 1, 5] {
        let mut file = tiny_model();
        file.n_keys = Some(count);
        file.refusal("fewer keys than there are");
        let mut file = tiny_model();
        file.n_tensors = Some(count);
        file.refusal("fewer tensors than there are");
    }
}

#[test]
fn offsets_outside_unaligned_or_overlapping_are_refused() {
    for (offset, part) in [
        (1, "multiple of the alignment"),
        (16, "multiple of the alignment"),
        (1 << 20, "past the end"),
        (1 << 63, "past the end"),
        (u64::MAX - 31, ""),
        (u64::MAX, "multiple of the alignment"),
    ] {
        let mut file = tiny_model();
        file.find("blk.0.ffn_down.weight").offset = Some(offset);
        refused_with(&file, &format!("offset {offset}"), part);
    }
    // On the start of another, and within another.
    for offset in [0, 32, 1024] {
        let mut file = tiny_model();
        file.find("blk.0.ffn_down.weight").offset = Some(offset);
        file.refusal(&format!("overlap at {offset}"));
    }
}

#[test]
fn truncation_at_every_byte_is_refused() {
    let bytes = leak(tiny_model().build());
    assert!((4_000..8_000).contains(&bytes.len()), "{} bytes", bytes.len());
    for length in 0..bytes.len() {
        let error = GgufSource::from_bytes(&bytes[..length], GgufOptions::default()).err();
        assert!(matches!(error, Some(CheckpointError::Malformed { .. })), "cut to {length} of {}: {error:?}", bytes.len());
    }
    assert!(GgufSource::from_bytes(bytes, GgufOptions::default()).is_ok());
}

#[test]
fn file_that_shrinks_after_opening_is_a_typed_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.gguf");
    let bytes = tiny_model().build();
    std::fs::write(&path, &bytes).expect("writes");
    let source = GgufSource::open(&path, GgufOptions::default()).expect("opens");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len(bytes.len() as u64 - 1).expect("truncates");
    // What is still there may be another file's.
    for name in ["model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"] {
        let error = source.load(name).unwrap_err();
        assert!(matches!(error, CheckpointError::Changed { .. } | CheckpointError::Malformed { .. }), "{name}: {error}");
    }
    assert!(GgufSource::open(folder.path(), GgufOptions::default()).is_err(), "a folder is not a file");
    assert!(matches!(GgufSource::open(&folder.path().join("none"), GgufOptions::default()), Err(CheckpointError::NotAModel { .. })));
}

#[test]
fn lengths_of_strings_and_arrays_are_checked_before_they_are_believed() {
    for length in [1u64 << 63, u64::MAX, u64::MAX - 7, 1 << 40, 1 << 31, 100_000] {
        let mut file = tiny_model();
        file.set("tokenizer.chat_template", STRING, length.to_le_bytes().to_vec());
        file.refusal(&format!("string of {length}"));
        for element in 0..=12 {
            let mut file = tiny_model();
            file.set("tokenizer.ggml.tokens", ARRAY, array(element, length, &[]));
            file.refusal(&format!("{length} elements of type {element}"));
        }
        let mut bytes = tiny_model().build();
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        refusal(leak(bytes), "length of the first key");
    }
    let mut file = tiny_model();
    file.set("tokenizer.ggml.tokens", ARRAY, array(STRING, 1 << 60, &[]));
    refused_with(&file, "2^60 strings", "do not fit");
}

#[test]
#[cfg(target_os = "linux")]
fn false_lengths_do_not_reserve_memory() {
    let peak_kib = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("readable");
        let line = status.lines().find(|line| line.starts_with("VmPeak:")).expect("present").to_owned();
        line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).expect("a number")
    };
    let before = peak_kib();
    for length in [1u64 << 32, 1 << 34, 1 << 36] {
        let mut file = tiny_model();
        file.set("tokenizer.chat_template", STRING, length.to_le_bytes().to_vec());
        file.refusal("string");
        file.set("tokenizer.chat_template", ARRAY, array(STRING, length, &[]));
        file.refusal("array");
        let mut file = tiny_model();
        file.find("blk.0.ffn_up.weight").dims = vec![1 << 20, length >> 20];
        file.refusal("tensor");
    }
    // Other tests of this binary run meanwhile; none of them needs gigabytes.
    assert!(peak_kib() - before < 1 << 20, "grew from {before} to {} KiB", peak_kib());
}

#[test]
fn nested_arrays_unknown_types_and_duplicates_are_refused() {
    let mut deep = array(ARRAY, 1, &[]);
    for _ in 0..1000 {
        deep = array(ARRAY, 1, &deep);
    }
    let mut file = tiny_model();
    file.set("x", ARRAY, deep);
    refused_with(&file, "nested arrays", "array of arrays");
    for value_type in [13, 14, 255, u32::MAX] {
        let mut file = tiny_model();
        file.set("x", value_type, vec![0; 8]);
        refused_with(&file, "unknown value type", "does not exist");
        let mut file = tiny_model();
        file.set("x", ARRAY, array(value_type, 1, &[0; 8]));
        refused_with(&file, "unknown element type", "does not exist");
    }
    let mut file = tiny_model();
    file.keys.push(file.keys[0].clone());
    refused_with(&file, "duplicate key", "appears twice");
    let mut file = tiny_model();
    file.tensors.push(file.tensors[0].clone());
    refused_with(&file, "duplicate tensor", "appears twice");
    let mut file = tiny_model();
    file.set("x", BOOL, vec![2]);
    refused_with(&file, "bool 2", "not a bool");
    let mut file = tiny_model();
    file.keys.push((String::new(), U8, vec![0]));
    refused_with(&file, "empty key", "bytes long");
    let mut file = tiny_model();
    file.keys.push(("k".repeat(5000), U8, vec![0]));
    refused_with(&file, "long key", "bytes long");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let mut file = tiny_model();
    file.set("tokenizer.chat_template", STRING, [&2u64.to_le_bytes()[..], &[0xC3, 0x28]].concat());
    refused_with(&file, "string", "UTF-8");
    // A character split over two strings is no text either.
    let split = [&1u64.to_le_bytes()[..], &[0xC3], &1u64.to_le_bytes()[..], &[0xA9]].concat();
    let mut file = tiny_model();
    file.set("tokenizer.ggml.merges", ARRAY, array(STRING, 2, &split));
    refused_with(&file, "array", "UTF-8");
}

/// A value of each of the 13 types, small and harmless in itself.
fn value_of(value_type: u32) -> Vec<u8> {
    match value_type {
        0 | 1 | 7 => vec![1],
        2 | 3 => vec![1, 0],
        4 | 5 => vec![1, 0, 0, 0],
        6 => 1.0f32.to_le_bytes().to_vec(),
        8 => text("x"),
        9 => array(U8, 3, &[1, 2, 3]),
        10 | 11 => 1u64.to_le_bytes().to_vec(),
        _ => 1.0f64.to_le_bytes().to_vec(),
    }
}

const INTEGERS: &[u32] = &[0, 1, 2, 3, 4, 5, 10, 11];
const FLOATS: &[u32] = &[6, 12];

/// Every key that is read, with the types of value it may have; for arrays none, since the sample array is of another element.
fn known_keys() -> Vec<(String, &'static [u32])> {
    let mut keys: Vec<(String, &'static [u32])> = Vec::new();
    for (name, types) in [
        ("vocab_size", INTEGERS),
        ("context_length", INTEGERS),
        ("embedding_length", INTEGERS),
        ("block_count", INTEGERS),
        ("feed_forward_length", INTEGERS),
        ("attention.head_count", INTEGERS),
        ("attention.head_count_kv", INTEGERS),
        ("attention.key_length", INTEGERS),
        ("attention.value_length", INTEGERS),
        ("attention.layer_norm_rms_epsilon", FLOATS),
        ("attention.sliding_window", INTEGERS),
        ("expert_count", INTEGERS),
        ("pooling_type", INTEGERS),
        ("rope.dimension_count", INTEGERS),
        ("rope.freq_base", FLOATS),
        ("rope.scaling.type", &[STRING]),
        ("rope.scale_linear", FLOATS),
    ] {
        keys.push((format!("bitnet-b1.58.{name}"), types));
    }
    for (name, types) in [
        ("general.architecture", &[STRING][..]),
        ("general.file_type", INTEGERS),
        ("general.alignment", INTEGERS),
        ("split.count", INTEGERS),
        ("bitnet.hidden_act", &[STRING]),
        ("bitnet.activation_policy", &[STRING]),
        ("bitnet.tied_head", &[BOOL]),
        ("bitnet.config.rope_theta", FLOATS),
        ("bitnet.config.rope_scaling.type", &[STRING]),
        ("bitnet.generation.eos_token_ids", &[ARRAY]),
        ("bitnet.generation.temperature", FLOATS),
        ("bitnet.generation.top_p", FLOATS),
        ("bitnet.generation.top_k", INTEGERS),
        ("bitnet.generation.do_sample", &[BOOL]),
        ("bitnet.tokenizer.bos_token", &[STRING]),
        ("bitnet.tokenizer.eos_token", &[STRING]),
        ("tokenizer.huggingface.json", &[STRING]),
        ("tokenizer.chat_template", &[STRING]),
        ("tokenizer.ggml.model", &[STRING]),
        ("tokenizer.ggml.pre", &[STRING]),
        ("tokenizer.ggml.tokens", &[]),
        ("tokenizer.ggml.scores", &[]),
        ("tokenizer.ggml.token_type", &[ARRAY]),
        ("tokenizer.ggml.merges", &[]),
        ("tokenizer.ggml.add_bos_token", &[BOOL]),
        ("tokenizer.ggml.add_eos_token", &[BOOL]),
        ("tokenizer.ggml.add_space_prefix", &[BOOL]),
        ("tokenizer.ggml.bos_token_id", INTEGERS),
        ("tokenizer.ggml.eos_token_id", INTEGERS),
        ("tokenizer.ggml.eot_token_id", INTEGERS),
        ("tokenizer.ggml.unknown_token_id", INTEGERS),
        ("tokenizer.ggml.padding_token_id", INTEGERS),
    ] {
        keys.push((name.into(), types));
    }
    keys
}

#[test]
fn every_known_key_with_every_wrong_type_is_an_error_that_names_it() {
    for (key, types) in known_keys() {
        for value_type in (0..=12).filter(|value_type| !types.contains(value_type)) {
            let mut file = tiny_model();
            file.remove("bitnet.generation.eos_token_ids").set(&key, value_type, value_of(value_type));
            let error = file.refusal(&format!("{key} of type {value_type}")).to_string();
            assert!(error.contains(&key) && error.contains("expected"), "{key} of type {value_type}: {error}");
        }
    }
}

#[test]
fn keys_of_rope_scaling_with_every_wrong_type_are_refused() {
    let scalings = [
        ("bitnet-b1.58.rope.scaling.type", "yarn", "bitnet-b1.58.rope.scaling."),
        ("bitnet.config.rope_scaling.type", "yarn", "bitnet.config.rope_scaling."),
        ("bitnet.config.rope_scaling.type", "llama3", "bitnet.config.rope_scaling."),
    ];
    let parts = [("factor", FLOATS), ("original_context_length", INTEGERS)];
    for (scaling, (part, accepted)) in scalings.into_iter().flat_map(|scaling| parts.map(|part| (scaling, part))) {
        let (type_key, name, prefix) = scaling;
        for value_type in (0..=12).filter(|value_type| !accepted.contains(value_type)) {
            let mut file = tiny_model();
            file.set_text(type_key, name);
            for (other, payload) in [("factor", 2.0f32), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0), ("attention_factor", 1.0)] {
                file.set(&format!("{prefix}{other}"), F32, payload.to_le_bytes().to_vec());
            }
            file.set(&format!("{prefix}{part}"), value_type, value_of(value_type));
            file.refusal(&format!("{prefix}{part} of type {value_type}"));
        }
    }
}

#[test]
fn missing_keys_that_decide_the_arithmetic_are_errors_that_name_them() {
    for name in [
        "general.architecture",
        "bitnet-b1.58.context_length",
        "bitnet-b1.58.embedding_length",
        "bitnet-b1.58.block_count",
        "bitnet-b1.58.feed_forward_length",
        "bitnet-b1.58.attention.head_count",
        "bitnet-b1.58.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
    ] {
        let mut file = tiny_model();
        file.remove(name);
        refused_with(&file, name, name);
    }
}

#[test]
fn hyper_parameters_at_their_edges_are_refused_without_arithmetic_on_them() {
    let edges: [u64; 12] =
        [0, 2, 3, 1 << 10, (1 << 10) + 1, (1 << 12) + 2, (1 << 20) + 1, (1 << 24) + 1, 1 << 31, 1 << 40, i64::MAX as u64, u64::MAX];
    for key in [
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "context_length",
    ] {
        for value in edges {
            let fine = key == "context_length" && (1..=1 << 24).contains(&value) || key == "attention.head_count" && value == 2;
            if fine {
                continue;
            }
            let mut file = tiny_model();
            file.set(&format!("bitnet-b1.58.{key}"), U64, value.to_le_bytes().to_vec());
            file.refusal(&format!("{key} = {value}"));
        }
    }
    for epsilon in [0.0f32, -1.0, 1.0, f32::NAN, f32::INFINITY] {
        let mut file = tiny_model();
        file.set("bitnet-b1.58.attention.layer_norm_rms_epsilon", F32, epsilon.to_le_bytes().to_vec());
        file.refusal(&format!("epsilon {epsilon}"));
        file = tiny_model();
        file.set("bitnet-b1.58.rope.freq_base", F32, (-epsilon.abs()).to_le_bytes().to_vec());
        file.refusal(&format!("rope base {}", -epsilon.abs()));
    }
}

#[test]
fn alignments_that_are_no_small_power_of_two_are_refused() {
    for alignment in [0u64, 3, 24, 1 << 21, 1 << 31, 1 << 63, u64::MAX] {
        let mut file = tiny_model();
        file.set("general.alignment", U64, alignment.to_le_bytes().to_vec());
        refused_with(&file, &format!("alignment {alignment}"), "general.alignment");
    }
    for alignment in [8, 64, 4096] {
        let mut file = tiny_model();
        file.set_u32("general.alignment", alignment).alignment = u64::from(alignment);
        file.open().unwrap_or_else(|error| panic!("alignment {alignment}: {error}"));
    }
}

#[test]
fn token_ids_and_array_lengths_outside_the_vocabulary_are_refused() {
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id"] {
        let mut file = tiny_model();
        refused_with(file.set_u32(&format!("tokenizer.ggml.{key}"), N_VOCAB as u32), key, key);
    }
    let mut file = tiny_model();
    file.set("tokenizer.ggml.padding_token_id", I32, (-1i32).to_le_bytes().to_vec());
    assert!(file.open().is_ok(), "-1 is how writers say none");
    let mut file = tiny_model();
    file.set("tokenizer.ggml.scores", ARRAY, array(F32, 1, &[0; 4]));
    refused_with(&file, "scores", "1 entries for 16 tokens");
    let mut file = tiny_model();
    file.set("tokenizer.ggml.tokens", ARRAY, strings(&vec!["x"; N_VOCAB + 1]));
    refused_with(&file, "more tokens than rows", "tokenizer.ggml.tokens");
    let mut file = tiny_model();
    file.set("bitnet.generation.eos_token_ids", ARRAY, array(U32, 1, &[99, 0, 0, 0]));
    refused_with(&file, "eos ids", "token 99");
}

#[test]
fn tensors_that_are_missing_left_over_or_of_another_shape_are_refused() {
    let whole = tiny_model();
    for index in 0..whole.tensors.len() {
        let mut file = whole.clone();
        let name = file.tensors.remove(index).name;
        // Without sub-norms the graph is another one, and the other sub-norm is left over.
        file.refusal(&format!("without {name}"));
        let mut file = whole.clone();
        file.tensors[index].dims.reverse();
        if file.tensors[index].dims != whole.tensors[index].dims {
            refused_with(&file, &format!("{name} transposed"), "");
        }
        let mut file = whole.clone();
        file.tensors[index].dims.push(1);
        file.refusal(&format!("{name} with a third dimension"));
    }
    let mut file = whole.clone();
    file.tensor("blk.0.attn_q.bias", &[32], 0, vec![0; 128]);
    assert!(matches!(file.refusal("bias"), CheckpointError::Unsupported { .. }));
    let mut file = whole;
    file.find("blk.0.attn_norm.weight").type_id = 36;
    file.refusal("a ternary norm");
}

#[test]
fn bitnet_graph_without_its_sub_norms_is_refused() {
    for part in ["sub_norm", "blk.0.attn_sub_norm", "blk.0.ffn_sub_norm"] {
        let mut file = tiny_model();
        file.tensors.retain(|tensor| !tensor.name.contains(part));
        let error = file.refusal(part);
        assert!(matches!(&error, CheckpointError::MissingTensor { name } if name.contains("sub_norm")), "{part}: {error}");
    }
}

#[test]
fn what_is_not_computed_is_named() {
    for (architecture, part) in [("qwen35", "qwen35"), ("gemma3", "gemma3"), ("", "architecture"), ("BITNET", "BITNET")] {
        let mut file = tiny_model();
        file.set_text("general.architecture", architecture);
        assert!(matches!(file.refusal(architecture), CheckpointError::Unsupported { .. }));
        refused_with(&file, architecture, part);
    }
    let mut file = tiny_model();
    file.set_u32("prism.hadamard.version", 1).set_text("prism.hadamard.transform", "normalized-sylvester-walsh-hadamard");
    file.set("prism.hadamard.weight_names", ARRAY, strings(&["blk.0.attn_q.weight", "blk.0.attn_k.weight"]));
    refused_with(&file, "rotation", "normalized-sylvester-walsh-hadamard`, 2 weights");
    let mut file = tiny_model();
    file.set_text("prism.hadamard.unknown", "x");
    assert!(matches!(file.refusal("unknown rotation"), CheckpointError::Unsupported { .. }));
    let mut file = tiny_model();
    assert!(file.set_text("prism.source", "x").open().is_ok(), "a key that says nothing of rotation");
    let mut file = tiny_model();
    refused_with(file.set_u32("split.count", 3), "split", "split in 3");
    for (type_id, name) in [(38, "TL1"), (39, "TL2"), (40, "NVFP4"), (37, "I8_S"), (10, "Q2_K"), (134, "IQ1_BN"), (9999, "9999")] {
        let mut file = tiny_model();
        file.find("blk.0.ffn_up.weight").type_id = type_id;
        refused_with(&file, name, name);
    }
    for (key, value) in [("expert_count", 8), ("attention.sliding_window", 512), ("pooling_type", 1)] {
        let mut file = tiny_model();
        file.set_u32(&format!("bitnet-b1.58.{key}"), value);
        assert!(matches!(file.refusal(key), CheckpointError::Unsupported { .. }));
    }
}

#[test]
fn i2_s_with_code_three_or_a_scale_that_is_no_number_does_not_load() {
    let mut file = tiny_model();
    file.find("blk.0.attn_v.weight").data[5] = 0b0000_1100;
    let source = file.open().expect("the container is fine");
    let error = source.load("model.layers.0.self_attn.v_proj.weight").unwrap_err();
    assert!(matches!(error, CheckpointError::NotTernary { .. }), "{error}");
    for scale in [f32::NAN, f32::INFINITY] {
        let mut file = tiny_model();
        let data = &mut file.find("blk.0.attn_v.weight").data;
        data[128..132].copy_from_slice(&scale.to_le_bytes());
        let error = file.open().expect("fine").load("model.layers.0.self_attn.v_proj.weight").unwrap_err();
        assert!(matches!(error, CheckpointError::Matrix { .. }), "{error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2000))]

    #[test]
    fn any_damage_is_an_error_or_a_model_but_never_a_panic(
        places in proptest::collection::vec((0usize..6000, proptest::num::u8::ANY), 1..6),
        length in 0usize..8000,
    ) {
        let mut bytes = tiny_model().build();
        for (place, value) in places {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        bytes.truncate(length.max(100));
        if let Ok(source) = GgufSource::from_bytes(leak(bytes), GgufOptions::default()) {
            for info in source.tensors() {
                let _ = source.load(&info.name);
            }
        }
    }
}
