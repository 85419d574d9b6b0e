//! Whatever has limits and counters of its own: an account, a project, a key. A request counts against all three, or against none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{AccountId, ApiKeyId, ProjectId};
use crate::ledger::event::{Entry, Funding, Owner};
use crate::ledger::rate::{Dry, RateBucket};
use crate::limits::N_PAST_PERIODS;
use crate::money::Micros;
use crate::time::{Period, Timestamp};

/// Names a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScopeId {
    /// All of an account.
    Account(AccountId),
    /// A project of it.
    Project(ProjectId),
    /// A key of a project.
    ApiKey(ApiKeyId),
}

impl ScopeId {
    /// Those that a request of this owner counts against.
    pub fn of_owner(owner: &Owner) -> impl Iterator<Item = Self> + use<> {
        let api_key = owner.api_key.map(Self::ApiKey);
        [Self::Account(owner.account), Self::Project(owner.project)].into_iter().chain(api_key)
    }

    /// As it is stored: its kind, and the id.
    pub fn names(self) -> (&'static str, String) {
        match self {
            Self::Account(id) => ("account", id.to_string()),
            Self::Project(id) => ("project", id.to_string()),
            Self::ApiKey(id) => ("api_key", id.to_string()),
        }
    }
}

/// What bounds a project or a key besides its account. Without a number there is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScopeLimits {
    /// Charges in a month, whoever pays them.
    pub spending_cap: Option<Micros>,
    /// Requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once.
    pub n_concurrent_max: Option<u32>,
}

/// What was used in a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeriodUse {
    /// Events.
    pub n_events: u64,
    /// Operations, whoever pays them.
    pub n_operations: u64,
    /// Of these, the plan's.
    pub n_included: u64,
    /// What tokens cost.
    pub charge: Micros,
    /// Of this, what no grant paid.
    pub due: Micros,
}

impl PeriodUse {
    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry) {
        self.n_events += 1;
        self.n_operations += entry.event.n_operations;
        if entry.funding == Funding::Included {
            self.n_included += entry.event.n_operations;
        }
        self.charge = self.charge.plus(entry.charge);
        self.due = self.due.plus(entry.due());
    }
}

/// What requests in flight have set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Requests.
    pub n_requests: u32,
    /// Operations of the plan.
    pub n_operations: u64,
    /// Tokens of the rate.
    pub n_tokens: u64,
    /// Money.
    pub money: Micros,
}

impl Held {
    /// What is left of it without another, which is part of it.
    #[must_use]
    pub(crate) fn without(self, part: Self) -> Self {
        Self {
            n_requests: self.n_requests - part.n_requests,
            n_operations: self.n_operations - part.n_operations,
            n_tokens: self.n_tokens - part.n_tokens,
            money: self.money.minus(part.money),
        }
    }
}

/// Which limit of a scope is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Requests at once.
    Concurrency,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    limits: ScopeLimits,
    requests: Option<RateBucket>,
    tokens: Option<RateBucket>,
    pub(crate) held: Held,
    pub(crate) periods: BTreeMap<Period, PeriodUse>,
}

impl Scope {
    /// New limits. A bucket whose rate stays keeps its level.
    pub(crate) fn limit(&mut self, limits: ScopeLimits, now: Timestamp) {
        if self.limits == limits {
            return;
        }
        self.limits = limits;
        for (bucket, per_minute) in [(&mut self.requests, limits.requests_per_minute), (&mut self.tokens, limits.tokens_per_minute)] {
            if bucket.as_ref().map(RateBucket::per_minute) != per_minute {
                *bucket = per_minute.map(|per_minute| RateBucket::full(per_minute, now));
            }
        }
    }

    pub(crate) fn used(&self, period: Period) -> PeriodUse {
        self.periods.get(&period).copied().unwrap_or_default()
    }

    /// Whether this much more money fits its cap.
    pub(crate) fn affords(&self, amount: Micros, period: Period) -> bool {
        let spent = self.used(period).charge.plus(self.held.money);
        amount == Micros::ZERO || self.limits.spending_cap.is_none_or(|cap| spent.plus(amount) <= cap)
    }

    /// Whether its rates allow one more request of so many tokens. `None` for a wait means that waiting does not help, or that
    /// nobody knows how long.
    pub(crate) fn has_room(&self, n_tokens: u64, now: Timestamp) -> Result<(), (Bound, Option<Duration>)> {
        if self.limits.n_concurrent_max.is_some_and(|most| self.held.n_requests >= most) {
            return Err((Bound::Concurrency, Some(Duration::from_secs(1))));
        }
        let check = |bucket: &Option<RateBucket>, n, bound| match bucket.as_ref().map_or(Ok(()), |bucket| bucket.check(n, now)) {
            Ok(()) => Ok(()),
            Err(Dry::Until(wait)) => Err((bound, Some(wait))),
            Err(Dry::ForEver) => Err((bound, None)),
        };
        check(&self.requests, 1, Bound::Requests)?;
        check(&self.tokens, n_tokens, Bound::Tokens)
    }

    pub(crate) fn hold(&mut self, held: Held, now: Timestamp) {
        if let Some(bucket) = &mut self.requests {
            bucket.take(u64::from(held.n_requests), now);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(held.n_tokens, now);
        }
        self.hold_again(held);
    }

    /// Sets aside what was set aside before, without taking of any rate again.
    pub(crate) fn hold_again(&mut self, held: Held) {
        self.held.n_requests += held.n_requests;
        self.held.n_operations += held.n_operations;
        self.held.n_tokens += held.n_tokens;
        self.held.money = self.held.money.plus(held.money);
    }

    /// Gives back what was held, and to the rate the tokens that were not used. The request itself stays counted.
    pub(crate) fn release(&mut self, held: Held, n_tokens_unused: u64) {
        self.held.n_requests -= held.n_requests;
        self.held.n_operations -= held.n_operations;
        self.held.n_tokens -= held.n_tokens;
        self.held.money = self.held.money.minus(held.money);
        if let Some(bucket) = &mut self.tokens {
            bucket.put_back(n_tokens_unused);
        }
    }

    pub(crate) fn post(&mut self, entry: &Entry) {
        let period = entry.event.occurred_at.period();
        self.periods.entry(period).or_default().add(entry);
        while let Some((&oldest, _)) = self.periods.first_key_value()
            && oldest < entry.posted_at.period().minus_months(N_PAST_PERIODS)
        {
            self.periods.pop_first();
        }
    }

    /// Limit, rest and time to refill of its requests.
    pub(crate) fn request_rate(&self, now: Timestamp) -> Option<(u32, u32, Duration)> {
        let bucket = self.requests.as_ref()?;
        let (left, refill) = bucket.state(now);
        Some((bucket.per_minute(), left, refill))
    }
}
