//! `tokenizer.json` to the `tokenizer.ggml.*` arrays, for programs that read only those. Byte-level BPE only: other models would
//! need scores that `tokenizer.json` does not hold. This project's own reader uses the embedded `tokenizer.json` instead.
//!
//! Source of the token types and of the names of pre-tokenizers: ggml-org/llama.cpp:convert_hf_to_gguf.py `get_vocab_base`,
//! src/llama-vocab.cpp.

use serde_json::Value;

use crate::tokenizer_files::GgufVocabulary;

/// Split patterns of published tokenizers, with the name llama.cpp gives each.
const PRE_TOKENIZERS: [(&str, &str); 2] = [
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "llama-bpe",
    ),
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "qwen2",
    ),
];

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What could be derived.
#[derive(Debug)]
pub(super) struct VocabularyArrays {
    pub(super) vocabulary: GgufVocabulary,
    /// What programs that read it will have to guess.
    pub(super) remark: Option<String>,
}

/// Derives the arrays, padded to `n_vocab` tokens. Errors: why they cannot be.
pub(super) fn from_json(json: &str, n_vocab: usize) -> Result<VocabularyArrays, String> {
    let root: Value = serde_json::from_str(json).map_err(|error| format!("tokenizer.json: {error}"))?;
    let model = &root["model"];
    if model["type"] != "BPE" || !components(&root["pre_tokenizer"]).iter().any(|part| part["type"] == "ByteLevel") {
        return Err("only byte-level BPE is laid out in arrays".into());
    }
    let (tokens, token_types) = tokens(&root, n_vocab)?;
    let pre = pre_tokenizer_name(&root["pre_tokenizer"]);
    let remark =
        pre.is_none().then(|| "the pre-tokenizer's pattern has no name in tokenizer.ggml.pre, other programs will guess it".to_owned());
    let (add_bos, add_eos) = template_ends(&root["post_processor"]);
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: pre.map(str::to_owned),
        tokens,
        token_types,
        merges: merges(model)?,
        add_bos: Some(add_bos),
        add_eos: Some(add_eos),
        ..GgufVocabulary::default()
    };
    Ok(VocabularyArrays { vocabulary, remark })
}

fn tokens(root: &Value, n_vocab: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let mut tokens: Vec<String> = (0..n_vocab).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; n_vocab];
    let mut put = |token: &str, id: Option<u64>, kind: i32| {
        let slot = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < n_vocab);
        let slot = slot.ok_or_else(|| format!("a token has no id below {n_vocab}"))?;
        tokens[slot] = token.to_owned();
        types[slot] = kind;
        Ok::<(), String>(())
    };
    for (token, id) in root["model"]["vocab"].as_object().ok_or("it has no vocabulary")? {
        put(token, id.as_u64(), NORMAL)?;
    }
    for added in root["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        put(added["content"].as_str().ok_or("an added token has no text")?, added["id"].as_u64(), kind)?;
    }
    Ok((tokens, types))
}

/// Merges as `left right`, from either spelling.
fn merges(model: &Value) -> Result<Vec<String>, String> {
    let text = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] if !left.contains(' ') && !right.contains(' ') => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"].as_array().ok_or("it has no merges")?;
    merges.iter().map(|merge| text(merge).ok_or_else(|| "a merge is not two tokens".to_owned())).collect()
}

/// A processor's parts: its own, or those of a sequence.
fn components(processor: &Value) -> Vec<&Value> {
    let parts = processor["pretokenizers"].as_array().or_else(|| processor["processors"].as_array());
    parts.map_or_else(|| vec![processor], |parts| parts.iter().collect())
}

fn pre_tokenizer_name(pre_tokenizer: &Value) -> Option<&'static str> {
    let parts = components(pre_tokenizer);
    let patterns: Vec<&Value> = parts.iter().filter(|part| part["type"] == "Split").map(|part| &part["pattern"]["Regex"]).collect();
    match patterns[..] {
        [pattern] => PRE_TOKENIZERS.iter().find(|known| pattern == known.0).map(|known| known.1),
        // Byte-level alone splits with GPT-2's pattern unless told not to.
        [] if parts.len() == 1 && parts[0]["use_regex"] != false => Some("gpt-2"),
        _ => None,
    }
}

/// Whether the template puts a special token before, and after, a single sequence.
fn template_ends(post_processor: &Value) -> (bool, bool) {
    let parts = components(post_processor);
    let template = parts.iter().find(|part| part["type"] == "TemplateProcessing").and_then(|part| part["single"].as_array());
    let is_special = |piece: Option<&Value>| piece.is_some_and(|piece| piece.get("SpecialToken").is_some());
    template.map_or((false, false), |pieces| (is_special(pieces.first()), is_special(pieces.last())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(pattern: &str) -> String {
        serde_json::json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
            "added_tokens": [{"id": 3, "content": "<s>", "special": true}, {"id": 4, "content": "tool", "special": false}],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel", "use_regex": false}]},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
        })
        .to_string()
    }

    #[test]
    fn byte_level_bpe_is_laid_out_and_padded() {
        for (pattern, name) in PRE_TOKENIZERS {
            let VocabularyArrays { vocabulary, remark } = from_json(&json(pattern), 6).expect("derived");
            assert_eq!(vocabulary.tokens, ["a", "b", "ab", "<s>", "tool", "[PAD5]"]);
            assert_eq!(vocabulary.token_types, [NORMAL, NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED]);
            assert_eq!((vocabulary.merges, vocabulary.pre.as_deref()), (vec!["a b".to_owned()], Some(name)));
            assert_eq!((vocabulary.add_bos, vocabulary.add_eos, remark), (Some(true), Some(false), None));
        }
    }

    #[test]
    fn what_cannot_be_laid_out_is_said() {
        let unnamed = from_json(&json("\\w+"), 6).expect("derived");
        assert!(unnamed.vocabulary.pre.is_none() && unnamed.remark.is_some());
        assert!(from_json(&json("x"), 4).is_err(), "a token beyond the embedding");
        assert!(from_json("{}", 4).is_err());
        assert!(from_json("not json", 4).is_err());
    }
}
