//! Where templates are rendered and text is tokenised: a few blocking threads beside the reactor, so that no prompt, however long,
//! delays another connection (CVE-2025-62426: a template blocked a peer's event loop).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::error::ServerError;
use crate::limits;

/// How soon a crowded pool is likely to have room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct TextPool {
    threads: Semaphore,
    n_waiting: Arc<AtomicUsize>,
}

/// Counts a job while it waits or runs.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TextPool {
    /// With this many threads at work at once.
    pub(crate) fn new(n_threads: usize) -> Self {
        Self { threads: Semaphore::new(n_threads), n_waiting: Arc::default() }
    }

    /// Runs `work` when a thread is free.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ServerError> + Send + 'static,
    ) -> Result<T, ServerError> {
        if self.n_waiting.fetch_add(1, Ordering::Relaxed) >= limits::N_TEXT_JOBS_WAITING_MAX {
            self.n_waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ServerError::Overloaded { retry_after: RETRY_AFTER });
        }
        let place = Place(self.n_waiting.clone());
        let _thread = self.threads.acquire().await.map_err(|_| ServerError::internal("the text pool is closed"))?;
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(place);
            outcome
        });
        outcome.await.map_err(|error| ServerError::internal(format!("text work panicked: {error}")))?
    }
}
