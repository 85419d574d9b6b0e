//! From what an account used in a month, and what was agreed with it, to the lines of its invoice. A pure function: the same in, the
//! same out, whoever asks, however often. Integers all the way, and each line says where it was rounded.
//!
//! Order: fees; usage, then usage of earlier months that came late; what credit paid; parts off; a commitment's shortfall; items that
//! had waited; to whole cents; taxes; what earlier invoices were paid too much or left open, whose tax is in it. An invoice is not negative: what would be is
//! carried to the next one, before tax or with it, as it is here.

use std::collections::BTreeMap;

use crate::billing::line::{InvoiceLine, LineKind, Rounding};
use crate::ledger::event::Funding;
use crate::money::{Micros, TokenCounts, TokenPrice};
use crate::time::{Period, Timestamp};

/// Micros of a cent: what can be paid.
pub const MICROS_PER_CENT: i64 = 10_000;
/// What rates and parts are counted in.
pub const PARTS: u32 = 1_000_000;

/// A plan that an account had for a part of the month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeePart {
    /// Which.
    pub plan: String,
    /// For people.
    pub name: String,
    /// Of a whole month.
    pub monthly_price: Micros,
    /// From.
    pub from: Timestamp,
    /// Until.
    pub until: Timestamp,
}

/// Requests of one month, model and price, with one way of paying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageGroup {
    /// The month of the requests.
    pub period: Period,
    /// Who pays.
    pub funding: Funding,
    /// Which model.
    pub model: String,
    /// Priced as.
    pub class: String,
    /// By the version that began then.
    pub price_from: Timestamp,
    /// That version.
    pub price: TokenPrice,
    /// How many.
    pub n_requests: u64,
    /// What they count for.
    pub n_operations: u64,
    /// Their tokens.
    pub tokens: TokenCounts,
    /// The sum of their charges.
    pub charge: Micros,
}

/// What one grant paid for requests of one month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrawGroup {
    /// The month of the requests.
    pub period: Period,
    /// Which grant.
    pub grant: String,
    /// Why it was given.
    pub reason: String,
    /// Requests.
    pub n_requests: u64,
    /// How much.
    pub amount: Micros,
}

/// An amount that has waited for this invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingItem {
    /// Which.
    pub id: String,
    /// For people.
    pub text: String,
    /// What it adds to the total.
    pub amount: Micros,
    /// Its tax is in it: it is no part of what taxes are reckoned on.
    pub is_gross: bool,
}

/// A part off fees and usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOff {
    /// The coupon's code.
    pub code: String,
    /// For people.
    pub name: String,
    /// In a million.
    pub part: u32,
}

/// A tax on what is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaxRate {
    /// Of which country.
    pub country: String,
    /// Of which region; empty for all of it.
    pub region: String,
    /// For people.
    pub name: String,
    /// In a million.
    pub rate: u32,
    /// This customer owes it to the state: it is stated and not charged.
    pub reverse_charge: bool,
}

/// All that an invoice follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Which month.
    pub period: Period,
    /// Plans.
    pub fees: Vec<FeePart>,
    /// Requests.
    pub usage: Vec<UsageGroup>,
    /// What credit paid for them.
    pub draws: Vec<DrawGroup>,
    /// Coupons.
    pub parts_off: Vec<PartOff>,
    /// What the account has promised to spend.
    pub commitment: Option<Micros>,
    /// What has waited.
    pub items: Vec<WaitingItem>,
    /// Taxes.
    pub taxes: Vec<TaxRate>,
}

/// What became of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// In their order.
    pub lines: Vec<InvoiceLine>,
    /// Negative or nothing: what the next invoice begins with.
    pub carried: Micros,
    /// The same of what has its tax in it.
    pub carried_gross: Micros,
}

