//! What an operator does to accounts: plans, credit, lists. Changes go into the same feed as all others.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::directory::records::{ApiKey, check_label, note_change};
use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId, GrantId, ProjectId};
use crate::ledger::event::Grant;
use crate::ledger::{AccountStatus, Overage};
use crate::money::Micros;
use crate::secret_file::InstallationSecret;
use crate::store::{Store, Write, get, get_count, get_money, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;

/// An account, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// Which.
    pub id: AccountId,
    /// For people.
    pub name: String,
    /// Whether it may do anything.
    pub status: AccountStatus,
    /// Its plan now, if it has one.
    pub plan: Option<String>,
    /// What comes after the plan's operations.
    pub overage: Overage,
    /// What it may owe for the tokens of a month.
    pub spending_cap: Micros,
    /// Since when.
    pub created_at: Timestamp,
}

/// A project, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    /// Which.
    pub id: ProjectId,
    /// Whose.
    pub account: AccountId,
    /// For people.
    pub name: String,
    /// Since when.
    pub created_at: Timestamp,
}

/// Credit to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCredit {
    /// To whom.
    pub account: AccountId,
    /// How much.
    pub amount: Micros,
    /// From when on it pays nothing.
    pub expires_at: Option<Timestamp>,
    /// Why.
    pub reason: String,
}

macro_rules! accounts {
    ($which:literal) => {
        concat!(
            "SELECT a.id, a.name, CASE WHEN a.status = 'active' AND NOT EXISTS (SELECT 1 FROM dunning d WHERE d.account_id = a.id AND d.restricted_at IS NOT NULL) THEN 'active' ELSE 'suspended' END AS status, a.overage, a.spending_cap, a.created_at, p.plan_id FROM account a LEFT JOIN account_plan p ON p.account_id = a.id AND p.valid_from <= $1 AND (p.valid_until IS NULL OR p.valid_until > $1) ",
            $which
        )
    };
}

const ACCOUNTS: &str = accounts!("ORDER BY a.created_at, a.id");
const ACCOUNT: &str = accounts!("WHERE a.id = $2");
const FOUND_ACCOUNTS: &str = accounts!(
    "WHERE (LOWER(a.name) LIKE $2 ESCAPE '!' OR a.id = $3) AND ($4 = '' OR (a.created_at, a.id) > (SELECT b.created_at, b.id FROM account b WHERE b.id = $4)) ORDER BY a.created_at, a.id LIMIT $5"
);

/// What a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search<'a> {
    /// Part of a name or address, or all of an id; empty: any.
    pub text: &'a str,
    /// Behind which id; empty: from the beginning.
    pub after: &'a str,
    /// How many at most.
    pub n_max: u32,
}

impl Search<'_> {
    /// As `LIKE` takes it.
    pub(crate) fn pattern(&self) -> String {
        let mut pattern = String::from("%");
        for letter in self.text.to_lowercase().chars() {
            if "!%_".contains(letter) {
                pattern.push('!');
            }
            pattern.push(letter);
        }
        pattern.push('%');
        pattern
    }
}

fn read_account(row: &AnyRow) -> Result<AccountRow, PlatformError> {
    Ok(AccountRow {
        id: get_parsed(row, "id")?,
        name: get(row, "name")?,
        status: if get::<String>(row, "status")? == "active" { AccountStatus::Active } else { AccountStatus::Suspended },
        plan: get(row, "plan_id")?,
        overage: if get::<String>(row, "overage")? == "charge" { Overage::Charge } else { Overage::Refuse },
        spending_cap: get_money(row, "spending_cap")?,
        created_at: get_time(row, "created_at")?,
    })
}

