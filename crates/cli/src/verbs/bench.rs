//! `bitnet bench`: how fast a model reads and writes on this machine, as a table like llama-bench's
//! (ggml-org/llama.cpp:tools/llama-bench). Each test runs once unmeasured, then `-r` times; a rate is the mean of the runs' rates.
//! Token ids are arbitrary: values do not change speed.

use std::cell::Cell;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use bitnet_checkpoint::{CheckpointError, ModelConfig, Tensor, limits, read_config_json};
use bitnet_model::batch::BestLogits;
use bitnet_model::random::{PUBLISHED_SHAPES, RandomWeights};
use bitnet_model::{RunnerError, Session, TokenId, WeightSource};

use crate::arguments::{DeviceArguments, DeviceChoiceArguments, GlobalArguments, ModelArguments};
use crate::failure::Misuse;
use crate::open::{load_session, open_checkpoint};
use crate::table::Table;
use crate::terminal::{Output, Terminal};

/// Measure how fast a model reads (pp) and writes (tg) on this machine
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// A random model of a published shape instead: 0.7b, 2b4t, 3b, 8b, or a config.json
    #[arg(long, conflicts_with_all = ["model", "activations", "i2s_layout"])]
    shape: Option<String>,
    /// Tokens to read; 0 leaves the test out
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: usize,
    /// Tokens to write; 0 leaves the test out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    n_generate: usize,
    /// Numbers of threads to try, as 1,2; by default, one for each processor that may be used
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    threads: Vec<NonZeroUsize>,
    /// Measured runs of each test
    #[arg(short, long, value_name = "N", default_value = "3")]
    repetitions: NonZeroUsize,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceChoiceArguments,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Measurement {
    model: String,
    size_bytes: u64,
    n_parameters: u64,
    device: &'static str,
    isa: &'static str,
    n_threads: usize,
    test: String,
    tokens_per_second_mean: f64,
    tokens_per_second_deviation: f64,
    tokens_per_second: Vec<f64>,
}

/// Measures and prints.
pub(crate) fn perform(arguments: &BenchArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let (name, source) = weight_source(arguments, global, terminal)?;
    check_lengths(arguments, source.config())?;
    let threads: Vec<Option<NonZeroUsize>> =
        if arguments.threads.is_empty() { vec![None] } else { arguments.threads.iter().copied().map(Some).collect() };
    let mut measurements = Vec::new();
    for n_threads in threads {
        let measured = MeasuredSource { source: &*source, size_bytes: Cell::new(0) };
        let device = DeviceArguments { threads: n_threads, choice: arguments.device.clone() };
        let n_context = arguments.n_prompt.max(arguments.n_generate);
        let mut session = load_session(&measured, &device, n_context, terminal)?;
        for test in [Test::Prompt(arguments.n_prompt), Test::Generate(arguments.n_generate)] {
            if test.n_tokens() > 0 {
                let rates = test.rates(&mut session, arguments.repetitions, terminal)?;
                measurements.push(measurement(&name, measured.size_bytes.get(), &session, (test, rates)));
            }
        }
    }
    print(&measurements, arguments.json, terminal)
}