impl Statement {
    /// The lines.
    pub fn lines(&self) -> Lines {
        let mut lines = self.fee_lines();
        lines.extend(self.usage_lines());
        let spent = sum(&lines);
        lines.extend(self.draws.iter().map(|draw| draw_line(draw, self.period)));
        // Each coupon takes its part of what those before it have left.
        for part in &self.parts_off {
            let reducible = sum(&lines).or_zero();
            lines.push(part_off_line(part, reducible));
        }
        lines.extend(self.commitment.and_then(|promised| commitment_line(promised, spent)));
        let items = |is_gross| self.items.iter().filter(move |item| item.is_gross == is_gross).map(item_line);
        lines.extend(items(false));
        let net = sum(&lines);
        let carried = net.min(Micros::ZERO);
        if carried < Micros::ZERO {
            let text = "carried to the next invoice".into();
            lines.push(line("carried", text, LineKind::Carried, (Rounding::Exact, Micros::ZERO.minus(carried))));
        }
        let cents = to_cents(net.or_zero());
        if cents != net.or_zero() {
            let off = cents.minus(net.or_zero());
            lines.push(line("rounding", "to whole cents".into(), LineKind::Rounding, (Rounding::OnceToCent, off)));
        }
        lines.extend(self.taxes.iter().map(|tax| tax_line(tax, cents)));
        lines.extend(items(true));
        let carried_gross = sum(&lines).min(Micros::ZERO);
        if carried_gross < Micros::ZERO {
            let text = "paid before, carried to the next invoice".into();
            lines.push(line("overpaid_carried", text, LineKind::OverpaidCarried, (Rounding::Exact, Micros::ZERO.minus(carried_gross))));
        }
        Lines { lines, carried, carried_gross }
    }

    fn fee_lines(&self) -> Vec<InvoiceLine> {
        let month = (self.period.start(), self.period.next().start());
        let fee = |fee: &FeePart| {
            let (from, until) = (fee.from.max(month.0), fee.until.min(month.1));
            let amount = prorated(fee.monthly_price, (from, until), month);
            let text = format!("{} plan, {} to {}, of {} a month", fee.name, from.to_date(), until.to_date(), fee.monthly_price);
            let kind = LineKind::Fee { plan: fee.plan.clone(), from_micros: from.0, until_micros: until.0 };
            line(&format!("fee:{}:{}", from.0, fee.plan), text, kind, (Rounding::OnceToMicro, amount))
        };
        self.fees.iter().filter(|fee| fee.monthly_price > Micros::ZERO).map(fee).collect()
    }

    /// Of this month, then of earlier ones, the latest first.
    fn usage_lines(&self) -> Vec<InvoiceLine> {
        let mut included: BTreeMap<Period, (u64, u64)> = BTreeMap::new();
        let mut metered: BTreeMap<Period, Vec<InvoiceLine>> = BTreeMap::new();
        for group in &self.usage {
            match group.funding {
                Funding::Included => {
                    let (n_requests, n_operations) = included.entry(group.period).or_default();
                    (*n_requests, *n_operations) = (*n_requests + group.n_requests, *n_operations + group.n_operations);
                }
                Funding::Metered => metered.entry(group.period).or_default().push(self.usage_line(group)),
                Funding::Waived => {}
            }
        }
        let mut periods: Vec<Period> = included.keys().chain(metered.keys()).copied().collect();
        periods.sort_unstable_by(|a, b| b.cmp(a));
        periods.dedup();
        let of_period = |period: Period| {
            let included = included.get(&period).map(|(n_requests, n_operations)| {
                let operations = if *n_operations == 1 { "operation" } else { "operations" };
                let text = format!("{n_operations} {operations} that the plan includes{}", self.late_words(period));
                let kind = LineKind::Included { n_operations: *n_operations };
                let line = line(&self.line_id(period, "included"), text, kind, (Rounding::Exact, Micros::ZERO));
                InvoiceLine { n_requests: *n_requests, ..line }
            });
            included.into_iter().chain(metered.remove(&period).unwrap_or_default()).collect::<Vec<_>>()
        };
        periods.into_iter().flat_map(of_period).collect()
    }

