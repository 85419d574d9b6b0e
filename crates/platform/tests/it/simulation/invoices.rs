//! Invoices in simulated lives: months are closed by a job that may run at any time, twice, and die at its write; at the end every
//! entry is on one invoice. An independent account adds the entries up one by one and takes the agreements off and on by hand.

use std::collections::BTreeMap;

use bitnet_platform::billing::statement::{DrawGroup, FeePart, Lines, PartOff, Statement, TaxRate, UsageGroup, WaitingItem};
use bitnet_platform::billing::{LineId, LineKind, LineOf};
use bitnet_platform::ids::AccountId;
use bitnet_platform::ledger::event::{Entry, Funding};
use bitnet_platform::money::{Micros, TokenPrice};
use bitnet_platform::time::{Period, Timestamp};

use super::life::Life;
use super::memory_store::{ClosedMonth, Tables};
use super::oracle;
use super::world::{self, KINDS, Kind, START};

/// A month's fee of the accounts that have one, in micros.
const FEE: i64 = 123_457;
/// A tenth off, of those who have a coupon.
const PART_OFF: u32 = 100_000;
/// What one account has promised to spend.
const COMMITMENT: i64 = 200_000;
/// 19%.
const TAX: u32 = 190_000;
const CENT: i64 = 10_000;

/// The first month that events can be of.
fn first_month() -> Period {
    Timestamp(START).period().minus_months(1)
}

/// What is agreed with an account besides usage: fee, part off, commitment, tax.
fn agreed(kind: Kind) -> (i64, u32, Option<i64>, u32) {
    match kind {
        Kind::Strict => (FEE, PART_OFF, None, TAX),
        Kind::Overage => (FEE, 0, Some(COMMITMENT), 0),
        Kind::PayAsYouGo => (0, PART_OFF, None, TAX),
    }
}

/// An account's entries that an invoice covers.
fn covered(tables: &Tables, account: AccountId, (period, after, upto): (Period, u64, u64)) -> Vec<Entry> {
    let is_covered = |entry: &&Entry| {
        let of = entry.event.occurred_at.period();
        entry.event.owner.account == account && entry.seq <= upto && (of == period || (of < period && entry.seq > after))
    };
    tables.entries.iter().filter(is_covered).cloned().collect()
}

/// Groups entries as the tables' sums do.
fn statement(tables: &Tables, kind: Kind, (period, after, upto): (Period, u64, u64)) -> Statement {
    let account = world::account(kind);
    let mut usage: BTreeMap<(Period, u8, Timestamp), UsageGroup> = BTreeMap::new();
    let mut draws: BTreeMap<(Period, String), DrawGroup> = BTreeMap::new();
    for entry in covered(tables, account, (period, after, upto)).iter().filter(|entry| entry.funding != Funding::Waived) {
        let of = entry.event.occurred_at.period();
        let group = usage.entry((of, u8::from(entry.funding == Funding::Metered), entry.price_from)).or_insert_with(|| UsageGroup {
            period: of,
            funding: entry.funding,
            model: entry.event.model.to_string(),
            class: entry.class.to_string(),
            price_from: entry.price_from,
            price: TokenPrice::default(),
            n_requests: 0,
            n_operations: 0,
            tokens: Default::default(),
            charge: Micros::ZERO,
        });
        group.n_requests += 1;
        group.n_operations += entry.event.n_operations;
        group.tokens.n_input += entry.event.tokens.n_input;
        group.tokens.n_cached += entry.event.tokens.n_cached;
        group.tokens.n_output += entry.event.tokens.n_output;
        group.charge = group.charge.plus(entry.charge);
        for draw in &entry.draws {
            let grant = draw.grant.to_string();
            let none = DrawGroup { period: of, grant: grant.clone(), reason: "".into(), n_requests: 0, amount: Micros::ZERO };
            let group = draws.entry((of, grant)).or_insert(none);
            (group.n_requests, group.amount) = (group.n_requests + 1, group.amount.plus(draw.amount));
        }
    }
    let (fee, part, commitment, rate) = agreed(kind);
    let (from, until) = (period.start(), period.next().start());
    let carried = tables.carried.get(&account).copied().unwrap_or_default();
    Statement {
        period,
        fees: vec![FeePart { plan: "p".into(), name: "P".into(), monthly_price: Micros(fee), from, until }],
        usage: usage.into_values().collect(),
        draws: draws.into_values().collect(),
        parts_off: (part > 0).then(|| PartOff { code: "C".into(), name: "C".into(), part }).into_iter().collect(),
        commitment: commitment.map(Micros),
        items: (carried != Micros::ZERO)
            .then(|| WaitingItem { id: "c".into(), text: "".into(), amount: carried, is_gross: false })
            .into_iter()
            .collect(),
        taxes: (rate > 0)
            .then(|| TaxRate { country: "DE".into(), region: "".into(), name: "VAT".into(), rate, reverse_charge: false })
            .into_iter()
            .collect(),
    }
}

