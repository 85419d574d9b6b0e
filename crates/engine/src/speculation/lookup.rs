//! Drafts from the text itself: what followed the last three tokens where they occurred before (prompt lookup decoding, as in
//! huggingface/transformers `PromptLookupCandidateGenerator`). Worth it where a text copies: editing, quoting, code.

use std::collections::{BTreeMap, HashMap};

use bitnet_model::TokenId;

use crate::sequence::SequenceId;
use crate::speculation::DraftRequest;

/// Tokens that must agree.
const N_MATCH: usize = 3;

/// Where each run of `N_MATCH` tokens last ended, by sequence; grows with the text, so that a step costs its new tokens only.
#[derive(Default)]
pub(crate) struct PromptLookup {
    indexes: BTreeMap<SequenceId, Index>,
}

#[derive(Default)]
struct Index {
    ends: HashMap<[TokenId; N_MATCH], usize>,
    /// Runs that end at or before this many tokens are in `ends`.
    n_indexed: usize,
}

impl PromptLookup {
    pub(super) fn draft(&mut self, request: &DraftRequest<'_>) -> Vec<TokenId> {
        let history = request.history;
        let Some(last) = history.last_chunk::<N_MATCH>() else { return Vec::new() };
        let index = self.indexes.entry(request.id).or_default();
        // All but the last run itself.
        for end in index.n_indexed.max(N_MATCH)..history.len() {
            if let Some(run) = history[..end].last_chunk::<N_MATCH>() {
                index.ends.insert(*run, end);
            }
        }
        index.n_indexed = history.len();
        match index.ends.get(last) {
            Some(&end) => {
                // What comes after the end of the text is what the copy itself begins with: a text that repeats itself goes on so.
                let repeated = history[end..].iter().copied().cycle();
                repeated.take(request.n_drafts_max).collect()
            }
            None => Vec::new(),
        }
    }

    pub(super) fn forget(&mut self, id: SequenceId) {
        self.indexes.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;

    #[test]
    fn lookup_drafts_what_followed_the_latest_occurrence() {
        let ids = |ids: &[u32]| -> Vec<TokenId> { ids.iter().copied().map(TokenId).collect() };
        let id = SequenceId { request: RequestId(1), choice: 0 };
        let mut lookup = PromptLookup::default();
        let mut draft = |history: &[u32], n_drafts_max| lookup.draft(&DraftRequest { id, history: &ids(history), n_drafts_max });
        assert_eq!(draft(&[1, 2], 4), [], "too short");
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2, 3], 2), ids(&[4, 1]));
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3], 9), ids(&[9, 1, 2, 3, 9, 1, 2, 3, 9]), "the latest, and on as it began");
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3, 7], 9), []);
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3, 7, 7, 7, 7], 9), ids(&[7; 9]), "a run may overlap itself");
    }
}
