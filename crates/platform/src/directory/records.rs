//! Accounts, projects and keys in the database. Every change is noted in the feed within its own transaction, so that whoever keeps
//! a copy learns of it; what belongs to another account is not found, as if it were not there.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::catalog::Catalog;
use crate::directory::secret::{KeyHasher, KeyText};
use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId, ProjectId};
use crate::ledger::event::Owner;
use crate::ledger::scope::ScopeLimits;
use crate::ledger::{AccountStatus, Overage};
use crate::limits::{LABEL_BYTES_MAX, N_KEY_SCOPES_MAX, RATE_PER_MINUTE_MAX};
use crate::money::Micros;
use crate::store::catalog::scope_limits;
use crate::store::{Store, Write, as_i64, get, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;
use crate::webhooks::Happened;

/// An account to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccount {
    /// For people.
    pub name: String,
    /// Its plan from now on.
    pub plan: String,
    /// What comes after the plan's operations.
    pub overage: Overage,
    /// What it may owe for the tokens of a month.
    pub spending_cap: Micros,
}

/// A key to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// Whose.
    pub account: AccountId,
    /// For which of its projects.
    pub project: ProjectId,
    /// For people.
    pub name: String,
    /// What it opens.
    pub access: KeyAccess,
    /// What it may be used for.
    pub scope: KeyScope,
    /// What bounds it.
    pub limits: ScopeLimits,
    /// From when on it is nothing.
    pub expires_at: Option<Timestamp>,
}

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyAccess {
    /// Models.
    #[default]
    Inference,
    /// The organisation's own API: usage, costs, keys. No model.
    Admin,
}

impl KeyAccess {
    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Admin => "admin",
        }
    }
}

/// Models and routes that a key is for; without a list, any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyScope {
    /// Models, by name.
    pub models: Option<Vec<String>>,
    /// Routes, by path.
    pub routes: Option<Vec<String>>,
}

impl KeyScope {
    /// Whether it covers a route, whatever the model.
    pub fn allows_route(&self, route: &str) -> bool {
        self.routes.as_ref().is_none_or(|routes| routes.iter().any(|other| other == route))
    }

    /// Whether it covers a model on a route.
    pub fn allows(&self, model: &str, route: &str) -> bool {
        let is_model = |models: &Vec<String>| models.iter().any(|other| other == model);
        self.models.as_ref().is_none_or(is_model) && self.allows_route(route)
    }
}

/// A key that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Which.
    pub id: ApiKeyId,
    /// Whose.
    pub owner: Owner,
    /// For people.
    pub name: String,
    /// Its beginning.
    pub prefix: String,
    /// What it opens.
    pub access: KeyAccess,
    /// What it may be used for.
    pub scope: KeyScope,
    /// What bounds it.
    pub limits: ScopeLimits,
    /// Since when there is one.
    pub created_at: Timestamp,
    /// From when on it is nothing.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    pub(crate) hash: blake3::Hash,
}

impl ApiKey {
    /// Whether it opens anything then.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expires_at| now < expires_at)
    }
}

const INSERT_KEY: &str = "INSERT INTO api_key (id, account_id, project_id, name, prefix, hash, models, routes, spending_cap, requests_per_minute, tokens_per_minute, n_concurrent_max, created_at, expires_at, revoked_at, replaces, access) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, NULL, $15, $16)";

impl Store {
    /// Makes an account.
    pub async fn create_account(&self, account: NewAccount, by: &By) -> Result<AccountId, PlatformError> {
        let catalog = self.catalog().await?;
        let mut write = self.begin().await?;
        let id = self.insert_account(&mut write, account, &catalog, by).await?;
        write.commit("creating an account").await?;
        Ok(id)
    }

