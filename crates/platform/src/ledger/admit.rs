//! Admission: the most that a request can cost is set aside against its key, project and account, or it is refused and nothing has
//! changed. Also what happens to a reservation until it is settled: its tokens are recorded before they are shown.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::catalog::{Meter, Plan};
use crate::ledger::event::{Funding, HoldId, OpenRequest, Owner, Produced, Purpose, Record};
use crate::ledger::outbox::Position;
use crate::ledger::scope::{Bound, Held, ScopeId, ScopeLimits};
use crate::ledger::{AccountStatus, Hold, Ledger, Overage, has_included, room};
use crate::limits::N_HOLDS_MAX;
use crate::money::Micros;
use crate::time::Timestamp;

/// A request that wants in, and the most it can cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whose.
    pub owner: Owner,
    /// As the client sees it.
    pub request_id: Arc<str>,
    /// Of which model.
    pub model: Arc<str>,
    /// For what.
    pub purpose: Purpose,
    /// Tokens of its prompts.
    pub n_prompt: u64,
    /// Tokens that may be written.
    pub n_output_max: u64,
    /// Operations that it may count for.
    pub n_operations_max: u64,
    /// After this long without a sign of life it holds nothing any more.
    pub lease: Duration,
}

/// A request that is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its name.
    pub id: HoldId,
    /// Who pays.
    pub funding: Funding,
    /// The account's limit, rest and time to refill of requests a minute, if it is limited.
    pub request_rate: Option<(u32, u32, Duration)>,
}

/// Why what a request produced may not be shown. It is settled with what it used, as always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotRecorded {
    /// It is not in flight.
    #[error("the request is not in flight")]
    NotOpen,
    /// Its lease ran out, and others have taken what it had set aside.
    #[error("the request's lease ran out, and nothing is left to pay for the rest of it")]
    Exhausted,
}

/// Why a request is not admitted. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The account is not there.
    UnknownAccount,
    /// It may do nothing now.
    Suspended,
    /// It has no plan now.
    NoPlan,
    /// Nothing says what this model costs now.
    NoPrice,
    /// The operations of the plan are used up, or would be.
    QuotaExhausted { included: u64 },
    /// Neither credit nor a spending cap pays for anything.
    NothingToPayWith,
    /// The account's credit and spending cap do not cover it.
    SpendingCap { missing: Micros },
    /// Nor does the cap of its project or key.
    ScopeCap { scope: ScopeId },
    /// Too much at once. Without a time to wait, it will never fit.
    Limited { scope: ScopeId, bound: Bound, retry_after: Option<Duration> },
    /// The journal does not keep up, or is gone: later.
    Unavailable,
}

impl Ledger {
    /// Sets the most that a request can cost aside, or says why not.
    pub fn admit(&mut self, ask: Ask, now: Timestamp) -> Result<Admitted, Refusal> {
        self.expire(now);
        if self.is_backlogged() || self.holds.len() >= N_HOLDS_MAX {
            return Err(Refusal::Unavailable);
        }
        let account = self.accounts.get(&ask.owner.account).ok_or(Refusal::UnknownAccount)?;
        if account.terms.status != AccountStatus::Active {
            return Err(Refusal::Suspended);
        }
        let plan = self.plan_at(ask.owner.account, now).ok_or(Refusal::NoPlan)?;
        let price = self.catalog.price_at(&ask.model, now).ok_or(Refusal::NoPrice)?.clone();
        let limits = ScopeLimits {
            spending_cap: None,
            requests_per_minute: plan.limits.requests_per_minute,
            tokens_per_minute: plan.limits.tokens_per_minute,
            n_concurrent_max: plan.limits.n_concurrent_max,
        };
        self.set_limits(ScopeId::Account(ask.owner.account), limits, now);
        let (funding, money) = self.fund(&ask, &plan, price.ceiling(ask.n_prompt, ask.n_output_max), now)?;
        let n_tokens = ask.n_prompt.saturating_add(ask.n_output_max);
        self.check_scopes(&ask.owner, (money, n_tokens), now)?;

        let n_operations = if funding == Funding::Included { ask.n_operations_max } else { 0 };
        let held = Held { n_requests: 1, n_operations, n_tokens, money };
        for scope in ScopeId::of_owner(&ask.owner) {
            self.scopes.entry(scope).or_default().hold(held, now);
        }
        let id = HoldId { epoch: self.epoch, number: self.next_hold };
        self.next_hold += 1;
        let lease_until = now.plus(ask.lease);
        self.leases.insert((lease_until, id));
        let scope = self.scopes.get(&ScopeId::Account(ask.owner.account));
        let request_rate = scope.and_then(|scope| scope.request_rate(now));
        let request = OpenRequest {
            id,
            owner: ask.owner,
            request_id: ask.request_id,
            model: ask.model,
            purpose: ask.purpose,
            occurred_at: now,
            n_prompt: ask.n_prompt,
            plan: plan.id.clone(),
            funding,
            produced: Produced::default(),
        };
        self.holds.insert(
            id,
            Hold { request, price, ceiling: held, held, lease_until, lease_entry: lease_until, is_opened: false, is_released: false },
        );
        Ok(Admitted { id, funding, request_rate })
    }

