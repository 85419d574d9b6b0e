//! Reads rate cards, and the terms and limits that the ledger needs of accounts, projects and keys.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::any::AnyRow;

use crate::catalog::{Catalog, ClassPrice, Meter, Plan, PlanLimits, PriorityClass, Validity};
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::scope::{ScopeId, ScopeLimits};
use crate::ledger::{AccountStatus, AccountTerms, Overage};
use crate::money::TokenPrice;
use crate::store::{Store, get, get_money, get_optional_time, get_optional_u32, get_parsed, get_time};

/// Whoever an operator has suspended may do nothing, nor whoever has not paid (`payment::dunning`).
const TERMS: &str = "SELECT a.id, CASE WHEN a.status = 'active' AND NOT EXISTS (SELECT 1 FROM dunning d WHERE d.account_id = a.id AND d.restricted_at IS NOT NULL) THEN 'active' ELSE 'suspended' END AS status, a.overage, a.spending_cap FROM account a";
const PLANS: &str = "SELECT account_id, plan_id, valid_from, valid_until FROM account_plan";

impl Store {
    /// All rate cards.
    pub async fn catalog(&self) -> Result<Catalog, PlatformError> {
        let failed = || PlatformError::database("reading rate cards");
        let rows = sqlx::query("SELECT * FROM plan").fetch_all(self.pool()).await.map_err(failed())?;
        let plans = rows.iter().map(plan).collect::<Result<_, _>>()?;
        let rows = sqlx::query("SELECT * FROM token_price").fetch_all(self.pool()).await.map_err(failed())?;
        let prices = rows.iter().map(class_price).collect::<Result<_, _>>()?;
        let rows = sqlx::query("SELECT model, class FROM model_class").fetch_all(self.pool()).await.map_err(failed())?;
        let class = |row: &AnyRow| Ok((get(row, "model")?, get::<String>(row, "class")?.into()));
        let classes = rows.iter().map(class).collect::<Result<_, PlatformError>>()?;
        Ok(Catalog::new(plans, prices, classes))
    }

    /// The terms of all accounts.
    pub(crate) async fn all_terms(&self) -> Result<Vec<AccountTerms>, PlatformError> {
        let failed = || PlatformError::database("reading accounts");
        let accounts = sqlx::query(TERMS).fetch_all(self.pool()).await.map_err(failed())?;
        let plans = sqlx::query(PLANS).fetch_all(self.pool()).await.map_err(failed())?;
        terms(&accounts, &plans)
    }

    /// The terms of one.
    pub(crate) async fn terms_of(&self, account: AccountId) -> Result<Option<AccountTerms>, PlatformError> {
        let failed = || PlatformError::database("reading an account");
        let id = account.to_string();
        let query = sqlx::query(sqlx::AssertSqlSafe(format!("{TERMS} WHERE a.id = $1"))).bind(&id);
        let accounts = query.fetch_all(self.pool()).await.map_err(failed())?;
        let query = sqlx::query("SELECT account_id, plan_id, valid_from, valid_until FROM account_plan WHERE account_id = $1").bind(&id);
        let plans = query.fetch_all(self.pool()).await.map_err(failed())?;
        Ok(terms(&accounts, &plans)?.pop())
    }

    /// The limits of all projects and keys that have any.
    pub(crate) async fn all_limits(&self) -> Result<Vec<(ScopeId, ScopeLimits)>, PlatformError> {
        let failed = || PlatformError::database("reading limits");
        let columns = "SELECT id, spending_cap, requests_per_minute, tokens_per_minute, n_concurrent_max FROM project";
        let projects = sqlx::query(columns).fetch_all(self.pool()).await.map_err(failed())?;
        let columns = "SELECT id, spending_cap, requests_per_minute, tokens_per_minute, n_concurrent_max FROM api_key";
        let keys = sqlx::query(columns).fetch_all(self.pool()).await.map_err(failed())?;
        let projects = projects.iter().map(|row| Ok((ScopeId::Project(get_parsed(row, "id")?), scope_limits(row)?)));
        let keys = keys.iter().map(|row| Ok((ScopeId::ApiKey(get_parsed(row, "id")?), scope_limits(row)?)));
        projects.chain(keys).collect()
    }
}

fn terms(accounts: &[AnyRow], plans: &[AnyRow]) -> Result<Vec<AccountTerms>, PlatformError> {
    let mut plans_of: HashMap<AccountId, Vec<(Arc<str>, Validity)>> = HashMap::new();
    for row in plans {
        let plan: Arc<str> = get::<String>(row, "plan_id")?.into();
        plans_of.entry(get_parsed(row, "account_id")?).or_default().push((plan, validity(row)?));
    }
    let read = |row: &AnyRow| {
        let id = get_parsed(row, "id")?;
        Ok(AccountTerms {
            id,
            status: if get::<String>(row, "status")? == "active" { AccountStatus::Active } else { AccountStatus::Suspended },
            plans: plans_of.remove(&id).unwrap_or_default(),
            overage: if get::<String>(row, "overage")? == "charge" { Overage::Charge } else { Overage::Refuse },
            spending_cap: get_money(row, "spending_cap")?,
        })
    };
    accounts.iter().map(read).collect()
}

/// The limits in a row of a project or key.
pub(crate) fn scope_limits(row: &AnyRow) -> Result<ScopeLimits, PlatformError> {
    Ok(ScopeLimits {
        spending_cap: get::<Option<i64>>(row, "spending_cap")?.map(crate::money::Micros),
        requests_per_minute: get_optional_u32(row, "requests_per_minute")?,
        tokens_per_minute: get_optional_u32(row, "tokens_per_minute")?,
        n_concurrent_max: get_optional_u32(row, "n_concurrent_max")?,
    })
}

fn validity(row: &AnyRow) -> Result<Validity, PlatformError> {
    Ok(Validity { from: get_time(row, "valid_from")?, until: get_optional_time(row, "valid_until")? })
}

fn plan(row: &AnyRow) -> Result<Plan, PlatformError> {
    let included = get::<Option<i64>>(row, "included_operations")?;
    Ok(Plan {
        id: get::<String>(row, "id")?.into(),
        validity: validity(row)?,
        name: get(row, "name")?,
        monthly_price: get_money(row, "monthly_price")?,
        meter: if get::<String>(row, "meter")? == "tokens" { Meter::Tokens } else { Meter::Operations },
        included_operations: included.map(|included| u64::try_from(included).unwrap_or(0)),
        limits: PlanLimits {
            requests_per_minute: get_optional_u32(row, "requests_per_minute")?,
            tokens_per_minute: get_optional_u32(row, "tokens_per_minute")?,
            n_concurrent_max: get_optional_u32(row, "n_concurrent_max")?,
            n_api_keys_max: get_optional_u32(row, "n_api_keys_max")?,
            n_members_max: get_optional_u32(row, "n_members_max")?,
        },
        priority: if get::<String>(row, "priority")? == "priority" { PriorityClass::Priority } else { PriorityClass::Standard },
    })
}

fn class_price(row: &AnyRow) -> Result<ClassPrice, PlatformError> {
    Ok(ClassPrice {
        class: get::<String>(row, "class")?.into(),
        validity: validity(row)?,
        price: TokenPrice {
            input_per_million: get_money(row, "input_per_million")?,
            cached_per_million: get_money(row, "cached_per_million")?,
            output_per_million: get_money(row, "output_per_million")?,
        },
    })
}
