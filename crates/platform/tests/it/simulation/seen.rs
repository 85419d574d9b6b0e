//! What happened in simulated lives: a simulation in which something never happens proves nothing about it.

use std::collections::BTreeMap;

/// How often what happened, over many lives.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen(BTreeMap<&'static str, u64>);

const ALL: &[&str] = &[
    "admitted",
    "quota refused",
    "money refused",
    "scope cap refused",
    "settled",
    "voided",
    "disconnected",
    "failed",
    "cut",
    "cut before anything was shown",
    "interrupted",
    "accepted",
    "duplicate",
    "conflict",
    "late",
    "out of window",
    "waived",
    "granted",
    "crash",
    "write failed",
    "lease ran out",
    "overshot",
    "exhausted",
    "drawn",
    "cached",
    "month closed",
    "month closed again",
    "late on an invoice",
    "carried",
];

impl Seen {
    pub(crate) fn note(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, n)| *self.0.entry(what).or_default() += n);
    }

    pub(crate) fn all_happened(&self) -> bool {
        ALL.iter().all(|what| self.0.contains_key(what))
    }
}
