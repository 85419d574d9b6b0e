//! Prompts that made the engine panic. After the second time the same prompt of the same tenant is refused, so that a client that
//! retries does not make everybody's steps be computed twice for ever.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bitnet_model::TokenId;
use sha2::{Digest, Sha256};

use crate::limits::{N_PANICS_MAX, N_QUARANTINED_MAX};
use crate::request::TenantSalt;

type Fingerprint = [u8; 32];

/// The latest such prompts, the oldest first, and how often each panicked.
#[derive(Default)]
pub(crate) struct Quarantine {
    suspects: Mutex<VecDeque<(Fingerprint, usize)>>,
}

impl Quarantine {
    /// Takes down a panic.
    pub(crate) fn record(&self, tenant: TenantSalt, prompt: &[TokenId]) {
        let fingerprint = fingerprint(tenant, prompt);
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let known = suspects.iter().position(|(suspect, _)| *suspect == fingerprint).and_then(|index| suspects.remove(index));
        suspects.push_back((fingerprint, known.map_or(0, |(_, n_panics)| n_panics) + 1));
        if suspects.len() > N_QUARANTINED_MAX {
            suspects.pop_front();
        }
    }

    /// Whether a prompt has panicked too often.
    pub(crate) fn holds(&self, tenant: TenantSalt, prompt: &[TokenId]) -> bool {
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        // Nearly always there are none, and nothing is hashed.
        if suspects.is_empty() {
            return false;
        }
        let fingerprint = fingerprint(tenant, prompt);
        // More than the limit, where several were at work when it was reached.
        suspects.iter().any(|&(suspect, n_panics)| suspect == fingerprint && n_panics >= N_PANICS_MAX)
    }
}

fn fingerprint(tenant: TenantSalt, prompt: &[TokenId]) -> Fingerprint {
    let mut hasher = Sha256::new();
    hasher.update(tenant.0);
    prompt.iter().for_each(|token_id| hasher.update(token_id.0.to_le_bytes()));
    hasher.finalize().into()
}