fn weight_source(
    arguments: &BenchArguments,
    global: &GlobalArguments,
    terminal: &Terminal,
) -> anyhow::Result<(String, Box<dyn WeightSource>)> {
    const SEED: u64 = 1;
    let Some(shape) = &arguments.shape else {
        let checkpoint = open_checkpoint(&arguments.model, global, terminal)?;
        return Ok((short_name(arguments.model.name()), Box::new(checkpoint)));
    };
    if let Some(weights) = RandomWeights::published(shape, SEED) {
        return Ok((format!("random {shape}"), Box::new(weights)));
    }
    let path = PathBuf::from(shape);
    if !path.exists() {
        let help = format!("shapes are {}, or the path of a config.json", PUBLISHED_SHAPES.join(", "));
        return Err(Misuse::new(format!("unknown shape `{shape}`"), help).into());
    }
    let context = || format!("cannot read the shape in {shape}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).with_context(context)?;
    file.take(limits::CONFIG_JSON_BYTES_MAX).read_to_end(&mut bytes).with_context(context)?;
    let config = read_config_json(&bytes).with_context(context)?;
    Ok((short_name(shape), Box::new(RandomWeights::new(config, SEED))))
}

/// The last two parts of a path: a table has no room for more, and `config.json` alone says nothing.
fn short_name(name: &str) -> String {
    let parts: Vec<&str> = name.rsplit(['/', '\\']).take(2).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

fn check_lengths(arguments: &BenchArguments, config: &ModelConfig) -> anyhow::Result<()> {
    for (flag, n_tokens) in [("-p", arguments.n_prompt), ("-n", arguments.n_generate)] {
        if n_tokens > config.context_length {
            let what = format!("{flag} {n_tokens} is longer than the model's context of {} tokens", config.context_length);
            return Err(Misuse::new(what, "ask for fewer tokens").into());
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Prompt(usize),
    Generate(usize),
}

impl Test {
    fn n_tokens(self) -> usize {
        match self {
            Self::Prompt(n_tokens) | Self::Generate(n_tokens) => n_tokens,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Prompt(n_tokens) => format!("pp{n_tokens}"),
            Self::Generate(n_tokens) => format!("tg{n_tokens}"),
        }
    }

    /// Tokens a second of each measured run.
    fn rates(self, session: &mut Session, repetitions: NonZeroUsize, terminal: &Terminal) -> Result<Vec<f64>, RunnerError> {
        let bar = terminal.steps_bar(1 + repetitions.get() as u64, &self.name());
        self.run(session)?;
        let mut rates = Vec::with_capacity(repetitions.get());
        for _ in 0..repetitions.get() {
            bar.inc(1);
            let start = Instant::now();
            self.run(session)?;
            rates.push(self.n_tokens() as f64 / start.elapsed().as_secs_f64());
        }
        bar.finish_and_clear();
        Ok(rates)
    }

    fn run(self, session: &mut Session) -> Result<(), RunnerError> {
        let n_vocab = session.runner().config().n_vocab as u64;
        let token = |index: usize| TokenId((index as u64 * 7919 % n_vocab) as u32);
        session.truncate(0);
        // As greedy decoding does: the largest logit is enough.
        session.want(Some(BestLogits { n: 1, within: 0.0 }));
        match self {
            Self::Prompt(n_tokens) => session.prefill(&(0..n_tokens).map(token).collect::<Vec<_>>()).map(|_| ()),
            Self::Generate(n_tokens) => (0..n_tokens).try_for_each(|index| session.decode(token(index)).map(|_| ())),
        }
    }
}

/// Passes weights on and adds up the memory they take: two bits a trit, scales, and tables in their stored precision.
struct MeasuredSource<'a> {
    source: &'a dyn WeightSource,
    size_bytes: Cell<u64>,
}

impl WeightSource for MeasuredSource<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let tensor = self.source.load(name)?;
        self.size_bytes.set(self.size_bytes.get() + crate::size::memory_bytes(&tensor));
        Ok(tensor)
    }
}

fn measurement(name: &str, size_bytes: u64, session: &Session, (test, rates): (Test, Vec<f64>)) -> Measurement {
    let description = session.runner().device();
    let (mean, deviation) = mean_and_deviation(&rates);
    Measurement {
        model: name.to_string(),
        size_bytes,
        n_parameters: crate::size::n_parameters(session.runner().config()),
        device: description.name,
        isa: description.isa,
        n_threads: description.n_threads,
        test: test.name(),
        tokens_per_second_mean: mean,
        tokens_per_second_deviation: deviation,
        tokens_per_second: rates,
    }
}

/// Mean and sample standard deviation; the deviation of one value is 0.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

fn print(measurements: &[Measurement], json: bool, terminal: &Terminal) -> anyhow::Result<()> {
    if json {
        writeln!(Output, "{}", serde_json::to_string_pretty(measurements)?)?;
        return Ok(());
    }
    let mut table = Table::new(&["model", "size", "params", "device", "threads", "test", "t/s"]);
    for line in measurements {
        table.row(vec![
            line.model.clone(),
            crate::size::bytes(line.size_bytes),
            crate::size::count(line.n_parameters),
            format!("{} {}", line.device, line.isa),
            line.n_threads.to_string(),
            line.test.clone(),
            format!("{:.2} ± {:.2}", line.tokens_per_second_mean, line.tokens_per_second_deviation),
        ]);
    }
    table.align_right(&[1, 2, 4, 5, 6]);
    table.write(&mut Output, terminal)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_of_known_values_is_the_sample_deviation() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 6.0]), (4.0, 2f64.sqrt()));
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn short_name_keeps_what_tells_models_apart() {
        assert_eq!(short_name("a/b/c/config.json"), "c/config.json");
        assert_eq!(short_name("hf:owner/model"), "hf:owner/model");
        assert_eq!(short_name("embedded"), "embedded");
    }
}
