//! Which of a model's replicas takes a request: the one that is done with it first, as far as can be told. What counts against a replica
//! is the work it has and the part of the prompt that it has not read before: so a conversation returns to the keys and values that its
//! last turn left (sgl-project/sglang `sgl-router`, cache-aware policy), unless that replica has some requests more than another. What is
//! sent stays where it went: a wrong guess of how long requests take is not made good later.
//!
//! Pure: it sees prompts and loads, and no replica. What it remembers is what it sent where; whether that is cached still, only the
//! replica knows, and a wrong guess costs a prompt read again and never a wrong answer.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use bitnet_model::TokenId;
use bitnet_model::limits::BLOCK_TOKENS;

use crate::limits::{N_DISPATCHED_CHUNKS_MAX, N_REPLICAS_MAX};
use crate::request::TenantSalt;

/// Tokens of a chunk, by which beginnings of prompts are compared.
const CHUNK_TOKENS: usize = 4 * BLOCK_TOKENS;
/// Chunks of a prompt that are looked at: what is longer goes where its beginning is.
const N_CHUNKS_MAX: usize = 256;
/// Prompt tokens that weigh as much as a request that a replica has already.
const REQUEST_TOKENS: usize = 256;
/// What was read weighs at most as much as this many tokens: a long beginning that everybody shares is soon read everywhere.
const READ_TOKENS_MAX: usize = 4 * REQUEST_TOKENS;

/// The beginning of a prompt: a hash of each chunk and all before it, rooted in the tenant.
pub(crate) struct PromptStart {
    hashes: Vec<u64>,
}

impl PromptStart {
    /// Of a tenant's prompt.
    pub(crate) fn new(tenant: TenantSalt, prompt: &[TokenId]) -> Self {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        let chunks = prompt.chunks_exact(CHUNK_TOKENS).take(N_CHUNKS_MAX);
        let hashes = chunks.map(|chunk| {
            chunk.hash(&mut hasher);
            hasher.finish()
        });
        Self { hashes: hashes.collect() }
    }
}

/// A chunk that was sent somewhere.
struct Sent {
    /// Bit r: to replica r.
    replicas: u64,
    tick: u64,
}

const _: () = assert!(N_REPLICAS_MAX <= u64::BITS as usize);

/// What was sent where.
#[derive(Default)]
pub(crate) struct Dispatcher {
    sent: HashMap<u64, Sent>,
    /// Hashes by when they were last sent.
    by_tick: BTreeMap<u64, u64>,
    last_tick: u64,
    /// Of each replica, when it last got a request.
    last_chosen: Vec<u64>,
}

impl Dispatcher {
    /// The replica for a request. `loads` holds the requests that each has, `None` where it takes no more.
    pub(crate) fn first(&self, start: &PromptStart, loads: &[Option<usize>]) -> Option<usize> {
        let n_read = self.n_read_tokens(start, loads.len());
        let n_most = n_read.iter().copied().max().unwrap_or(0);
        let cost = |replica: usize, load: usize| load * REQUEST_TOKENS + (n_most - n_read[replica]).min(READ_TOKENS_MAX);
        let last_chosen = |replica: usize| self.last_chosen.get(replica).copied().unwrap_or(0);
        let open = loads.iter().enumerate().filter_map(|(replica, load)| load.map(|load| (cost(replica, load), replica)));
        // Among equals, the one that has waited longest for work.
        open.min_by_key(|&(cost, replica)| (cost, last_chosen(replica), replica)).map(|(_, replica)| replica)
    }

    /// Of a prompt, how many tokens each replica was sent before.
    fn n_read_tokens(&self, start: &PromptStart, n_replicas: usize) -> Vec<usize> {
        let mut n_read = vec![0; n_replicas];
        let mut still = u64::MAX;
        for (index, hash) in start.hashes.iter().enumerate() {
            still &= self.sent.get(hash).map_or(0, |sent| sent.replicas);
            if still == 0 {
                break;
            }
            let reading = n_read.iter_mut().enumerate().filter(|(replica, _)| still >> replica & 1 == 1);
            reading.for_each(|(_, n_read)| *n_read = (index + 1) * CHUNK_TOKENS);
        }
        n_read
    }

