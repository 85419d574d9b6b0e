//! Pre-tokenizers by the name in `tokenizer.ggml.pre`. Names and which pattern each stands for:
//! ggml-org/llama.cpp:src/llama-vocab.cpp; patterns as in the models' own `tokenizer.json`.

use serde_json::{Value, json};

use crate::error::CheckpointError;
use crate::tokenizer_files::GgufVocabulary;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Cased letters, with the gaps that the published pattern has.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const HAN_AND_HANGUL: &str = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const HAN_AND_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";

/// Vocabulary size of Llama 3 and of BitNet b1.58 2B4T, whose published GGUF lacks the name (microsoft/BitNet#508).
const LLAMA3_N_VOCAB: usize = 128_256;

/// A named pre-tokenizer and the behaviour that goes with its name.
pub(super) struct PreTokenizer {
    /// Applied one after the other, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// Words that are tokens are not merged.
    pub(super) ignore_merges: bool,
    /// Beginning-of-sequence token for files that do not say.
    pub(super) adds_bos: bool,
    /// Text is composed (NFC) first, as in the models' own `tokenizer.json`.
    composes: bool,
}

impl PreTokenizer {
    const fn of(patterns: &'static [&'static str]) -> Self {
        Self { patterns, ignore_merges: false, adds_bos: false, composes: false }
    }

    /// The pre-tokenizer of a vocabulary. A file that names none is read as llama.cpp does, with `default`, except for the one known
    /// vocabulary that is published that way.
    pub(super) fn named(vocabulary: &GgufVocabulary) -> Result<Self, CheckpointError> {
        let unnamed = if vocabulary.tokens.len() == LLAMA3_N_VOCAB { "llama-bpe" } else { "default" };
        let name = vocabulary.pre.as_deref().unwrap_or(unnamed);
        let of = Self::of;
        Ok(match name {
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon_e" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" => Self { ignore_merges: true, adds_bos: true, ..of(&[LLAMA3]) },
            "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => of(&[LLAMA3]),
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..of(&[TEKKEN]) },
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => of(&[GPT4O]),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => Self { composes: true, ..of(&[QWEN2]) },
            "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => of(&[QWEN2]),
            "qwen35" => Self { composes: true, ..of(&[QWEN35]) },
            "deepseek-llm" => of(&[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", HAN_AND_HANGUL, r"\p{N}+"]),
            "deepseek-coder" => of(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}"]),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => of(&[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK3]),
            "falcon" => of(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"]),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => of(&[r"\p{N}", GPT2]),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert"
            | "exaone4" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" => of(&[GPT2]),
            "default" => of(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
            other => {
                let reason = format!("{other:?} is not a known pre-tokenizer");
                return Err(CheckpointError::Unsupported { feature: "tokenizer.ggml.pre".into(), reason });
            }
        })
    }

    /// The `normalizer` field.
    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` field.
    pub(super) fn description(&self) -> Value {
        let splits = self
            .patterns
            .iter()
            .map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}));
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({"type": "Sequence", "pretokenizers": splits.chain([bytes]).collect::<Vec<_>>()})
    }
}

/// The character of the byte-level alphabet (openai/gpt-2:src/encoder.py): printable Latin-1 stands for itself, the other bytes, in
/// order, for U+0100 and following.
pub(super) fn byte_character(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&before| !is_printable(before)).count() as u32;
    char::from_u32(256 + n_before).unwrap_or_default()
}
