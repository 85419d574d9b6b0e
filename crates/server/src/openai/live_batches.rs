//! What is known of batches while they run: how far they are, and whether somebody asked them to stop. Lost with the process; what
//! lasts is on disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::limits;
use crate::openai::batches::RequestCounts;

#[derive(Default)]
struct Live {
    counts: Option<RequestCounts>,
    cancelled: bool,
}

/// See the module.
pub(crate) struct LiveBatches {
    live: Mutex<HashMap<String, Live>>,
    places: Semaphore,
}

impl Default for LiveBatches {
    fn default() -> Self {
        Self { live: Mutex::default(), places: Semaphore::new(limits::N_BATCHES_AT_ONCE) }
    }
}

impl LiveBatches {
    fn with<R>(&self, work: impl FnOnce(&mut HashMap<String, Live>) -> R) -> R {
        work(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for one of the places at which batches are at work; nobody closes them.
    pub(crate) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
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