impl Store {
    /// Checks that keys are hashed with the secret that the database was set up with; the first one sets it up.
    pub async fn check_secret(&self, secret: &InstallationSecret) -> Result<(), PlatformError> {
        let own = secret.fingerprint();
        let doing = "checking the secret";
        let mut write = self.begin().await?;
        let insert = sqlx::query("INSERT INTO installation (id, secret_fingerprint) VALUES (1, $1) ON CONFLICT (id) DO NOTHING");
        insert.bind(own.clone()).execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        write.commit(doing).await?;
        let query = sqlx::query("SELECT secret_fingerprint FROM installation");
        let expected: String = get(&query.fetch_one(self.pool()).await.map_err(PlatformError::database(doing))?, "secret_fingerprint")?;
        if expected == own { Ok(()) } else { Err(PlatformError::WrongSecret { expected, got: own }) }
    }

    /// All accounts.
    pub async fn accounts(&self, now: Timestamp) -> Result<Vec<AccountRow>, PlatformError> {
        let rows = sqlx::query(ACCOUNTS).bind(now.0).fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading accounts"))?.iter().map(read_account).collect()
    }

    /// Some accounts, the oldest first.
    pub async fn find_accounts(&self, search: Search<'_>, now: Timestamp) -> Result<Vec<AccountRow>, PlatformError> {
        let query = sqlx::query(FOUND_ACCOUNTS).bind(now.0).bind(search.pattern()).bind(search.text.to_string());
        let rows = query.bind(search.after.to_string()).bind(i64::from(search.n_max)).fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading accounts"))?.iter().map(read_account).collect()
    }

    /// How many accounts there are.
    pub async fn n_accounts(&self) -> Result<u64, PlatformError> {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM account").fetch_one(self.pool()).await;
        get_count(&row.map_err(PlatformError::database("counting accounts"))?, "n")
    }

    /// One account.
    pub async fn account(&self, id: AccountId, now: Timestamp) -> Result<AccountRow, PlatformError> {
        let row = sqlx::query(ACCOUNT).bind(now.0).bind(id.to_string()).fetch_optional(self.pool()).await;
        let row = row.map_err(PlatformError::database("reading an account"))?;
        read_account(&row.ok_or(PlatformError::NotFound { what: "account" })?)
    }

    /// The projects of an account, or of all.
    pub async fn projects(&self, account: Option<AccountId>) -> Result<Vec<ProjectRow>, PlatformError> {
        let query = match account {
            Some(id) => sqlx::query("SELECT id, account_id, name, created_at FROM project WHERE account_id = $1 ORDER BY created_at, id")
                .bind(id.to_string()),
            None => sqlx::query("SELECT id, account_id, name, created_at FROM project ORDER BY created_at, id"),
        };
        let rows = query.fetch_all(self.pool()).await;
        let read = |row: &AnyRow| {
            Ok(ProjectRow {
                id: get_parsed(row, "id")?,
                account: get_parsed(row, "account_id")?,
                name: get(row, "name")?,
                created_at: get_time(row, "created_at")?,
            })
        };
        rows.map_err(PlatformError::database("reading projects"))?.iter().map(read).collect()
    }

    /// A key of any account: for operators, who own none.
    pub async fn find_api_key(&self, id: ApiKeyId) -> Result<ApiKey, PlatformError> {
        self.api_key(id).await?.ok_or(PlatformError::NotFound { what: "API key" })
    }

