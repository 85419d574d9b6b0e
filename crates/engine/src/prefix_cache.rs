//! Which idle or busy blocks hold which tokens, so that a prompt that begins like an earlier one is not computed again. Blocks are
//! found by a hash chain over their tokens and all before (vllm-project/vllm `v1/core/kv_cache_utils.py`), rooted in the tenant's
//! salt. A hash only finds a candidate: its tokens, its tenant and the very entry it follows are compared before it is used, so a
//! collision costs a miss and never a wrong answer. Reference counts are `block_pool`'s.

use std::collections::{BTreeMap, HashMap};

use bitnet_model::TokenId;
use bitnet_model::batch::BlockId;
use bitnet_model::limits::BLOCK_TOKENS;
use sha2::{Digest, Sha256};

use crate::request::TenantSalt;

type ChainHash = [u8; 32];
/// Hash of a block's tokens and of the chain before it.
pub(crate) type HashTokens = fn(&ChainHash, &[TokenId]) -> ChainHash;

/// A place in a chain: everything up to and including one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainEnd {
    hash: ChainHash,
    /// Serial number of the entry; 0 before the first.
    serial: u64,
}

impl ChainEnd {
    /// Before the first block of a tenant's sequences.
    pub(crate) fn root(tenant: TenantSalt) -> Self {
        Self { hash: tenant.0, serial: 0 }
    }
}

struct Entry {
    end: ChainEnd,
    /// Serial number of the entry before.
    parent: u64,
    tenant: TenantSalt,
    token_ids: [TokenId; BLOCK_TOKENS],
    /// When it became idle; `None` while sequences use it.
    idle_since: Option<u64>,
}

/// The index of blocks by content, and the order in which idle ones are given up.
pub(crate) struct PrefixCache {
    /// By block.
    entries: Vec<Option<Entry>>,
    by_hash: HashMap<ChainHash, BlockId>,
    /// Idle blocks, the longest idle first.
    idle: BTreeMap<u64, BlockId>,
    idle_by_tenant: HashMap<TenantSalt, BTreeMap<u64, BlockId>>,
    /// Most idle blocks of one tenant.
    n_idle_per_tenant: usize,
    hash: HashTokens,
    last_serial: u64,
    last_tick: u64,
}

fn sha256(before: &ChainHash, token_ids: &[TokenId]) -> ChainHash {
    let mut hasher = Sha256::new();
    hasher.update(before);
    token_ids.iter().for_each(|token_id| hasher.update(token_id.0.to_le_bytes()));
    hasher.finalize().into()
}

impl PrefixCache {
    /// An empty index for `n_blocks` blocks, of which one tenant may hold `n_idle_per_tenant` idle ones.
    pub(crate) fn new(n_blocks: usize, n_idle_per_tenant: usize) -> Self {
        Self::with_hash(n_blocks, n_idle_per_tenant, sha256)
    }

    fn with_hash(n_blocks: usize, n_idle_per_tenant: usize, hash: HashTokens) -> Self {
        Self {
            entries: (0..n_blocks).map(|_| None).collect(),
            by_hash: HashMap::new(),
            idle: BTreeMap::new(),
            idle_by_tenant: HashMap::new(),
            n_idle_per_tenant,
            hash,
            last_serial: 0,
            last_tick: 0,
        }
    }

    /// Blocks that could be given up.
    pub(crate) fn n_idle(&self) -> usize {
        self.idle.len()
    }

    /// The blocks that hold the beginning of `token_ids`, whole blocks only, and where their chain ends.
    pub(crate) fn find(&self, tenant: TenantSalt, token_ids: &[TokenId]) -> (Vec<BlockId>, ChainEnd) {
        let mut end = ChainEnd::root(tenant);
        let mut blocks = Vec::new();
        for tokens in token_ids.chunks_exact(BLOCK_TOKENS) {
            let hash = (self.hash)(&end.hash, tokens);
            let Some(block) = self.verified(&hash, (tenant, end.serial), tokens) else { break };
            let Some(entry) = &self.entries[block.0 as usize] else { break };
            end = entry.end;
            blocks.push(block);
        }
        (blocks, end)
    }

