//! A request that was admitted, from the server's side: what it produced is recorded in the ledger, and at its end it is settled or
//! voided there. Nothing here waits but the recorder's future, and that not for ever.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitnet_engine::RequestEnd;
use bitnet_server::ServerError;
use bitnet_server::admission::{self, BoxFuture, RateLimits, Recorder, Reservation, Used, Voided};

use crate::catalog::operations_of;
use crate::gateway::refusal::UNAVAILABLE_RETRY_AFTER;
use crate::ids::AccountId;
use crate::ledger::event::{HoldId, Outcome, Produced};
use crate::ledger::service::LedgerService;
use crate::ledger::{Admitted, Measured, NotRecorded, Position};
use crate::limits::{DURABLE_WAIT_MAX, LEASE};
use crate::money::TokenCounts;
use crate::service_level::{Ended, Outcomes};
use crate::time::{Clock, Timestamp};

/// What the ledger holds for one request.
pub(super) struct Held {
    journal: Journal,
    account: AccountId,
    outcomes: Outcomes,
    rate_limits: Option<RateLimits>,
}

/// Where its output is recorded.
#[derive(Clone)]
struct Journal {
    ledger: Arc<LedgerService>,
    id: HoldId,
    now: Clock,
    began: Timestamp,
    /// When its first tokens were there, in microseconds since 1970; 0 before.
    first_at: Arc<AtomicI64>,
    /// What its client was shown.
    shown: Arc<Mutex<Produced>>,
    /// What it wrote then could not be made durable in time; it is booked with what was shown.
    is_cut: Arc<AtomicBool>,
    durable_wait_max: Duration,
}

impl Held {
    pub(super) fn new(ledger: Arc<LedgerService>, admitted: &Admitted, (account, outcomes): (AccountId, Outcomes), now: Clock) -> Self {
        let limits = |(limit_requests, remaining_requests, reset_requests): (u32, u32, Duration)| RateLimits {
            limit_requests,
            remaining_requests,
            reset_requests,
        };
        let journal = Journal {
            ledger,
            id: admitted.id,
            now,
            began: now(),
            first_at: Arc::default(),
            shown: Arc::default(),
            is_cut: Arc::default(),
            durable_wait_max: DURABLE_WAIT_MAX,
        };
        Self { journal, account, outcomes, rate_limits: admitted.request_rate.map(limits) }
    }
}

impl Reservation for Held {
    fn settle(self: Box<Self>, used: Used) {
        let Journal { ledger, id, now, began, first_at, is_cut, .. } = &self.journal;
        let ended_at = now();
        let first_at = Some(first_at.load(Ordering::Relaxed)).filter(|time| *time != 0).map_or(ended_at, Timestamp);
        let outcome = match used.end {
            RequestEnd::Complete => Outcome::Completed,
            RequestEnd::Cancelled => Outcome::Cancelled,
            RequestEnd::Failed => Outcome::Failed,
        };
        let is_settled = ledger.settle(*id, (measured(&used), outcome), ended_at).is_ok();
        self.outcomes.note(
            self.account,
            match used.end {
                RequestEnd::Failed => Ended::Failed,
                // Its client was told to come again.
                _ if !is_settled => Ended::Failed,
                _ => Ended::Served { first_token: first_at.since(*began) },
            },
            ended_at,
        );
        if !is_settled && !is_cut.load(Ordering::Acquire) {
            tracing::error!(request = %id.event_id(), "a request was settled that is not in flight");
        }
    }

    fn void(self: Box<Self>, why: Voided) {
        let Journal { ledger, id, now, is_cut, .. } = &self.journal;
        let ended_at = now();
        if why == Voided::ByServer {
            self.outcomes.note(self.account, Ended::Failed, ended_at);
        }
        if ledger.void(*id, ended_at).is_err() && !is_cut.load(Ordering::Acquire) {
            tracing::error!(request = %id.event_id(), "a request was voided that is not in flight");
        }
    }

    fn rate_limits(&self) -> Option<RateLimits> {
        self.rate_limits
    }

    fn recorder(&self) -> Option<Arc<dyn Recorder>> {
        Some(Arc::new(self.journal.clone()))
    }
}