    /// The same as a part of something larger.
    pub(crate) async fn insert_account(
        &self,
        write: &mut Write<'_>,
        account: NewAccount,
        catalog: &Catalog,
        by: &By,
    ) -> Result<AccountId, PlatformError> {
        check_label(&account.name)?;
        catalog.named_plan(&account.plan, by.at)?;
        if account.spending_cap < Micros::ZERO {
            return Err(PlatformError::Invalid { field: "spending_cap", reason: "it is negative".into() });
        }
        let id = AccountId::random()?;
        let NewAccount { name, plan, overage, spending_cap } = &account;
        let after = json!({ "name": name, "plan": plan, "overage": overage.name(), "spending_cap_micros": spending_cap.0 });
        let failed = || PlatformError::database("creating an account");
        let overage = account.overage.name();
        sqlx::query("INSERT INTO account (id, name, status, overage, spending_cap, created_at) VALUES ($1, $2, 'active', $3, $4, $5)")
            .bind(id.to_string())
            .bind(account.name)
            .bind(overage)
            .bind(account.spending_cap.0)
            .bind(by.at.0)
            .execute(&mut *write.transaction)
            .await
            .map_err(failed())?;
        sqlx::query("INSERT INTO account_plan (account_id, plan_id, valid_from, valid_until) VALUES ($1, $2, $3, NULL)")
            .bind(id.to_string())
            .bind(account.plan)
            .bind(by.at.0)
            .execute(&mut *write.transaction)
            .await
            .map_err(failed())?;
        note_change(write, "account", &id.to_string()).await?;
        let deed = Deed { action: "account.created", account: Some(id), target: id.to_string(), before: Value::Null, after };
        self.audit(write, by, deed).await?;
        Ok(id)
    }

