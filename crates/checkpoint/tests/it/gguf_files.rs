//! GGUF files as others write them: each tensor type, each architecture, each order of rows, read through the public interface.

use std::time::Duration;

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, RopeScaling};
use bitnet_checkpoint::gguf::{GgufOptions, GgufSource, I2sChoice, I2sLayout};
use bitnet_checkpoint::{Checkpoint, DenseTensor, DenseType, Note, OpenOptions, RowSource, StoredTable, Tensor, Vocabulary};
use bitnet_ternary::layout::q2_0::{self, BlockWidth};
use bitnet_ternary::layout::{i2_s, ptq1_0, q1_0, tq1_0, tq2_0};
use bitnet_ternary::{Scales, TernaryMatrix};

use crate::gguf_fixture::*;

fn ternary(source: &GgufSource, name: &str) -> TernaryMatrix {
    match source.load(name).unwrap_or_else(|error| panic!("{name}: {error}")) {
        Tensor::Ternary(matrix) => matrix,
        Tensor::Dense(_) => panic!("{name} is dense"),
    }
}

#[test]
fn i2_s_file_of_microsoft_loads_as_written() {
    let source = tiny_model().open().expect("valid");
    let config = source.config();
    assert_eq!((config.architecture, config.activation), (Architecture::Bitnet, Activation::Relu2));
    assert_eq!((config.activation_policy, config.tied_head, config.sub_norms), (ActivationPolicy::Int8PerToken, true, true));
    assert_eq!((config.head_dim, config.n_kv_heads, config.n_vocab, config.rope.theta), (HEAD_DIM, 1, N_VOCAB, 500_000.0));
    for (seed, name) in
        ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"].into_iter().enumerate()
    {
        let matrix = ternary(&source, &format!("model.layers.0.{name}_proj.weight"));
        assert_eq!(matrix.to_trits(), trits(matrix.n_rows() * HIDDEN, seed as u64), "{name}");
        assert_eq!(matrix.scales(), &Scales::Tensor(0.5 + seed as f32));
    }
    let Tensor::Dense(embedding) = source.load("model.embed_tokens.weight").expect("loads") else { panic!("dense") };
    assert_eq!((embedding.dtype(), embedding.shape()), (DenseType::F16, &[N_VOCAB, HIDDEN][..]));
    assert_eq!(embedding.bytes()[..4], [0x00, 0x20, 0x01, 0x20]);
    let files = source.tokenizer_files();
    assert_eq!((files.bos_token.as_deref(), files.bos_token_id), (Some("t0"), Some(0)));
    assert_eq!(files.generation.eos_token_ids, [1, 2], "the end token and the control token that ends a turn");
    let Vocabulary::Gguf(vocabulary) = &files.vocabulary else { panic!("arrays") };
    assert_eq!((vocabulary.pre.as_deref(), vocabulary.add_bos, vocabulary.merges.len()), (Some("llama-bpe"), Some(true), 2));
    let up = source.tensors().iter().find(|info| info.name == "model.layers.0.mlp.up_proj.weight").expect("there");
    assert_eq!((up.stored.type_name.as_str(), up.stored.size_bytes), ("I2_S", 32 * 32 / 4 + 32));
}

#[test]
fn i2_s_order_that_the_caller_names_is_used() {
    let mut file = tiny_model();
    let expected = trits(32 * 32, 99);
    for (layout, choice) in I2sLayout::ALL.into_iter().zip([I2sLayout::Blocks128, I2sLayout::Blocks64, I2sLayout::Rows4]) {
        let mut bytes = vec![0; 32 * 32 / 4 + 32];
        i2_s::pack(layout, &expected, 32, 2.0, &mut bytes).expect("packs");
        file.find("blk.0.attn_q.weight").data = bytes;
        let options = GgufOptions { i2s_layout: I2sChoice::Is(choice) };
        let source = GgufSource::from_bytes(leak(file.build()), options).expect("valid");
        assert_eq!(ternary(&source, "model.layers.0.self_attn.q_proj.weight").to_trits(), expected, "{layout:?}");
        assert_eq!((source.notes().expect("reads"), source.i2s_layout().expect("told")), (vec![], layout));
    }
}

