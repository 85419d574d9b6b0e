//! What bounds an account and its projects: names, overage, spending caps, rates. Changes go into the same feed as all others.

use serde_json::json;
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::directory::records::{check_label, check_limits, limits_json, note_change};
use crate::error::PlatformError;
use crate::ids::{AccountId, ProjectId};
use crate::ledger::Overage;
use crate::ledger::scope::ScopeLimits;
use crate::money::Micros;
use crate::store::catalog::scope_limits;
use crate::store::{Store, get, get_parsed};

impl Store {
    /// Calls an account something else.
    pub async fn rename_account(&self, account: AccountId, name: &str, by: &By) -> Result<(), PlatformError> {
        check_label(name)?;
        let before = json!({ "name": self.account(account, by.at).await?.name });
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE account SET name = $1 WHERE id = $2").bind(name.to_string()).bind(account.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("renaming an account"))?;
        note_change(&mut write, "account", &account.to_string()).await?;
        let (target, after) = (account.to_string(), json!({ "name": name }));
        self.audit(&mut write, by, Deed { action: "account.renamed", account: Some(account), target, before, after }).await?;
        write.commit("renaming an account").await
    }

    /// What an account may owe for tokens in a month, and whether it is charged when its plan's operations are used up.
    pub async fn set_spending(&self, account: AccountId, (overage, spending_cap): (Overage, Micros), by: &By) -> Result<(), PlatformError> {
        if spending_cap < Micros::ZERO {
            return Err(PlatformError::Invalid { field: "spending_cap", reason: "it is negative".into() });
        }
        let row = self.account(account, by.at).await?;
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE account SET overage = $1, spending_cap = $2 WHERE id = $3");
        let update = update.bind(overage.name()).bind(spending_cap.0).bind(account.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("changing a spending cap"))?;
        note_change(&mut write, "account", &account.to_string()).await?;
        let state = |overage: Overage, cap: Micros| json!({ "overage": overage.name(), "spending_cap_micros": cap.0 });
        let (before, after) = (state(row.overage, row.spending_cap), state(overage, spending_cap));
        let deed = Deed { action: "account.spending_changed", account: Some(account), target: account.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("changing a spending cap").await
    }

    /// The limits of an account's projects, in the order of their list.
    pub async fn limits_of_projects(&self, account: AccountId) -> Result<Vec<(ProjectId, ScopeLimits)>, PlatformError> {
        let query = sqlx::query("SELECT * FROM project WHERE account_id = $1 ORDER BY created_at, id").bind(account.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading projects"))?;
        rows.iter().map(|row: &AnyRow| Ok((get_parsed(row, "id")?, scope_limits(row)?))).collect()
    }

    /// Bounds a project.
    pub async fn set_project_limits(
        &self,
        (account, id): (AccountId, ProjectId),
        limits: ScopeLimits,
        by: &By,
    ) -> Result<(), PlatformError> {
        check_limits(&limits)?;
        let before = self.project_limits(id).await?.map(|limits| limits_json(&limits)).unwrap_or_default();
        let mut write = self.begin().await?;
        let update = sqlx::query(
            "UPDATE project SET spending_cap = $1, requests_per_minute = $2, tokens_per_minute = $3, n_concurrent_max = $4 WHERE id = $5 AND account_id = $6",
        );
        let update = update.bind(limits.spending_cap.map(|cap| cap.0)).bind(limits.requests_per_minute.map(i64::from));
        let update = update.bind(limits.tokens_per_minute.map(i64::from)).bind(limits.n_concurrent_max.map(i64::from));
        let updated = update.bind(id.to_string()).bind(account.to_string()).execute(&mut *write.transaction).await;
        if updated.map_err(PlatformError::database("bounding a project"))?.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "project" });
        }
        note_change(&mut write, "project", &id.to_string()).await?;
        let deed =
            Deed { action: "project.limits_changed", account: Some(account), target: id.to_string(), before, after: limits_json(&limits) };
        self.audit(&mut write, by, deed).await?;
        write.commit("bounding a project").await
    }
    /// Gives a project another name.
    pub async fn rename_project(&self, (account, id): (AccountId, ProjectId), name: &str, by: &By) -> Result<(), PlatformError> {
        check_label(name)?;
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("renaming a project");
        let query = sqlx::query("SELECT name FROM project WHERE id = $1 AND account_id = $2");
        let row = query.bind(id.to_string()).bind(account.to_string()).fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let before: String = get(&row.ok_or(PlatformError::NotFound { what: "project" })?, "name")?;
        let update = sqlx::query("UPDATE project SET name = $1 WHERE id = $2").bind(name.to_string()).bind(id.to_string());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        let (before, after) = (json!({ "name": before }), json!({ "name": name }));
        let deed = Deed { action: "project.renamed", account: Some(account), target: id.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("renaming a project").await
    }
}
