//! The ledger: what every account has used, owes and has set aside, in memory, with no clock, thread or database of its own. It
//! decides; each decision is a record for the journal, and is durable once that is. Rules 1 to 6 of decision 0018 say why it is
//! split so. [`service`] puts it on a store, [`projection`] makes tables of the journal.
//!
//! What it deliberately does not do: identify callers (the directory's), rate anything twice, or change an entry.

pub mod admit;
pub mod event;
pub mod ingest;
mod outbox;
pub mod projection;
mod rate;
pub mod scope;
pub mod service;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::catalog::{Catalog, ClassPrice, Plan, Validity, operations_of};
use crate::ids::{AccountId, GrantId};
use crate::ledger::event::{EventKey, Funding, Grant, HoldId, OpenRequest, PayloadHash, Record};
use crate::ledger::outbox::Outbox;
use crate::ledger::scope::{Held, PeriodUse, Scope, ScopeId, ScopeLimits};
use crate::limits::OUTBOX_BYTES_MAX;
use crate::money::Micros;
use crate::time::{Period, Timestamp};

pub use admit::{Admitted, Ask, NotRecorded, Refusal};
pub use ingest::Ingested;
pub use outbox::{Position, Row};
pub use settle::{Measured, NotOpen};

/// Whether an account may do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountStatus {
    /// It may.
    Active,
    /// Not now.
    Suspended,
}

impl AccountStatus {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// What happens when the operations of a plan are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overage {
    /// Requests are refused.
    Refuse,
    /// Their tokens are charged, up to the spending cap.
    Charge,
}

impl Overage {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Charge => "charge",
        }
    }
}

/// What the ledger has to know of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTerms {
    /// Which.
    pub id: AccountId,
    /// Whether it may do anything.
    pub status: AccountStatus,
    /// Its plans and when it had them.
    pub plans: Vec<(Arc<str>, Validity)>,
    /// What comes after the plan's operations.
    pub overage: Overage,
    /// What it may owe for the tokens of a month, besides what grants pay.
    pub spending_cap: Micros,
}

/// A grant and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantBalance {
    /// The grant.
    pub grant: Grant,
    /// What is left.
    pub remaining: Micros,
}

/// What the tables say when a writer begins.
#[derive(Debug, Clone, Default)]
pub struct Opening {
    /// The last entry.
    pub last_seq: u64,
    /// Rate cards.
    pub catalog: Catalog,
    /// Accounts.
    pub accounts: Vec<AccountTerms>,
    /// Limits of projects and keys.
    pub limits: Vec<(ScopeId, ScopeLimits)>,
    /// Counters of the present and the last months.
    pub used: Vec<(ScopeId, Period, PeriodUse)>,
    /// Grants.
    pub grants: Vec<GrantBalance>,
    /// Requests that were in flight when the writer before ended.
    pub open: Vec<OpenRequest>,
}

struct AccountState {
    terms: AccountTerms,
    /// In the order in which they pay: what expires first, first.
    grants: Vec<GrantBalance>,
}

/// A request in flight.
struct Hold {
    request: OpenRequest,
    price: Arc<ClassPrice>,
    /// What it set aside when it was admitted.
    ceiling: Held,
    /// What it holds now: the ceiling, or after its lease ran out, what it is known to have used.
    held: Held,
    lease_until: Timestamp,
    /// Where `leases` has it: renewing a lease does not move it there, running out does.
    lease_entry: Timestamp,
    /// Whether the journal knows of it.
    is_opened: bool,
    /// Its lease ran out: it holds what it is known to have used, and asks again before it shows more.
    is_released: bool,
}

/// An account's balances, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Grants that pay.
    pub credit: Micros,
    /// Set aside for requests in flight.
    pub held: Held,
    /// Used in the month.
    pub used: PeriodUse,
}

/// See the module.
pub struct Ledger {
    epoch: u64,
    next_hold: u64,
    next_seq: u64,
    catalog: Arc<Catalog>,
    accounts: HashMap<AccountId, AccountState>,
    scopes: HashMap<ScopeId, Scope>,
    holds: HashMap<HoldId, Hold>,
    leases: BTreeSet<(Timestamp, HoldId)>,
    /// Ingested events that are in the journal but not yet in the tables.
    recent: HashMap<EventKey, PayloadHash>,
    recent_order: VecDeque<(u64, EventKey)>,
    outbox: Outbox,
}