    /// Lets an account work, or not.
    pub async fn set_account_status(&self, account: AccountId, status: AccountStatus, by: &By) -> Result<(), PlatformError> {
        let (before, after) = (json!({ "status": self.account(account, by.at).await?.status.name() }), json!({ "status": status.name() }));
        let mut write = self.begin().await?;
        let status = status.name();
        let query = sqlx::query("UPDATE account SET status = $1 WHERE id = $2").bind(status).bind(account.to_string());
        let updated = query.execute(&mut *write.transaction).await.map_err(PlatformError::database("updating an account"))?;
        if updated.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "account" });
        }
        if status == AccountStatus::Active.name() {
            // Whoever lets it work lets it work, whatever it owes.
            self.lift_restriction(&mut write, account).await?;
        }
        note_change(&mut write, "account", &account.to_string()).await?;
        let deed = Deed { action: "account.status_changed", account: Some(account), target: account.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("updating an account").await
    }

    /// Makes a project.
    pub async fn create_project(&self, account: AccountId, name: &str, limits: ScopeLimits, by: &By) -> Result<ProjectId, PlatformError> {
        if self.terms_of(account).await?.is_none() {
            return Err(PlatformError::NotFound { what: "account" });
        }
        let mut write = self.begin().await?;
        let id = self.insert_project(&mut write, account, (name, limits), by).await?;
        write.commit("creating a project").await?;
        Ok(id)
    }

    /// The same as a part of something larger.
    pub(crate) async fn insert_project(
        &self,
        write: &mut Write<'_>,
        account: AccountId,
        (name, limits): (&str, ScopeLimits),
        by: &By,
    ) -> Result<ProjectId, PlatformError> {
        check_label(name)?;
        check_limits(&limits)?;
        let id = ProjectId::random()?;
        sqlx::query("INSERT INTO project (id, account_id, name, spending_cap, requests_per_minute, tokens_per_minute, n_concurrent_max, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(id.to_string())
            .bind(account.to_string())
            .bind(name.to_string())
            .bind(limits.spending_cap.map(|cap| cap.0))
            .bind(limits.requests_per_minute.map(i64::from))
            .bind(limits.tokens_per_minute.map(i64::from))
            .bind(limits.n_concurrent_max.map(i64::from))
            .bind(by.at.0)
            .execute(&mut *write.transaction)
            .await
            .map_err(PlatformError::database("creating a project"))?;
        note_change(write, "project", &id.to_string()).await?;
        let after = json!({ "name": name, "limits": limits_json(&limits) });
        let deed = Deed { action: "project.created", account: Some(account), target: id.to_string(), before: Value::Null, after };
        self.audit(write, by, deed).await?;
        Ok(id)
    }

    /// Makes a key, whose text is nowhere but in the answer.
    pub async fn create_api_key(&self, key: NewApiKey, hasher: &KeyHasher, by: &By) -> Result<(ApiKeyId, KeyText), PlatformError> {
        let mut write = self.begin().await?;
        let made = self.insert_key(&mut write, (key, None), hasher, by).await?;
        write.commit("creating a key").await?;
        Ok(made)
    }

    /// Makes a key that may do the same as an old one, which ends at a time.
    pub async fn rotate_api_key(
        &self,
        (account, id): (AccountId, ApiKeyId),
        old_until: Timestamp,
        hasher: &KeyHasher,
        by: &By,
    ) -> Result<(ApiKeyId, KeyText), PlatformError> {
        let old = self.api_key(id).await?.filter(|key| key.owner.account == account && key.is_valid_at(by.at));
        let old = old.ok_or(PlatformError::NotFound { what: "API key" })?;
        let ends = old.expires_at.map_or(old_until, |expires_at| expires_at.min(old_until));
        let (before, after) = (json!({ "expires_at": old.expires_at.map(|time| time.0) }), json!({ "expires_at": ends.0 }));
        let rotated = Deed { action: "api_key.rotated", account: Some(account), target: id.to_string(), before, after };
        let mut write = self.begin().await?;
        let query = sqlx::query("UPDATE api_key SET expires_at = $1 WHERE id = $2 AND revoked_at IS NULL");
        let query = query.bind(ends.0).bind(id.to_string());
        let updated = query.execute(&mut *write.transaction).await.map_err(PlatformError::database("rotating a key"))?;
        if updated.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "API key" });
        }
        note_change(&mut write, "api_key", &id.to_string()).await?;
        self.note_key(&mut write, ("api_key.rotated", account, id), by.at).await?;
        self.audit(&mut write, by, rotated).await?;
        let ApiKey { owner, name, access, scope, limits, expires_at, .. } = old;
        let key = NewApiKey { account, project: owner.project, name, access, scope, limits, expires_at };
        let made = self.insert_key(&mut write, (key, Some(id)), hasher, by).await?;
        write.commit("rotating a key").await?;
        Ok(made)
    }

    /// Ends a key now. Doing it again changes nothing.
    pub async fn revoke_api_key(&self, account: AccountId, id: ApiKeyId, by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let query = sqlx::query("UPDATE api_key SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2 AND account_id = $3");
        let query = query.bind(by.at.0).bind(id.to_string()).bind(account.to_string());
        let updated = query.execute(&mut *write.transaction).await.map_err(PlatformError::database("revoking a key"))?;
        if updated.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "API key" });
        }
        note_change(&mut write, "api_key", &id.to_string()).await?;
        let after = json!({ "revoked": true });
        self.note_key(&mut write, ("api_key.revoked", account, id), by.at).await?;
        let deed = Deed { action: "api_key.revoked", account: Some(account), target: id.to_string(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("revoking a key").await
    }

    /// Tells the account of what became of a key.
    async fn note_key(
        &self,
        write: &mut Write<'_>,
        (kind, account, id): (&'static str, AccountId, ApiKeyId),
        now: Timestamp,
    ) -> Result<(), PlatformError> {
        let data = json!({ "id": id.to_string() });
        // A key is revoked once, however often that is said.
        let happened = Happened { account, source: format!("{kind}:{id}"), kind, data };
        self.note_happened(write, happened, now).await.map(|_| ())
    }

    async fn insert_key(
        &self,
        write: &mut Write<'_>,
        (key, replaces): (NewApiKey, Option<ApiKeyId>),
        hasher: &KeyHasher,
        by: &By,
    ) -> Result<(ApiKeyId, KeyText), PlatformError> {
        check_key(&key)?;
        self.check_room_for_key(write, &key, replaces.is_some(), by.at).await?;
        let after = key_json(&key, replaces);
        let account = key.account;
        let (id, text) = (ApiKeyId::random()?, KeyText::random()?);
        let hash =
            hasher.hash(text.reveal()).ok_or(PlatformError::Invalid { field: "key", reason: "it has not the form of one".into() })?;
        let list = |names: &Option<Vec<String>>| names.as_ref().map(|names| serde_json::Value::from(names.clone()).to_string());
        sqlx::query(INSERT_KEY)
            .bind(id.to_string())
            .bind(key.account.to_string())
            .bind(key.project.to_string())
            .bind(key.name)
            .bind(text.shown().to_string())
            .bind(hash.as_bytes().to_vec())
            .bind(list(&key.scope.models))
            .bind(list(&key.scope.routes))
            .bind(key.limits.spending_cap.map(|cap| cap.0))
            .bind(key.limits.requests_per_minute.map(i64::from))
            .bind(key.limits.tokens_per_minute.map(i64::from))
            .bind(key.limits.n_concurrent_max.map(i64::from))
            .bind(by.at.0)
            .bind(key.expires_at.map(|time| time.0))
            .bind(replaces.map(|id| id.to_string()))
            .bind(key.access.name())
            .execute(&mut *write.transaction)
            .await
            .map_err(PlatformError::database("creating a key"))?;
        note_change(write, "api_key", &id.to_string()).await?;
        self.note_key(write, ("api_key.created", account, id), by.at).await?;
        let deed = Deed { action: "api_key.created", account: Some(account), target: id.to_string(), before: Value::Null, after };
        self.audit(write, by, deed).await?;
        Ok((id, text))
    }

    /// The project is the account's, and its plan has room. The feed's row is locked first, so that two keys cannot both be the last.
    async fn check_room_for_key(
        &self,
        write: &mut Write<'_>,
        key: &NewApiKey,
        replaces: bool,
        now: Timestamp,
    ) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("counting keys");
        let lock = sqlx::query("UPDATE directory_revision SET revision = revision");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let query = sqlx::query("SELECT id FROM project WHERE id = $1 AND account_id = $2");
        let query = query.bind(key.project.to_string()).bind(key.account.to_string());
        if query.fetch_optional(&mut *write.transaction).await.map_err(failed())?.is_none() {
            return Err(PlatformError::NotFound { what: "project" });
        }
        // Plans count keys for models; administration costs nothing.
        if key.access == KeyAccess::Admin {
            return Ok(());
        }
        let query = sqlx::query(
            "SELECT p.n_api_keys_max AS most FROM account_plan a JOIN plan p ON p.id = a.plan_id WHERE a.account_id = $1 AND a.valid_from <= $2 AND (a.valid_until IS NULL OR a.valid_until > $2) AND p.valid_from <= $2 AND (p.valid_until IS NULL OR p.valid_until > $2)",
        );
        let row = query.bind(key.account.to_string()).bind(now.0).fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let Some(limit) = row.map(|row| crate::store::get_optional_u32(&row, "most")).transpose()?.flatten() else { return Ok(()) };
        let query = sqlx::query(
            "SELECT COUNT(*) AS n FROM api_key WHERE account_id = $1 AND access = 'inference' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
        );
        let row = query.bind(key.account.to_string()).bind(now.0).fetch_one(&mut *write.transaction).await.map_err(failed())?;
        // A key and the one that replaces it count once while both live.
        let n_keys = get::<i64>(&row, "n")? - i64::from(replaces);
        if n_keys >= i64::from(limit) {
            return Err(PlatformError::PlanLimit { what: "API keys", limit });
        }
        Ok(())
    }

    /// A key by its id.
    pub(crate) async fn api_key(&self, id: ApiKeyId) -> Result<Option<ApiKey>, PlatformError> {
        let query = sqlx::query("SELECT * FROM api_key WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a key"))?;
        row.as_ref().map(read_key).transpose()
    }

    /// The keys of an account, or all.
    pub async fn api_keys(&self, account: Option<AccountId>) -> Result<Vec<ApiKey>, PlatformError> {
        let query = match account {
            Some(id) => sqlx::query("SELECT * FROM api_key WHERE account_id = $1 ORDER BY created_at, id").bind(id.to_string()),
            None => sqlx::query("SELECT * FROM api_key ORDER BY created_at, id"),
        };
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading keys"))?;
        rows.iter().map(read_key).collect()
    }

    /// How many keys of an account open something from a time on; from the beginning of time, all that there ever were.
    pub async fn n_api_keys(&self, account: AccountId, from: Timestamp) -> Result<u64, PlatformError> {
        let query = sqlx::query(
            "SELECT COUNT(*) AS n FROM api_key WHERE account_id = $1 AND (revoked_at IS NULL OR revoked_at > $2) AND (expires_at IS NULL OR expires_at > $2)",
        );
        let row = query.bind(account.to_string()).bind(from.0).fetch_one(self.pool()).await;
        crate::store::get_count(&row.map_err(PlatformError::database("counting keys"))?, "n")
    }

    /// The limits of a project.
    pub(crate) async fn project_limits(&self, id: ProjectId) -> Result<Option<ScopeLimits>, PlatformError> {
        let query = sqlx::query("SELECT * FROM project WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a project"))?;
        row.as_ref().map(scope_limits).transpose()
    }
}

