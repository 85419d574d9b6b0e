//! Events that others measured: checked, told from what is known already, rated and booked. An event is the same as another if
//! account, source and id are; if it then says something else, it is a conflict and changes nothing.

use std::collections::HashMap;

use crate::catalog::{Meter, Plan};
use crate::ledger::event::{Entry, EventKey, Funding, GATEWAY, PayloadHash, UsageEvent};
use crate::ledger::outbox::Position;
use crate::ledger::scope::ScopeId;
use crate::ledger::{Ledger, Overage, charge, has_included, room};
use crate::limits::{EVENT_AGE_MAX, EVENT_AHEAD_MAX, N_OPERATIONS_PER_EVENT, N_TOKENS_PER_EVENT, NAME_BYTES_MAX};
use crate::money::Micros;
use crate::time::Timestamp;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingested {
    /// It is booked, durably once this position is.
    Accepted(Position),
    /// It was known; it is durable once this position is.
    Duplicate(Position),
    /// Another event has its id.
    Conflict,
    /// Its time is too long ago, or too far ahead.
    OutOfWindow,
    /// Its account is not there, or had no plan then, or its model no price.
    NotRatable,
    /// It is not well formed.
    Malformed { field: &'static str },
}

impl Ledger {
    /// Books an event. `known` are the hashes of events that came before, as far as they have keys of this batch.
    pub fn ingest(&mut self, event: UsageEvent, known: &HashMap<EventKey, PayloadHash>, now: Timestamp) -> Ingested {
        if let Some(field) = malformed(&event) {
            return Ingested::Malformed { field };
        }
        let key = event.key();
        let hash = event.payload_hash();
        // A duplicate is one however late it comes.
        if let Some(first) = self.recent.get(&key).or_else(|| known.get(&key)) {
            return if *first == hash { Ingested::Duplicate(self.outbox.position()) } else { Ingested::Conflict };
        }
        if event.occurred_at < now.minus(EVENT_AGE_MAX) || event.occurred_at > now.plus(EVENT_AHEAD_MAX) {
            return Ingested::OutOfWindow;
        }
        let Some(entry) = self.rate_external(event, now) else { return Ingested::NotRatable };
        let seq = self.next_seq;
        let position = self.post(entry, None);
        self.recent.insert(key.clone(), hash);
        self.recent_order.push_back((seq, key));
        Ingested::Accepted(position)
    }

    fn rate_external(&self, event: UsageEvent, now: Timestamp) -> Option<Entry> {
        let plan = self.plan_at(event.owner.account, event.occurred_at)?;
        let price = self.catalog.price_at(&event.model, event.occurred_at)?.clone();
        let would_be = charge(Funding::Metered, &price, event.tokens);
        let funding = self.fund_external(&event, &plan, would_be)?;
        Some(Entry {
            seq: 0,
            posted_at: now,
            plan: plan.id.clone(),
            class: price.class.clone(),
            price_from: price.validity.from,
            funding,
            charge: charge(funding, &price, event.tokens),
            draws: Vec::new(),
            event,
        })
    }

    /// It has happened, so it is never refused: what nobody agreed to pay is waived. It takes nothing that is set aside.
    fn fund_external(&self, event: &UsageEvent, plan: &Plan, would_be: Micros) -> Option<Funding> {
        let account = self.accounts.get(&event.owner.account)?;
        let unused = crate::ledger::scope::Scope::default();
        let scope = self.scopes.get(&ScopeId::Account(event.owner.account)).unwrap_or(&unused);
        let period = event.occurred_at.period();
        if plan.meter == Meter::Operations {
            if has_included(plan, scope, period, event.n_operations) {
                return Some(Funding::Included);
            }
            if account.terms.overage == Overage::Refuse {
                return Some(Funding::Waived);
            }
        }
        let fits = would_be <= room(account, scope, (period, event.occurred_at));
        Some(if fits { Funding::Metered } else { Funding::Waived })
    }
}

fn malformed(event: &UsageEvent) -> Option<&'static str> {
    let is_name = |text: &str| !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains('\0');
    let tokens = event.tokens;
    let counts = [tokens.n_input, tokens.n_cached, tokens.n_output];
    let checks = [
        // Our own events have ids that nobody else can take.
        ("source", is_name(&event.source) && &*event.source != GATEWAY),
        ("id", is_name(&event.event_id)),
        ("request_id", event.request_id.len() <= NAME_BYTES_MAX && !event.request_id.contains('\0')),
        ("model", is_name(&event.model)),
        ("tokens", counts.iter().all(|n| *n <= N_TOKENS_PER_EVENT)),
        ("operations", event.n_operations <= N_OPERATIONS_PER_EVENT),
    ];
    checks.into_iter().find(|(_, is_fine)| !is_fine).map(|(field, _)| field)
}
