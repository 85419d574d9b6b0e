//! The tokens that top-k, top-p and min-p leave, with their weights. The vocabulary is never sorted as a whole: top-k selects, and
//! top-p sorts growing prefixes until it has the mass it wants, which for trained models is a few hundred tokens.

use std::cmp::Ordering;

use crate::TokenId;
use crate::sampler::SamplingParams;

/// First guess of how many tokens hold the mass that top-p wants.
const PREFIX: usize = 256;

#[derive(Clone, Copy)]
struct Candidate {
    token: TokenId,
    logit: f32,
    /// exp((logit − largest logit) / temperature), so the most likely token weighs 1.
    weight: f32,
}

/// Buffers of the selection, kept from step to step.
#[derive(Default)]
pub(super) struct Candidates {
    kept: Vec<Candidate>,
    total: f64,
}

/// Most likely first, the lowest id among equals: a total order, so selections do not depend on the algorithm.
fn by_likelihood(left: &Candidate, right: &Candidate) -> Ordering {
    right.logit.total_cmp(&left.logit).then(left.token.cmp(&right.token))
}

impl Candidates {
    /// Fills the candidates from logits.
    pub(super) fn select(&mut self, params: &SamplingParams, logits: &[f32], largest_logit: f32) {
        self.kept.clear();
        let tokens = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.kept.extend(tokens.map(|(index, &logit)| Candidate { token: TokenId(index as u32), logit, weight: 0.0 }));
        if let Some(k) = params.top_k {
            if k < self.kept.len() {
                self.kept.select_nth_unstable_by(k - 1, by_likelihood);
                self.kept.truncate(k);
            }
            // Always: a device may give all but the k best as −∞, and the order decides what a draw means.
            self.kept.sort_unstable_by(by_likelihood);
        }
        for candidate in &mut self.kept {
            candidate.weight = libm::expf((candidate.logit - largest_logit) / params.temperature);
        }
        self.total = self.kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
        if params.top_p < 1.0 {
            self.keep_mass(f64::from(params.top_p) * self.total);
        }
        if params.min_p > 0.0 {
            self.kept.retain(|candidate| candidate.weight >= params.min_p);
        }
        self.total = self.kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
    }

    /// Keeps the shortest prefix, in order of likelihood, that weighs at least `wanted`.
    fn keep_mass(&mut self, wanted: f64) {
        let (mut n_sorted, mut mass) = (0, 0.0);
        while n_sorted < self.kept.len() {
            let rest = &mut self.kept[n_sorted..];
            let n_next = (PREFIX.max(n_sorted * 7)).min(rest.len());
            if n_next < rest.len() {
                rest.select_nth_unstable_by(n_next - 1, by_likelihood);
            }
            rest[..n_next].sort_unstable_by(by_likelihood);
            for (index, candidate) in rest[..n_next].iter().enumerate() {
                mass += f64::from(candidate.weight);
                if mass >= wanted {
                    return self.kept.truncate(n_sorted + index + 1);
                }
            }
            n_sorted += n_next;
        }
    }

    /// The token at a fraction of the total weight.
    pub(super) fn at(&self, fraction: f64) -> Option<TokenId> {
        let wanted = fraction * self.total;
        let mut mass = 0.0;
        for candidate in &self.kept {
            mass += f64::from(candidate.weight);
            if mass > wanted {
                return Some(candidate.token);
            }
        }
        // Rounding may leave the last sum a hair short.
        self.kept.iter().rev().find(|candidate| candidate.weight > 0.0).map(|candidate| candidate.token)
    }

    /// Tokens that can be drawn.
    #[cfg(test)]
    pub(super) fn tokens(&self) -> Vec<TokenId> {
        self.kept.iter().filter(|candidate| candidate.weight > 0.0).map(|candidate| candidate.token).collect()
    }
}