impl Ledger {
    /// As the tables say. Requests that were in flight under an earlier writer are settled at once, with what was recorded: they
    /// produce nothing more, and every token that their clients saw is in there.
    pub fn new(epoch: u64, opening: Opening, now: Timestamp) -> Self {
        let mut ledger = Self {
            epoch,
            next_hold: 1,
            next_seq: opening.last_seq + 1,
            catalog: Arc::new(opening.catalog),
            accounts: HashMap::new(),
            scopes: HashMap::new(),
            holds: HashMap::new(),
            leases: BTreeSet::new(),
            recent: HashMap::new(),
            recent_order: VecDeque::new(),
            outbox: Outbox::default(),
        };
        for terms in opening.accounts {
            ledger.set_account(terms);
        }
        for (scope, limits) in opening.limits {
            ledger.set_limits(scope, limits, now);
        }
        for (scope, period, used) in opening.used {
            ledger.scopes.entry(scope).or_default().periods.insert(period, used);
        }
        for balance in opening.grants {
            ledger.add_grant(balance);
        }
        for request in opening.open {
            ledger.settle_orphan(request, now);
        }
        ledger
    }

    /// Which writer this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A new account, or new terms of one.
    pub fn set_account(&mut self, terms: AccountTerms) {
        match self.accounts.get_mut(&terms.id) {
            Some(account) => account.terms = terms,
            None => {
                self.accounts.insert(terms.id, AccountState { terms, grants: Vec::new() });
            }
        }
    }

    /// Rate cards as they are now. Requests in flight keep the price that they were admitted at.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        if *self.catalog != catalog {
            self.catalog = Arc::new(catalog);
        }
    }

    /// New limits of a project or key.
    pub fn set_limits(&mut self, scope: ScopeId, limits: ScopeLimits, now: Timestamp) {
        self.scopes.entry(scope).or_default().limit(limits, now);
    }

    /// The plan that an account has then.
    pub fn plan_at(&self, account: AccountId, time: Timestamp) -> Option<Arc<Plan>> {
        let terms = &self.accounts.get(&account)?.terms;
        let (plan, _) = terms.plans.iter().find(|(_, validity)| validity.holds_at(time))?;
        self.catalog.plan_at(plan, time).cloned()
    }

    /// Gives credit. The same grant again changes nothing.
    pub fn grant(&mut self, grant: Grant) -> Position {
        let Some(account) = self.accounts.get(&grant.account) else { return self.outbox.position() };
        if account.grants.iter().any(|balance| balance.grant.id == grant.id) {
            return self.outbox.position();
        }
        let position = self.outbox.push(&Record::Granted(Box::new(grant.clone())));
        self.add_grant(GrantBalance { remaining: grant.amount, grant });
        position
    }

    fn add_grant(&mut self, balance: GrantBalance) {
        let Some(account) = self.accounts.get_mut(&balance.grant.account) else { return };
        let order = |balance: &GrantBalance| {
            let expires_at = balance.grant.expires_at.unwrap_or(Timestamp(i64::MAX));
            (expires_at, balance.grant.granted_at, balance.grant.id)
        };
        let at = account.grants.partition_point(|other| order(other) < order(&balance));
        account.grants.insert(at, balance);
    }

    /// What an account has and owes.
    pub fn balance(&self, account: AccountId, now: Timestamp) -> Balance {
        let credit = self.accounts.get(&account).map_or(Micros::ZERO, |account| account.credit_at(now));
        Balance { credit, ..self.scope_balance(ScopeId::Account(account), now) }
    }

    /// What a project or key has used and set aside; credit is the account's.
    pub fn scope_balance(&self, scope: ScopeId, now: Timestamp) -> Balance {
        let scope = self.scopes.get(&scope);
        let (held, used) = scope.map_or_else(Default::default, |scope| (scope.held, scope.used(now.period())));
        Balance { credit: Micros::ZERO, held, used }
    }

    /// Until when a request in flight holds something.
    pub fn lease_of(&self, id: HoldId) -> Option<Timestamp> {
        self.holds.get(&id).filter(|hold| !hold.is_released).map(|hold| hold.lease_until)
    }

    /// What is left of each grant of an account.
    pub fn grants(&self, account: AccountId) -> BTreeMap<GrantId, Micros> {
        let grants = self.accounts.get(&account).map_or(&[][..], |account| &account.grants);
        grants.iter().map(|balance| (balance.grant.id, balance.remaining)).collect()
    }

    /// Requests that hold something.
    pub fn n_holding(&self) -> usize {
        self.holds.values().filter(|hold| !hold.is_released).count()
    }

    /// The row to be committed next.
    pub(crate) fn pop_row(&mut self) -> Option<Row> {
        self.outbox.pop_row()
    }

    /// Of the last record.
    pub fn position(&self) -> Position {
        self.outbox.position()
    }

    fn is_backlogged(&self) -> bool {
        self.outbox.size_bytes() > OUTBOX_BYTES_MAX
    }

    /// Entries up to this one are in the tables.
    pub(crate) fn projected(&mut self, last_seq: u64) {
        while let Some((seq, _)) = self.recent_order.front()
            && *seq <= last_seq
        {
            if let Some((_, key)) = self.recent_order.pop_front() {
                self.recent.remove(&key);
            }
        }
    }

    /// Gives back what requests hold whose lease has run out, but for what they are known to have used. They are settled when they end, as all are.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some(&(time, id)) = self.leases.first()
            && time <= now
        {
            self.leases.pop_first();
            let Some(hold) = self.holds.get_mut(&id) else { continue };
            if hold.lease_until > now {
                hold.lease_entry = hold.lease_until;
                self.leases.insert((hold.lease_until, id));
                continue;
            }
            hold.is_released = true;
            let (kept, n_tokens_used) = hold.known_use();
            let given_back = hold.held.without(kept);
            hold.held = kept;
            let owner = hold.request.owner;
            self.release(ScopeId::of_owner(&owner), given_back, given_back.n_tokens.saturating_sub(n_tokens_used));
        }
    }

    fn release(&mut self, scopes: impl Iterator<Item = ScopeId>, held: Held, n_tokens_unused: u64) {
        for id in scopes {
            if let Some(scope) = self.scopes.get_mut(&id) {
                scope.release(held, n_tokens_unused);
            }
        }
    }
}

