//! Drafting: guesses of the next tokens, verified all at once by the model that would have computed them one by one (Leviathan et al.,
//! arXiv 2211.17192, in its simplest form: a draft counts only where it equals the token drawn anyway, so results never change).

mod draft_model;
mod lookup;
mod vocabulary;

pub(crate) use draft_model::DraftModel;
pub(crate) use lookup::PromptLookup;
pub use vocabulary::check_draft_vocabulary;

use std::collections::BTreeMap;

use bitnet_model::TokenId;

use crate::sequence::SequenceId;

/// A sequence that could use a draft.
pub(crate) struct DraftRequest<'a> {
    pub(crate) id: SequenceId,
    pub(crate) history: &'a [TokenId],
    pub(crate) n_drafts_max: usize,
}

/// Where drafts come from.
pub(crate) enum DraftSource {
    None,
    Lookup(PromptLookup),
    Model(Box<DraftModel>),
}

/// How long a sequence's drafts are: longer while they are right, shorter while they are wrong, and now and then none.
#[derive(Debug, Clone, Copy)]
struct Pace {
    n_drafts: usize,
    n_rests: usize,
}

/// Tokens that go by without a draft after drafts were wrong to the last.
const N_REST_TOKENS: usize = 8;

/// Drafts of all sequences.
pub(crate) struct Drafter {
    source: DraftSource,
    n_drafts_max: usize,
    paces: BTreeMap<SequenceId, Pace>,
    drafts: BTreeMap<SequenceId, Vec<TokenId>>,
}

impl Drafter {
    pub(crate) fn new(source: DraftSource, n_drafts_max: usize) -> Self {
        Self { source, n_drafts_max, paces: BTreeMap::new(), drafts: BTreeMap::new() }
    }

    /// Whether there is anything to draft with.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.source, DraftSource::None)
    }

    /// Drafts for the sequences of the coming step.
    pub(crate) fn draft(&mut self, mut requests: Vec<DraftRequest<'_>>) {
        self.drafts.clear();
        for request in &mut requests {
            let pace = self.paces.entry(request.id).or_insert(Pace { n_drafts: self.n_drafts_max.div_ceil(2), n_rests: 0 });
            pace.n_rests = pace.n_rests.saturating_sub(1);
            request.n_drafts_max = if pace.n_rests > 0 { 0 } else { request.n_drafts_max.min(pace.n_drafts) };
        }
        requests.retain(|request| request.n_drafts_max > 0);
        match &mut self.source {
            DraftSource::None => {}
            DraftSource::Lookup(lookup) => {
                for request in &requests {
                    self.drafts.insert(request.id, lookup.draft(request));
                }
            }
            DraftSource::Model(model) => model.draft(&requests, &mut self.drafts),
        }
    }

    /// The draft of a sequence for the coming step.
    pub(crate) fn of(&self, id: SequenceId) -> &[TokenId] {
        self.drafts.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Of a draft of `n_drafted`, `n_accepted` were right.
    pub(crate) fn verified(&mut self, id: SequenceId, n_drafted: usize, n_accepted: usize) {
        let Some(pace) = self.paces.get_mut(&id) else { return };
        if n_accepted == n_drafted {
            pace.n_drafts = (pace.n_drafts * 2).min(self.n_drafts_max);
        } else if n_accepted > 0 || pace.n_drafts > 1 {
            pace.n_drafts = n_accepted.max(pace.n_drafts / 2).max(1);
        } else {
            pace.n_rests = N_REST_TOKENS;
        }
    }

    /// A sequence is gone.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.paces.remove(&id);
        self.drafts.remove(&id);
        match &mut self.source {
            DraftSource::None => {}
            DraftSource::Lookup(lookup) => lookup.forget(id),
            DraftSource::Model(model) => model.forget(id),
        }
    }
}
