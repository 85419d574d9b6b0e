//! What is known of batches while they run: how far they are, and whether somebody asked them to stop. Lost with the process; what
//! lasts is on disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::openai::batches::RequestCounts;

#[derive(Default)]
struct Live {
    counts: Option<RequestCounts>,
    cancelled: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct LiveBatches(Mutex<HashMap<String, Live>>);

impl LiveBatches {
    fn with<R>(&self, work: impl FnOnce(&mut HashMap<String, Live>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A batch is this far.
    pub(crate) fn note(&self, id: &str, counts: RequestCounts) {
        self.with(|live| match live.get_mut(id) {
            Some(batch) => batch.counts = Some(counts),
            None => drop(live.insert(id.to_string(), Live { counts: Some(counts), cancelled: false })),
        });
    }

    /// How far a batch is, if it runs.
    pub(crate) fn counts(&self, id: &str) -> Option<RequestCounts> {
        self.with(|live| live.get(id).and_then(|batch| batch.counts))
    }

    /// It is to stop.
    pub(crate) fn cancel(&self, id: &str) {
        self.with(|live| live.entry(id.to_string()).or_default().cancelled = true);
    }

    /// Whether it is.
    pub(crate) fn is_cancelled(&self, id: &str) -> bool {
        self.with(|live| live.get(id).is_some_and(|batch| batch.cancelled))
    }

    /// It is done.
    pub(crate) fn forget(&self, id: &str) {
        self.with(|live| live.remove(id));
    }
}
