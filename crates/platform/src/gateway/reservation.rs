//! A request that was admitted, from the server's side: what it produced is recorded in the ledger, and at its end it is settled or
//! voided there. Nothing here waits but the recorder's future, and that not for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bitnet_engine::RequestEnd;
use bitnet_server::ServerError;
use bitnet_server::admission::{self, BoxFuture, RateLimits, Recorder, Reservation, Used, Voided};

use crate::catalog::operations_of;
use crate::gateway::refusal::UNAVAILABLE_RETRY_AFTER;
use crate::ids::AccountId;
use crate::ledger::event::{HoldId, Outcome, Produced};
use crate::ledger::service::LedgerService;
use crate::ledger::{Admitted, Measured, NotRecorded};
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
    /// What it wrote could not be made durable in time, and was not shown.
    is_cut: Arc<AtomicBool>,
}

impl Held {
    pub(super) fn new(ledger: Arc<LedgerService>, admitted: &Admitted, (account, outcomes): (AccountId, Outcomes), now: Clock) -> Self {
        let limits = |(limit_requests, remaining_requests, reset_requests): (u32, u32, Duration)| RateLimits {
            limit_requests,
            remaining_requests,
            reset_requests,
        };
        let journal = Journal { ledger, id: admitted.id, now, began: now(), first_at: Arc::default(), is_cut: Arc::default() };
        Self { journal, account, outcomes, rate_limits: admitted.request_rate.map(limits) }
    }
}

impl Reservation for Held {
    fn settle(self: Box<Self>, used: Used) {
        let Journal { ledger, id, now, began, first_at, is_cut } = &self.journal;
        let ended_at = now();
        let first_at = Some(first_at.load(Ordering::Relaxed)).filter(|time| *time != 0).map_or(ended_at, Timestamp);
        self.outcomes.note(
            self.account,
            match used.end {
                RequestEnd::Failed => Ended::Failed,
                // Its client was told to come again.
                _ if is_cut.load(Ordering::Relaxed) => Ended::Failed,
                _ => Ended::Served { first_token: first_at.since(*began) },
            },
            ended_at,
        );
        let outcome = match used.end {
            RequestEnd::Complete => Outcome::Completed,
            RequestEnd::Cancelled => Outcome::Cancelled,
            RequestEnd::Failed => Outcome::Failed,
        };
        if ledger.settle(*id, (measured(&used), outcome), ended_at).is_err() {
            tracing::error!(request = %id.event_id(), "a request was settled that is not in flight");
        }
    }

    fn void(self: Box<Self>, why: Voided) {
        let Journal { ledger, id, now, .. } = &self.journal;
        let ended_at = now();
        if why == Voided::ByServer {
            self.outcomes.note(self.account, Ended::Failed, ended_at);
        }
        if ledger.void(*id, ended_at).is_err() {
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
        let (ledger, is_cut) = (self.ledger.clone(), self.is_cut.clone());
        Box::pin(async move {
            match tokio::time::timeout(DURABLE_WAIT_MAX, ledger.until_durable(position)).await {
                Ok(Ok(())) => Ok(()),
                _ => {
                    is_cut.store(true, Ordering::Relaxed);
                    Err(ServerError::Overloaded { retry_after: UNAVAILABLE_RETRY_AFTER })
                }
            }
        })
    }
}
