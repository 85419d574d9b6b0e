//! Our tokenizer against huggingface/tokenizers: the same ids for random text, for every named pre-tokenizer and both kinds of
//! vocabulary.

use std::sync::LazyLock;

use bitnet_checkpoint::{GgufVocabulary, tokenizer_json};
use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, SpecialTokens, Tokenizer};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture;
use crate::tokenizer::sentencepiece;

/// Text that exercises patterns: words, contractions, numbers, runs of whitespace, punctuation, combining marks, special tokens.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        2 => " {1,4}",
        1 => "[ \\t\\n\\r\u{A0}\u{3000}]{1,5}",
        1 => "[0-9]{1,7}",
        1 => "[!-/:-@\\[-`{-~]{1,4}",
        1 => "'(s|t|re|ve|m|ll|d|S|LL|x)",
        1 => "[éüßñÀ中文字日本語한국어אבΩж😀👨‍👩‍👧]{1,4}",
        1 => "(e\u{301}|क्षि|ﬁ|Å|½|٣|Ⅷ|“|…)",
        // No newer characters: the reference's normalization tables are of an older Unicode.
        1 => "[ -~\u{A0}-\u{52F}\u{4E00}-\u{9FFF}😀-🙏]{1,4}",
        1 => Just("<|eot_id|>".to_string()),
        1 => Just("<s>".to_string()),
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

fn compare(json: &[u8], n_cases: u32, name: &str) {
    let ours = Tokenizer::from_json(json).unwrap();
    let oracle = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let mut runner = TestRunner::new(Config { cases: n_cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&text(), |text| {
        for (add_special, adds) in [(AddSpecial::Yes, true), (AddSpecial::No, false)] {
            let got: Vec<u32> = ours.encode(&text, add_special).unwrap().iter().map(|token| token.0).collect();
            let expected = oracle.encode_fast(text.as_str(), adds).unwrap();
            prop_assert_eq!(&got[..], expected.get_ids(), "{}: {:?}", name, expected.get_tokens());
        }
        let tokens = ours.encode(&text, AddSpecial::No).unwrap();
        let ids: Vec<u32> = tokens.iter().map(|token: &TokenId| token.0).collect();
        prop_assert_eq!(ours.decode(&tokens, SpecialTokens::Skip), oracle.decode(&ids, true).unwrap());
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

/// The tales vocabulary as GGUF metadata, under another pre-tokenizer.
fn gguf_vocabulary(pre: &str) -> GgufVocabulary {
    static PLAIN: LazyLock<GgufVocabulary> = LazyLock::new(|| {
        let file: serde_json::Value = serde_json::from_slice(&fixture("tokenizer.json")).unwrap();
        let vocabulary = file["model"]["vocab"].as_object().unwrap();
        let mut tokens = vec![String::new(); 8192];
        let mut token_types = vec![1; 8192];
        for (token, id) in vocabulary {
            tokens[id.as_u64().unwrap() as usize] = token.clone();
        }
        for added in file["added_tokens"].as_array().unwrap() {
            let id = added["id"].as_u64().unwrap() as usize;
            tokens[id] = added["content"].as_str().unwrap().to_string();
            token_types[id] = 3;
        }
        let side = |merge: &serde_json::Value, index: usize| merge[index].as_str().unwrap().to_string();
        let merges = file["model"]["merges"].as_array().unwrap().iter();
        let merges = merges.map(|merge| merge.as_str().map_or_else(|| format!("{} {}", side(merge, 0), side(merge, 1)), str::to_string));
        GgufVocabulary {
            model: "gpt2".into(),
            tokens,
            token_types,
            merges: merges.collect(),
            bos_token_id: Some(0),
            eos_token_id: Some(1),
            add_bos: Some(true),
            ..GgufVocabulary::default()
        }
    });
    GgufVocabulary { pre: Some(pre.into()), ..PLAIN.clone() }
}

#[test]
fn tales_tokenizer_matches_the_reference() {
    compare(&fixture("tokenizer.json"), 2_000, "tales");
}

#[test]
fn every_named_pre_tokenizer_matches_the_reference() {
    let names = [
        "default",
        "gpt-2",
        "llama-bpe",
        "falcon",
        "qwen2",
        "qwen35",
        "stablelm2",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "smollm",
        "dbrx",
        "tekken",
        "gpt-4o",
    ];
    for name in names {
        compare(&tokenizer_json::from_gguf(&gguf_vocabulary(name)).unwrap(), 300, name);
    }
}

#[test]
fn sentencepiece_matches_the_reference() {
    compare(&tokenizer_json::from_gguf(&sentencepiece()).unwrap(), 1_000, "sentencepiece");
    let bare = GgufVocabulary { add_space_prefix: Some(false), add_eos: Some(true), ..sentencepiece() };
    compare(&tokenizer_json::from_gguf(&bare).unwrap(), 300, "sentencepiece without a space prefix");
}

#[test]
fn published_component_shapes_match_the_reference() {
    let tales: serde_json::Value = serde_json::from_slice(&fixture("tokenizer.json")).unwrap();
    let byte_level = |prefix: bool, regex: bool| serde_json::json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let punctuation = serde_json::json!({"type": "Punctuation", "behavior": "Contiguous"});
    let digits = |individual: bool| serde_json::json!({"type": "Digits", "individual_digits": individual});
    let sequence = |parts: Vec<serde_json::Value>| serde_json::json!({"type": "Sequence", "pretokenizers": parts});
    let shapes = [
        byte_level(true, true),
        sequence(vec![punctuation, digits(false), byte_level(false, true)]),
        sequence(vec![digits(true), byte_level(true, true)]),
        sequence(vec![
            serde_json::json!({"type": "Punctuation", "behavior": "Contiguous"}),
            byte_level(false, true),
            digits(false),
            serde_json::json!({"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false}),
        ]),
        sequence(vec![serde_json::json!({"type": "WhitespaceSplit"}), byte_level(false, false)]),
        sequence(vec![serde_json::json!({"type": "Whitespace"}), byte_level(true, false)]),
        sequence(vec![
            serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}),
            byte_level(false, false),
        ]),
    ];
    for shape in shapes {
        let mut file = tales.clone();
        file["pre_tokenizer"] = shape.clone();
        file["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]});
        for token in file["added_tokens"].as_array_mut().unwrap() {
            (token["lstrip"], token["rstrip"]) = (true.into(), true.into());
        }
        compare(&serde_json::to_vec(&file).unwrap(), 300, &shape.to_string());
    }
}
