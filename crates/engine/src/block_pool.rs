//! Who uses which block of the KV cache. A block is free, used by one or more sequences, or idle: used by nobody, but its content
//! is known to the prefix cache and may be used again. Used blocks are never written but by the one sequence that is filling
//! them: only whole blocks are shared, and a fork computes its beginning of a partial block anew (at most `BLOCK_TOKENS` − 1
//! tokens, which spares devices a copy operation).

use bitnet_model::TokenId;
use bitnet_model::batch::BlockId;
use bitnet_model::limits::BLOCK_TOKENS;

use crate::prefix_cache::{ChainEnd, PrefixCache};
use crate::request::TenantSalt;

/// All blocks of a cache.
pub(crate) struct BlockPool {
    /// Sequences that use each block.
    n_users: Vec<u32>,
    free: Vec<BlockId>,
    n_used: usize,
    /// Absent: nothing is remembered.
    cache: Option<PrefixCache>,
}

/// Blocks that `n_tokens` take.
pub(crate) fn blocks_for(n_tokens: usize) -> usize {
    n_tokens.div_ceil(BLOCK_TOKENS)
}

impl BlockPool {
    /// `n_blocks` free blocks. `n_idle_per_tenant`: how many a tenant may leave in the prefix cache; `None`: there is none.
    pub(crate) fn new(n_blocks: usize, n_idle_per_tenant: Option<usize>) -> Self {
        Self {
            n_users: vec![0; n_blocks],
            // The lowest is taken first.
            free: (0..n_blocks as u32).rev().map(BlockId).collect(),
            n_used: 0,
            cache: n_idle_per_tenant.map(|n_idle| PrefixCache::new(n_blocks, n_idle)),
        }
    }

    /// All blocks.
    pub(crate) fn n_blocks(&self) -> usize {
        self.n_users.len()
    }

    /// Blocks that sequences use.
    pub(crate) fn n_used(&self) -> usize {
        self.n_used
    }

    /// Blocks that could be allocated.
    pub(crate) fn n_available(&self) -> usize {
        self.n_blocks() - self.n_used
    }

    /// Idle blocks: remembered content.
    pub(crate) fn n_idle(&self) -> usize {
        self.cache.as_ref().map_or(0, PrefixCache::n_idle)
    }

    /// A block for one sequence: a free one, else the one that has been idle longest.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| self.cache.as_mut()?.evict())?;
        self.add_user(block);
        Some(block)
    }

    /// One more sequence uses `block`.
    pub(crate) fn share(&mut self, block: BlockId) {
        if let Some(cache) = &mut self.cache {
            cache.set_busy(block);
        }
        self.add_user(block);
    }

    fn add_user(&mut self, block: BlockId) {
        let n_users = &mut self.n_users[block.0 as usize];
        self.n_used += usize::from(*n_users == 0);
        *n_users += 1;
    }

    /// One sequence less uses `block`.
    pub(crate) fn release(&mut self, block: BlockId) {
        let n_users = &mut self.n_users[block.0 as usize];
        assert!(*n_users > 0, "block {} is released more often than used", block.0);
        *n_users -= 1;
        if *n_users > 0 {
            return;
        }
        self.n_used -= 1;
        let freed = match &mut self.cache {
            Some(cache) => cache.set_idle(block),
            None => Some(block),
        };
        self.free.extend(freed);
    }

    /// Blocks that hold the beginning of `token_ids`, to be shared before anything is allocated.
    pub(crate) fn find(&self, tenant: TenantSalt, token_ids: &[TokenId]) -> (Vec<BlockId>, ChainEnd) {
        match &self.cache {
            Some(cache) => cache.find(tenant, token_ids),
            None => (Vec::new(), ChainEnd::root(tenant)),
        }
    }

    /// Of `blocks`, how many nobody uses.
    pub(crate) fn n_idle_among(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|block| self.n_users[block.0 as usize] == 0).count()
    }

    /// Makes a block that is full and computed findable after `before`; returns where the chain now ends.
    pub(crate) fn name(&mut self, block: BlockId, chain: (TenantSalt, ChainEnd), token_ids: &[TokenId; BLOCK_TOKENS]) -> ChainEnd {
        let Some(cache) = &mut self.cache else { return chain.1 };
        let (end, displaced) = cache.insert(block, chain, token_ids);
        self.free.extend(displaced);
        end
    }
}
