//! `Candidates`: rows of a head that may hold the best logits, and the best of them.

use bitnet_model::batch::BestLogits;

use crate::kernels::Scratch;

/// A row of the head and its logit for a token.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    pub(crate) row: u32,
    pub(crate) logit: f32,
}

/// The largest logits of one thread's rows.
#[derive(Default)]
pub(crate) struct Candidates(pub(crate) Vec<Candidate>);

impl Candidates {
    /// Takes over what the threads found.
    pub(crate) fn gather(&mut self, scratch: &[Scratch]) {
        self.0.clear();
        self.0.extend(scratch.iter().flat_map(|scratch| scratch.candidates.0.iter().copied()));
    }

    /// Keeps the `n` largest.
    pub(crate) fn keep_best(&mut self, n: usize) {
        if self.0.len() > n {
            self.0.select_nth_unstable_by(n - 1, |a, b| b.logit.total_cmp(&a.logit));
            self.0.truncate(n);
        }
    }

    /// The `n` largest of `logits`, whose rows start at `first_row`.
    pub(crate) fn best_of(&mut self, logits: &[f32], (token, first_row): (usize, usize), n: usize) {
        self.0.clear();
        let mut least = f32::NEG_INFINITY;
        for (row, &logit) in (first_row as u32..).zip(logits) {
            if logit >= least {
                self.0.push(Candidate { token: token as u32, row, logit });
                if self.0.len() >= 2 * n + 16 {
                    self.keep_best(n);
                    least = self.0.iter().fold(f32::INFINITY, |least, candidate| least.min(candidate.logit));
                }
            }
        }
        self.keep_best(n);
    }

    /// The least of the `n` largest logits, less `within`; −∞ if there are fewer.
    pub(crate) fn threshold(&mut self, wanted: BestLogits) -> f32 {
        if self.0.len() < wanted.n {
            return f32::NEG_INFINITY;
        }
        let largest = self.0.iter().fold(f32::NEG_INFINITY, |largest, candidate| largest.max(candidate.logit));
        let (_, nth, _) = self.0.select_nth_unstable_by(wanted.n - 1, |a, b| b.logit.total_cmp(&a.logit));
        nth.logit.min(largest - wanted.within)
    }
}