    /// The block under `hash` if it is what its finder thinks it is.
    fn verified(&self, hash: &ChainHash, (tenant, parent): (TenantSalt, u64), tokens: &[TokenId]) -> Option<BlockId> {
        let block = *self.by_hash.get(hash)?;
        let entry = self.entries[block.0 as usize].as_ref()?;
        (entry.parent == parent && entry.tenant == tenant && entry.token_ids == *tokens).then_some(block)
    }

    /// Makes a full block findable after `before`. Where its content is known already, the known block stays and this one remains
    /// nameless. Returns the chain's new end, and a block that lost its name and is idle, for the caller to free.
    pub(crate) fn insert(
        &mut self,
        block: BlockId,
        (tenant, before): (TenantSalt, ChainEnd),
        token_ids: &[TokenId; BLOCK_TOKENS],
    ) -> (ChainEnd, Option<BlockId>) {
        let hash = (self.hash)(&before.hash, token_ids);
        if let Some(known) = self.verified(&hash, (tenant, before.serial), token_ids)
            && let Some(entry) = &self.entries[known.0 as usize]
        {
            return (entry.end, None);
        }
        // Whatever else has this hash follows an entry that is gone, or collides: the newer one is more likely to be asked for.
        let displaced = self.by_hash.get(&hash).copied().and_then(|old| self.remove(old));
        self.last_serial += 1;
        let end = ChainEnd { hash, serial: self.last_serial };
        assert!(self.entries[block.0 as usize].is_none(), "a block is named once");
        self.entries[block.0 as usize] = Some(Entry { end, parent: before.serial, tenant, token_ids: *token_ids, idle_since: None });
        self.by_hash.insert(hash, block);
        (end, displaced)
    }

    /// Takes a block's name. The block itself if it was idle.
    fn remove(&mut self, block: BlockId) -> Option<BlockId> {
        let was_idle = self.set_busy(block).is_some();
        let entry = self.entries[block.0 as usize].take()?;
        self.by_hash.remove(&entry.end.hash);
        was_idle.then_some(block)
    }

    /// A sequence uses the block again. The time since which it was idle.
    pub(crate) fn set_busy(&mut self, block: BlockId) -> Option<u64> {
        let entry = self.entries[block.0 as usize].as_mut()?;
        let tick = entry.idle_since.take()?;
        self.idle.remove(&tick);
        if let Some(own) = self.idle_by_tenant.get_mut(&entry.tenant) {
            own.remove(&tick);
            if own.is_empty() {
                self.idle_by_tenant.remove(&entry.tenant);
            }
        }
        Some(tick)
    }

    /// No sequence uses the block any more. Returns the block that is to be freed: itself if it has no name, or the tenant's longest
    /// idle one if the tenant holds its share.
    pub(crate) fn set_idle(&mut self, block: BlockId) -> Option<BlockId> {
        let Some(entry) = &mut self.entries[block.0 as usize] else { return Some(block) };
        self.last_tick += 1;
        entry.idle_since = Some(self.last_tick);
        self.idle.insert(self.last_tick, block);
        let own = self.idle_by_tenant.entry(entry.tenant).or_default();
        own.insert(self.last_tick, block);
        if own.len() <= self.n_idle_per_tenant {
            return None;
        }
        let (_, &oldest) = own.first_key_value()?;
        self.remove(oldest)
    }

