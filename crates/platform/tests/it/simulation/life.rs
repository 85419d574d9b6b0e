//! One life: what clients, engine, other systems, the clock and the disk do, drawn from a seed; and what must be true at its end.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bitnet_platform::PlatformError;
use bitnet_platform::catalog::operations_of;
use bitnet_platform::ids::GrantId;
use bitnet_platform::ledger::event::{EventKey, Funding, Grant, HoldId, Outcome, Owner, Produced, Purpose, UsageEvent};
use bitnet_platform::ledger::scope::ScopeId;
use bitnet_platform::ledger::service::LedgerService;
use bitnet_platform::ledger::{Ask, Balance, Ingested, Measured, Position, Refusal};
use bitnet_platform::money::{Micros, TokenCounts};
use bitnet_platform::time::Timestamp;

use super::Damage;
use super::memory_store::{Fault, MemoryStore};
use super::oracle;
use super::seen::Seen;
use super::world::{self, Dice, INCLUDED, KINDS, Kind, START};

/// Tokens that one step of the engine may give a stream.
const STEP_MAX: u64 = 4;
const LEASE: Duration = Duration::from_secs(600);

/// Nothing here ever waits: the store answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future of the simulation waits"),
    }
}

/// A request in flight, as its client and the engine see it.
#[derive(Clone)]
struct Live {
    id: HoldId,
    kind: Kind,
    /// What it may cost at most, and how many operations.
    ceiling: (i64, u64),
    n_prompt: u64,
    n_cached: u64,
    n_output_max: u64,
    is_stream: bool,
    /// By the engine.
    produced: u64,
    /// Handed to the ledger.
    recorded: u64,
    /// Seen by the client.
    delivered: u64,
    waiting: Option<Position>,
}

/// A request that is over.
struct Over {
    live: Live,
    /// What was settled; `None` if the process died before that, `Some(None)` if voided.
    settled: Option<Option<u64>>,
    is_durable: bool,
    position: Position,
    /// It held nothing any more when it ended, so that others had taken its place.
    outlived_lease: bool,
}

pub(crate) struct Life {
    dice: Dice,
    store: MemoryStore,
    service: LedgerService,
    time: i64,
    live: Vec<Live>,
    over: Vec<Over>,
    /// Events that were sent, with what we know about their being durable.
    sent: HashMap<EventKey, (UsageEvent, Option<Position>, bool)>,
    is_fatal: bool,
    n_grants: u64,
    pub(crate) seen: Seen,
}

impl Life {
    pub(crate) fn begin(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut faults = HashMap::new();
        if !seed.is_multiple_of(3) {
            for _ in 0..1 + dice.below(4) {
                let fault = if dice.one_in(2) { Fault::Before } else { Fault::After };
                faults.insert(2 + dice.below(60), fault);
            }
        }
        Self::with(dice, faults, seed % 3 == 1)
    }

    pub(crate) fn without_faults(seed: u64) -> Self {
        Self::with(Dice::new(seed), HashMap::new(), false)
    }

    pub(crate) fn with_crash_at(seed: u64, write: u64, fault: Fault) -> Self {
        Self::with(Dice::new(seed), HashMap::from([(write, fault)]), true)
    }

    fn with(dice: Dice, faults: HashMap<u64, Fault>, is_fatal: bool) -> Self {
        let store = MemoryStore::default();
        {
            let mut disk = store.0.lock().unwrap();
            disk.tables.opening = world::opening();
            disk.faults = faults;
        }
        let mut seen = Seen::default();
        let service = open(&store, START, &mut seen);
        let sent = HashMap::new();
        Self { dice, store, service, time: START, live: Vec::new(), over: Vec::new(), sent, is_fatal, n_grants: 0, seen }
    }

