//! Crafted tokenizer files and texts: each a typed error or a result, never a panic, never super-linear time.

use bitnet_model::text::{AddSpecial, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{TALES, fixture};

fn tales() -> Value {
    serde_json::from_slice(&fixture("tokenizer.json")).unwrap()
}

/// A small complete file without byte-level parts.
fn small() -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "merges": [["a", "b"]], "unk_token": "<unk>"}})
}

fn load(file: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_json(&serde_json::to_vec(file).unwrap())
}

/// The file with one field replaced.
fn with(mut file: Value, pointer: &str, value: Value) -> Value {
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    file
}

#[test]
fn small_file_loads_and_encodes_with_unknown_tokens() {
    let tokenizer = load(&small()).unwrap();
    let ids: Vec<u32> = tokenizer.encode("abxya", AddSpecial::Yes).unwrap().iter().map(|token| token.0).collect();
    assert_eq!(ids, [2, 3, 3, 0]);
    let mut without = small();
    without["model"].as_object_mut().unwrap().remove("unk_token");
    assert!(matches!(load(&without).unwrap().encode("x", AddSpecial::No), Err(TextError::NoTokenFor { character: 'x' })));
}

#[test]
fn crafted_files_are_typed_errors() {
    let byte_level_only = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let cases = [
        ("merge longer than any token", with(small(), "/model/merges", json!([["a", "abababab"]]))),
        ("merge of unknown tokens", with(small(), "/model/merges", json!([["b", "a"]]))),
        ("merge that is not a pair", with(small(), "/model/merges", json!([["a"]]))),
        ("merge of three", with(small(), "/model/merges", json!(["a b c"]))),
        ("missing byte tokens", with(with(small(), "/pre_tokenizer", byte_level_only), "/model/unk_token", Value::Null)),
        ("fixed length 0", with(small(), "/pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        (
            "pattern with a back-reference",
            with(
                small(),
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "(a+)+\\1"}, "behavior": "Isolated", "invert": false}),
            ),
        ),
        ("unknown token missing", with(small(), "/model/unk_token", json!("<nope>"))),
        ("dropout", with(small(), "/model", json!({"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}))),
        (
            "word prefix",
            with(small(), "/model", json!({"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0}, "merges": []})),
        ),
        ("unigram", with(small(), "/model/type", json!("Unigram"))),
        ("empty vocabulary", with(small(), "/model/vocab", json!({}))),
        ("id out of range", with(small(), "/model/vocab", json!({"a": 4_000_000_000u32, "b": 1, "ab": 2, "<unk>": 3}))),
        ("negative id", with(small(), "/model/vocab", json!({"a": -1, "b": 1, "ab": 2, "<unk>": 3}))),
        ("shared id", with(small(), "/model/vocab", json!({"a": 1, "b": 1, "ab": 2, "<unk>": 3}))),
        ("added token with another id", with(small(), "/added_tokens", json!([{"id": 1, "content": "a"}]))),
        ("added token far out", with(small(), "/added_tokens", json!([{"id": 4_000_000_000u32, "content": "z"}]))),
        (
            "post-processor with an unknown id",
            with(small(), "/post_processor", json!({"type": "BertProcessing", "sep": ["x", 99], "cls": ["y", 98]})),
        ),
        ("large component", with(small(), "/normalizer", json!({"type": "NFC", "x": "y".repeat(1 << 20)}))),
        ("many components", with(small(), "/normalizer", json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 1000]}))),
    ];
    for (name, file) in cases {
        let refused = load(&file).err();
        assert!(
            matches!(refused, Some(TextError::Malformed { .. } | TextError::Unsupported { .. } | TextError::UnknownToken { .. })),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn truncation_and_padding_that_contradict_themselves_are_not_read() {
    let mut file = small();
    file["truncation"] = json!({"max_length": 2, "stride": 9, "strategy": "LongestFirst", "direction": "Right"});
    file["padding"] = json!({"strategy": {"Fixed": 1_000_000_000}, "direction": "Left", "pad_to_multiple_of": 0});
    assert_eq!(load(&file).unwrap().encode("abab", AddSpecial::Yes).unwrap().len(), 2);
}

#[test]
fn nested_json_is_an_error() {
    for opening in ["[", "{\"a\":"] {
        assert!(matches!(Tokenizer::from_json(opening.repeat(100_000).as_bytes()), Err(TextError::Malformed { .. })));
        let inside = format!("{{\"normalizer\": {}", opening.repeat(100_000));
        assert!(matches!(Tokenizer::from_json(inside.as_bytes()), Err(TextError::Malformed { .. })));
    }
    for bytes in [&b""[..], b"null", b"{}", b"\xFF\xFE", b"{\"model\": {\"vocab\": [], \"merges\": []}}"] {
        assert!(matches!(Tokenizer::from_json(bytes), Err(TextError::Malformed { .. })));
    }
}

#[test]
fn long_runs_of_one_character_encode() {
    for unit in ["a", " ", "\n", "!", "é", "1", "a ", "<|eot_id|>"] {
        let text = unit.repeat(1_300_000 / unit.len());
        let tokens = TALES.encode(&text, AddSpecial::No).unwrap();
        assert!(!tokens.is_empty(), "{unit:?}");
    }
}

#[test]
fn pathological_pattern_is_a_typed_error_of_the_text() {
    let mut file = small();
    file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "a*c|a"}, "behavior": "Isolated", "invert": false});
    let tokenizer = load(&file).unwrap();
    assert!(tokenizer.encode("aaac", AddSpecial::No).is_ok());
    assert!(matches!(tokenizer.encode(&"a".repeat(1_300_000), AddSpecial::No), Err(TextError::PatternTooSlow { .. })));
}

/// Puts a random JSON value at a random place of the file.
fn mutated() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []})),
        Just(json!({"String": "a"})),
        Just(json!({"Regex": "\\s+(?!\\S)|a{1000}"})),
    ];
    (leaf, prop::collection::vec(any::<prop::sample::Index>(), 1..6)).prop_map(|(leaf, path)| {
        let mut file = tales();
        file["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 300);
        file["model"]["merges"].as_array_mut().unwrap().truncate(20);
        let mut pointer = String::new();
        for index in path {
            let key = match file.pointer(&pointer) {
                Some(Value::Object(map)) if !map.is_empty() => {
                    map.keys().nth(index.index(map.len())).unwrap().replace('~', "~0").replace('/', "~1")
                }
                Some(Value::Array(list)) if !list.is_empty() => index.index(list.len()).to_string(),
                _ => break,
            };
            pointer = format!("{pointer}/{key}");
        }
        let place = file.pointer_mut(&pointer).unwrap();
        *place = leaf;
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn mutated_files_load_or_fail_without_panic(file in mutated(), text in "\\PC{0,40}") {
        if let Ok(tokenizer) = load(&file) {
            let _ = tokenizer.encode(&text, AddSpecial::Yes);
        }
    }

    #[test]
    fn mutated_bytes_load_or_fail_without_panic(position in any::<prop::sample::Index>(), byte: u8, text in "\\PC{0,40}") {
        let mut bytes = serde_json::to_vec(&small()).unwrap();
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let _ = tokenizer.encode(&text, AddSpecial::Yes);
        }
    }
}