fn measured(used: &Used) -> Measured {
    let usage = used.usage;
    let n_cached = usage.n_cached_tokens.min(usage.n_prompt_tokens) as u64;
    let n_input = usage.n_prompt_tokens as u64 - n_cached;
    let tokens = TokenCounts { n_input, n_cached, n_output: usage.n_completion_tokens as u64 };
    let n_operations = used.item_tokens.iter().map(|&n_tokens| operations_of(n_tokens as u64)).sum();
    Measured { tokens, n_operations }
}

impl Journal {
    /// Waits for what was recorded. Whoever waits too long is refused and pays only for what was shown; what has come to its end is paid
    /// for, and waited for.
    async fn until_durable(&self, position: Position) -> Result<(), ServerError> {
        let refused = || ServerError::Overloaded { retry_after: UNAVAILABLE_RETRY_AFTER };
        if let Ok(reached) = tokio::time::timeout(self.durable_wait_max, self.ledger.until_durable(position)).await {
            return reached.map_err(|_| refused());
        }
        let shown = *self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // Noted first, since the request may end at any moment.
        self.is_cut.store(true, Ordering::Release);
        if self.ledger.cut(self.id, shown, (self.now)()).is_ok() {
            return Err(refused());
        }
        self.is_cut.store(false, Ordering::Release);
        let settled = self.ledger.ledger().position();
        self.ledger.until_durable(settled).await.map_err(|_| refused())
    }
}

impl Recorder for Journal {
    fn record(&self, produced: admission::Produced) -> BoxFuture<'static, Result<(), ServerError>> {
        let produced = Produced { n_cached: produced.n_cached_tokens as u64, n_output: produced.n_completion_tokens as u64 };
        let now = (self.now)();
        let _ = self.first_at.compare_exchange(0, now.0, Ordering::Relaxed, Ordering::Relaxed);
        let position = match self.ledger.record(self.id, produced, (now, LEASE)) {
            Ok(position) => position,
            // It is settled, and what was settled is among what the ledger has decided so far.
            Err(NotRecorded::NotOpen) => self.ledger.ledger().position(),
            Err(error @ NotRecorded::Exhausted) => {
                return Box::pin(std::future::ready(Err(ServerError::InsufficientQuota { reason: error.to_string() })));
            }
        };
        let journal = self.clone();
        Box::pin(async move {
            journal.until_durable(position).await?;
            *journal.shown.lock().unwrap_or_else(PoisonError::into_inner) = produced;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bitnet_engine::Usage;

    use super::*;
    use crate::catalog::{ANY_MODEL, Catalog, ClassPrice, Meter, Plan, PlanLimits, PriorityClass, Validity};
    use crate::ledger::event::{EventKey, Owner, PayloadHash, Purpose};
    use crate::ledger::projection::Projection;
    use crate::ledger::service::{LedgerStore, Takeover};
    use crate::ledger::{AccountStatus, AccountTerms, Ask, Opening, Overage};
    use crate::money::{Micros, TokenPrice};

    const ACCOUNT: AccountId = AccountId::from_u128(1);

    /// A store that would take everything, if only somebody wrote it there.
    struct Away;

    impl LedgerStore for Away {
        fn take_over(&self) -> crate::store::BoxFuture<'_, Takeover> {
            Box::pin(std::future::ready(Ok(Takeover { epoch: 1, journal_row: 0, projected_row: 0 })))
        }

        fn load(&self, _now: Timestamp) -> crate::store::BoxFuture<'_, Opening> {
            let validity = Validity { from: Timestamp(0), until: None };
            let plan = Plan {
                id: "payg".into(),
                validity,
                name: "payg".into(),
                monthly_price: Micros::ZERO,
                meter: Meter::Tokens,
                included_operations: None,
                limits: PlanLimits::default(),
                priority: PriorityClass::Standard,
            };
            let micro = Micros(1_000_000);
            let price = TokenPrice { input_per_million: micro, cached_per_million: micro, output_per_million: micro };
            let catalog = Catalog::new(
                vec![plan],
                vec![ClassPrice { class: "only".into(), validity, price }],
                vec![(ANY_MODEL.into(), "only".into())],
            );
            let (plans, status, overage) = (vec![("payg".into(), validity)], AccountStatus::Active, Overage::Charge);
            let accounts = vec![AccountTerms { id: ACCOUNT, status, plans, overage, spending_cap: Micros(1000) }];
            Box::pin(std::future::ready(Ok(Opening { catalog, accounts, ..Opening::default() })))
        }

        fn append<'a>(&'a self, _epoch: u64, _number: u64, _bytes: &'a [u8]) -> crate::store::BoxFuture<'a, ()> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn rows_after(&self, _number: u64) -> crate::store::BoxFuture<'_, Vec<(u64, Vec<u8>)>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }

        fn project<'a>(&'a self, _epoch: u64, _projection: &'a Projection) -> crate::store::BoxFuture<'a, ()> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn known<'a>(&'a self, _keys: &'a [EventKey]) -> crate::store::BoxFuture<'a, HashMap<EventKey, PayloadHash>> {
            Box::pin(std::future::ready(Ok(HashMap::new())))
        }
    }

