//! Whether a draft model speaks of the same tokens. Drafts are ids: where one means something else, every guess is wrong, which costs
//! time and is seen nowhere. So it is an error, and it says what differs.

use bitnet_model::TokenId;
use bitnet_model::text::Tokenizer;

use crate::error::StartError;

/// Compares every token, by its text and by whether it is a special one.
///
/// # Errors
/// `DraftVocabulary` if one has more tokens, `DraftToken` with the first that differs.
pub fn check_draft_vocabulary(model: &Tokenizer, draft: &Tokenizer) -> Result<(), StartError> {
    let (expected, got) = (model.n_vocab(), draft.n_vocab());
    if expected != got {
        return Err(StartError::DraftVocabulary { expected, got });
    }
    let same = |&token_id: &TokenId| {
        model.piece(token_id) == draft.piece(token_id)
            && model.token_bytes(token_id) == draft.token_bytes(token_id)
            && model.is_special(token_id) == draft.is_special(token_id)
    };
    let mut ids = (0..expected as u32).map(TokenId);
    match ids.find(|token_id| !same(token_id)) {
        None => Ok(()),
        Some(token_id) => Err(StartError::DraftToken { token_id, expected: name(model, token_id), got: name(draft, token_id) }),
    }
}

fn name(tokenizer: &Tokenizer, token_id: TokenId) -> String {
    let piece = tokenizer.piece(token_id).map_or_else(|| "no token".into(), |piece| format!("{piece:?}"));
    if tokenizer.is_special(token_id) { format!("{piece} (special)") } else { piece }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn tokenizer(words: &[&str], special: bool) -> Tokenizer {
        let vocabulary: Map<String, Value> = words.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
        let end = json!({ "id": words.len(), "content": "<end>", "special": special });
        let file = json!({ "model": { "type": "BPE", "vocab": vocabulary, "merges": [] }, "added_tokens": [end] });
        Tokenizer::from_json(file.to_string().as_bytes()).expect("a valid tokenizer")
    }

    #[test]
    fn vocabulary_that_differs_is_refused_with_what_differs() {
        let check = |words: &[&str], special| check_draft_vocabulary(&tokenizer(&["a", "b", "c"], true), &tokenizer(words, special));
        assert_eq!(check(&["a", "b", "c"], true), Ok(()));
        assert_eq!(check(&["a", "b"], true), Err(StartError::DraftVocabulary { expected: 4, got: 3 }));
        let token_id = TokenId(2);
        assert_eq!(check(&["a", "b", "d"], true), Err(StartError::DraftToken { token_id, expected: "\"c\"".into(), got: "\"d\"".into() }));
        let message = check(&["a", "b", "c"], false).expect_err("refused").to_string();
        let expected = "token 3 of the draft model is \"<end>\", that of the model \"<end>\" (special): drafts need the same vocabulary";
        assert_eq!(message, expected);
    }
}
