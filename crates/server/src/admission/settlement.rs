//! Settles a reservation exactly once. One HTTP request may be several of the engine's (a list of prompts), so what they used is
//! added up here; each holds a share, and the last share to go settles. Usage comes from the engine, which outlives the client's
//! connection and any handler (BerriAI/litellm#37923, #30522: peers that took it from the response lost it on disconnect).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bitnet_engine::{RequestId, Usage, UsageSink};

use crate::admission::Reservation;
use crate::traces::{RequestTrace, Stage};

/// A reservation, until it is settled or voided.
pub(crate) struct Settlement(Mutex<Open>);

struct Open {
    reservation: Option<Box<dyn Reservation>>,
    usage: Usage,
    /// The client was refused, whatever had been begun by then.
    is_refused: bool,
    trace: RequestTrace,
}

impl Settlement {
    /// Dropped without anything used, the reservation is voided.
    pub(crate) fn new(reservation: Box<dyn Reservation>, trace: RequestTrace) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Open { reservation: Some(reservation), usage: Usage::default(), is_refused: false, trace })))
    }

    /// Nothing will be charged: the request was refused, and will be sent again.
    pub(crate) fn refuse(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_refused = true;
    }

    /// A share, for one of the engine's requests.
    pub(crate) fn share(self: &Arc<Self>) -> Box<dyn UsageSink> {
        Box::new(Share(self.clone()))
    }
}

struct Share(Arc<Settlement>);

impl UsageSink for Share {
    fn finished(self: Box<Self>, _id: RequestId, usage: Usage) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.usage.n_prompt_tokens += usage.n_prompt_tokens;
        open.usage.n_cached_tokens += usage.n_cached_tokens;
        open.usage.n_completion_tokens += usage.n_completion_tokens;
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        let open = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(reservation) = open.reservation.take() else { return };
        let is_void = open.is_refused || open.usage == Usage::default();
        let start = Instant::now();
        if is_void {
            reservation.void()
        } else {
            reservation.settle(open.usage)
        }
        open.trace.stage(Stage::Settle, (start, Instant::now()), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::RateLimits;

    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Vec<Option<usize>>>>);

    impl Reservation for Book {
        fn settle(self: Box<Self>, usage: Usage) {
            self.0.lock().unwrap().push(Some(usage.n_completion_tokens));
        }

        fn void(self: Box<Self>) {
            self.0.lock().unwrap().push(None);
        }

        fn rate_limits(&self) -> Option<RateLimits> {
            None
        }
    }

    fn used(n_completion_tokens: usize) -> Usage {
        Usage { n_prompt_tokens: 1, n_cached_tokens: 0, n_completion_tokens }
    }

    #[test]
    fn shares_of_one_request_settle_once_together() {
        let book = Book::default();
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        let (first, second) = (settlement.share(), settlement.share());
        drop(settlement);
        first.finished(RequestId(1), used(3));
        assert!(book.0.lock().unwrap().is_empty(), "one is still at work");
        second.finished(RequestId(2), used(4));
        assert_eq!(*book.0.lock().unwrap(), [Some(7)]);
    }

    #[test]
    fn reservation_without_anything_used_is_voided() {
        let book = Book::default();
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        drop(settlement.share());
        settlement.share().finished(RequestId(1), Usage::default());
        drop(settlement);
        assert_eq!(*book.0.lock().unwrap(), [None]);
    }

    #[test]
    fn refused_request_is_voided_whatever_was_begun() {
        let book = Book::default();
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        settlement.share().finished(RequestId(1), used(0));
        settlement.refuse();
        drop(settlement);
        assert_eq!(*book.0.lock().unwrap(), [None]);
    }
}