    fn usage_line(&self, group: &UsageGroup) -> InvoiceLine {
        let UsageGroup { model, class, tokens, price, .. } = group;
        let TokenCounts { n_input, n_cached, n_output } = *tokens;
        let late = self.late_words(group.period);
        let text = format!("{model}: {n_input} input, {n_cached} cached and {n_output} output tokens{late}");
        let kind = LineKind::Usage {
            model: model.clone(),
            class: class.clone(),
            price_from_micros: group.price_from.0,
            n_input,
            n_cached,
            n_output,
            price_per_million_micros: [price.input_per_million.0, price.cached_per_million.0, price.output_per_million.0],
        };
        let id = self.line_id(group.period, &format!("usage:{}:{class}:{model}", group.price_from.0));
        InvoiceLine { n_requests: group.n_requests, ..line(&id, text, kind, (Rounding::EachRequest, group.charge)) }
    }

    fn line_id(&self, period: Period, id: &str) -> String {
        line_id(period, self.period, id)
    }

    fn late_words(&self, period: Period) -> String {
        late_words(period, self.period)
    }
}

fn line_id(period: Period, of_invoice: Period, id: &str) -> String {
    if period == of_invoice { id.into() } else { format!("late:{period}:{id}") }
}

fn late_words(period: Period, of_invoice: Period) -> String {
    if period == of_invoice { String::new() } else { format!(", of {period}, which came after that month's invoice") }
}

fn line(id: &str, text: String, kind: LineKind, (rounding, amount): (Rounding, Micros)) -> InvoiceLine {
    InvoiceLine { id: id.into(), text, kind, rounding, n_requests: 0, amount }
}

fn draw_line(draw: &DrawGroup, of_invoice: Period) -> InvoiceLine {
    let id = line_id(draw.period, of_invoice, &format!("credit:{}", draw.grant));
    let text = format!("credit: {}{}", draw.reason, late_words(draw.period, of_invoice));
    let kind = LineKind::Credit { grant: draw.grant.clone() };
    InvoiceLine { n_requests: draw.n_requests, ..line(&id, text, kind, (Rounding::Exact, Micros::ZERO.minus(draw.amount))) }
}

fn part_off_line(part: &PartOff, of: Micros) -> InvoiceLine {
    let percent = Micros(i64::from(part.part) * 100).to_string();
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let text = format!("{}: {percent}% off fees and usage", part.name);
    let kind = LineKind::Coupon { code: part.code.clone(), part_off: part.part };
    let amount = Micros::ZERO.minus(part_of(of, part.part));
    line(&format!("coupon:{}", part.code), text, kind, (Rounding::OnceToMicro, amount))
}

fn commitment_line(promised: Micros, spent: Micros) -> Option<InvoiceLine> {
    let missing = promised.minus(spent).or_zero();
    let text = format!("up to the agreed minimum of {promised}; fees and usage came to {spent}");
    let kind = LineKind::Commitment { promised_micros: promised.0, spent_micros: spent.0 };
    (missing > Micros::ZERO).then(|| line("commitment", text, kind, (Rounding::Exact, missing)))
}

fn item_line(item: &WaitingItem) -> InvoiceLine {
    let named = item.id.clone();
    let (kind, of) = match item.is_gross {
        true if item.amount > Micros::ZERO => (LineKind::Brought { item: named }, "brought"),
        true => (LineKind::Overpaid { item: named }, "overpaid"),
        false => (LineKind::Item { item: named }, "item"),
    };
    line(&format!("{of}:{}", item.id), item.text.clone(), kind, (Rounding::Exact, item.amount))
}

