//! An independent account of what events cost: from its own price list, one micro at a time, with nothing of the platform's
//! arithmetic. Slow, and too plain to be wrong in the same way.

use std::collections::BTreeMap;

use bitnet_platform::ids::GrantId;
use bitnet_platform::ledger::GrantBalance;
use bitnet_platform::ledger::event::{Entry, Funding};
use bitnet_platform::ledger::projection::Projection;

/// When prices change, in microseconds since 1970.
pub(crate) const PRICE_CHANGE: i64 = super::world::START + 3_600_000_000;

/// Tenths of a micro for an input, cached and output token, before and after the change.
pub(crate) const TENTHS: [[u64; 3]; 2] = [[10, 1, 10], [30, 3, 45]];

/// Counts a charge out, token by token.
pub(crate) fn charge(entry: &Entry) -> i64 {
    if entry.funding != Funding::Metered {
        return 0;
    }
    let prices = TENTHS[usize::from(entry.event.occurred_at.0 >= PRICE_CHANGE)];
    let tokens = entry.event.tokens;
    let mut tenths = 0;
    for (n, price) in [(tokens.n_input, prices[0]), (tokens.n_cached, prices[1]), (tokens.n_output, prices[2])] {
        for _ in 0..n {
            tenths += price;
        }
    }
    let mut micros = 0;
    while tenths >= 10 {
        (tenths, micros) = (tenths - 10, micros + 1);
    }
    if tenths >= 5 { micros + 1 } else { micros }
}

/// Goes through the journal as it was applied and pays each charge micro by micro from the grant that expires first. Returns what
/// is left of each grant, and the sum of what is owed.
pub(crate) fn pay_all(applied: &[Projection], grants: &BTreeMap<GrantId, GrantBalance>) -> (BTreeMap<GrantId, i64>, i64) {
    let mut left: BTreeMap<GrantId, i64> = grants.iter().map(|(id, balance)| (*id, balance.grant.amount.0)).collect();
    let mut due = 0;
    for entry in applied.iter().flat_map(|projection| &projection.entries) {
        let mut drawn: BTreeMap<GrantId, i64> = BTreeMap::new();
        for _ in 0..charge(entry) {
            let pays = |id: &GrantId| {
                let grant = &grants[id].grant;
                let is_valid = grant.expires_at.is_none_or(|end| entry.event.occurred_at < end);
                // A grant pays for what is booked after it was given.
                left[id] > 0 && grant.account == entry.event.owner.account && grant.granted_at <= entry.posted_at && is_valid
            };
            let order = |id: &GrantId| (grants[id].grant.expires_at.map_or(i64::MAX, |end| end.0), grants[id].grant.granted_at, *id);
            match left.keys().copied().filter(pays).min_by_key(order) {
                Some(id) => {
                    *left.entry(id).or_default() -= 1;
                    *drawn.entry(id).or_default() += 1;
                }
                None => due += 1,
            }
        }
        let draws: BTreeMap<GrantId, i64> = entry.draws.iter().map(|draw| (draw.grant, draw.amount.0)).collect();
        assert_eq!(draws, drawn, "entry {} is paid by the grants that expire first", entry.seq);
    }
    (left, due)
}