#[test]
fn i2_s_order_without_evidence_is_the_published_one() {
    let source = tiny_model().open().expect("valid");
    let detection = source.i2s_detection().expect("reads").expect("there is I2_S");
    assert_eq!((detection.layout, detection.decided), (I2sLayout::Blocks128, false), "{detection:?}");
    assert_eq!(source.notes().expect("reads"), [Note::I2sOrderUndecided(I2sLayout::Blocks128)]);
}

#[test]
fn i2_s_order_of_features_that_differ_is_found() {
    let (hidden, ffn) = (128usize, 512usize);
    let zero_heavy = |feature: usize| feature.wrapping_mul(0x9E37_79B9) >> 9 & 3;
    let make = |n: usize, feature: &dyn Fn(usize) -> usize, seed: u64| -> Vec<i8> {
        let coins = trits(4 * n, seed);
        (0..n).map(|i| if coins[4 * i..4 * i + zero_heavy(feature(i))].contains(&0) { 0 } else { coins[4 * i + 3] }).collect()
    };
    let gate = make(ffn * hidden, &|i| i / hidden, 1);
    let up = make(ffn * hidden, &|i| i / hidden, 2);
    let down = make(hidden * ffn, &|i| i % ffn, 3);
    for layout in I2sLayout::ALL {
        let mut file = tiny_model();
        file.set_u32("bitnet-b1.58.embedding_length", hidden as u32).set_u32("bitnet-b1.58.feed_forward_length", ffn as u32);
        file.set_u32("bitnet-b1.58.attention.head_count", 8);
        for tensor in &mut file.tensors {
            let (rows, cols) = match tensor.name.as_str() {
                "token_embd.weight" => (N_VOCAB, hidden),
                "blk.0.attn_k.weight" | "blk.0.attn_v.weight" => (HEAD_DIM, hidden),
                "blk.0.ffn_gate.weight" | "blk.0.ffn_up.weight" => (ffn, hidden),
                "blk.0.ffn_down.weight" => (hidden, ffn),
                "blk.0.ffn_sub_norm.weight" => (1, ffn),
                _ if tensor.dims.len() == 1 => (1, hidden),
                _ => (hidden, hidden),
            };
            let weights = match tensor.name.as_str() {
                "blk.0.ffn_gate.weight" => gate.clone(),
                "blk.0.ffn_up.weight" => up.clone(),
                "blk.0.ffn_down.weight" => down.clone(),
                _ => trits(rows * cols, 7),
            };
            tensor.dims = if tensor.dims.len() == 1 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
            tensor.data = match tensor.type_id {
                36 => {
                    let mut bytes = vec![0; rows * cols / 4 + 32];
                    i2_s::pack(layout, &weights, cols, 1.0, &mut bytes).expect("packs");
                    bytes
                }
                0 => f32s(&vec![1.0; rows * cols]),
                _ => vec![0; rows * cols * 2],
            };
        }
        let source = file.open().expect("valid");
        let detection = source.i2s_detection().expect("reads").expect("there is I2_S").clone();
        assert_eq!((detection.layout, detection.decided), (layout, true), "{detection:?}");
        assert_eq!(source.notes().expect("reads"), []);
        assert_eq!(ternary(&source, "model.layers.0.mlp.down_proj.weight").to_trits(), down);
    }
}

/// A model like the tiny one but wide enough for blocks of 256, every projection of one type.
fn wide_model(architecture: &str, type_id: u32, pack: &dyn Fn(&[i8]) -> Vec<u8>) -> GgufFile {
    let mut file = tiny_model();
    let sizes = [("embedding_length", 256), ("feed_forward_length", 256), ("attention.head_count", 4), ("attention.head_count_kv", 2)];
    for entry in &mut file.keys {
        entry.0 = entry.0.replace("bitnet-b1.58.", &format!("{architecture}."));
    }
    file.set_text("general.architecture", architecture).set_u32("general.file_type", 37);
    for (key, value) in sizes {
        file.set_u32(&format!("{architecture}.{key}"), value);
    }
    file.set_u32(&format!("{architecture}.rope.dimension_count"), 64);
    if !architecture.starts_with("bitnet") {
        file.tensors.retain(|tensor| !tensor.name.contains("sub_norm"));
    }
    for tensor in &mut file.tensors {
        let rows = match tensor.name.as_str() {
            "token_embd.weight" => N_VOCAB,
            "blk.0.attn_k.weight" | "blk.0.attn_v.weight" => 128,
            _ if tensor.dims.len() == 1 => 1,
            _ => 256,
        };
        tensor.dims = if tensor.dims.len() == 1 { vec![256] } else { vec![256, rows as u64] };
        tensor.data = match tensor.type_id {
            36 => {
                tensor.type_id = type_id;
                pack(&trits(rows * 256, 11))
            }
            0 => f32s(&[1.0; 256]),
            _ => vec![0; rows * 256 * 2],
        };
    }
    file
}