fn tax_line(tax: &TaxRate, net: Micros) -> InvoiceLine {
    let TaxRate { country, region, name, rate, reverse_charge } = tax.clone();
    let percent = Micros(i64::from(rate) * 100).to_string();
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let amount = if reverse_charge { Micros::ZERO } else { part_in_cents(net, rate) };
    let text = if reverse_charge { format!("{name}, {percent}%: reverse charge") } else { format!("{name}, {percent}% of {net}") };
    let id = format!("tax:{country}:{region}:{name}");
    let kind = LineKind::Tax { country, region, rate, reverse_charge };
    line(&id, text, kind, (Rounding::OnceToCent, amount))
}

fn sum(lines: &[InvoiceLine]) -> Micros {
    lines.iter().map(|line| line.amount).sum()
}

/// A part of an amount that is not negative, rounded once, half a micro up.
pub(crate) fn part_of(amount: Micros, part: u32) -> Micros {
    ratio(amount, (i128::from(part), i128::from(PARTS)), 1)
}

/// The same, to cents.
fn part_in_cents(amount: Micros, part: u32) -> Micros {
    ratio(amount, (i128::from(part), i128::from(PARTS)), MICROS_PER_CENT)
}

/// An amount that is not negative, to whole cents, half a cent up.
fn to_cents(amount: Micros) -> Micros {
    ratio(amount, (1, 1), MICROS_PER_CENT)
}

/// `amount · n / m` in multiples of a unit, half a unit up.
pub(crate) fn ratio(amount: Micros, (n, m): (i128, i128), unit: i64) -> Micros {
    let (product, whole) = (i128::from(amount.0) * n, m * i128::from(unit));
    let units = (product * 2 + whole).div_euclid(whole * 2);
    Micros(i64::try_from(units * i128::from(unit)).unwrap_or(i64::MAX))
}