    /// Gives an account another plan: a dearer one now, a cheaper one when the month ends. Says from when on it holds.
    pub async fn set_plan(&self, account: AccountId, plan: &str, by: &By) -> Result<Timestamp, PlatformError> {
        let now = by.at;
        let row = self.account(account, now).await?;
        let catalog = self.catalog().await?;
        let wanted = catalog.named_plan(plan, now)?;
        let present = row.plan.as_deref().and_then(|id| catalog.plan_at(id, now));
        let is_cheaper = present.is_some_and(|present| wanted.monthly_price < present.monthly_price);
        let from = if is_cheaper { now.period().next().start() } else { now };
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("changing a plan");
        // A change that was still to come gives way to this one.
        let delete = sqlx::query("DELETE FROM account_plan WHERE account_id = $1 AND valid_from > $2");
        delete.bind(account.to_string()).bind(now.0).execute(&mut *write.transaction).await.map_err(failed())?;
        let end =
            sqlx::query("UPDATE account_plan SET valid_until = $1 WHERE account_id = $2 AND (valid_until IS NULL OR valid_until > $3)");
        let end = end.bind(from.0).bind(account.to_string()).bind(now.0);
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query("INSERT INTO account_plan (account_id, plan_id, valid_from, valid_until) VALUES ($1, $2, $3, NULL)");
        let insert = insert.bind(account.to_string()).bind(plan.to_string()).bind(from.0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        note_change(&mut write, "account", &account.to_string()).await?;
        let (before, after) = (json!({ "plan": row.plan }), json!({ "plan": plan, "valid_from": from.0 }));
        let deed = Deed { action: "account.plan_changed", account: Some(account), target: account.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("changing a plan").await?;
        Ok(from)
    }

    /// Gives credit: whatever server has the ledger grants it, now or when it starts.
    pub async fn order_credit(&self, credit: NewCredit, by: &By) -> Result<GrantId, PlatformError> {
        check_label(&credit.reason)?;
        if credit.amount <= Micros::ZERO {
            return Err(PlatformError::Invalid { field: "amount", reason: "it is not more than nothing".into() });
        }
        self.account(credit.account, by.at).await?;
        let mut write = self.begin().await?;
        let id = self.insert_credit(&mut write, &credit, by).await?;
        write.commit("giving credit").await?;
        Ok(id)
    }

    /// Gives credit within the transaction of what it is given for.
    pub(crate) async fn insert_credit(&self, write: &mut Write<'_>, credit: &NewCredit, by: &By) -> Result<GrantId, PlatformError> {
        let account = credit.account;
        let expires_at = credit.expires_at.map(|time| time.0);
        let after = json!({ "amount_micros": credit.amount.0, "expires_at": expires_at, "reason": credit.reason });
        let id = GrantId::random()?;
        let insert = sqlx::query(
            "INSERT INTO credit_order (id, account_id, amount, ordered_at, expires_at, reason) VALUES ($1, $2, $3, $4, $5, $6)",
        );
        let insert = insert.bind(id.to_string()).bind(account.to_string()).bind(credit.amount.0).bind(by.at.0);
        let insert = insert.bind(expires_at).bind(credit.reason.clone());
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("giving credit"))?;
        note_change(write, "credit", &id.to_string()).await?;
        let deed = Deed { action: "credit.granted", account: Some(account), target: id.to_string(), before: Value::Null, after };
        self.audit(write, by, deed).await?;
        Ok(id)
    }

    /// A credit order, as the grant that it becomes.
    pub(crate) async fn credit(&self, id: GrantId) -> Result<Option<Grant>, PlatformError> {
        let query = sqlx::query("SELECT * FROM credit_order WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading credit"))?;
        row.as_ref().map(read_credit).transpose()
    }

    /// Credit orders that are no grants yet.
    pub(crate) async fn credits_to_grant(&self) -> Result<Vec<Grant>, PlatformError> {
        let query = sqlx::query(
            "SELECT o.* FROM credit_order o LEFT JOIN credit_grant g ON g.id = o.id WHERE g.id IS NULL ORDER BY o.ordered_at, o.id",
        );
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading credit"))?;
        rows.iter().map(read_credit).collect()
    }
}

fn read_credit(row: &AnyRow) -> Result<Grant, PlatformError> {
    Ok(Grant {
        id: get_parsed(row, "id")?,
        account: get_parsed(row, "account_id")?,
        amount: get_money(row, "amount")?,
        granted_at: get_time(row, "ordered_at")?,
        expires_at: get_optional_time(row, "expires_at")?,
        reason: get(row, "reason")?,
    })
}