type Pack = Box<dyn Fn(&[i8]) -> Vec<u8>>;

fn block_packs() -> Vec<(u32, &'static str, Pack)> {
    let halves = |n: usize| vec![0.5f32; n];
    vec![
        (34, "TQ1_0", Box::new(move |t: &[i8]| packed(t, 256, 54, |b| tq1_0::pack(t, &halves(t.len() / 256), b))) as Pack),
        (35, "TQ2_0", Box::new(move |t: &[i8]| packed(t, 256, 66, |b| tq2_0::pack(t, &halves(t.len() / 256), b)))),
        (42, "Q2_0", Box::new(move |t: &[i8]| packed(t, 64, 18, |b| q2_0::pack(BlockWidth::Weights64, t, &halves(t.len() / 64), b)))),
        (
            42,
            "Q2_0 (128)",
            Box::new(move |t: &[i8]| packed(t, 128, 34, |b| q2_0::pack(BlockWidth::Weights128, t, &halves(t.len() / 128), b))),
        ),
        (142, "PQ2_0", Box::new(move |t: &[i8]| packed(t, 128, 34, |b| q2_0::pack(BlockWidth::Weights128, t, &halves(t.len() / 128), b)))),
        (143, "PTQ1_0", Box::new(move |t: &[i8]| packed(t, 128, 28, |b| ptq1_0::pack(t, &halves(t.len() / 128), b)))),
    ]
}

fn packed<E: std::fmt::Debug>(trits: &[i8], weights: usize, size: usize, pack: impl Fn(&mut [u8]) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = vec![0; trits.len() / weights * size];
    pack(&mut bytes).expect("packs");
    bytes
}

#[test]
fn every_block_type_loads_with_the_coarsest_scale_and_its_own_policy() {
    for (type_id, name, pack) in block_packs() {
        let source = wide_model("qwen3", type_id, &pack).open().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(source.config().activation_policy, ActivationPolicy::Unquantised, "{name}");
        let matrix = ternary(&source, "model.layers.0.mlp.up_proj.weight");
        assert_eq!((matrix.to_trits(), matrix.scales()), (trits(256 * 256, 11), &Scales::Tensor(0.5)), "{name}");
        let info = source.tensors().iter().find(|info| info.name.ends_with("up_proj.weight")).expect("there");
        assert_eq!(info.stored.type_name, name, "the width is told by the size");
        let source = wide_model("bitnet-b1.58", type_id, &pack).open().expect("valid");
        assert_eq!(source.config().activation_policy, ActivationPolicy::Int8PerToken, "{name}");
    }
}

#[test]
fn activations_that_a_file_leaves_open_are_noted_and_can_be_told() {
    for (type_id, name, pack) in block_packs() {
        let file = wide_model("llama", type_id, &pack);
        let notes = file.open().expect("valid").notes().expect("reads");
        let is_open = matches!(name, "TQ1_0" | "TQ2_0" | "Q2_0");
        assert_eq!(notes, if is_open { vec![Note::ActivationsUnstated] } else { vec![] }, "{name}");
        assert_eq!(wide_model("bitnet", type_id, &pack).open().expect("valid").notes().expect("reads"), [], "{name}");
        for policy in [ActivationPolicy::Int8PerToken, ActivationPolicy::Unquantised] {
            let options = OpenOptions { activations: Some(policy), ..OpenOptions::default() };
            let told = Checkpoint::from_gguf_bytes_with(leak(file.build()), options).expect("valid");
            assert_eq!((told.config().activation_policy, told.notes().expect("reads")), (policy, vec![]), "{name}");
        }
        let mut file = file;
        file.set_text("bitnet.activation_policy", "unquantised");
        assert_eq!(file.open().expect("valid").notes().expect("reads"), [], "{name}");
    }
}

