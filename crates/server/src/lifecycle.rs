//! Whether the server takes work, and how much it has. Draining is a promise in two parts: not ready at once, and nothing cut that
//! ends within the window.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::{DRAIN_RETRY_AFTER, ServerError};

/// Shared by all requests.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle(Arc<State>);

#[derive(Debug, Default)]
struct State {
    draining: AtomicBool,
    n_in_flight: AtomicUsize,
    idle: Notify,
}

/// A request at work; the count goes down when it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.n_in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Lifecycle {
    /// Takes up a request, unless the server is about to end.
    pub fn begin(&self) -> Result<InFlight, ServerError> {
        // Counted first: whoever begins to drain in between either sees this request or has it refused.
        self.0.n_in_flight.fetch_add(1, Ordering::AcqRel);
        let in_flight = InFlight(self.0.clone());
        if self.is_draining() { Err(ServerError::Draining { retry_after: DRAIN_RETRY_AFTER }) } else { Ok(in_flight) }
    }

    /// From now on no request is taken up.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether `drain` was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Requests at work.
    pub fn n_in_flight(&self) -> usize {
        self.0.n_in_flight.load(Ordering::Acquire)
    }

    /// Waits until there is no request at work.
    pub async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.n_in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_refuses_new_requests_and_waits_for_old_ones() {
        let lifecycle = Lifecycle::default();
        let request = lifecycle.begin().expect("ready");
        lifecycle.drain();
        assert!(matches!(lifecycle.begin(), Err(ServerError::Draining { .. })));
        assert_eq!(lifecycle.n_in_flight(), 1, "the refused one is not counted");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let waiter = tokio::spawn({
                let lifecycle = lifecycle.clone();
                async move { lifecycle.idle().await }
            });
            tokio::task::yield_now().await;
            assert!(!waiter.is_finished());
            drop(request);
            waiter.await.expect("it ends");
        });
    }
}