/// Closes an account's next month, as the job does in one transaction: all of it, or nothing.
fn close(tables: &mut Tables, kind: Kind, period: Period) -> bool {
    let account = world::account(kind);
    if tables.closed.contains_key(&(account, period)) {
        return false;
    }
    let upto = tables.entries.last().map_or(0, |entry| entry.seq);
    let after = tables.closed.range((account, Period(0))..(account, period)).next_back().map_or(0, |(_, month)| month.upto);
    let Lines { lines, carried, .. } = statement(tables, kind, (period, after, upto)).lines();
    tables.closed.insert((account, period), ClosedMonth { upto, lines });
    tables.carried.insert(account, carried);
    true
}

impl Life {
    /// The job, at any time: closes what is over, twice.
    pub(super) fn close_months(&mut self) {
        // Sometimes something is given back, more than a month owes.
        if self.dice.one_in(4) {
            let account = world::account(*self.dice.pick(&KINDS));
            let amount = Micros(-(self.dice.below(400_000) as i64));
            let tables = &mut self.store.0.lock().unwrap().tables;
            let carried = tables.carried.entry(account).or_default();
            *carried = carried.plus(amount);
            self.given_back += amount.0;
        }
        let last = Timestamp(self.time).period().minus_months(1);
        self.close_upto(last);
        self.close_upto(last);
    }

    fn close_upto(&mut self, last: Period) {
        for kind in KINDS {
            for period in (first_month().0..=last.0).map(Period) {
                let closed = self.store.write(|tables| Ok(close(tables, kind, period)));
                match closed {
                    Ok(true) => self.seen.note("month closed"),
                    Ok(false) => self.seen.note("month closed again"),
                    // It is tried again some time; a month after it must wait for it.
                    Err(_) => {
                        self.seen.note("write failed");
                        break;
                    }
                }
            }
        }
    }

    /// All that is left, until every event has an invoice.
    pub(super) fn close_all_months(&mut self) {
        self.store.0.lock().unwrap().faults.clear();
        let last = Timestamp(self.time).period().next();
        self.close_upto(last);
        self.close_upto(last);
    }

    /// Every entry is on one invoice; each invoice is what an independent account makes of its entries.
    pub(super) fn check_invoices(&mut self) {
        let tables = self.store.0.lock().unwrap().tables.clone();
        let mut total_of_ledger = 0;
        let mut n_covered = 0;
        let mut sums = 0;
        for kind in KINDS {
            let account = world::account(kind);
            let mut after = 0;
            for ((_, period), month) in tables.closed.range((account, Period(0))..=(account, Period(i32::MAX))) {
                let entries = covered(&tables, account, (*period, after, month.upto));
                n_covered += entries.len();
                let due = |entry: &Entry| oracle::charge(entry) - entry.draws.iter().map(|draw| draw.amount.0).sum::<i64>();
                let expected: i64 = entries.iter().map(due).sum();
                let of = |wanted: fn(&LineKind) -> bool| {
                    month.lines.iter().filter(|line| wanted(&line.kind)).map(|line| line.amount.0).sum::<i64>()
                };
                let ledger = of(LineKind::is_of_ledger);
                assert_eq!(ledger, expected, "lines of {kind:?}, {period}");
                total_of_ledger += ledger;
                let gross: i64 = entries.iter().map(oracle::charge).sum();
                let others = of(|kind| matches!(kind, LineKind::Item { .. }));
                let carried = of(|kind| matches!(kind, LineKind::Carried));
                let net = by_hand(kind, (gross, ledger), others);
                assert_eq!((net.min(0), carried), (-carried, carried), "what would be negative is carried");
                let cents = to_cents(net.max(0));
                let tax = if agreed(kind).3 > 0 { (cents * 19 + 50 * CENT) / (100 * CENT) * CENT } else { 0 };
                let total: i64 = month.lines.iter().map(|line| line.amount.0).sum();
                assert_eq!(total, cents + tax, "total of {kind:?}, {period}: {:?}", month.lines);
                let late = |id: &str| id.parse::<LineId>().is_ok_and(|id| id.late_of.is_some() && !matches!(id.of, LineOf::Credit { .. }));
                if month.lines.iter().any(|line| late(&line.id)) {
                    self.seen.note("late on an invoice");
                }
                if carried > 0 {
                    self.seen.note("carried");
                }
                sums += others + carried;
                after = month.upto;
            }
        }
        assert_eq!(n_covered, tables.entries.len(), "every entry is on one invoice");
        let owed: i64 = tables.entries.iter().map(|entry| entry.due().0).sum();
        assert_eq!(total_of_ledger, owed, "events, ledger and invoices agree");
        let waiting: i64 = tables.carried.values().map(|carried| carried.0).sum();
        assert_eq!(sums + waiting, self.given_back, "what was given back is on invoices, or waits");
    }
}

/// Fee, a part off of what is left, what is missing of a promise, and what had waited.
fn by_hand(kind: Kind, (gross, ledger): (i64, i64), others: i64) -> i64 {
    let (fee, part, commitment, _) = agreed(kind);
    let before = (fee + ledger).max(0);
    let off = if part > 0 { before / 10 + i64::from(before % 10 >= 5) } else { 0 };
    let missing = commitment.map_or(0, |promised| (promised - fee - gross).max(0));
    fee + ledger - off + missing + others
}

fn to_cents(amount: i64) -> i64 {
    let rest = amount % CENT;
    amount - rest + if rest >= CENT / 2 { CENT } else { 0 }
}
