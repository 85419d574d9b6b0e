//! Merges of a GGUF vocabulary: listed in the file, or derived from SentencePiece scores. The derivation is that of
//! huggingface/transformers `generate_merges`: every way to cut a piece into two pieces is a merge, and better scores come first.

use super::{Ids, malformed, token_type};
use crate::error::CheckpointError;
use crate::tokenizer_files::GgufVocabulary;

/// Longest piece that is cut: cutting takes quadratic time.
const PIECE_BYTES_MAX: usize = 256;

/// The file's merges.
pub(super) fn listed(vocabulary: &GgufVocabulary) -> Result<Vec<(&str, &str)>, CheckpointError> {
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        // A token may begin with a space, so the separator is looked for behind the first character.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let Some(space) = merge[first..].find(' ').map(|space| first + space) else {
            return Err(malformed("merges", format!("merge {rank} {merge:?} is not two tokens with a space between")));
        };
        merges.push((&merge[..space], &merge[space + 1..]));
    }
    Ok(merges)
}

/// Both sides of a merge, and what it makes, must be tokens.
pub(super) fn check(merges: &[(&str, &str)], ids: &Ids<'_>) -> Result<(), CheckpointError> {
    let mut joined = String::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if let Some(token) = [left, right, joined.as_str()].into_iter().find(|token| !ids.contains_key(token)) {
            return Err(malformed("merges", format!("merge {rank} names {token:?}, which is not a token")));
        }
    }
    Ok(())
}

struct ScoredMerge<'v> {
    left: &'v str,
    right: &'v str,
    score: f32,
    n_left: usize,
    n_right: usize,
}

/// Merges that lead to the pieces of a SentencePiece vocabulary, best score first.
pub(super) fn from_scores<'v>(vocabulary: &'v GgufVocabulary, ids: &Ids<'_>) -> Result<Vec<(&'v str, &'v str)>, CheckpointError> {
    if let Some(id) = vocabulary.scores.iter().position(|score| score.is_nan()) {
        return Err(malformed("scores", format!("score of token {id} is not a number")));
    }
    let is_piece = |id: u32| {
        let kind = vocabulary.token_types.get(id as usize).copied().unwrap_or(token_type::NORMAL);
        !matches!(kind, token_type::UNKNOWN | token_type::CONTROL | token_type::USER_DEFINED | token_type::BYTE)
    };
    let mut merges = vec![];
    let pieces = vocabulary.tokens.iter().enumerate().filter(|(id, piece)| is_piece(*id as u32) && piece.len() <= PIECE_BYTES_MAX);
    for (id, piece) in pieces {
        let n_characters = piece.chars().count();
        let first_of_piece = merges.len();
        for (n_left, (cut, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(cut);
            let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) else { continue };
            if is_piece(left_id) && is_piece(right_id) {
                let merge = ScoredMerge { left, right, score: vocabulary.scores[id], n_left, n_right: n_characters - n_left };
                merges.push((left_id, right_id, merge));
            }
        }
        merges[first_of_piece..].sort_by_key(|&(left_id, right_id, _)| (left_id, right_id));
    }
    let mut merges: Vec<ScoredMerge<'v>> = merges.into_iter().map(|(_, _, merge)| merge).collect();
    merges
        .sort_by(|one, other| other.score.total_cmp(&one.score).then(other.n_left.cmp(&one.n_left)).then(other.n_right.cmp(&one.n_right)));
    Ok(merges.into_iter().map(|merge| (merge.left, merge.right)).collect())
}