    /// Gives up the block that has been idle longest.
    pub(crate) fn evict(&mut self) -> Option<BlockId> {
        let (_, &oldest) = self.idle.first_key_value()?;
        self.remove(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANTS: [TenantSalt; 2] = [TenantSalt([1; 32]), TenantSalt([2; 32])];

    fn block_of(first: u32) -> [TokenId; BLOCK_TOKENS] {
        std::array::from_fn(|index| TokenId(first + index as u32))
    }

    fn put(cache: &mut PrefixCache, block: u32, (tenant, before): (TenantSalt, ChainEnd), first: u32) -> ChainEnd {
        let (end, displaced) = cache.insert(BlockId(block), (tenant, before), &block_of(first));
        assert_eq!(displaced, None);
        end
    }

    fn found(cache: &PrefixCache, tenant: TenantSalt, firsts: &[u32]) -> Vec<u32> {
        let tokens: Vec<TokenId> = firsts.iter().flat_map(|&first| block_of(first)).collect();
        cache.find(tenant, &tokens).0.into_iter().map(|block| block.0).collect()
    }

    #[test]
    fn prefix_is_found_by_its_own_tenant_and_by_no_other() {
        let mut cache = PrefixCache::new(8, 8);
        let [a, b] = TENANTS;
        let end = put(&mut cache, 0, (a, ChainEnd::root(a)), 100);
        put(&mut cache, 1, (a, end), 200);
        assert_eq!(found(&cache, a, &[100, 200, 300]), [0, 1]);
        assert!(found(&cache, a, &[200]).is_empty(), "a block is found after what it followed only");
        assert_eq!(found(&cache, a, &[100, 100]), [0]);
        assert!(found(&cache, b, &[100, 200]).is_empty());
    }

    #[test]
    fn collision_costs_a_miss_and_never_a_wrong_block() {
        // Every chain has the same hash.
        let mut cache = PrefixCache::with_hash(8, 8, |_, _| [0; 32]);
        let [a, b] = TENANTS;
        put(&mut cache, 0, (a, ChainEnd::root(a)), 100);
        assert_eq!(found(&cache, a, &[100]), [0]);
        assert!(found(&cache, a, &[101]).is_empty(), "other tokens");
        assert!(found(&cache, b, &[100]).is_empty(), "another tenant");
        assert_eq!(found(&cache, a, &[100, 100]), [0], "the same tokens elsewhere in the chain");
        // The newer takes the place of what it collides with.
        put(&mut cache, 1, (a, ChainEnd::root(a)), 200);
        assert_eq!((found(&cache, a, &[100]), found(&cache, a, &[200])), (vec![], vec![1]));
    }

    #[test]
    fn child_of_a_block_that_was_given_up_is_not_found_after_its_successor() {
        let mut cache = PrefixCache::new(8, 8);
        let [a, _] = TENANTS;
        let end = put(&mut cache, 0, (a, ChainEnd::root(a)), 100);
        put(&mut cache, 1, (a, end), 200);
        assert_eq!(cache.set_idle(BlockId(0)), None);
        assert_eq!(cache.evict(), Some(BlockId(0)));
        let again = put(&mut cache, 2, (a, ChainEnd::root(a)), 100);
        assert_eq!(found(&cache, a, &[100, 200]), [2], "block 1 follows an entry that is gone");
        put(&mut cache, 3, (a, again), 200);
        assert_eq!(found(&cache, a, &[100, 200]), [2, 3]);
    }

    #[test]
    fn tenant_over_its_share_gives_up_its_own_oldest() {
        let mut cache = PrefixCache::new(8, 2);
        let [a, b] = TENANTS;
        put(&mut cache, 7, (b, ChainEnd::root(b)), 900);
        assert_eq!(cache.set_idle(BlockId(7)), None);
        for block in 0..2 {
            put(&mut cache, block, (a, ChainEnd::root(a)), 100 * (block + 1));
            assert_eq!(cache.set_idle(BlockId(block)), None);
        }
        put(&mut cache, 2, (a, ChainEnd::root(a)), 300);
        assert_eq!(cache.set_idle(BlockId(2)), Some(BlockId(0)), "not b's, which is older");
        assert_eq!((cache.n_idle(), found(&cache, b, &[900])), (3, vec![7]));
        cache.set_busy(BlockId(1));
        assert_eq!(cache.evict(), Some(BlockId(7)), "busy blocks stay");
        assert_eq!((cache.evict(), cache.evict()), (Some(BlockId(2)), None));
    }

    #[test]
    fn known_content_keeps_its_block_and_nameless_ones_are_freed() {
        let mut cache = PrefixCache::new(8, 8);
        let [a, _] = TENANTS;
        let end = put(&mut cache, 0, (a, ChainEnd::root(a)), 100);
        assert_eq!(put(&mut cache, 1, (a, ChainEnd::root(a)), 100), end);
        assert_eq!(cache.set_idle(BlockId(1)), Some(BlockId(1)));
        assert_eq!((cache.set_idle(BlockId(0)), cache.n_idle()), (None, 1));
    }
}
