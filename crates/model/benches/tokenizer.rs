//! Time to load a byte-level vocabulary of 300,000 tokens from GGUF arrays and from `tokenizer.json`, as
//! `tokenizer/SOURCE/N_TOKENS: median of N`. Tokens are pairs of earlier tokens at random, so look-ups miss the caches as those of
//! real vocabularies do.

use std::collections::HashSet;
use std::time::Instant;

use bitnet_checkpoint::{GenerationDefaults, GgufVocabulary, TokenizerFiles, Vocabulary, tokenizer_json};
use bitnet_model::text::Tokenizer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const N_TOKENS: usize = 300_000;
const TOKEN_BYTES_MAX: usize = 24;
const N_RUNS: usize = 11;

/// The characters that stand for bytes in byte-level vocabularies, any order.
fn byte_characters() -> Vec<String> {
    let printable = |code: &u32| (33..=126).contains(code) || (161..=172).contains(code) || (174..=255).contains(code);
    let replaced = 256..256 + (0..256).filter(|code| !printable(code)).count() as u32;
    (0..256).filter(printable).chain(replaced).filter_map(char::from_u32).map(String::from).collect()
}

fn vocabulary() -> GgufVocabulary {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut tokens = byte_characters();
    let mut seen: HashSet<String> = tokens.iter().cloned().collect();
    let mut merges = vec![];
    while tokens.len() < N_TOKENS {
        let mut pick = || &tokens[random.next_u32() as usize % tokens.len().min(N_TOKENS / 16)];
        let (left, right) = (pick(), pick());
        let joined = format!("{left}{right}");
        if joined.len() <= TOKEN_BYTES_MAX && seen.insert(joined.clone()) {
            merges.push(format!("{left} {right}"));
            tokens.push(joined);
        }
    }
    let token_types = vec![1; tokens.len()];
    GgufVocabulary { model: "gpt2".into(), pre: Some("llama-bpe".into()), token_types, tokens, merges, ..GgufVocabulary::default() }
}

fn report(source: &str, mut load: impl FnMut() -> Tokenizer) {
    let mut seconds: Vec<f64> = (0..N_RUNS)
        .map(|_| {
            let start = Instant::now();
            let tokenizer = load();
            let elapsed = start.elapsed().as_secs_f64();
            assert_eq!(tokenizer.n_vocab(), N_TOKENS);
            elapsed
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("tokenizer/{source}/{N_TOKENS}: {:.0} ms, median of {N_RUNS}", 1e3 * seconds[N_RUNS / 2]);
}

fn main() {
    let vocabulary = vocabulary();
    let json = tokenizer_json::from_gguf(&vocabulary).expect("valid");
    let generation = GenerationDefaults::default();
    let vocabulary = Vocabulary::Gguf(vocabulary);
    let files = TokenizerFiles { vocabulary, generation, ..TokenizerFiles::default() };
    report("gguf", || Tokenizer::load(&files).expect("valid"));
    report("json", || Tokenizer::from_json(&json).expect("valid"));
}
