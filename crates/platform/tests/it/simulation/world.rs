//! The world that the simulation sets up: accounts on three kinds of plan, two price versions, and dice.

use bitnet_platform::catalog::{ANY_MODEL, Catalog, ClassPrice, Meter, Plan, PlanLimits, PriorityClass, Validity};
use bitnet_platform::ids::{AccountId, ApiKeyId, ProjectId};
use bitnet_platform::ledger::event::Owner;
use bitnet_platform::ledger::scope::{ScopeId, ScopeLimits};
use bitnet_platform::ledger::{AccountStatus, AccountTerms, Opening, Overage};
use bitnet_platform::money::{Micros, TokenPrice};
use bitnet_platform::time::Timestamp;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// 2025-12-31, half an hour before the year ends: months change while requests are in flight.
pub(crate) const START: i64 = 1_767_223_800_000_000;
/// Operations that the small plan includes.
pub(crate) const INCLUDED: u64 = 6;
/// What the account with overage may owe in a month.
pub(crate) const OVERAGE_CAP: i64 = 150;
/// What the account that pays as it goes may owe in a month.
pub(crate) const PAYG_CAP: i64 = 60;
/// What one project of it may have charged in a month.
pub(crate) const PROJECT_CAP: i64 = 100;

/// Numbers that follow from a seed.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    pub(crate) fn id(&mut self) -> u128 {
        u128::from(self.0.next_u64()) << 64 | u128::from(self.0.next_u64())
    }
}

/// What an account is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Six operations, then nothing.
    Strict,
    /// Six operations, then money up to a cap.
    Overage,
    /// Money up to a cap.
    PayAsYouGo,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Strict, Kind::Overage, Kind::PayAsYouGo];

/// The account of a kind.
pub(crate) fn account(kind: Kind) -> AccountId {
    AccountId::from_u128(kind as u128 + 1)
}

/// One of the two projects of an account, and its key.
pub(crate) fn owner(kind: Kind, project: u64) -> Owner {
    let number = 10 * (kind as u128 + 1) + u128::from(project);
    Owner { account: account(kind), project: ProjectId::from_u128(number), api_key: Some(ApiKeyId::from_u128(number)) }
}

/// What a store holds before anything happens.
pub(crate) fn opening() -> Opening {
    let always = Validity { from: Timestamp(0), until: None };
    let plan = |id: &str, meter, included_operations| Plan {
        id: id.into(),
        validity: always,
        name: id.into(),
        monthly_price: Micros::ZERO,
        meter,
        included_operations,
        limits: PlanLimits::default(),
        priority: PriorityClass::Standard,
    };
    let plans = vec![plan("small", Meter::Operations, Some(INCLUDED)), plan("payg", Meter::Tokens, None)];
    let change = Timestamp(super::oracle::PRICE_CHANGE);
    let price = |version: usize, validity| {
        let [input, cached, output] = super::oracle::TENTHS[version].map(|tenths| Micros(tenths as i64 * 100_000));
        let price = TokenPrice { input_per_million: input, cached_per_million: cached, output_per_million: output };
        ClassPrice { class: "only".into(), validity, price }
    };
    let prices = vec![price(0, Validity { from: Timestamp(0), until: Some(change) }), price(1, Validity { from: change, until: None })];
    let catalog = Catalog::new(plans, prices, vec![(ANY_MODEL.into(), "only".into())]);
    let terms = |kind: Kind| AccountTerms {
        id: account(kind),
        status: AccountStatus::Active,
        plans: vec![(if kind == Kind::PayAsYouGo { "payg" } else { "small" }.into(), always)],
        overage: if kind == Kind::Overage { Overage::Charge } else { Overage::Refuse },
        spending_cap: Micros(match kind {
            Kind::Strict => 0,
            Kind::Overage => OVERAGE_CAP,
            Kind::PayAsYouGo => PAYG_CAP,
        }),
    };
    let capped = ScopeLimits { spending_cap: Some(Micros(PROJECT_CAP)), ..ScopeLimits::default() };
    let limits = vec![(ScopeId::Project(owner(Kind::PayAsYouGo, 1).project), capped)];
    Opening { catalog, accounts: KINDS.map(terms).to_vec(), limits, ..Opening::default() }
}
