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
use bitnet_platform::ledger::{Ask, Balance, Ingested, Measured, NotRecorded, Position, Refusal};
use bitnet_platform::money::{Micros, TokenCounts};
use bitnet_platform::time::Timestamp;

use super::Damage;
use super::memory_store::{Fault, MemoryStore};
use super::oracle;
use super::seen::Seen;
use super::world::{self, Dice, INCLUDED, KINDS, Kind, START};

/// Tokens that one step of the engine may give a stream.
pub(super) const STEP_MAX: u64 = 4;
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
pub(super) struct Live {
    pub(super) id: HoldId,
    pub(super) kind: Kind,
    /// What it may cost at most, and how many operations.
    pub(super) ceiling: (i64, u64),
    /// Of the price version.
    pub(super) tenths: [u64; 3],
    pub(super) n_prompt: u64,
    pub(super) n_cached: u64,
    pub(super) n_output_max: u64,
    pub(super) is_stream: bool,
    /// By the engine.
    pub(super) produced: u64,
    /// Handed to the ledger.
    pub(super) recorded: u64,
    /// Seen by the client.
    pub(super) delivered: u64,
    pub(super) waiting: Option<Position>,
}

/// A request that is over.
pub(super) struct Over {
    pub(super) live: Live,
    /// What was settled; `None` if the process died before that, `Some(None)` if voided.
    pub(super) settled: Option<Option<u64>>,
    pub(super) is_durable: bool,
    pub(super) position: Position,
    /// It held nothing any more when it ended, so that others had taken its place.
    pub(super) outlived_lease: bool,
}

impl Live {
    /// What it holds after its lease: the use that was recorded.
    fn known_use(&self) -> (i64, u64) {
        if self.recorded == 0 {
            return (0, 0);
        }
        let [input, cached, output] = self.tenths;
        let tenths = (self.n_prompt - self.n_cached) * input + self.n_cached * cached + self.recorded * output;
        (self.ceiling.0.min(((tenths + 5) / 10) as i64), self.ceiling.1.min(1))
    }
}

pub(crate) struct Life {
    pub(super) dice: Dice,
    pub(super) store: MemoryStore,
    pub(super) service: LedgerService,
    pub(super) time: i64,
    pub(super) live: Vec<Live>,
    pub(super) over: Vec<Over>,
    /// Events that were sent, with what we know about their being durable.
    pub(super) sent: HashMap<EventKey, (UsageEvent, Option<Position>, bool)>,
    pub(super) is_fatal: bool,
    pub(super) n_grants: u64,
    /// Amounts that invoices were to give back, in all; negative.
    pub(super) given_back: i64,
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
        Self { dice, store, service, time: START, live: Vec::new(), over: Vec::new(), sent, is_fatal, n_grants: 0, given_back: 0, seen }
    }

    pub(crate) fn n_writes(&self) -> u64 {
        self.store.0.lock().unwrap().n_writes
    }

    pub(super) fn now(&self) -> Timestamp {
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
                _ if self.dice.one_in(3) => self.close_months(),
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
            tenths: oracle::TENTHS[usize::from(self.time >= oracle::PRICE_CHANGE)],
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
        let of_kind = || self.live.iter().filter(|live| live.kind == kind);
        let holding = of_kind().map(|live| if ledger.lease_of(live.id).is_some() { live.ceiling } else { live.known_use() });
        let (held_money, held_operations) = holding.fold((0, 0), |(money, n), more| (money + more.0, n + more.1));
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
        let mut exhausted = Vec::new();
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
                let recorded = live.produced.min(live.recorded + STEP_MAX);
                let produced = Produced { n_cached: live.n_cached, n_output: recorded };
                match self.service.record(live.id, produced, (Timestamp(self.time), LEASE)) {
                    Ok(position) => (live.recorded, live.waiting) = (recorded, Some(position)),
                    Err(error) => {
                        assert_eq!(error, NotRecorded::Exhausted, "it is in flight");
                        exhausted.push(live.id);
                    }
                }
            }
        }
        // The server ends them, and bills what they used.
        for id in exhausted {
            self.seen.note("exhausted");
            let index = self.live.iter().position(|live| live.id == id).expect("it was there");
            let live = self.live.swap_remove(index);
            self.end_request(live, "disconnected");
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
        if live.waiting.is_some() && self.dice.one_in(4) {
            return self.cut(live);
        }
        self.end_request(live, what);
    }

    /// What was recorded does not become durable in time: its client is refused, and pays for what it was shown.
    fn cut(&mut self, live: Live) {
        let durable = *self.service.durable().borrow();
        let delivered = if live.waiting.is_some_and(|position| position <= durable) { live.recorded } else { live.delivered };
        let outlived_lease = self.is_released(&live);
        let n_cached = if delivered > 0 { live.n_cached } else { 0 };
        let position = self.service.cut(live.id, Produced { n_cached, n_output: delivered }, self.now()).expect("it is in flight");
        assert!(self.service.cut(live.id, Produced::default(), self.now()).is_err(), "a request ends once");
        self.seen.note(if delivered > 0 { "cut" } else { "cut before anything was shown" });
        let settled = Some((delivered > 0).then_some(delivered));
        self.over.push(Over { live: Live { delivered, ..live }, settled, is_durable: false, position, outlived_lease });
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
        self.close_all_months();
        self.check_invoices();
        self.check_idle();
        let before = self.balances();
        self.rerun();
        assert_eq!(self.balances(), before, "a restart changes no balance");
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
            Damage::LineOff => {
                if let Some(line) = tables.closed.values_mut().flat_map(|month| &mut month.lines).find(|line| line.kind.is_of_ledger()) {
                    line.amount = line.amount.plus(Micros(1));
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
