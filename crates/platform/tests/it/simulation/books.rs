//! What must be true at the end of a life: requests are booked once, money and quotas are within their bounds, what is derived
//! follows from the journal, and nothing is held.

use std::collections::HashMap;

use bitnet_platform::ledger::event::{Funding, Outcome};
use bitnet_platform::ledger::scope::ScopeId;

use super::life::{Life, Live, Over, STEP_MAX};
use super::oracle;
use super::world::{self, INCLUDED, KINDS, Kind};

impl Life {
    pub(super) fn check_requests(&self) {
        let tables = &self.store.0.lock().unwrap().tables;
        for over in &self.over {
            let event_id = over.live.id.event_id();
            let mut entries = tables.entries.iter().filter(|entry| entry.event.event_id == event_id && &*entry.event.source == "gateway");
            let booked = entries.next().map(|entry| entry.event.tokens.n_output);
            assert!(entries.next().is_none(), "{event_id} is booked once");
            let Live { delivered, produced, .. } = over.live;
            match over.settled {
                Some(Some(settled)) if over.is_durable => assert_eq!(booked, Some(settled), "what was settled is booked"),
                Some(None) if over.is_durable => assert_eq!(booked, None, "what was voided is not"),
                _ => {
                    let booked = booked.unwrap_or(0);
                    assert!(delivered <= booked, "{booked} tokens booked, {delivered} seen");
                    let most = if over.settled.is_some() { produced } else { delivered + STEP_MAX };
                    assert!(booked <= most, "{booked} tokens booked, at most one step more than {delivered}");
                }
            }
        }
        for (key, (event, ..)) in &self.sent {
            let booked = tables.entries.iter().filter(|entry| entry.event.key() == *key).collect::<Vec<_>>();
            assert!(booked.len() == 1 && booked[0].event == *event, "{key:?} is booked once, as it was first sent");
        }
        let n_external = tables.entries.iter().filter(|entry| &*entry.event.source != "gateway").count();
        assert_eq!(n_external, self.sent.len(), "nothing is booked that nobody sent");
    }

    pub(super) fn check_money(&mut self) {
        let tables = &self.store.0.lock().unwrap().tables;
        let mut included: HashMap<_, u64> = HashMap::new();
        for entry in &tables.entries {
            assert_eq!(entry.charge.0, oracle::charge(entry), "entry {}", entry.seq);
            match entry.funding {
                Funding::Waived => self.seen.note("waived"),
                Funding::Included => {
                    *included.entry((entry.event.owner.account, entry.event.occurred_at.period())).or_default() += entry.event.n_operations;
                }
                Funding::Metered => {}
            }
            if !entry.draws.is_empty() {
                self.seen.note("drawn");
            }
            if entry.event.outcome == Outcome::Interrupted {
                self.seen.note("interrupted");
            }
        }
        // Whoever outlives a lease is billed all the same, and others may have what it had set aside for what was to come.
        // Of a stream that is what it produced since it was last recorded: one step. Others are never asked.
        let late = self.over.iter().filter(|over| over.outlived_lease);
        let (n_late, late_money) = late.fold((0, 0), |(n, money), Over { live, .. }| match live.recorded {
            0 => (n + live.ceiling.1, money + live.ceiling.0),
            recorded => (n, money + 5 * (live.produced - recorded) as i64),
        });
        assert!(included.values().all(|n| *n <= INCLUDED + n_late), "a quota is never passed");
        let seqs: Vec<u64> = tables.entries.iter().map(|entry| entry.seq).collect();
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "entries are numbered without a gap");

        let (left, due) = oracle::pay_all(&tables.applied, &tables.grants);
        assert!(tables.grants.iter().all(|(id, balance)| balance.remaining.0 == left[id]), "grants have what they should");
        let owed: i64 = tables.entries.iter().map(|entry| entry.due().0).sum();
        assert_eq!(owed, due, "what is owed is what no grant paid");
        // Each stream may pass its ceiling by less than one step; nothing else passes a cap.
        let overshoot: u64 = self.over.iter().map(|over| over.live.produced.saturating_sub(over.live.n_output_max)).sum();
        for ((scope, _), used) in &tables.used {
            let cap = match scope {
                ScopeId::Account(id) if *id == world::account(Kind::Overage) => world::OVERAGE_CAP,
                ScopeId::Account(id) if *id == world::account(Kind::PayAsYouGo) => world::PAYG_CAP,
                ScopeId::Account(_) => 0,
                _ => continue,
            };
            // A grant that expired while requests were in flight, or died with the process, pays for less than was set aside.
            let lost: i64 = tables.grants.values().map(|balance| balance.grant.amount.0).sum::<i64>() + 60 * self.n_grants as i64;
            assert!(used.due.0 <= cap + 5 * overshoot as i64 + lost + late_money, "{scope:?} owes {} of {cap}", used.due);
        }
    }

    pub(super) fn check_derived(&self) {
        let tables = &self.store.0.lock().unwrap().tables;
        let mut anew = super::memory_store::Tables::default();
        let all = tables.applied.clone();
        for projection in &all {
            anew.apply(projection).expect("it applied before");
        }
        assert_eq!((&anew.used, &anew.rollups), (&tables.used, &tables.rollups), "counters follow from the journal");
        let mut by_minute = bitnet_platform::ledger::projection::RollupCounts::default();
        let mut by_entry = by_minute;
        tables.entries.iter().for_each(|entry| by_entry.add(entry));
        for (bucket, counts) in
            tables.rollups.iter().filter(|(bucket, _)| bucket.grain == bitnet_platform::ledger::projection::Grain::Minute)
        {
            assert_eq!(bucket.start.0 % 60_000_000, 0);
            by_minute.n_events += counts.n_events;
            by_minute.n_operations += counts.n_operations;
            by_minute.tokens.n_input += counts.tokens.n_input;
            by_minute.tokens.n_cached += counts.tokens.n_cached;
            by_minute.tokens.n_output += counts.tokens.n_output;
            by_minute.charge = by_minute.charge.plus(counts.charge);
            by_minute.due = by_minute.due.plus(counts.due);
        }
        assert_eq!(by_minute, by_entry, "rollups add up to the entries");
    }

    pub(super) fn check_idle(&self) {
        let ledger = self.service.ledger();
        assert_eq!(ledger.n_holding(), 0);
        for kind in KINDS {
            for scope in (0..2).flat_map(|project| ScopeId::of_owner(&world::owner(kind, project)).collect::<Vec<_>>()) {
                assert_eq!(ledger.scope_balance(scope, self.now()).held, Default::default(), "nothing is held when nothing is in flight");
            }
        }
        let tables = &self.store.0.lock().unwrap().tables;
        assert!(tables.open.is_empty() && tables.journal.is_empty());
    }
}