#[test]
fn binary_weights_load_as_trits_without_zeros() {
    let pack = |t: &[i8]| {
        let signs: Vec<i8> = t.iter().map(|&trit| if trit < 0 { -1 } else { 1 }).collect();
        packed(t, 128, 18, |bytes| q1_0::pack(&signs, &vec![0.25; t.len() / 128], bytes))
    };
    let source = wide_model("qwen3", 41, &pack).open().expect("valid");
    let matrix = ternary(&source, "model.layers.0.mlp.down_proj.weight");
    assert_eq!((matrix.n_zeros(), matrix.scales()), (0, &Scales::Tensor(0.25)));
}

/// The table of a model, and the same loaded at once.
fn table_of(checkpoint: &Checkpoint) -> (std::sync::Arc<dyn RowSource>, DenseTensor) {
    let StoredTable::Dense(rows) = checkpoint.table("model.embed_tokens.weight").expect("there") else { panic!("dense") };
    let Tensor::Dense(all) = checkpoint.load("model.embed_tokens.weight").expect("loads") else { panic!("dense") };
    (rows, all)
}

#[test]
fn rows_of_a_table_are_those_of_the_loaded_tensor() {
    // F32, F16, BF16, Q8_0 and Q6_K, with a row of 256 where blocks need it.
    for (type_id, block_bytes, block_weights) in [(0, 4, 1), (1, 2, 1), (30, 2, 1), (8, 34, 32), (14, 210, 256)] {
        let (tq2_0_id, _, pack) = &block_packs()[1];
        let mut file = wide_model("llama", *tq2_0_id, pack);
        let embedding = file.find("token_embd.weight");
        let n_weights: u64 = embedding.dims.iter().product();
        embedding.type_id = type_id;
        // No byte makes a number that is not finite.
        embedding.data = (0..n_weights as usize / block_weights * block_bytes).map(|i| (i * 37 % 120) as u8).collect();
        let bytes = file.build();
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &bytes).expect("writes");
        let on_file = Checkpoint::open(&path).expect("opens");
        let in_program = Checkpoint::from_gguf_bytes(leak(bytes)).expect("opens");
        for checkpoint in [&on_file, &in_program] {
            let (rows, all) = table_of(checkpoint);
            assert_eq!((rows.n_rows(), rows.n_cols(), rows.dtype()), (all.shape()[0], all.shape()[1], all.dtype()));
            let row_bytes = rows.row_bytes();
            for range in [0..1, 1..3, rows.n_rows() - 1..rows.n_rows(), 0..rows.n_rows(), 2..2] {
                let mut bytes = vec![0; range.len() * row_bytes];
                rows.read_rows(range.clone(), &mut bytes).expect("reads");
                assert_eq!(bytes, all.bytes()[range.start * row_bytes..range.end * row_bytes], "type {type_id}, rows {range:?}");
            }
        }
        assert!(table_of(&on_file).0.resident().is_none(), "a file is read when it is needed");
        let (rows, all) = table_of(&in_program);
        assert_eq!(rows.resident(), (block_weights == 1).then_some(all.bytes()), "type {type_id}: what is in the program is not copied");
    }
}

#[test]
fn q2_0_with_its_fourth_level_is_refused_as_not_ternary() {
    let (_, _, pack) = block_packs().remove(2);
    let mut file = wide_model("qwen3", 42, &pack);
    file.find("blk.0.ffn_up.weight").data[5] = 0xC0;
    let error = file.open().expect("fine").load("model.layers.0.mlp.up_proj.weight").unwrap_err();
    assert!(matches!(error, bitnet_checkpoint::CheckpointError::NotTernary { .. }), "{error}");
}

