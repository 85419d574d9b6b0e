//! What every tokenizer must do with every text, whatever its vocabulary: encode or refuse, give only ids that it has, and decode to
//! the same text whether at once or token by token. Whether the ids are the right ones is for the differential tests.

use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, Detokenizer, SpecialTokens, Tokenizer};

/// Runs a text, and ids that no text gave, through a tokenizer that was accepted.
pub fn exercise(tokenizer: &Tokenizer, text: &str) {
    for special in [AddSpecial::Yes, AddSpecial::No] {
        let Ok(tokens) = tokenizer.encode(text, special) else { continue };
        assert!(tokens.iter().all(|token| (token.0 as usize) < tokenizer.n_vocab()), "an id beyond the vocabulary");
        decode(tokenizer, &tokens);
    }
    // Ids as a model could sample them, beyond the vocabulary too.
    let sampled: Vec<TokenId> = text.bytes().map(|byte| TokenId(u32::from(byte) * 3)).collect();
    decode(tokenizer, &sampled);
}

fn decode(tokenizer: &Tokenizer, tokens: &[TokenId]) {
    for special in [SpecialTokens::Keep, SpecialTokens::Skip] {
        let whole = tokenizer.decode(tokens, special);
        let mut detokenizer = Detokenizer::new(tokenizer, special);
        let mut streamed = String::new();
        for &token in tokens {
            streamed.push_str(detokenizer.push(token));
        }
        streamed.push_str(detokenizer.finish());
        assert_eq!(streamed, whole, "token by token is the same as at once");
    }
}