/// A monthly price for a part of the month, by the microsecond, rounded once, half a micro up.
pub(crate) fn prorated(price: Micros, (from, until): (Timestamp, Timestamp), (start, end): (Timestamp, Timestamp)) -> Micros {
    ratio(price, (i128::from((until.0 - from.0).max(0)), i128::from(end.0 - start.0)), 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MONTH: Period = Period(24_312);

    fn empty() -> Statement {
        Statement {
            period: MONTH,
            fees: Vec::new(),
            usage: Vec::new(),
            draws: Vec::new(),
            parts_off: Vec::new(),
            commitment: None,
            items: Vec::new(),
            taxes: Vec::new(),
        }
    }

    fn fee(price: i64) -> FeePart {
        let (from, until) = (MONTH.start(), MONTH.next().start());
        FeePart { plan: "team".into(), name: "Team".into(), monthly_price: Micros(price), from, until }
    }

    fn tax(rate: u32, reverse_charge: bool) -> TaxRate {
        TaxRate { country: "DE".into(), region: String::new(), name: "VAT".into(), rate, reverse_charge }
    }

    fn amounts(statement: &Statement) -> Vec<(String, i64)> {
        statement.lines().lines.into_iter().map(|line| (line.id, line.amount.0)).collect()
    }

    #[test]
    fn agreements_become_lines_in_their_order() {
        let parts_off = vec![PartOff { code: "TEN".into(), name: "Launch".into(), part: 100_000 }];
        let items = vec![WaitingItem { id: "i".into(), text: "SLA".into(), amount: Micros(-5_000_000), is_gross: false }];
        let statement = Statement {
            fees: vec![fee(99_000_000)],
            parts_off,
            items,
            commitment: Some(Micros(100_000_000)),
            taxes: vec![tax(190_000, false)],
            ..empty()
        };
        let expected = [
            ("fee:1767225600000000:team", 99_000_000),
            ("coupon:TEN", -9_900_000),
            ("commitment", 1_000_000),
            ("item:i", -5_000_000),
            ("tax:DE::VAT", 16_170_000),
        ];
        // 19% of 85.10 is 16.169, so 16.17.
        assert_eq!(amounts(&statement), expected.map(|(id, amount)| (id.to_string(), amount)));
    }

    #[test]
    fn customer_who_owes_the_tax_is_not_charged_it() {
        let statement = Statement { fees: vec![fee(10_000_000)], taxes: vec![tax(190_000, true)], ..empty() };
        assert_eq!(amounts(&statement)[1], ("tax:DE::VAT".into(), 0));
        assert!(statement.lines().lines[1].text.contains("reverse charge"));
    }

    #[test]
    fn what_would_be_negative_is_carried() {
        let items = vec![WaitingItem { id: "i".into(), text: "SLA".into(), amount: Micros(-7), is_gross: false }];
        let statement = Statement { items, ..empty() };
        let Lines { lines, carried, .. } = statement.lines();
        assert_eq!((lines.iter().map(|line| line.amount).sum::<Micros>(), carried), (Micros::ZERO, Micros(-7)));
    }

    #[test]
    fn what_was_paid_before_is_taken_off_behind_the_tax() {
        let overpaid = |amount| WaitingItem { id: "o".into(), text: "paid too much".into(), amount: Micros(amount), is_gross: true };
        let of =
            |amount| Statement { fees: vec![fee(99_000_000)], items: vec![overpaid(amount)], taxes: vec![tax(190_000, false)], ..empty() };
        let Lines { lines, carried_gross, .. } = of(-50_000_000).lines();
        assert_eq!((sum(&lines), carried_gross), (Micros(67_810_000), Micros::ZERO), "117.81 less 50.00");
        let Lines { lines, carried, carried_gross } = of(-120_000_000).lines();
        assert_eq!((sum(&lines), carried, carried_gross), (Micros::ZERO, Micros::ZERO, Micros(-2_190_000)));
    }

    proptest! {
        #[test]
        fn parts_of_a_month_cost_what_the_month_does(price in 0i64..10_000_000_000, cut in 0i64..2_678_400_000_000) {
            let (start, end) = (Timestamp(0), Timestamp(2_678_400_000_000));
            let part = |from, until| prorated(Micros(price), (from, until), (start, end)).0;
            let halves = part(start, Timestamp(cut)) + part(Timestamp(cut), end);
            prop_assert!((halves - price).abs() <= 1, "each part is rounded once");
            prop_assert_eq!(part(start, end), price);
        }

        #[test]
        fn total_is_whole_cents_and_loses_nothing(
            price in 0i64..100_000_000_000, off in 1u32..=1_000_000, item in -200_000_000_000i64..200_000_000_000, rate in 0u32..400_000
        ) {
            let parts_off = vec![PartOff { code: "C".into(), name: "C".into(), part: off }];
            let items = vec![WaitingItem { id: "i".into(), text: "".into(), amount: Micros(item), is_gross: false }];
            let statement = Statement { fees: vec![fee(price)], parts_off, items, taxes: vec![tax(rate, false)], ..empty() };
            let Lines { lines, carried, .. } = statement.lines();
            let of = |wanted: fn(&LineKind) -> bool| lines.iter().filter(|line| wanted(&line.kind)).map(|line| line.amount.0).sum::<i64>();
            let total = of(|_| true);
            prop_assert!(total >= 0 && total % MICROS_PER_CENT == 0);
            let tax = of(|kind| matches!(kind, LineKind::Tax { .. }));
            let rounding = of(|kind| matches!(kind, LineKind::Rounding));
            // Half up by hand: the part off is what is left of the price below it.
            let part_off = (i128::from(price) * i128::from(off) + 500_000) / 1_000_000;
            prop_assert_eq!(i128::from(total - tax - rounding + carried.0), i128::from(price) - part_off + i128::from(item));
            prop_assert!(rounding.abs() <= MICROS_PER_CENT / 2);
            let exact = i128::from(total - tax) * i128::from(rate);
            prop_assert!((i128::from(tax) * 1_000_000 - exact).abs() <= 5_000 * 1_000_000);
        }
    }
}