/// Notes a change; the row lock on the revision makes revisions commit in their order, so that no reader passes one over.
pub(crate) async fn note_change(write: &mut Write<'_>, kind: &'static str, id: &str) -> Result<(), PlatformError> {
    let failed = || PlatformError::database("noting a change");
    let update = sqlx::query("UPDATE directory_revision SET revision = revision + 1");
    update.execute(&mut *write.transaction).await.map_err(failed())?;
    let insert = sqlx::query("INSERT INTO directory_change (revision, kind, id) SELECT revision, $1, $2 FROM directory_revision");
    insert.bind(kind).bind(id.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
    Ok(())
}

fn read_key(row: &AnyRow) -> Result<ApiKey, PlatformError> {
    let id = get_parsed(row, "id")?;
    let list = |column| {
        let text: Option<String> = get(row, column)?;
        let parse =
            |text: String| serde_json::from_str(&text).map_err(|error| PlatformError::Corrupt { what: column, reason: error.to_string() });
        text.map(parse).transpose()
    };
    let hash: Vec<u8> = get(row, "hash")?;
    let n_bytes = hash.len();
    let hash: [u8; 32] = hash.try_into().map_err(|_| PlatformError::Corrupt { what: "hash", reason: format!("{n_bytes} bytes") })?;
    Ok(ApiKey {
        id,
        owner: Owner { account: get_parsed(row, "account_id")?, project: get_parsed(row, "project_id")?, api_key: Some(id) },
        name: get(row, "name")?,
        prefix: get(row, "prefix")?,
        access: if get::<String>(row, "access")? == "admin" { KeyAccess::Admin } else { KeyAccess::Inference },
        scope: KeyScope { models: list("models")?, routes: list("routes")? },
        limits: scope_limits(row)?,
        created_at: get_time(row, "created_at")?,
        expires_at: get_optional_time(row, "expires_at")?,
        revoked_at: get_optional_time(row, "revoked_at")?,
        hash: hash.into(),
    })
}

pub(crate) fn check_label(name: &str) -> Result<(), PlatformError> {
    let is_fine = !name.trim().is_empty() && name.len() <= LABEL_BYTES_MAX && !name.contains(char::is_control);
    let reason = || format!("expected 1 to {LABEL_BYTES_MAX} bytes without control characters, got {}", name.len());
    if is_fine { Ok(()) } else { Err(PlatformError::Invalid { field: "name", reason: reason() }) }
}

pub(super) fn check_limits(limits: &ScopeLimits) -> Result<(), PlatformError> {
    if limits.spending_cap.is_some_and(|cap| cap < Micros::ZERO) {
        return Err(PlatformError::Invalid { field: "spending_cap", reason: "it is negative".into() });
    }
    for (field, rate) in [("requests_per_minute", limits.requests_per_minute), ("tokens_per_minute", limits.tokens_per_minute)] {
        if rate.is_some_and(|rate| rate > RATE_PER_MINUTE_MAX) {
            return Err(PlatformError::Invalid { field, reason: format!("at most {RATE_PER_MINUTE_MAX}") });
        }
    }
    Ok(())
}

pub(super) fn limits_json(limits: &ScopeLimits) -> Value {
    json!({
        "spending_cap_micros": limits.spending_cap.map(|cap| cap.0),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "n_concurrent_max": limits.n_concurrent_max,
    })
}

fn key_json(key: &NewApiKey, replaces: Option<ApiKeyId>) -> Value {
    json!({
        "project": key.project.to_string(),
        "name": key.name,
        "access": key.access.name(),
        "models": key.scope.models,
        "routes": key.scope.routes,
        "limits": limits_json(&key.limits),
        "expires_at": key.expires_at.map(|time| time.0),
        "replaces": replaces.map(|id| id.to_string()),
    })
}

fn check_key(key: &NewApiKey) -> Result<(), PlatformError> {
    check_label(&key.name)?;
    check_limits(&key.limits)?;
    for (field, names) in [("models", &key.scope.models), ("routes", &key.scope.routes)] {
        let names = names.as_deref().unwrap_or_default();
        if names.len() > N_KEY_SCOPES_MAX || names.iter().any(|name| name.is_empty() || name.len() > LABEL_BYTES_MAX) {
            return Err(PlatformError::Invalid { field, reason: format!("at most {N_KEY_SCOPES_MAX} names, none of them empty") });
        }
    }
    Ok(())
}

/// A change of the feed.
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) kind: String,
    pub(crate) id: String,
}