    pub(crate) fn n_writes(&self) -> u64 {
        self.store.0.lock().unwrap().n_writes
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.time)
    }

    pub(crate) fn live(&mut self, n_actions: u64) {
        for _ in 0..n_actions {
            self.time += 1 + self.dice.below(40_000_000) as i64;
            match self.dice.below(24) {
                0..=4 => self.admit(),
                5..=11 => self.step(),
                12..=13 => self.finish(),
                14..=15 => self.ingest(),
                16 => self.grant(),
                17..=20 => self.commit(),
                21..=22 => self.project(),
                _ if self.dice.one_in(12) => self.crash(),
                _ if self.dice.one_in(6) => self.let_leases_run_out(),
                _ => {}
            }
        }
    }

    fn admit(&mut self) {
        let kind = *self.dice.pick(&KINDS);
        let owner = world::owner(kind, self.dice.below(2));
        let (n_prompt, n_output_max) = (1 + self.dice.below(20), 1 + self.dice.below(12));
        let n_operations_max = 1 + u64::from(self.dice.one_in(4));
        let ask = Ask {
            owner,
            request_id: "req".into(),
            model: "m".into(),
            purpose: Purpose::Chat,
            n_prompt,
            n_output_max,
            n_operations_max,
            lease: LEASE,
        };
        let expected = self.expected(kind, &ask);
        let admitted = self.service.admit(ask, self.now());
        let got = admitted.as_ref().map(|admitted| admitted.funding).map_err(|refusal| match refusal {
            Refusal::QuotaExhausted { .. } => "quota refused",
            Refusal::SpendingCap { .. } | Refusal::NothingToPayWith => "money refused",
            Refusal::ScopeCap { .. } => "scope cap refused",
            other => panic!("{other:?}"),
        });
        assert_eq!(got, expected.map(|(funding, _)| funding), "no false refusal, no false admission, for {kind:?}");
        let admitted = match (admitted, got) {
            (Ok(admitted), _) => admitted,
            (_, Err(refusal)) => return self.seen.note(refusal),
            (Err(refusal), Ok(_)) => panic!("{refusal:?}"),
        };
        self.seen.note("admitted");
        let n_cached = self.dice.below(n_prompt);
        if n_cached > 0 {
            self.seen.note("cached");
        }
        self.live.push(Live {
            id: admitted.id,
            kind,
            ceiling: expected.map_or((0, 0), |(funding, money)| (money, if funding == Funding::Included { n_operations_max } else { 0 })),
            n_prompt,
            n_cached,
            n_output_max,
            is_stream: !self.dice.one_in(3),
            produced: 0,
            recorded: 0,
            delivered: 0,
            waiting: None,
        });
    }

    /// What admission must answer, from what is in flight and booked, reckoned here.
    fn expected(&self, kind: Kind, ask: &Ask) -> Result<(Funding, i64), &'static str> {
        let mut ledger = self.service.ledger();
        ledger.expire(self.now());
        let balance = ledger.balance(world::account(kind), self.now());
        let is_holding = |live: &&Live| live.kind == kind && ledger.lease_of(live.id).is_some();
        let held_operations: u64 = self.live.iter().filter(is_holding).map(|live| live.ceiling.1).sum();
        let held_money: i64 = self.live.iter().filter(is_holding).map(|live| live.ceiling.0).sum();
        assert_eq!((balance.held.n_operations, balance.held.money.0), (held_operations, held_money), "what is held is what is in flight");
        if kind != Kind::PayAsYouGo && balance.used.n_included + held_operations + ask.n_operations_max <= INCLUDED {
            return Ok((Funding::Included, 0));
        }
        let cap = match kind {
            Kind::Strict => return Err("quota refused"),
            Kind::Overage => world::OVERAGE_CAP,
            Kind::PayAsYouGo => world::PAYG_CAP,
        };
        let tenths = oracle::TENTHS[usize::from(self.time >= oracle::PRICE_CHANGE)];
        let ceiling = (ask.n_prompt * tenths[0] + ask.n_output_max * tenths[2] + 5) / 10;
        let ceiling = ceiling as i64;
        if balance.credit.0 + (cap - balance.used.due.0).max(0) - held_money < ceiling {
            return Err("money refused");
        }
        if kind == Kind::PayAsYouGo && ask.owner == world::owner(kind, 1) {
            let scope = ledger.scope_balance(ScopeId::Project(ask.owner.project), self.now());
            if scope.used.charge.0 + scope.held.money.0 + ceiling > world::PROJECT_CAP {
                return Err("scope cap refused");
            }
        }
        Ok((Funding::Metered, ceiling))
    }

    fn is_released(&self, live: &Live) -> bool {
        self.service.ledger().lease_of(live.id).is_none_or(|lease| lease <= self.now())
    }

    /// The engine computes a step; streams hand over what they have once what they handed over before was seen.
    fn step(&mut self) {
        let durable = *self.service.durable().borrow();
        for live in &mut self.live {
            if self.dice.one_in(4) {
                continue;
            }
            // A speculating engine may pass the bound by less than one step.
            if live.produced < live.n_output_max {
                live.produced += 1 + self.dice.below(STEP_MAX);
            }
            if live.waiting.is_some_and(|position| position <= durable) {
                (live.delivered, live.waiting) = (live.recorded, None);
            }
            if live.is_stream && live.waiting.is_none() && live.recorded < live.produced {
                live.recorded = live.produced.min(live.recorded + STEP_MAX);
                let produced = Produced { n_cached: live.n_cached, n_output: live.recorded };
                let position = self.service.record(live.id, produced, (Timestamp(self.time), LEASE));
                live.waiting = Some(position.expect("it is in flight"));
            }
        }
    }

    /// A request ends: well, badly, by a client that leaves, or because it was never computed.
    fn finish(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let index = self.dice.below(self.live.len() as u64) as usize;
        let live = self.live.swap_remove(index);
        if live.produced > live.n_output_max {
            self.seen.note("overshot");
        }
        let what = *self.dice.pick(&["settled", "settled", "disconnected", "failed"]);
        self.end_request(live, what);
    }

    fn end_request(&mut self, live: Live, what: &'static str) {
        let outcome = match what {
            "settled" => Outcome::Completed,
            "disconnected" => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        let outlived_lease = self.is_released(&live);
        if outlived_lease {
            self.seen.note("lease ran out");
        }
        let was_computed = live.produced > 0;
        let position = if was_computed {
            let tokens = TokenCounts { n_input: live.n_prompt - live.n_cached, n_cached: live.n_cached, n_output: live.produced };
            let measured = Measured { tokens, n_operations: operations_of(tokens.total()) };
            self.service.settle(live.id, (measured, outcome), self.now())
        } else {
            self.service.void(live.id, self.now())
        };
        let position = position.expect("it is in flight");
        let again = self.service.settle(live.id, (Measured::default(), outcome), self.now());
        assert!(again.is_err() && self.service.void(live.id, self.now()).is_err(), "a request ends once");
        self.seen.note(if was_computed { what } else { "voided" });
        let settled = Some(was_computed.then_some(live.produced));
        self.over.push(Over { live, settled, is_durable: false, position, outlived_lease });
    }

    fn event(&mut self) -> UsageEvent {
        let kind = *self.dice.pick(&KINDS);
        let project = self.dice.below(2);
        let owner = Owner { api_key: None, ..world::owner(kind, project) };
        // Seven ids from two sources: many come again, some say something else.
        let age = if self.dice.one_in(10) { self.dice.below(40 * 86_400_000_000) } else { self.dice.below(3_600_000_000) };
        UsageEvent {
            owner,
            source: if self.dice.one_in(2) { "a:b" } else { "a" }.into(),
            event_id: format!("b:{}", self.dice.below(7)).into(),
            request_id: "".into(),
            model: "m".into(),
            purpose: Purpose::External,
            outcome: Outcome::Completed,
            occurred_at: Timestamp(self.time - age as i64),
            tokens: TokenCounts { n_input: self.dice.below(9), n_cached: self.dice.below(9), n_output: self.dice.below(9) },
            n_operations: 1,
        }
    }

    fn ingest(&mut self) {
        let mut events: Vec<UsageEvent> = (0..1 + self.dice.below(3)).map(|_| self.event()).collect();
        let mut old: Vec<&EventKey> = self.sent.keys().collect();
        old.sort();
        if !old.is_empty() && self.dice.one_in(2) {
            let key = (*self.dice.pick(&old)).clone();
            events.push(self.sent[&key].0.clone());
        }
        let results = now(self.service.ingest(events.clone(), self.now())).expect("lookups do not fail here");
        for (event, result) in events.into_iter().zip(results) {
            let key = event.key();
            let before = self.sent.get(&key).map(|(first, ..)| first.clone());
            match result {
                Ingested::Accepted(position) => {
                    assert!(before.is_none(), "{key:?} was accepted before");
                    self.seen.note(if event.occurred_at.period() < self.now().period() { "late" } else { "accepted" });
                    self.sent.insert(key, (event, Some(position), false));
                }
                Ingested::Duplicate(_) => {
                    assert_eq!(before, Some(event), "only the same again is a duplicate");
                    self.seen.note("duplicate");
                }
                Ingested::Conflict => {
                    assert!(before.is_some_and(|before| before != event));
                    self.seen.note("conflict");
                }
                Ingested::OutOfWindow => self.seen.note("out of window"),
                Ingested::NotRatable | Ingested::Malformed { .. } => panic!("{result:?}"),
            }
        }
    }

    fn grant(&mut self) {
        self.n_grants += 1;
        let kind = *self.dice.pick(&KINDS[1..]);
        let expires_at = self.dice.one_in(2).then(|| Timestamp(self.time + self.dice.below(7_200_000_000) as i64));
        let grant = Grant {
            id: GrantId::from_u128(self.dice.id()),
            account: world::account(kind),
            amount: Micros(1 + self.dice.below(60) as i64),
            granted_at: self.now(),
            expires_at,
            reason: "pilot".into(),
        };
        let position = self.service.grant(grant.clone());
        assert_eq!(self.service.grant(grant), position, "the same grant again is none");
        self.seen.note("granted");
    }

    fn commit(&mut self) {
        let result = now(self.service.commit()).map(|_| ());
        self.note_durable();
        self.after(result);
    }

    fn project(&mut self) {
        let result = now(self.service.project()).map(|_| ());
        self.after(result);
    }

    fn after(&mut self, result: Result<(), PlatformError>) {
        if result.is_err() {
            self.seen.note("write failed");
            if self.is_fatal {
                self.crash();
            }
        }
    }

    fn note_durable(&mut self) {
        let durable = *self.service.durable().borrow();
        self.over.iter_mut().filter(|over| over.position <= durable && over.settled.is_some()).for_each(|over| over.is_durable = true);
        for (_, position, is_durable) in self.sent.values_mut() {
            *is_durable |= position.is_some_and(|position| position <= durable);
        }
    }

    /// The process dies. What was not durable may be lost; what was is not.
    fn crash(&mut self) {
        self.seen.note("crash");
        for live in std::mem::take(&mut self.live) {
            self.over.push(Over { live, settled: None, is_durable: false, position: Position(u64::MAX), outlived_lease: false });
        }
        self.over.iter_mut().for_each(|over| over.position = Position(u64::MAX));
        self.service = open(&self.store, self.time, &mut self.seen);
        // Nobody was told that these were taken; whoever sent them sends them again.
        let tables = self.store.0.lock().unwrap();
        let is_there = |key: &EventKey| tables.tables.entries.iter().any(|entry| entry.event.key() == *key);
        self.sent.retain(|key, (_, _, is_durable)| {
            assert!(!*is_durable || is_there(key), "{key:?} was durable and is gone");
            is_there(key)
        });
        self.sent.values_mut().for_each(|(_, position, is_durable)| (*position, *is_durable) = (None, true));
    }

    fn let_leases_run_out(&mut self) {
        self.time += 2 * LEASE.as_micros() as i64;
        self.service.ledger().expire(Timestamp(self.time));
        assert_eq!(self.service.ledger().n_holding(), 0);
    }

    /// Everything comes to its end; then the books are checked.
    pub(crate) fn end(&mut self) {
        for live in std::mem::take(&mut self.live) {
            self.end_request(live, "settled");
        }
        while now(self.service.flush()).is_err() {}
        self.note_durable();
        self.check_requests();
        self.check_money();
        self.check_derived();
        self.check_idle();
        let before = self.balances();
        self.rerun();
        assert_eq!(self.balances(), before, "a restart changes no balance");
    }

    fn check_requests(&self) {
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

    fn check_money(&mut self) {
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
        // Whoever outlives a lease is billed all the same, and others may have what it had set aside.
        let late = self.over.iter().filter(|over| over.outlived_lease);
        let (n_late, late_money) = late.fold((0, 0), |(n, money), over| (n + 1, money + over.live.ceiling.0));
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

    fn check_derived(&self) {
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

    fn check_idle(&self) {
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

    fn balances(&self) -> Vec<(Balance, BTreeMap<GrantId, Micros>)> {
        let ledger = self.service.ledger();
        KINDS.iter().map(|kind| (ledger.balance(world::account(*kind), self.now()), ledger.grants(world::account(*kind)))).collect()
    }

    /// Doing any job again changes nothing: projections that were applied, jobs without work, taking over.
    fn rerun(&mut self) {
        let before = self.store.0.lock().unwrap().tables.clone();
        {
            let tables = &mut self.store.0.lock().unwrap().tables;
            before.applied.iter().for_each(|projection| tables.apply(projection).expect("applied before"));
        }
        self.store.0.lock().unwrap().faults.clear();
        now(self.service.flush()).expect("there is nothing to do");
        for _ in 0..2 {
            let old = std::mem::replace(&mut self.service, open(&self.store, self.time, &mut self.seen));
            old.grant(Grant {
                id: GrantId::from_u128(self.dice.id()),
                account: world::account(Kind::PayAsYouGo),
                amount: Micros(1),
                granted_at: self.now(),
                expires_at: None,
                reason: "from a writer that is none any more".into(),
            });
            assert!(matches!(now(old.commit()), Err(PlatformError::Fenced { .. })), "an old writer writes nothing");
            now(self.service.flush()).expect("there is nothing to do");
        }
        let after = &self.store.0.lock().unwrap().tables;
        assert_eq!((&after.entries, &after.grants, &after.used), (&before.entries, &before.grants, &before.used));
        assert_eq!((&after.rollups, after.journal_row), (&before.rollups, before.journal_row));
    }

    /// Spoils the tables in one place.
    pub(crate) fn damage(&mut self, damage: Damage) {
        while now(self.service.flush()).is_err() {}
        let tables = &mut self.store.0.lock().unwrap().tables;
        let Some(entry) = tables.entries.first_mut() else { return };
        match damage {
            Damage::ChargeOff => entry.charge = entry.charge.plus(Micros(1)),
            Damage::EntryGone => drop(tables.entries.remove(0)),
            Damage::GrantOff => {
                if let Some(balance) = tables.grants.values_mut().next() {
                    balance.remaining = balance.remaining.minus(Micros(1));
                }
            }
            Damage::RollupOff => {
                if let Some(counts) = tables.rollups.values_mut().next() {
                    counts.tokens.n_output += 1;
                }
            }
            Damage::TokenOff => entry.event.tokens.n_output += 1,
        }
    }
}

/// Opens the ledger, as often as it takes: opening, too, may fail at any write.
fn open(store: &MemoryStore, time: i64, seen: &mut Seen) -> LedgerService {
    loop {
        match now(LedgerService::open(Box::new(store.clone()), Timestamp(time))) {
            Ok(service) => return service,
            Err(_) => seen.note("write failed"),
        }
    }
}