    /// Who pays for a request, and how much money that sets aside.
    fn fund(&self, ask: &Ask, plan: &Plan, ceiling: Micros, now: Timestamp) -> Result<(Funding, Micros), Refusal> {
        let account = self.accounts.get(&ask.owner.account).ok_or(Refusal::UnknownAccount)?;
        let scope = &self.scopes[&ScopeId::Account(ask.owner.account)];
        let period = now.period();
        if plan.meter == Meter::Operations {
            if has_included(plan, scope, period, ask.n_operations_max) {
                return Ok((Funding::Included, Micros::ZERO));
            }
            if account.terms.overage == Overage::Refuse {
                return Err(Refusal::QuotaExhausted { included: plan.included_operations.unwrap_or(u64::MAX) });
            }
        }
        let room = room(account, scope, (period, now));
        if ceiling <= room {
            return Ok((Funding::Metered, ceiling));
        }
        let is_empty = account.terms.spending_cap == Micros::ZERO && account.credit_at(now) == Micros::ZERO;
        Err(if is_empty { Refusal::NothingToPayWith } else { Refusal::SpendingCap { missing: ceiling.minus(room) } })
    }

    /// Whether key, project and account all have room; changes none.
    fn check_scopes(&self, owner: &Owner, (money, n_tokens): (Micros, u64), now: Timestamp) -> Result<(), Refusal> {
        let scopes = || ScopeId::of_owner(owner).filter_map(|id| Some((id, self.scopes.get(&id)?)));
        if let Some((scope, _)) = scopes().find(|(_, scope)| !scope.affords(money, now.period())) {
            return Err(Refusal::ScopeCap { scope });
        }
        for (id, scope) in scopes() {
            let limited = |(bound, retry_after)| Refusal::Limited { scope: id, bound, retry_after };
            scope.has_room(n_tokens, now).map_err(limited)?;
        }
        Ok(())
    }

    /// Notes what a request has produced in all, which may be shown to its client once the position is durable. One whose lease ran
    /// out holds nothing for what is still to come: it sets it aside again, or must end, so that it passes a cap by this step at most.
    pub fn record(&mut self, id: HoldId, produced: Produced, (now, lease): (Timestamp, Duration)) -> Result<Position, NotRecorded> {
        self.expire(now);
        self.hold_again(id, now.plus(lease))?;
        let hold = self.holds.get_mut(&id).ok_or(NotRecorded::NotOpen)?;
        hold.lease_until = hold.lease_until.max(now.plus(lease));
        let before = hold.request.produced;
        let produced = Produced { n_cached: produced.n_cached.max(before.n_cached), n_output: produced.n_output.max(before.n_output) };
        hold.request.produced = produced;
        if hold.is_opened {
            if produced == before {
                return Ok(self.outbox.position());
            }
            return Ok(self.outbox.push(&Record::Progress { id, produced }));
        }
        hold.is_opened = true;
        let record = Record::Opened(Box::new(hold.request.clone()));
        Ok(self.outbox.push(&record))
    }

    /// Sets aside again what a lease that ran out gave back, if there is still room for it.
    fn hold_again(&mut self, id: HoldId, lease_until: Timestamp) -> Result<(), NotRecorded> {
        let hold = self.holds.get(&id).ok_or(NotRecorded::NotOpen)?;
        if !hold.is_released {
            return Ok(());
        }
        // The rate was paid when it was admitted.
        let missing = Held { n_tokens: 0, ..hold.ceiling.without(hold.held) };
        let (owner, began) = (hold.request.owner, hold.request.occurred_at);
        if !self.has_room_again(hold, missing, began) {
            return Err(NotRecorded::Exhausted);
        }
        for scope in ScopeId::of_owner(&owner) {
            self.scopes.entry(scope).or_default().hold_again(missing);
        }
        self.leases.insert((lease_until, id));
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.held = Held { n_tokens: 0, ..hold.ceiling };
            (hold.is_released, hold.lease_until, hold.lease_entry) = (false, lease_until, lease_until);
        }
        Ok(())
    }

    fn has_room_again(&self, hold: &Hold, missing: Held, began: Timestamp) -> bool {
        let owner = &hold.request.owner;
        let (Some(account), Some(scope)) = (self.accounts.get(&owner.account), self.scopes.get(&ScopeId::Account(owner.account))) else {
            return false;
        };
        let period = began.period();
        let is_paid = match hold.request.funding {
            Funding::Included => {
                self.plan_at(owner.account, began).is_some_and(|plan| has_included(&plan, scope, period, missing.n_operations))
            }
            Funding::Metered | Funding::Waived => missing.money <= room(account, scope, (period, began)),
        };
        let affords = |id| self.scopes.get(&id).is_none_or(|scope| scope.affords(missing.money, period));
        is_paid && ScopeId::of_owner(owner).all(affords)
    }
}