impl Store {
    /// Changes after a revision, in order, some at a time.
    pub(crate) async fn changes_after(&self, revision: u64) -> Result<Vec<Change>, PlatformError> {
        let query = sqlx::query("SELECT revision, kind, id FROM directory_change WHERE revision > $1 ORDER BY revision LIMIT $2");
        let query = query.bind(as_i64(revision)).bind(crate::limits::N_CHANGES_PER_POLL);
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading changes"))?;
        let read =
            |row: &AnyRow| Ok(Change { revision: crate::store::get_count(row, "revision")?, kind: get(row, "kind")?, id: get(row, "id")? });
        rows.iter().map(read).collect()
    }

    /// The last revision.
    pub(crate) async fn revision(&self) -> Result<u64, PlatformError> {
        let query = sqlx::query("SELECT revision FROM directory_revision");
        let row = query.fetch_one(self.pool()).await.map_err(PlatformError::database("reading changes"))?;
        crate::store::get_count(&row, "revision")
    }
}

/// Keys as they are shared.
pub(crate) type SharedKey = Arc<ApiKey>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_with_a_list_covers_only_what_it_names() {
        let scope = KeyScope { models: Some(vec!["m".into()]), routes: None };
        assert!(scope.allows("m", "/v1/embeddings") && !scope.allows("mm", "/v1/embeddings"));
        let nothing = KeyScope { models: None, routes: Some(Vec::new()) };
        assert!(!nothing.allows("m", "/v1/embeddings") && KeyScope::default().allows("m", "/"));
    }
}