#[test]
fn llama_files_have_their_query_and_key_rows_put_back() {
    let scales = |n: usize| (0..n).map(|row| (row + 1) as f32 / 256.0).collect::<Vec<f32>>();
    let pack = move |t: &[i8]| packed(t, 256, 66, |bytes| tq2_0::pack(t, &scales(t.len() / 256), bytes));
    let source = wide_model("llama", 35, &pack).open().expect("valid");
    for (name, n_rows) in [("q", 256usize), ("k", 128)] {
        let matrix = ternary(&source, &format!("model.layers.0.self_attn.{name}_proj.weight"));
        let stored = trits(n_rows * 256, 11);
        let mut row = vec![0; 256];
        for canonical in 0..n_rows {
            // Head of 64: canonical row (half, i) lies at 2i + half.
            let (head, half, i) = (canonical / 64, canonical % 64 / 32, canonical % 32);
            let at = head * 64 + 2 * i + half;
            matrix.unpack_row(canonical, &mut row);
            assert_eq!(row, stored[at * 256..(at + 1) * 256], "{name} row {canonical}");
            assert_eq!(matrix.scale_at(canonical, 0), (at + 1) as f32 / 256.0);
        }
    }
    let v = ternary(&source, "model.layers.0.self_attn.v_proj.weight");
    assert_eq!(v.to_trits(), trits(128 * 256, 11), "values are not rotated");
}

#[test]
fn llama_file_with_sub_norms_is_of_the_bitnet_family() {
    let (_, _, pack) = block_packs().remove(1);
    let mut file = wide_model("llama", 35, &pack);
    for name in ["attn_sub_norm", "ffn_sub_norm"] {
        file.tensor(&format!("blk.0.{name}.weight"), &[256], 0, f32s(&[1.0; 256]));
    }
    let source = file.open().expect("valid");
    let config = source.config();
    assert_eq!((config.architecture, config.activation, config.sub_norms), (Architecture::Bitnet, Activation::Silu, true));
    assert_eq!(config.activation_policy, ActivationPolicy::Int8PerToken);
}

#[test]
fn scale_that_is_stored_apart_multiplies() {
    let (_, _, pack) = block_packs().remove(1);
    let mut file = wide_model("bitnet", 35, &pack);
    file.tensor("blk.0.ffn_up.scale", &[1], 0, f32s(&[0.3]));
    let source = file.open().expect("valid");
    assert_eq!(source.config().activation, Activation::Silu, "the first BitNet architecture");
    assert_eq!(ternary(&source, "model.layers.0.mlp.up_proj.weight").scales(), &Scales::Tensor(0.5 * 0.3));
    assert_eq!(ternary(&source, "model.layers.0.mlp.gate_proj.weight").scales(), &Scales::Tensor(0.5));
}

#[test]
fn norms_of_qwen3_and_of_bitnet_embedding_are_seen_by_their_tensors() {
    let (_, _, pack) = block_packs().remove(1);
    let mut file = wide_model("qwen3", 35, &pack);
    file.tensor("blk.0.attn_q_norm.weight", &[64], 0, f32s(&[1.0; 64]));
    file.tensor("blk.0.attn_k_norm.weight", &[64], 0, f32s(&[1.0; 64]));
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        file.tensor(&format!("blk.0.{name}_norm_in.weight"), &[256], 0, f32s(&[1.0; 256]));
    }
    file.set_u32("qwen3.pooling_type", 3).set_u32("qwen3.attention.key_length", 64).set_u32("qwen3.attention.value_length", 64);
    let source = file.open().expect("valid");
    let config = source.config();
    assert!(config.qk_norm && config.projection_norms && config.last_token_pooling && !config.sub_norms);
    assert_eq!(config.activation_policy, ActivationPolicy::Int8PerToken, "no model has such norms without int8 activations");
    assert_eq!(source.notes().expect("reads"), []);
    assert!(source.load("model.layers.0.self_attn.o_proj.norm.weight").is_ok());
}

