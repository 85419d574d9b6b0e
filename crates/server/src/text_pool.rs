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
    threads: Arc<Semaphore>,
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
        Self { threads: Arc::new(Semaphore::new(n_threads)), n_waiting: Arc::default() }
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
        let thread = self.threads.clone().acquire_owned().await.map_err(|_| ServerError::internal("the text pool is closed"))?;
        // The work goes on when the client leaves and this future is dropped, so its thread and place are its own.
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop((thread, place));
            outcome
        });
        outcome.await.map_err(|error| ServerError::internal(format!("text work panicked: {error}")))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_whose_client_left_keeps_its_thread_until_it_is_done() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        runtime.block_on(async {
            let pool = Arc::new(TextPool::new(1));
            let ((begun, has_begun), (end, may_end)) = (mpsc::channel(), mpsc::channel::<()>());
            let long = tokio::spawn({
                let pool = pool.clone();
                async move {
                    let work = move || {
                        begun.send(()).expect("the test waits");
                        may_end.recv().map_err(|_| ServerError::internal("the test is over"))
                    };
                    pool.run(work).await
                }
            });
            tokio::task::spawn_blocking(move || has_begun.recv()).await.expect("no panic").expect("it begins");
            long.abort();
            assert!(long.await.is_err_and(|error| error.is_cancelled()));
            assert_eq!(pool.threads.available_permits(), 0, "the thread is at work still");
            end.send(()).expect("the work waits for it");
            pool.run(|| Ok(())).await.expect("then it is free");
        });
    }
}
