//! Compiled constraints, kept for their tenant in bounded bytes, the least recently used given up first. One tenant never finds
//! another's: that it compiled fast would tell that the other uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::constraint::CompiledConstraint;
use crate::constraint::source::{Kind, Source};
use crate::limits::{CONSTRAINT_CACHE_BYTES, CONSTRAINT_CACHE_TENANT_BYTES};
use crate::request::TenantSalt;

/// What a compiled constraint is reckoned at, since its compiler does not tell: as much as any of those measured took (a constant 37 KB,
/// 10 properties 169 KB from 440 bytes, 100 of them 545 KB from 4205, a grammar of 400 options 348 KB from 2011).
const BYTES_MIN: usize = 96 << 10;
const BYTES_PER_SOURCE_BYTE: usize = 192;

type Key = (TenantSalt, Kind, String);

struct Kept {
    compiled: Arc<CompiledConstraint>,
    n_bytes: usize,
    last_use: u64,
}

/// The cache.
#[derive(Default)]
pub(super) struct ConstraintCache {
    kept: HashMap<Key, Kept>,
    by_use: BTreeMap<u64, Key>,
    tenant_bytes: HashMap<TenantSalt, usize>,
    n_bytes: usize,
    last_use: u64,
}

impl ConstraintCache {
    /// A constraint that was compiled before.
    pub(super) fn find(&mut self, tenant: TenantSalt, source: &Source) -> Option<Arc<CompiledConstraint>> {
        let key = (tenant, source.kind, source.text.clone());
        let kept = self.kept.get_mut(&key)?;
        self.by_use.remove(&kept.last_use);
        self.last_use += 1;
        kept.last_use = self.last_use;
        self.by_use.insert(self.last_use, key);
        Some(Arc::clone(&kept.compiled))
    }

    /// Keeps a compiled constraint.
    pub(super) fn insert(&mut self, tenant: TenantSalt, source: Source, compiled: Arc<CompiledConstraint>) {
        let n_bytes = BYTES_MIN + source.text.len() * BYTES_PER_SOURCE_BYTE;
        let key = (tenant, source.kind, source.text);
        if n_bytes > CONSTRAINT_CACHE_TENANT_BYTES || self.kept.contains_key(&key) {
            return;
        }
        while self.tenant_bytes.get(&tenant).copied().unwrap_or(0) + n_bytes > CONSTRAINT_CACHE_TENANT_BYTES {
            let Some(oldest) = self.by_use.values().find(|(owner, ..)| *owner == tenant).cloned() else { return };
            self.remove(&oldest);
        }
        while self.n_bytes + n_bytes > CONSTRAINT_CACHE_BYTES {
            let Some(oldest) = self.by_use.values().next().cloned() else { return };
            self.remove(&oldest);
        }
        self.last_use += 1;
        self.by_use.insert(self.last_use, key.clone());
        self.kept.insert(key, Kept { compiled, n_bytes, last_use: self.last_use });
        *self.tenant_bytes.entry(tenant).or_default() += n_bytes;
        self.n_bytes += n_bytes;
    }

    fn remove(&mut self, key: &Key) {
        let Some(kept) = self.kept.remove(key) else { return };
        self.by_use.remove(&kept.last_use);
        self.n_bytes -= kept.n_bytes;
        if let Some(bytes) = self.tenant_bytes.get_mut(&key.0) {
            *bytes -= kept.n_bytes;
            if *bytes == 0 {
                self.tenant_bytes.remove(&key.0);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    #[cfg(test)]
    pub(super) fn n_bytes_of(&self, tenant: TenantSalt) -> usize {
        self.tenant_bytes.get(&tenant).copied().unwrap_or(0)
    }
}
