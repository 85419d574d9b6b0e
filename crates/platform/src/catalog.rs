//! Rate cards: what plans include and what tokens cost, each version with the time in which it holds. All of it is data of the
//! database (the first versions come with the migrations); this is its form in memory. What a request cost is decided by the
//! version that held when the request began, for ever.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::PlatformError;
use crate::money::{Micros, TokenCounts, TokenPrice};
use crate::time::Timestamp;

/// Tokens that one operation covers.
pub const TOKENS_PER_OPERATION: u64 = 8192;
/// Stands for every model that no class names.
pub const ANY_MODEL: &str = "*";

/// Operations that one item of this many tokens counts for: one, and one more for each further 8192 tokens begun.
pub const fn operations_of(n_tokens: u64) -> u64 {
    let n_operations = n_tokens.div_ceil(TOKENS_PER_OPERATION);
    if n_operations == 0 { 1 } else { n_operations }
}

/// When a version holds: from the first moment, to before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// The first moment.
    pub from: Timestamp,
    /// The first moment of its successor.
    pub until: Option<Timestamp>,
}

impl Validity {
    /// Whether it holds then.
    pub fn holds_at(self, time: Timestamp) -> bool {
        self.from <= time && self.until.is_none_or(|until| time < until)
    }
}

/// What a plan bills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// Operations, of which the monthly price includes a number.
    Operations,
    /// Tokens, each of them.
    Tokens,
}

/// How urgent a plan's requests may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorityClass {
    /// As all.
    Standard,
    /// Before these.
    Priority,
}

/// How much at once. Without a number there is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanLimits {
    /// Requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once.
    pub n_concurrent_max: Option<u32>,
    /// API keys.
    pub n_api_keys_max: Option<u32>,
    /// Members.
    pub n_members_max: Option<u32>,
}

/// One version of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The same for all versions.
    pub id: Arc<str>,
    /// When this version holds.
    pub validity: Validity,
    /// For people.
    pub name: String,
    /// A month's.
    pub monthly_price: Micros,
    /// What is billed.
    pub meter: Meter,
    /// Operations a month in the price; without a number, any.
    pub included_operations: Option<u64>,
    /// How much at once.
    pub limits: PlanLimits,
    /// How urgent.
    pub priority: PriorityClass,
}

/// One version of what a class of models costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassPrice {
    /// The class.
    pub class: Arc<str>,
    /// When this version holds.
    pub validity: Validity,
    /// The price.
    pub price: TokenPrice,
}

impl ClassPrice {
    /// The most that so many tokens can cost, whatever the cache finds.
    pub fn ceiling(&self, n_prompt: u64, n_output_max: u64) -> Micros {
        let input_per_million = self.price.input_per_million.max(self.price.cached_per_million);
        let dearest = TokenPrice { input_per_million, ..self.price };
        dearest.charge(TokenCounts { n_input: n_prompt, n_cached: 0, n_output: n_output_max })
    }
}

/// All rate cards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    plans: HashMap<Arc<str>, Vec<Arc<Plan>>>,
    prices: HashMap<Arc<str>, Vec<Arc<ClassPrice>>>,
    classes: HashMap<String, Arc<str>>,
}

impl Catalog {
    /// Of what the database holds; `classes` are pairs of a model and its class.
    pub fn new(plans: Vec<Plan>, prices: Vec<ClassPrice>, classes: Vec<(String, Arc<str>)>) -> Self {
        let mut catalog = Self { classes: classes.into_iter().collect(), ..Self::default() };
        for plan in plans {
            catalog.plans.entry(plan.id.clone()).or_default().push(Arc::new(plan));
        }
        for price in prices {
            catalog.prices.entry(price.class.clone()).or_default().push(Arc::new(price));
        }
        catalog
    }

    /// The version of a plan that holds then.
    pub fn plan_at(&self, id: &str, time: Timestamp) -> Option<&Arc<Plan>> {
        self.plans.get(id)?.iter().find(|plan| plan.validity.holds_at(time))
    }

    /// The versions of a plan that hold at some time from the first to before the second, in order.
    pub fn plan_versions(&self, id: &str, (from, until): (Timestamp, Timestamp)) -> Vec<Arc<Plan>> {
        let overlaps = |validity: Validity| validity.from < until && validity.until.is_none_or(|end| end > from);
        let versions = self.plans.get(id).map_or(&[][..], Vec::as_slice);
        let mut versions: Vec<Arc<Plan>> = versions.iter().filter(|plan| overlaps(plan.validity)).cloned().collect();
        versions.sort_by_key(|plan| plan.validity.from);
        versions
    }

    /// The same for a caller who named it: without it, an error that says which there are.
    pub fn named_plan(&self, id: &str, time: Timestamp) -> Result<&Arc<Plan>, PlatformError> {
        self.plan_at(id, time).ok_or_else(|| {
            let mut known: Vec<&str> = self.plans.keys().map(|id| &**id).filter(|id| self.plan_at(id, time).is_some()).collect();
            known.sort_unstable();
            PlatformError::Invalid { field: "plan", reason: format!("there is no plan {id:?}; there are {}", known.join(", ")) }
        })
    }

    /// All plans that hold then, the cheapest first.
    pub fn plans_at(&self, time: Timestamp) -> Vec<Arc<Plan>> {
        let mut plans: Vec<Arc<Plan>> = self.plans.keys().filter_map(|id| self.plan_at(id, time).cloned()).collect();
        let order = |plan: &Arc<Plan>| (plan.monthly_price, plan.included_operations.is_none(), plan.included_operations, plan.id.clone());
        plans.sort_by_key(order);
        plans
    }

    /// All prices that hold then, the cheapest first.
    pub fn prices_at(&self, time: Timestamp) -> Vec<Arc<ClassPrice>> {
        let mut prices: Vec<_> = self.prices.values().flatten().filter(|price| price.validity.holds_at(time)).cloned().collect();
        prices.sort_by(|a, b| (a.price.output_per_million, &a.class).cmp(&(b.price.output_per_million, &b.class)));
        prices
    }

    /// What a model's tokens cost then.
    pub fn price_at(&self, model: &str, time: Timestamp) -> Option<&Arc<ClassPrice>> {
        let class = self.classes.get(model).or_else(|| self.classes.get(ANY_MODEL))?;
        self.prices.get(class)?.iter().find(|price| price.validity.holds_at(time))
    }

    /// The version of a class's price that began then.
    pub fn price_from(&self, class: &str, from: Timestamp) -> Option<&Arc<ClassPrice>> {
        self.prices.get(class)?.iter().find(|price| price.validity.from == from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_an_item_follow_its_tokens() {
        let counts = [0, 1, 8192, 8193, 16_384, 16_385].map(operations_of);
        assert_eq!(counts, [1, 1, 1, 2, 2, 3]);
    }

    #[test]
    fn price_is_the_one_of_its_time() {
        let version = |from, until, input| ClassPrice {
            class: "small".into(),
            validity: Validity { from: Timestamp(from), until },
            price: TokenPrice { input_per_million: Micros(input), ..TokenPrice::default() },
        };
        let prices = vec![version(0, Some(Timestamp(10)), 1), version(10, None, 2)];
        let catalog = Catalog::new(Vec::new(), prices, vec![(ANY_MODEL.into(), "small".into())]);
        let input = |time| catalog.price_at("any", Timestamp(time)).map(|price| price.price.input_per_million.0);
        assert_eq!([input(-1), input(0), input(9), input(10)], [None, Some(1), Some(1), Some(2)]);
    }
}
