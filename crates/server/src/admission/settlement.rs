//! Settles a reservation exactly once. One HTTP request may be several of the engine's (a list of prompts), so what they used is
//! added up here; each holds a share, and the last share to go settles. Usage comes from the engine, which outlives the client's
//! connection and any handler (BerriAI/litellm#37923, #30522: peers that took it from the response lost it on disconnect).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bitnet_engine::{RequestEnd, RequestId, Usage, UsageSink};

use crate::admission::{Reservation, Used, Voided};
use crate::traces::{RequestTrace, Stage};

/// A reservation, until it is settled or voided.
pub(crate) struct Settlement(Mutex<Open>);

struct Open {
    reservation: Option<Box<dyn Reservation>>,
    used: Used,
    /// The client was refused, whatever had been begun by then, and why.
    refused: Option<Voided>,
    trace: RequestTrace,
}

impl Settlement {
    /// Dropped without anything used, the reservation is voided.
    pub(crate) fn new(reservation: Box<dyn Reservation>, trace: RequestTrace) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Open { reservation: Some(reservation), used: Used::default(), refused: None, trace })))
    }

    /// Nothing will be charged: the request was refused, and will be sent again.
    pub(crate) fn refuse(&self, why: Voided) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused = Some(why);
    }

    /// A share, for one of the engine's requests.
    pub(crate) fn share(self: &Arc<Self>) -> Box<dyn UsageSink> {
        Box::new(Share(self.clone()))
    }
}

struct Share(Arc<Settlement>);

impl UsageSink for Share {
    fn finished(self: Box<Self>, _id: RequestId, usage: Usage, end: RequestEnd) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = &mut open.used;
        used.usage.n_prompt_tokens += usage.n_prompt_tokens;
        used.usage.n_cached_tokens += usage.n_cached_tokens;
        used.usage.n_completion_tokens += usage.n_completion_tokens;
        used.item_tokens.push(usage.n_prompt_tokens + usage.n_completion_tokens);
        used.end = used.end.max(end);
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        let open = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(reservation) = open.reservation.take() else { return };
        let nothing = (open.used.usage == Usage::default()).then_some(match open.used.end {
            RequestEnd::Failed => Voided::ByServer,
            RequestEnd::Complete | RequestEnd::Cancelled => Voided::ByClient,
        });
        let start = Instant::now();
        match open.refused.or(nothing) {
            Some(why) => reservation.void(why),
            None => reservation.settle(std::mem::take(&mut open.used)),
        }
        open.trace.stage(Stage::Settle, (start, Instant::now()), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::RateLimits;

    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Vec<Result<Used, Voided>>>>);

    impl Reservation for Book {
        fn settle(self: Box<Self>, used: Used) {
            self.0.lock().unwrap().push(Ok(used));
        }

        fn void(self: Box<Self>, why: Voided) {
            self.0.lock().unwrap().push(Err(why));
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
        first.finished(RequestId(1), used(3), RequestEnd::Failed);
        assert!(book.0.lock().unwrap().is_empty(), "one is still at work");
        second.finished(RequestId(2), used(4), RequestEnd::Cancelled);
        let usage = Usage { n_prompt_tokens: 2, n_cached_tokens: 0, n_completion_tokens: 7 };
        let whole = Used { usage, item_tokens: vec![4, 5], end: RequestEnd::Failed };
        assert_eq!(*book.0.lock().unwrap(), [Ok(whole)], "and the worse end is the request's");
    }

    #[test]
    fn reservation_without_anything_used_is_voided() {
        let book = Book::default();
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        drop(settlement.share());
        settlement.share().finished(RequestId(1), Usage::default(), RequestEnd::Complete);
        drop(settlement);
        assert_eq!(*book.0.lock().unwrap(), [Err(Voided::ByClient)]);
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        settlement.share().finished(RequestId(1), Usage::default(), RequestEnd::Failed);
        drop(settlement);
        assert_eq!(book.0.lock().unwrap()[1], Err(Voided::ByServer), "it failed before it began");
    }

    #[test]
    fn refused_request_is_voided_whatever_was_begun() {
        let book = Book::default();
        let settlement = Settlement::new(Box::new(book.clone()), RequestTrace::default());
        settlement.share().finished(RequestId(1), used(0), RequestEnd::Failed);
        settlement.refuse(Voided::ByServer);
        drop(settlement);
        assert_eq!(*book.0.lock().unwrap(), [Err(Voided::ByServer)]);
    }
}