#[test]
fn rope_scaling_is_read_from_public_keys() {
    let with = |set: &dyn Fn(&mut GgufFile)| {
        let mut file = tiny_model();
        set(&mut file);
        file.open().expect("valid").config().rope.scaling
    };
    let float = |value: f32| value.to_le_bytes().to_vec();
    let prefix = "bitnet-b1.58.rope.scaling.";
    let linear = with(&|file| {
        file.set_text(&format!("{prefix}type"), "linear").set(&format!("{prefix}factor"), F32, float(4.0));
    });
    assert_eq!(linear, RopeScaling::Linear { factor: 4.0 });
    let yarn = with(&|file| {
        file.set_text(&format!("{prefix}type"), "yarn").set(&format!("{prefix}factor"), F32, float(4.0));
        file.set_u32(&format!("{prefix}original_context_length"), 32);
    });
    let attention_factor = 0.1 * 4.0f64.ln() + 1.0;
    assert_eq!(yarn, RopeScaling::Yarn { factor: 4.0, original_context: 32, beta_fast: 32.0, beta_slow: 1.0, attention_factor });
    let ones = with(&|file| {
        file.tensor("rope_freqs.weight", &[8], 0, f32s(&[1.0; 8]));
    });
    assert_eq!(ones, RopeScaling::None);
    let mut file = tiny_model();
    file.tensor("rope_freqs.weight", &[8], 0, f32s(&[1.0, 1.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0]));
    assert!(file.open().is_err(), "factors of no known rule");
}

#[test]
fn own_keys_win_over_what_the_architecture_implies() {
    let mut file = tiny_model();
    file.set_text("bitnet.hidden_act", "silu").set_text("bitnet.activation_policy", "unquantised");
    let source = file.open().expect("valid");
    assert_eq!((source.config().activation, source.config().activation_policy), (Activation::Silu, ActivationPolicy::Unquantised));
    for key in ["bitnet.hidden_act", "bitnet.activation_policy", "bitnet.config.rope_scaling.type"] {
        let mut file = tiny_model();
        assert!(file.set_text(key, "gelu").open().is_err(), "{key}");
    }
}

#[test]
fn stale_template_of_microsofts_converter_is_replaced_with_a_remark() {
    let stale = "{{ bos_token }}{% for m in messages %}Human: {{ m['content'] }}\n\nBITNETAssistant: {% endfor %}";
    let mut file = tiny_model();
    file.set_text("tokenizer.chat_template", stale);
    let source = file.open().expect("valid");
    let files = source.tokenizer_files();
    assert!(files.chat_template.as_deref().is_some_and(|template| template.contains("<|eot_id|>") && !template.contains("Human")));
    assert!(files.chat_template_remark.as_deref().is_some_and(|remark| remark.contains("BITNETAssistant")));
    let other = tiny_model().open().expect("valid");
    assert_eq!(
        (other.tokenizer_files().chat_template.as_deref(), &other.tokenizer_files().chat_template_remark),
        (Some("{{ messages }}"), &None)
    );
    let (type_id, _, pack) = block_packs().swap_remove(1);
    let mut llama = wide_model("llama", type_id, &pack);
    llama.set_text("tokenizer.chat_template", stale);
    assert_eq!(llama.open().expect("valid").tokenizer_files().chat_template.as_deref(), Some(stale));
}

#[test]
fn vocabulary_of_300_000_tokens_and_merges_opens_within_250_ms() {
    let n_vocab = 300_000usize;
    let mut file = tiny_model();
    let tokens: Vec<String> = (0..n_vocab).map(|id| format!("token{id}")).collect();
    let merges: Vec<String> = (0..n_vocab).map(|id| format!("to ken{id}")).collect();
    file.set("tokenizer.ggml.tokens", ARRAY, strings(&tokens)).set("tokenizer.ggml.merges", ARRAY, strings(&merges));
    file.set("tokenizer.ggml.scores", ARRAY, array(F32, n_vocab as u64, &vec![0; 4 * n_vocab]));
    file.set("tokenizer.ggml.token_type", ARRAY, array(I32, n_vocab as u64, &vec![0; 4 * n_vocab]));
    file.set_u32("bitnet-b1.58.vocab_size", n_vocab as u32);
    let embedding = file.find("token_embd.weight");
    (embedding.dims, embedding.data) = (vec![HIDDEN as u64, n_vocab as u64], vec![0; n_vocab * HIDDEN * 2]);
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.build()).expect("writes");
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = processor_time();
        let source = GgufSource::open(&path, GgufOptions::default()).expect("valid");
        best = best.min(processor_time().saturating_sub(start));
        let Vocabulary::Gguf(vocabulary) = &source.tokenizer_files().vocabulary else { panic!("arrays") };
        assert_eq!((vocabulary.tokens.len(), vocabulary.merges[n_vocab - 1].as_str()), (n_vocab, "to ken299999"));
    }
    assert!(best < Duration::from_millis(250), "{best:?}");
}
