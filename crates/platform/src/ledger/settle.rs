//! The end of a request: what it used becomes an entry, what it held is given back, exactly once. A reservation that came to
//! nothing is voided and leaves no trace.

use thiserror::Error;

use crate::ledger::event::{Draw, Entry, GATEWAY, HoldId, OpenRequest, Outcome, Produced, Record, UsageEvent};
use crate::ledger::outbox::Position;
use crate::ledger::scope::{Held, ScopeId};
use crate::ledger::{Hold, Ledger, charge};
use crate::money::{Micros, TokenCounts};
use crate::time::Timestamp;

/// A request is not in flight: it was settled or voided before, or never admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the request is not in flight")]
pub struct NotOpen;

/// What a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// In tokens.
    pub tokens: TokenCounts,
    /// In operations, if it was successful.
    pub n_operations: u64,
}

impl Ledger {
    /// Books what a request used and gives back what it held. Without any tokens it is voided.
    pub fn settle(&mut self, id: HoldId, (measured, outcome): (Measured, Outcome), now: Timestamp) -> Result<Position, NotOpen> {
        let hold = self.take(id).ok_or(NotOpen)?;
        let mut tokens = measured.tokens;
        // What was shown was used, whatever is said later.
        tokens.n_output = tokens.n_output.max(hold.request.produced.n_output);
        self.give_back(&hold, tokens.total());
        if tokens.total() == 0 {
            return Ok(self.close(&hold));
        }
        let n_operations = if outcome.is_operation() { measured.n_operations } else { 0 };
        Ok(self.book(hold, (Measured { tokens, n_operations }, outcome), now))
    }

    /// Gives back what a request held: nothing was computed. What had been recorded for it stays used.
    pub fn void(&mut self, id: HoldId, now: Timestamp) -> Result<Position, NotOpen> {
        let hold = self.take(id).ok_or(NotOpen)?;
        Ok(self.end_early(hold, now))
    }

    /// Ends a request that was refused since what it produced could not be made durable in time. It is booked with what its client was
    /// shown, whatever was recorded since then; with nothing, it is no request at all.
    pub fn cut(&mut self, id: HoldId, shown: Produced, now: Timestamp) -> Result<Position, NotOpen> {
        let mut hold = self.take(id).ok_or(NotOpen)?;
        hold.request.produced = shown;
        Ok(self.end_early(hold, now))
    }

    fn end_early(&mut self, hold: Hold, now: Timestamp) -> Position {
        let recorded = recorded(&hold.request);
        self.give_back(&hold, recorded.tokens.total());
        if hold.request.produced.n_output == 0 {
            return self.close(&hold);
        }
        self.book(hold, (recorded, Outcome::Failed), now)
    }

    fn take(&mut self, id: HoldId) -> Option<Hold> {
        let hold = self.holds.remove(&id)?;
        self.leases.remove(&(hold.lease_entry, id));
        Some(hold)
    }

    fn give_back(&mut self, hold: &Hold, n_tokens_used: u64) {
        let n_unused = hold.held.n_tokens.saturating_sub(n_tokens_used);
        self.release(ScopeId::of_owner(&hold.request.owner), hold.held, n_unused);
    }

    fn close(&mut self, hold: &Hold) -> Position {
        if hold.is_opened {
            return self.outbox.push(&Record::Closed { id: hold.request.id });
        }
        self.outbox.position()
    }

    fn book(&mut self, hold: Hold, (measured, outcome): (Measured, Outcome), now: Timestamp) -> Position {
        let Hold { request, price, is_opened, .. } = hold;
        let charge = charge(request.funding, &price, measured.tokens);
        let event = UsageEvent {
            owner: request.owner,
            source: GATEWAY.into(),
            event_id: request.id.event_id(),
            request_id: request.request_id,
            model: request.model,
            purpose: request.purpose,
            outcome,
            occurred_at: request.occurred_at,
            tokens: measured.tokens,
            n_operations: measured.n_operations,
        };
        let entry = Entry {
            seq: 0,
            posted_at: now,
            event,
            plan: request.plan,
            class: price.class.clone(),
            price_from: price.validity.from,
            funding: request.funding,
            charge,
            draws: Vec::new(),
        };
        self.post(entry, is_opened.then_some(request.id))
    }

    /// Puts an entry into the ledger: its number, who pays, the counters, the journal.
    pub(super) fn post(&mut self, mut entry: Entry, closes: Option<HoldId>) -> Position {
        entry.seq = self.next_seq;
        self.next_seq += 1;
        entry.draws = self.draw(&entry);
        for scope in ScopeId::of_owner(&entry.event.owner) {
            self.scopes.entry(scope).or_default().post(&entry);
        }
        self.outbox.push(&Record::Entry { closes, entry: Box::new(entry) })
    }

    /// Takes a charge from the grants that pay at the event's time, those that expire first before others.
    fn draw(&mut self, entry: &Entry) -> Vec<Draw> {
        let mut left = entry.charge;
        let mut draws = Vec::new();
        let Some(account) = self.accounts.get_mut(&entry.event.owner.account) else { return draws };
        for balance in account.grants.iter_mut().filter(|balance| balance.pays_at(entry.event.occurred_at)) {
            if left == Micros::ZERO {
                break;
            }
            let amount = balance.remaining.min(left);
            balance.remaining = balance.remaining.minus(amount);
            left = left.minus(amount);
            draws.push(Draw { grant: balance.grant.id, amount });
        }
        draws
    }

    /// Settles a request of an earlier writer with what was recorded.
    pub(super) fn settle_orphan(&mut self, request: OpenRequest, now: Timestamp) {
        let recorded = recorded(&request);
        let Some(price) = self.catalog.price_at(&request.model, request.occurred_at).cloned() else {
            // It had a price when it was admitted; a price that was since taken away is no reason to charge for it.
            self.outbox.push(&Record::Closed { id: request.id });
            return;
        };
        let hold = Hold {
            request,
            price,
            ceiling: Held::default(),
            held: Held::default(),
            lease_until: now,
            lease_entry: now,
            is_opened: true,
            is_released: true,
        };
        self.book(hold, (recorded, Outcome::Interrupted), now);
    }
}

/// What a request has used as far as the journal knows. It is no operation: it did not come to its end.
pub(super) fn recorded(request: &OpenRequest) -> Measured {
    let n_cached = request.produced.n_cached.min(request.n_prompt);
    let tokens = TokenCounts { n_input: request.n_prompt - n_cached, n_cached, n_output: request.produced.n_output };
    let n_operations = 0;
    Measured { tokens, n_operations }
}