    /// A ledger that nobody writes down, and a request in it that waits a moment for that.
    async fn admitted() -> (Arc<LedgerService>, Box<Held>) {
        let now: Clock = || Timestamp(1_000_000);
        let ledger = Arc::new(LedgerService::open(Box::new(Away), now()).await.expect("it opens"));
        let ask = Ask {
            owner: Owner { account: ACCOUNT, project: crate::ids::ProjectId::from_u128(1), api_key: None },
            request_id: "req".into(),
            model: "m".into(),
            purpose: Purpose::Chat,
            n_prompt: 10,
            n_output_max: 20,
            n_operations_max: 1,
            lease: LEASE,
        };
        let admitted = ledger.admit(ask, now()).expect("it is in");
        let mut held = Box::new(Held::new(ledger.clone(), &admitted, (ACCOUNT, Outcomes::default()), now));
        held.journal.durable_wait_max = Duration::from_millis(20);
        (ledger, held)
    }

    fn produced(n_completion_tokens: usize) -> admission::Produced {
        admission::Produced { n_cached_tokens: 0, n_completion_tokens }
    }

    fn used(n_completion_tokens: usize) -> Used {
        let usage = Usage { n_prompt_tokens: 10, n_cached_tokens: 0, n_completion_tokens };
        Used { usage, item_tokens: vec![10 + n_completion_tokens], end: RequestEnd::Complete }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
    }

    #[test]
    fn request_that_is_refused_for_want_of_a_store_is_not_billed() {
        runtime().block_on(async {
            let (ledger, held) = admitted().await;
            let recorder = held.recorder().expect("it records");
            let refused = recorder.record(produced(7)).await;
            assert!(matches!(refused, Err(ServerError::Overloaded { .. })), "{refused:?}");
            // The engine, which knows nothing of it, comes to an end.
            held.settle(used(9));
            let balance = ledger.ledger().balance(ACCOUNT, Timestamp(1_000_000));
            assert_eq!((balance.used, balance.held), Default::default(), "nothing was shown, and nothing is booked");
        });
    }

    #[test]
    fn stream_that_is_cut_is_billed_for_what_was_shown() {
        runtime().block_on(async {
            let (ledger, held) = admitted().await;
            let recorder = held.recorder().expect("it records");
            let (shown, written) = tokio::join!(recorder.record(produced(3)), ledger.commit());
            assert!(shown.is_ok() && written.is_ok());
            assert!(recorder.record(produced(8)).await.is_err(), "nobody writes it down");
            held.settle(used(9));
            let balance = ledger.ledger().balance(ACCOUNT, Timestamp(1_000_000));
            assert_eq!((balance.used.charge, balance.used.n_operations, balance.held), (Micros(13), 0, Default::default()));
        });
    }

    #[test]
    fn request_that_has_come_to_its_end_is_billed_and_waited_for() {
        runtime().block_on(async {
            let (ledger, held) = admitted().await;
            let recorder = held.recorder().expect("it records");
            held.settle(used(9));
            let mut shown = recorder.record(produced(9));
            let waits = tokio::time::timeout(Duration::from_millis(100), &mut shown).await;
            assert!(waits.is_err(), "it is not refused: {waits:?}");
            ledger.commit().await.expect("written");
            assert!(shown.await.is_ok());
            assert_eq!(ledger.ledger().balance(ACCOUNT, Timestamp(1_000_000)).used.charge, Micros(19));
        });
    }
}
