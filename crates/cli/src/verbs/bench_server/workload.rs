//! What the clients ask for. Prompts are token ids where values do not matter, so that every server reads exactly as many; they differ
//! from run to run, so that a server that remembers prompts gains by it only in the test of that.

use anyhow::Context;

use super::client::{Endpoint, Prompt, Run};

/// Ids that the embedded model and all published vocabularies have, and that none gives to special tokens.
const IDS: std::ops::Range<u64> = 300..8_000;
/// Tokens behind the shared prefix that are each request's own.
const N_OWN: usize = 8;
/// Requests that find the prefix.
const N_FINDERS: u64 = 3;
/// A text that goes on copying: small models of stories, too, take up its pattern and do not leave it. (Whether a model copies is the
/// model's to say; drafts that are wrong cost little and gain nothing.)
const PATTERN: &str =
    "Tom has a red ball. Lily has a blue kite. Ben has a big dog. Mia has a small cat. Sam has a green car. Anna has a pink hat. ";
/// How often the prompt has it.
const N_PATTERNS: usize = 3;

/// One test.
#[derive(Debug, Clone, Copy)]
pub(super) enum Workload {
    /// Requests that start together.
    Streams { n_streams: usize, n_prompt: usize, n_generate: usize },
    /// A prompt, and then others that begin as it did.
    Prefix { n_shared: usize },
    /// A text that goes on as its prompt did.
    Copy { n_generate: usize },
}

/// What a run of a test gave.
pub(super) struct Runs {
    pub(super) runs: Vec<Run>,
    /// Those that found a prefix which `runs` left behind.
    pub(super) finders: Vec<Run>,
}

impl Workload {
    /// As the table names it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Streams { n_streams: 1, n_prompt, n_generate } => format!("1 stream, {n_prompt} + {n_generate}"),
            Self::Streams { n_streams, n_prompt, n_generate } => format!("{n_streams} streams, {n_prompt} + {n_generate}"),
            Self::Prefix { n_shared } => format!("prefix of {n_shared}"),
            Self::Copy { n_generate } => format!("copying {n_generate}"),
        }
    }

    /// Enough to touch all memory once.
    pub(super) fn warm_up(self, endpoint: &Endpoint) -> anyhow::Result<Runs> {
        let runs = vec![endpoint.complete(&Prompt::Tokens(ids(0, 16)), 4)?];
        Ok(Runs { runs, finders: Vec::new() })
    }

    /// Runs it; `seed` makes the prompts.
    pub(super) fn run(self, endpoint: &Endpoint, seed: u64) -> anyhow::Result<Runs> {
        match self {
            Self::Streams { n_streams, n_prompt, n_generate } => {
                let prompt = |stream: usize| Prompt::Tokens(ids(seed << 32 | (n_streams << 16 | stream) as u64, n_prompt));
                let runs = at_once(endpoint, (0..n_streams).map(prompt).collect(), n_generate)?;
                Ok(Runs { runs, finders: Vec::new() })
            }
            Self::Prefix { n_shared } => {
                let shared = ids(seed << 32 | 0xFFFF, n_shared);
                let ask = |own: u64| {
                    let own = ids(seed << 32 | (0xFFFF_0000 + own), N_OWN);
                    endpoint.complete(&Prompt::Tokens([shared.as_slice(), &own].concat()), 2)
                };
                let runs = vec![ask(0)?];
                Ok(Runs { runs, finders: (1..=N_FINDERS).map(ask).collect::<Result<_, _>>()? })
            }
            Self::Copy { n_generate } => {
                let run = endpoint.complete(&Prompt::Text(PATTERN.repeat(N_PATTERNS)), n_generate)?;
                Ok(Runs { runs: vec![run], finders: Vec::new() })
            }
        }
    }
}

/// All prompts at once, each on a connection of its own.
fn at_once(endpoint: &Endpoint, prompts: Vec<Prompt>, n_generate: usize) -> anyhow::Result<Vec<Run>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || endpoint.complete(prompt, n_generate))).collect();
        let joined = clients.into_iter().map(|client| client.join().ok().context("a client panicked")?);
        joined.collect()
    })
}

/// Arbitrary token ids (SplitMix64; Steele, Lea, Flood 2014).
fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (IDS.start + (mixed ^ (mixed >> 31)) % (IDS.end - IDS.start)) as u32
    };
    std::iter::repeat_with(next).take(n).collect()
}
