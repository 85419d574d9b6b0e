//! Who may call: a copy of all keys in memory, found by their hash without a question to the database, and kept up to date from the
//! feed of changes, whoever made them. The ledger learns of terms and limits the same way.

mod limits;
mod operation;
mod records;
mod secret;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId, GrantId, ProjectId};
use crate::ledger::event::Owner;
use crate::ledger::scope::ScopeId;
use crate::ledger::service::LedgerService;
use crate::limits::{CHANGE_POLL, LENT_KEY_AGE_MAX, N_LENT_KEYS_MAX};
use crate::store::Store;
use crate::time::Timestamp;

pub use operation::{AccountRow, NewCredit, ProjectRow, Search};
pub use records::{ApiKey, KeyAccess, KeyScope, NewAccount, NewApiKey};
pub(crate) use records::{check_label, note_change};
pub use secret::{KeyHasher, KeyText};

#[derive(Default)]
struct Keys {
    by_hash: HashMap<[u8; 32], records::SharedKey>,
    by_id: HashMap<ApiKeyId, records::SharedKey>,
    /// Keys that are in no database and end soon.
    lent: Vec<ApiKeyId>,
}

impl Keys {
    fn insert(&mut self, key: ApiKey) {
        let key = Arc::new(key);
        self.by_hash.insert(*key.hash.as_bytes(), key.clone());
        self.by_id.insert(key.id, key);
    }

    /// Forgets lent keys that have ended.
    fn sweep(&mut self, now: Timestamp) {
        let Self { by_hash, by_id, lent } = self;
        lent.retain(|id| {
            let Some(key) = by_id.get(id).filter(|key| !key.is_valid_at(now)).cloned() else { return true };
            by_hash.remove(key.hash.as_bytes());
            by_id.remove(id);
            false
        });
    }
}

/// See the module.
pub struct Directory {
    store: Arc<Store>,
    ledger: Arc<LedgerService>,
    hasher: KeyHasher,
    keys: RwLock<Keys>,
    /// The last change that is applied here. Held while changes are applied, so that they are in order.
    revision: tokio::sync::Mutex<u64>,
}

impl Directory {
    /// Reads everything.
    pub async fn open(store: Arc<Store>, ledger: Arc<LedgerService>, hasher: KeyHasher) -> Result<Self, PlatformError> {
        // The revision first: a change while the keys are read is applied again, which does no harm.
        let revision = store.revision().await?;
        let mut keys = Keys::default();
        store.api_keys(None).await?.into_iter().for_each(|key| keys.insert(key));
        for credit in store.credits_to_grant().await? {
            ledger.grant(credit);
        }
        Ok(Self { store, ledger, hasher, keys: RwLock::new(keys), revision: tokio::sync::Mutex::new(revision) })
    }

    /// The key that a caller presents, if it opens anything now. That it is unknown, revoked or expired all look the same. It is
    /// found by the hash of all of it, so the time that this takes says nothing about keys that are almost right.
    pub fn find(&self, presented: &str, now: Timestamp) -> Option<Arc<ApiKey>> {
        let hash = self.hasher.hash(presented)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        // `blake3::Hash` compares in constant time.
        keys.by_hash.get(hash.as_bytes()).filter(|key| key.hash == hash && key.is_valid_at(now)).cloned()
    }

    /// A key by its id, if it opens anything now.
    pub fn get(&self, id: ApiKeyId, now: Timestamp) -> Option<Arc<ApiKey>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.by_id.get(&id).filter(|key| key.is_valid_at(now)).cloned()
    }

    /// A key for the playground: good for some minutes, for a project's text routes, in this process and in no database. What it uses is the
    /// project's.
    pub(crate) fn lend(&self, (account, project): (AccountId, ProjectId), now: Timestamp) -> Result<KeyText, PlatformError> {
        let (id, text) = (ApiKeyId::random()?, KeyText::random()?);
        let unusable = || PlatformError::Invalid { field: "key", reason: "it has not the form of one".into() };
        let hash = self.hasher.hash(text.reveal()).ok_or_else(unusable)?;
        let routes = ["/v1/chat/completions", "/v1/completions", "/v1/models"].map(String::from).to_vec();
        let key = ApiKey {
            id,
            owner: Owner { account, project, api_key: None },
            name: "playground".into(),
            prefix: text.shown().into(),
            access: KeyAccess::Inference,
            scope: KeyScope { models: None, routes: Some(routes) },
            limits: Default::default(),
            created_at: now,
            expires_at: Some(now.plus(LENT_KEY_AGE_MAX)),
            revoked_at: None,
            hash,
        };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.sweep(now);
        if keys.lent.len() >= N_LENT_KEYS_MAX {
            return Err(PlatformError::Throttled { retry_after_s: LENT_KEY_AGE_MAX.as_secs() });
        }
        keys.lent.push(id);
        keys.insert(key);
        Ok(text)
    }

    /// Applies what has changed since the last time, here or in another process; says how much.
    pub async fn refresh(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let mut revision = self.revision.lock().await;
        let mut n_changes = 0;
        loop {
            let changes = self.store.changes_after(*revision).await?;
            if changes.is_empty() {
                return Ok(n_changes);
            }
            for change in changes {
                self.apply(&change, now).await?;
                *revision = change.revision;
                n_changes += 1;
            }
        }
    }

    async fn apply(&self, change: &records::Change, now: Timestamp) -> Result<(), PlatformError> {
        match change.kind.as_str() {
            "account" => {
                if let Some(terms) = self.store.terms_of(change.id.parse::<AccountId>()?).await? {
                    self.ledger.ledger().set_account(terms);
                }
            }
            "project" => {
                let id: ProjectId = change.id.parse()?;
                if let Some(limits) = self.store.project_limits(id).await? {
                    self.ledger.ledger().set_limits(ScopeId::Project(id), limits, now);
                }
            }
            "api_key" => {
                let id: ApiKeyId = change.id.parse()?;
                if let Some(key) = self.store.api_key(id).await? {
                    self.ledger.ledger().set_limits(ScopeId::ApiKey(id), key.limits, now);
                    self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(key);
                }
            }
            "credit" => {
                let id: GrantId = change.id.parse()?;
                if let Some(credit) = self.store.credit(id).await? {
                    self.ledger.grant(credit);
                }
            }
            "catalog" => self.refresh_catalog().await?,
            kind => return Err(PlatformError::Corrupt { what: "directory_change.kind", reason: kind.to_string() }),
        }
        Ok(())
    }

    /// Reads the rate cards again.
    pub async fn refresh_catalog(&self) -> Result<(), PlatformError> {
        let catalog = self.store.catalog().await?;
        self.ledger.ledger().set_catalog(catalog);
        Ok(())
    }

    /// Refreshes for ever. A database that is away leaves the copy as it is; what was revoked before stays revoked.
    pub async fn run(self: Arc<Self>, now: fn() -> Timestamp) {
        let mut is_failing = false;
        loop {
            tokio::time::sleep(CHANGE_POLL).await;
            match self.refresh(now()).await {
                Ok(_) if is_failing => tracing::info!("the directory is up to date again"),
                Err(error) if !is_failing => tracing::warn!(%error, "the directory cannot be refreshed"),
                _ => continue,
            }
            is_failing = !is_failing;
        }
    }
}