impl Hold {
    /// What it has used as far as it was recorded, as something to hold; and how many tokens that were.
    fn known_use(&self) -> (Held, u64) {
        if !self.is_opened {
            return (Held::default(), 0);
        }
        let tokens = settle::recorded(&self.request).tokens;
        let money = charge(self.request.funding, &self.price, tokens).min(self.ceiling.money);
        let n_operations = operations_of(tokens.total()).min(self.ceiling.n_operations);
        (Held { n_requests: 0, n_operations, n_tokens: 0, money }, tokens.total())
    }
}

impl AccountState {
    /// What grants can pay then.
    fn credit_at(&self, time: Timestamp) -> Micros {
        self.grants.iter().filter(|balance| balance.pays_at(time)).map(|balance| balance.remaining).sum()
    }
}

impl GrantBalance {
    fn pays_at(&self, time: Timestamp) -> bool {
        self.remaining > Micros::ZERO && self.grant.expires_at.is_none_or(|expires_at| time < expires_at)
    }
}

/// What an account may still have charged, with all that is in flight set aside: credit, and what it may owe.
fn room(account: &AccountState, scope: &Scope, (period, time): (Period, Timestamp)) -> Micros {
    let may_owe = account.terms.spending_cap.minus(scope.used(period).due).or_zero();
    account.credit_at(time).plus(may_owe).minus(scope.held.money)
}

/// Whether the plan's operations pay for this many more.
fn has_included(plan: &Plan, scope: &Scope, period: Period, n_operations: u64) -> bool {
    let taken = scope.used(period).n_included.saturating_add(scope.held.n_operations);
    plan.included_operations.is_none_or(|included| taken.saturating_add(n_operations) <= included)
}

/// The charge for tokens under a funding.
fn charge(funding: Funding, price: &ClassPrice, tokens: crate::money::TokenCounts) -> Micros {
    if funding == Funding::Metered { price.price.charge(tokens) } else { Micros::ZERO }
}
