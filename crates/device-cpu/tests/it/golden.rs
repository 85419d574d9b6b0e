//! Golden outputs of an independent implementation (transformers, float32), and how close a runner comes to them.

use std::fs::File;
use std::path::{Path, PathBuf};

use bitnet_model::{Session, TokenId};

/// Where fixture `name` lies.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// One prompt's golden outputs.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    pub(crate) greedy: Vec<TokenId>,
    pub(crate) top2_gap: Vec<f64>,
    /// `[n_tokens, n_vocab]`.
    pub(crate) logits: Vec<f32>,
}

/// Everything in `golden.json` and `golden.npz`.
pub(crate) struct Golden {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) chunks: Vec<Vec<TokenId>>,
    pub(crate) perplexity: f64,
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let json = std::fs::read(fixture(name).join("golden.json")).expect("golden.json is checked in");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("golden.json is JSON");
        let mut arrays = npyz::npz::NpzArchive::open(fixture(name).join("golden.npz")).expect("golden.npz is checked in");
        let prompts = json["prompts"].as_array().expect("a list").iter().enumerate();
        let prompts = prompts.map(|(index, prompt)| Prompt {
            ids: ids(&prompt["ids"]),
            greedy: ids(&prompt["greedy_48"]),
            top2_gap: prompt["top2_gap"].as_array().expect("a list").iter().map(|gap| gap.as_f64().expect("a number")).collect(),
            logits: logits(&mut arrays, index),
        });
        Self {
            prompts: prompts.collect(),
            chunks: json["perplexity"]["chunks"].as_array().expect("a list").iter().map(ids).collect(),
            perplexity: json["perplexity"]["ppl"].as_f64().expect("a number"),
        }
    }
}

fn logits(arrays: &mut npyz::npz::NpzArchive<std::io::BufReader<File>>, index: usize) -> Vec<f32> {
    let array = arrays.by_name(&format!("logits_{index}")).expect("a zip archive").expect("one array for each prompt");
    array.into_vec().expect("float32 values")
}

fn ids(json: &serde_json::Value) -> Vec<TokenId> {
    json.as_array().expect("a list").iter().map(|id| TokenId(id.as_u64().expect("an id") as u32)).collect()
}

/// How a runner compares with the golden outputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Parity {
    pub(crate) n_positions: usize,
    pub(crate) n_agree: usize,
    /// Golden top-2 gaps where the most likely token differs.
    pub(crate) missed_gaps: Vec<f64>,
    pub(crate) mean_difference: f64,
    pub(crate) largest_difference: f64,
    /// Ours / golden; `None` without perplexity chunks.
    pub(crate) perplexity_ratio: Option<f64>,
    /// For each prompt whose greedy text leaves the golden's: by how much our logits prefer our token there.
    pub(crate) greedy_leaves_by: Vec<f32>,
}

impl Parity {
    pub(crate) fn measure(session: &mut Session, golden: &Golden) -> Self {
        let mut parity = Self::default();
        for prompt in &golden.prompts {
            parity.compare_logits(session, prompt);
            parity.greedy_leaves_by.extend(greedy_leaves_by(session, prompt));
        }
        parity.mean_difference /= golden.prompts.iter().map(|prompt| prompt.logits.len()).sum::<usize>() as f64;
        if !golden.chunks.is_empty() {
            parity.perplexity_ratio = Some(perplexity(session, &golden.chunks) / golden.perplexity);
        }
        parity
    }

    /// Whether the golden is nearly undecided wherever it says another token.
    pub(crate) fn misses_are_near_ties(&self) -> bool {
        const TINY_GAP: f64 = 0.02;
        self.missed_gaps.iter().all(|&gap| gap < TINY_GAP)
    }

    /// Same top-1 wherever the golden's top-2 gap is not tiny, and on 99% of all positions; perplexity within 0.3%; greedy text
    /// equal up to a tie.
    ///
    /// The position that tiny-bitnet-online misses is at a gap of 0.003, after an activation within 5e-6 of a tie. transformers itself, which
    /// made the golden, misses it with one, two and sixteen threads and in double precision, and finds it with four.
    pub(crate) fn passes(&self) -> bool {
        // Two right implementations differ by 0.02 a logit on average, so a lead below 0.1 is a tie.
        const TIE: f32 = 0.1;
        self.n_agree as f64 / self.n_positions as f64 >= 0.99
            && self.misses_are_near_ties()
            && self.perplexity_ratio.is_none_or(|ratio| (ratio - 1.0).abs() <= 0.003)
            && self.greedy_leaves_by.iter().all(|&lead| lead < TIE)
    }

    fn compare_logits(&mut self, session: &mut Session, prompt: &Prompt) {
        session.truncate(0);
        let n_vocab = prompt.logits.len() / prompt.ids.len();
        let mut visit = |position: usize, row: &[f32]| {
            let expected = &prompt.logits[position * n_vocab..(position + 1) * n_vocab];
            self.n_positions += 1;
            if argmax(row) == argmax(expected) {
                self.n_agree += 1;
            } else {
                self.missed_gaps.push(prompt.top2_gap[position]);
            }
            for (got, expected) in row.iter().zip(expected) {
                let difference = f64::from((got - expected).abs());
                self.mean_difference += difference;
                self.largest_difference = self.largest_difference.max(difference);
            }
        };
        session.score(&prompt.ids, &mut visit).expect("the prompt fits");
    }
}

fn greedy_leaves_by(session: &mut Session, prompt: &Prompt) -> Option<f32> {
    session.truncate(0);
    let mut logits = session.prefill(&prompt.ids).expect("the prompt fits").to_vec();
    for &expected in &prompt.greedy {
        let chosen = argmax(&logits);
        if chosen != expected.index() {
            return Some(logits[chosen] - logits[expected.index()]);
        }
        logits.copy_from_slice(session.decode(expected).expect("the text fits"));
    }
    None
}

/// exp of the mean negative log-likelihood of every token but each chunk's first.
pub(crate) fn perplexity(session: &mut Session, chunks: &[Vec<TokenId>]) -> f64 {
    let (mut total, mut n) = (0.0, 0);
    for chunk in chunks {
        session.truncate(0);
        let mut visit = |position: usize, row: &[f32]| {
            if let Some(next) = chunk.get(position + 1) {
                let largest = f64::from(row[argmax(row)]);
                let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
                total += largest + sum.ln() - f64::from(row[next.index()]);
                n += 1;
            }
        };
        session.score(chunk, &mut visit).expect("the chunk fits");
    }
    (total / f64::from(n)).exp()
}

fn argmax(row: &[f32]) -> usize {
    bitnet_model::numerics::argmax(row)
}