    /// Remembers that a prompt went to `replica`.
    pub(crate) fn sent(&mut self, start: &PromptStart, replica: usize) {
        self.last_tick += 1;
        let n_replicas = self.last_chosen.len().max(replica + 1);
        self.last_chosen.resize(n_replicas, 0);
        self.last_chosen[replica] = self.last_tick;
        // Later chunks are of no use without earlier ones: those are forgotten last.
        for &hash in start.hashes.iter().rev() {
            self.last_tick += 1;
            let sent = self.sent.entry(hash).or_insert(Sent { replicas: 0, tick: 0 });
            self.by_tick.remove(&sent.tick);
            sent.replicas |= 1 << replica;
            sent.tick = self.last_tick;
            self.by_tick.insert(self.last_tick, hash);
        }
        while self.sent.len() > N_DISPATCHED_CHUNKS_MAX {
            let Some((_, oldest)) = self.by_tick.pop_first() else { break };
            self.sent.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(tenant: u8, tokens: std::ops::Range<u32>) -> PromptStart {
        PromptStart::new(TenantSalt([tenant; 32]), &tokens.map(TokenId).collect::<Vec<_>>())
    }

    fn dispatch(dispatcher: &mut Dispatcher, start: &PromptStart, loads: &[Option<usize>]) -> usize {
        let first = dispatcher.first(start, loads).expect("one is open");
        dispatcher.sent(start, first);
        first
    }

    #[test]
    fn equal_replicas_take_turns() {
        let mut dispatcher = Dispatcher::default();
        let went: Vec<usize> =
            (0..6).map(|index| dispatch(&mut dispatcher, &start(1, index * 1000..index * 1000 + 10), &[Some(0); 3])).collect();
        assert_eq!(went, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn request_goes_to_the_replica_with_the_least_work() {
        let dispatcher = Dispatcher::default();
        assert_eq!(dispatcher.first(&start(1, 0..10), &[Some(3), Some(1), Some(2)]), Some(1));
    }

    #[test]
    fn replica_that_takes_no_more_is_not_tried() {
        let dispatcher = Dispatcher::default();
        assert_eq!(dispatcher.first(&start(1, 0..10), &[None, Some(9), None]), Some(1));
        assert_eq!(dispatcher.first(&start(1, 0..10), &[None, None]), None);
    }

    #[test]
    fn conversation_returns_to_where_it_was_read_unless_that_has_too_much_work() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.sent(&start(1, 0..1024), 1);
        let next_turn = start(1, 0..1100);
        assert_eq!(dispatcher.first(&next_turn, &[Some(0), Some(3)]), Some(1), "1,024 tokens weigh more than three requests");
        assert_eq!(dispatcher.first(&next_turn, &[Some(0), Some(5)]), Some(0), "and less than five");
        dispatcher.sent(&next_turn, 0);
        assert_eq!(dispatcher.first(&next_turn, &[Some(1), Some(0)]), Some(1), "now both have read it");
        dispatcher.sent(&start(2, 0..8192), 0);
        assert_eq!(dispatcher.first(&start(2, 0..8192), &[Some(5), Some(0)]), Some(1), "a long one weighs no more than four requests");
    }

    #[test]
    fn beginning_of_another_tenant_or_another_beginning_attracts_nothing() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.sent(&start(1, 0..1024), 0);
        assert_eq!(dispatcher.first(&start(1, 0..1024), &[Some(0), Some(0)]), Some(0));
        assert_eq!(dispatcher.first(&start(2, 0..1024), &[Some(0), Some(0)]), Some(1));
        assert_eq!(dispatcher.first(&start(1, 1..1024), &[Some(0), Some(0)]), Some(1));
    }

    #[test]
    fn memory_of_what_went_where_is_bounded() {
        let mut dispatcher = Dispatcher::default();
        let n_prompts = (N_DISPATCHED_CHUNKS_MAX / 16 + 100) as u32;
        (0..n_prompts).for_each(|index| dispatcher.sent(&start(1, index * 10_000..index * 10_000 + 1024), index as usize % 2));
        assert_eq!(dispatcher.sent.len(), N_DISPATCHED_CHUNKS_MAX);
        assert_eq!(dispatcher.by_tick.len(), N_DISPATCHED_CHUNKS_MAX);
        assert_eq!(dispatcher.n_read_tokens(&start(1, 0..1024), 2), [0, 0], "the oldest are forgotten");
        let newest = (n_prompts - 1) * 10_000;
        assert_eq!(dispatcher.n_read_tokens(&start(1, newest..newest + 1024), 2).iter().sum::<usize>(), 1024);
    }
}
