//! Every named pre-tokenizer, both kinds of vocabulary, and each way in which one can be wrong.

use super::*;

fn strings(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|token| token.to_string()).collect()
}

/// Byte-level: 256 bytes, then `ab`, `abc`, `<|end|>`.
fn byte_level_vocabulary() -> GgufVocabulary {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| patterns::byte_character(byte).to_string()).collect();
    tokens.extend(strings(&["ab", "abc", "<|end|>"]));
    let mut token_types = vec![1; 258];
    token_types.push(3);
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("llama-bpe".into()),
        tokens,
        token_types,
        merges: strings(&["a b", "ab c"]),
        bos_token_id: Some(258),
        eos_token_id: Some(258),
        ..GgufVocabulary::default()
    }
}

/// SentencePiece: unk, bos, eos, 256 bytes, then pieces.
fn sentencepiece_vocabulary() -> GgufVocabulary {
    let mut tokens = strings(&["<unk>", "<s>", "</s>"]);
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(strings(&["▁a", "ab", "▁ab", "▁", "a", "b"]));
    let scores = [vec![0.0; 259], vec![-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]].concat();
    let token_types = [vec![2, 3, 3], vec![6; 256], vec![1; 6]].concat();
    GgufVocabulary { model: "llama".into(), tokens, scores, token_types, ..GgufVocabulary::default() }
}

fn parsed(vocabulary: &GgufVocabulary) -> Value {
    serde_json::from_slice(&from_gguf(vocabulary).unwrap()).unwrap()
}

#[test]
fn byte_level_vocabulary_becomes_a_complete_file() {
    let file = parsed(&byte_level_vocabulary());
    assert_eq!(file["model"]["vocab"]["abc"], 257);
    assert_eq!(file["model"]["merges"], json!([["a", "b"], ["ab", "c"]]));
    assert_eq!(file["model"]["ignore_merges"], true);
    assert_eq!(file["added_tokens"][0]["content"], "<|end|>");
    assert_eq!(file["added_tokens"][0]["special"], true);
    assert_eq!(file["post_processor"]["single"][0]["SpecialToken"]["id"], "<|end|>");
    assert_eq!(file["post_processor"]["special_tokens"]["<|end|>"]["ids"], json!([258]));
}

#[test]
fn sentencepiece_vocabulary_gets_merges_from_its_scores() {
    let file = parsed(&sentencepiece_vocabulary());
    assert_eq!(file["model"]["merges"], json!([["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]]));
    assert_eq!(file["model"]["byte_fallback"], true);
    assert_eq!(file["model"]["unk_token"], "<unk>");
    assert_eq!(file["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    assert_eq!(file["normalizer"]["normalizers"][0]["type"], "Prepend");
    let without = GgufVocabulary { add_space_prefix: Some(false), add_bos: Some(false), ..sentencepiece_vocabulary() };
    let file = parsed(&without);
    assert_eq!(file["normalizer"]["normalizers"][0]["type"], "Replace");
    assert_eq!(file["post_processor"], Value::Null);
    assert_eq!(file["decoder"]["decoders"].as_array().unwrap().len(), 3);
}

#[test]
fn pre_tokenizer_names_are_known_or_refused_by_name() {
    let names = [
        "default",
        "gpt-2",
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon",
        "falcon3",
        "falcon_e",
        "qwen2",
        "qwen35",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "smollm",
        "refact",
        "starcoder",
        "olmo",
        "dbrx",
        "tekken",
        "gpt-4o",
    ];
    for name in names {
        parsed(&GgufVocabulary { pre: Some(name.into()), ..byte_level_vocabulary() });
    }
    let refused = from_gguf(&GgufVocabulary { pre: Some("no-such".into()), ..byte_level_vocabulary() });
    assert!(matches!(refused, Err(CheckpointError::Unsupported { reason, .. }) if reason.contains("no-such")));
}

#[test]
fn missing_pre_tokenizer_is_llama_for_its_vocabulary_and_default_otherwise() {
    let unnamed = GgufVocabulary { pre: None, ..byte_level_vocabulary() };
    let file = parsed(&unnamed);
    assert_eq!(file["pre_tokenizer"]["pretokenizers"].as_array().unwrap().len(), 5);
    assert_eq!(file["post_processor"], Value::Null);
    let mut large = GgufVocabulary { token_types: vec![], ..unnamed };
    large.tokens.extend((259..128_256).map(|id| format!("<filler {id}>")));
    let file = parsed(&large);
    assert_eq!(file["pre_tokenizer"]["pretokenizers"].as_array().unwrap().len(), 2);
    assert_eq!(file["model"]["ignore_merges"], true);
    assert!(file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap().contains(r"\p{N}{1,3}"));
}

#[test]
fn wrong_vocabulary_is_refused_and_the_key_named() {
    let byte_level = byte_level_vocabulary;
    let pieces = sentencepiece_vocabulary;
    let without_last = |mut vocabulary: GgufVocabulary, index: usize| {
        vocabulary.tokens[index] = "something else".into();
        vocabulary
    };
    let cases = [
        ("tokens", GgufVocabulary { tokens: vec![], ..byte_level() }),
        ("tokens", GgufVocabulary { tokens: [byte_level().tokens, strings(&["ab"])].concat(), token_types: vec![], ..byte_level() }),
        ("tokens", without_last(byte_level(), 10)),
        ("tokens", without_last(pieces(), 10)),
        ("token_type", GgufVocabulary { token_types: vec![1; 3], ..byte_level() }),
        ("scores", GgufVocabulary { scores: vec![0.0], ..pieces() }),
        ("scores", GgufVocabulary { scores: vec![f32::NAN; 265], ..pieces() }),
        ("merges", GgufVocabulary { merges: strings(&["a zz"]), ..byte_level() }),
        ("merges", GgufVocabulary { merges: strings(&["b a"]), ..byte_level() }),
        ("merges", GgufVocabulary { merges: strings(&["ab"]), ..byte_level() }),
        ("merges", GgufVocabulary { merges: strings(&[""]), ..byte_level() }),
        ("merges", GgufVocabulary { merges: strings(&["é"]), ..byte_level() }),
        ("bos_token_id", GgufVocabulary { bos_token_id: Some(259), ..byte_level() }),
        ("bos_token_id", GgufVocabulary { bos_token_id: None, add_bos: Some(true), ..byte_level() }),
        ("eos_token_id", GgufVocabulary { eos_token_id: Some(u32::MAX), ..byte_level() }),
        ("eos_token_id", GgufVocabulary { eos_token_id: None, add_eos: Some(true), ..byte_level() }),
        ("unknown_token_id", GgufVocabulary { unknown_token_id: Some(1 << 30), ..pieces() }),
    ];
    for (key, vocabulary) in cases {
        let refused = from_gguf(&vocabulary);
        assert!(matches!(&refused, Err(CheckpointError::Malformed { field, .. }) if field.ends_with(key)), "{key}: {refused:?}");
    }
    let other = from_gguf(&GgufVocabulary { model: "bert".into(), ..byte_level() });
    assert!(matches!(other, Err(CheckpointError::Unsupported { .. })));
}
