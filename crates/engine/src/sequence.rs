//! A sequence as the scheduler sees it: its tokens, how many of them are computed, which blocks hold those, and its rank. What
//! its tokens mean, and who hears of them, is not known here.

use bitnet_model::TokenId;
use bitnet_model::batch::BlockId;
use bitnet_model::limits::BLOCK_TOKENS;

use crate::block_pool::BlockPool;
use crate::fair_share::Ticket;
use crate::prefix_cache::ChainEnd;
use crate::request::{Priority, RequestId, TenantSalt};

/// Names a sequence: one choice of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
}

/// Who keeps its blocks when they run out: the smaller rank. Fixed at admission but for promotion at each preemption, so the
/// smallest is never preempted and always goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: Priority,
    pub(crate) admission: u64,
}

/// Whether a sequence may begin on blocks that hold the same tokens already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheReading {
    Allowed,
    /// Every token must be computed: something is wanted of each.
    Forbidden,
}

/// What is needed to schedule a sequence.
pub(crate) struct Sequence {
    pub(crate) tenant: TenantSalt,
    pub(crate) priority: Priority,
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) cache_reading: CacheReading,
    pub(crate) ticket: Ticket,
    /// Absent until first admitted.
    pub(crate) rank: Option<Rank>,
    /// Tokens whose keys and values are in `block_table`.
    pub(crate) n_computed: usize,
    pub(crate) block_table: Vec<BlockId>,
    /// Blocks that the prefix cache knows, and the chain that they form.
    n_named: usize,
    chain: ChainEnd,
    /// Tokens that the first admission found in the cache.
    pub(crate) n_cached: usize,
}

impl Sequence {
    /// A sequence of which nothing is computed.
    pub(crate) fn new(
        token_ids: Vec<TokenId>,
        (tenant, priority): (TenantSalt, Priority),
        cache_reading: CacheReading,
        ticket: Ticket,
    ) -> Self {
        Self {
            tenant,
            priority,
            token_ids,
            cache_reading,
            ticket,
            rank: None,
            n_computed: 0,
            block_table: Vec::new(),
            n_named: 0,
            chain: ChainEnd::root(tenant),
            n_cached: 0,
        }
    }

    /// A sequence that goes on from this one's first `n_tokens` tokens. It shares the blocks that are full of them.
    pub(crate) fn fork(&self, n_tokens: usize, ticket: Ticket) -> Self {
        Self {
            n_cached: self.n_cached,
            rank: None,
            ..Self::new(self.token_ids[..n_tokens].to_vec(), (self.tenant, self.priority), CacheReading::Allowed, ticket)
        }
    }

    /// Tokens still to be computed.
    pub(crate) fn n_left(&self) -> usize {
        self.token_ids.len() - self.n_computed
    }

    /// The blocks at the beginning of the cache that this sequence can begin on. The last token is always computed: its logits are
    /// needed.
    pub(crate) fn cached_beginning(&self, pool: &BlockPool) -> (Vec<BlockId>, ChainEnd) {
        match self.cache_reading {
            CacheReading::Allowed => pool.find(self.tenant, &self.token_ids[..self.token_ids.len() - 1]),
            CacheReading::Forbidden => (Vec::new(), ChainEnd::root(self.tenant)),
        }
    }

    /// Begins on blocks that hold its first tokens.
    pub(crate) fn begin_on(&mut self, (blocks, chain): (Vec<BlockId>, ChainEnd), pool: &mut BlockPool) {
        assert!(self.block_table.is_empty(), "a sequence begins without blocks");
        blocks.iter().for_each(|&block| pool.share(block));
        self.n_computed = blocks.len() * BLOCK_TOKENS;
        self.n_named = blocks.len();
        self.chain = chain;
        self.block_table = blocks;
    }

    /// The full blocks of its first `n_tokens` tokens, as a fork begins on them.
    pub(crate) fn full_blocks(&self, n_tokens: usize) -> (Vec<BlockId>, ChainEnd) {
        let n_full = n_tokens.min(self.n_computed) / BLOCK_TOKENS;
        // A chain is known at its end only. Elsewhere the fork shares nothing and finds its blocks in the prefix cache.
        if n_full == self.n_named { (self.block_table[..n_full].to_vec(), self.chain) } else { (Vec::new(), ChainEnd::root(self.tenant)) }
    }

    /// `n_tokens` more are computed; blocks that this filled can be found from now on.
    pub(crate) fn computed(&mut self, n_tokens: usize, pool: &mut BlockPool) {
        self.n_computed += n_tokens;
        assert!(self.n_computed <= self.token_ids.len(), "only known tokens are computed");
        let filled = &self.token_ids[self.n_named * BLOCK_TOKENS..self.n_computed];
        for tokens in filled.as_chunks::<BLOCK_TOKENS>().0 {
            self.chain = pool.name(self.block_table[self.n_named], (self.tenant, self.chain), tokens);
            self.n_named += 1;
        }
    }

    /// Gives all blocks back. The last first, so that of the idle ones those at the end of the chain go before their beginnings.
    pub(crate) fn release(&mut self, pool: &mut BlockPool) {
        self.block_table.drain(..).rev().for_each(|block| pool.release(block));
        self.n_computed = 0;
    }
}
