//! `bitnet bench`: how fast a model reads and writes on this machine, as a table like llama-bench's
//! (ggml-org/llama.cpp:tools/llama-bench), with the share of the machine's roofs that was reached: tests and roofs are measured in
//! turn, `-r` times, so that what else the machine does falls on all of them.

mod report;
mod workload;

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_checkpoint::{CheckpointError, ModelConfig, StoredTable, Tensor, limits, read_config_json};
use bitnet_device_cpu::{CpuDevice, CpuOptions, RoofMeter, Roofs};
use bitnet_device_cuda::{CudaDevice, CudaRoofMeter, EnergyMeter};
use bitnet_model::device::DeviceMemory;
use bitnet_model::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use bitnet_model::random::{PUBLISHED_SHAPES, RandomWeights};
use bitnet_model::{Runner, RunnerOptions, WeightSource};
use clap::{Args, ValueEnum};

use crate::arguments::{DeviceArguments, DeviceChoiceArguments, GlobalArguments, ModelArguments};
use crate::device_choice::ChosenDevice;
use crate::failure::Misuse;
use crate::open::{FIRST_GPU, cpu_options, load_runner, open_to_write};
use crate::terminal::Terminal;
use report::{Machine, Measurement, Model};
use workload::{Kind, Workload};

/// Measurements of the roofs after each round of tests, of which the best counts: each takes some ten milliseconds, which is short
/// enough for other work to spoil one.
const ROOF_MEASUREMENTS: usize = 4;

/// Time over which energy is measured: the counter moves some ten times a second.
const ENERGY_TIME: Duration = Duration::from_secs(3);

/// Measure how fast a model reads (pp) and writes (tg) on this machine
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// A random model of a published shape instead: 0.7b, 2b4t, 3b, 8b, or a config.json
    #[arg(long, conflicts_with_all = ["model", "i2s_layout"])]
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
    /// Numbers of sequences to run at once, as 1,8
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    batch: Vec<NonZeroUsize>,
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    device: DeviceChoiceArguments,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// A table for people, which is Markdown
    #[default]
    Markdown,
    /// One object for each line of the table
    Json,
    /// Comma-separated values with a heading
    Csv,
}

/// Measures and prints.
pub(crate) fn perform(arguments: &BenchArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let (name, source) = weight_source(arguments, global, terminal)?;
    check_lengths(arguments, source.config())?;
    let threads: Vec<Option<NonZeroUsize>> =
        if arguments.threads.is_empty() { vec![None] } else { arguments.threads.iter().copied().map(Some).collect() };
    let workloads = workloads(arguments);
    let mut measurements = Vec::new();
    for threads in threads {
        let device = DeviceArguments { threads, choice: arguments.device.clone() };
        let mut bench = Bench::load(&*source, (&device, arguments), terminal)?;
        bench.peak_memory_bytes = measurements.first().and_then(|first: &Measurement| first.peak_memory_bytes);
        measurements.extend(bench.measure(&name, &workloads, arguments.repetitions, terminal)?);
    }
    let format = if arguments.json { Format::Json } else { arguments.format };
    report::print(&measurements, format, terminal)
}

/// Tests in the order in which they are printed.
fn workloads(arguments: &BenchArguments) -> Vec<Workload> {
    let batches = arguments.batch.iter().map(|&n_sequences| n_sequences.get());
    let kinds = [Kind::Prompt(arguments.n_prompt), Kind::Generate(arguments.n_generate)];
    let all = batches.flat_map(|n_sequences| kinds.map(|kind| Workload { kind, n_sequences }));
    all.filter(|workload| workload.n_tokens() > 0).collect()
}

/// A loaded model and what measures the machine's roofs beside it.
struct Bench {
    runner: Box<dyn Runner>,
    /// The processor as a device, to measure its roofs.
    cpu_options: CpuOptions,
    /// The GPU that the model is on, if it is on one.
    gpu: usize,
    /// What the model takes there once every test has run.
    device_memory: Option<DeviceMemory>,
    /// Most memory in use before the first meter of roofs was made.
    peak_memory_bytes: Option<u64>,
    size_bytes: u64,
}

/// What measures the roofs of the device that a model is on.
enum Meter {
    Cpu(Box<CpuDevice>, RoofMeter),
    Cuda(Box<CudaRoofMeter>),
    /// The reference has no roof to reach.
    None,
}

impl Meter {
    fn new((runner, gpu): (&dyn Runner, usize), cpu_options: CpuOptions) -> anyhow::Result<Self> {
        Ok(match runner.device().name {
            "cpu" => Self::Cpu(Box::new(CpuDevice::new(cpu_options)?), RoofMeter::new()?),
            "cuda" => Self::Cuda(Box::new(CudaRoofMeter::new(CudaDevice::new(gpu)?)?)),
            _ => Self::None,
        })
    }

    fn measure(&mut self) -> anyhow::Result<Option<Roofs>> {
        Ok(match self {
            Self::Cpu(device, meter) => Some(meter.measure(device)),
            Self::Cuda(meter) => {
                let roofs = meter.measure()?;
                Some(Roofs { read_bytes_per_s: roofs.read_bytes_per_s, int8_macs_per_s: Some(roofs.int8_macs_per_s) })
            }
            Self::None => None,
        })
    }
}

impl Bench {
    fn load(
        source: &dyn WeightSource,
        (device, arguments): (&DeviceArguments, &BenchArguments),
        terminal: &Terminal,
    ) -> anyhow::Result<Self> {
        let measured = MeasuredSource { source, size_bytes: AtomicU64::new(0) };
        let n_sequences = arguments.batch.iter().map(|n_sequences| n_sequences.get()).max().unwrap_or(1);
        let n_context = arguments.n_prompt.max(arguments.n_generate).max(1);
        let n_cached_tokens = n_sequences * workload::blocks_of_a_sequence(n_context) * BLOCK_TOKENS;
        let n_tokens_max = STEP_TOKENS_MAX.max(n_sequences);
        let options = RunnerOptions { n_tokens_max, n_cached_tokens, kv_type: arguments.device.kv_type() };
        let runner = load_runner(&measured, device, options, terminal)?;
        let gpu = if let ChosenDevice::Cuda { ordinal } = device.choice.device.one()? { ordinal } else { FIRST_GPU };
        Ok(Self {
            runner,
            cpu_options: cpu_options(device),
            gpu,
            device_memory: None,
            peak_memory_bytes: None,
            size_bytes: measured.size_bytes.into_inner(),
        })
    }

    /// Runs every workload once unmeasured, then all of them in turn, the roofs between, as often as asked.
    fn measure(
        &mut self,
        name: &str,
        workloads: &[Workload],
        repetitions: NonZeroUsize,
        terminal: &Terminal,
    ) -> anyhow::Result<Vec<Measurement>> {
        let bar = terminal.steps_bar((workloads.len() * (1 + repetitions.get())) as u64, "measuring");
        let mut rates = vec![Vec::with_capacity(repetitions.get()); workloads.len()];
        let (mut roofs, mut meter): (Option<Roofs>, Meter) = (None, Meter::None);
        for repetition in 0..=repetitions.get() {
            for (workload, rates) in workloads.iter().zip(&mut rates) {
                let start = Instant::now();
                workload.run(&mut *self.runner)?;
                if repetition > 0 {
                    rates.push(workload.n_tokens() as f64 / start.elapsed().as_secs_f64());
                }
                bar.inc(1);
            }
            if repetition == 0 {
                // The meter takes memory that is not the model's.
                self.peak_memory_bytes = self.peak_memory_bytes.or_else(report::peak_memory_bytes);
                self.device_memory = self.runner.memory();
                meter = Meter::new((&*self.runner, self.gpu), self.cpu_options)?;
            }
            for _ in 0..ROOF_MEASUREMENTS {
                roofs = meter.measure()?.map(|measured| measured.best(roofs));
            }
        }
        bar.finish_and_clear();
        let machine = Machine { roofs, peak_memory_bytes: self.peak_memory_bytes, device_memory: self.device_memory };
        let joules = self.joules_per_token(workloads)?;
        let model = Model { name, size_bytes: self.size_bytes, runner: &*self.runner };
        let found = workloads.iter().zip(rates.into_iter().zip(joules));
        Ok(found.map(|(&workload, found)| Measurement::new(&model, &machine, (workload, found))).collect())
    }

    /// The energy that a GPU takes for a token of each workload, where it counts that: of runs of their own, as many as the counter needs.
    fn joules_per_token(&mut self, workloads: &[Workload]) -> anyhow::Result<Vec<Option<f64>>> {
        let meter = if self.runner.device().name == "cuda" { EnergyMeter::new(self.gpu).ok() } else { None };
        let Some(meter) = meter else { return Ok(vec![None; workloads.len()]) };
        let mut measure = |workload: &Workload| {
            let (mut n_tokens, start) = (0, Instant::now());
            let before = meter.joules()?;
            while start.elapsed() < ENERGY_TIME {
                workload.run(&mut *self.runner)?;
                n_tokens += workload.n_tokens();
            }
            Ok(Some((meter.joules()? - before) / n_tokens as f64))
        };
        workloads.iter().map(&mut measure).collect()
    }
}

fn weight_source(
    arguments: &BenchArguments,
    global: &GlobalArguments,
    terminal: &Terminal,
) -> anyhow::Result<(String, Box<dyn WeightSource>)> {
    const SEED: u64 = 1;
    let Some(shape) = &arguments.shape else {
        let checkpoint = open_to_write(&arguments.model, global, terminal)?;
        return Ok((short_name(arguments.model.name()), Box::new(checkpoint)));
    };
    let as_told = |weights: RandomWeights| {
        let policy = arguments.model.open.policy_to_write(weights.config().activation_policy);
        Box::new(weights.with_activation_policy(policy))
    };
    if let Some(weights) = RandomWeights::published(shape, SEED) {
        return Ok((format!("random {shape}"), as_told(weights)));
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
    Ok((short_name(shape), as_told(RandomWeights::new(config, SEED))))
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

/// Passes weights on and adds up the memory they take as they are stored.
struct MeasuredSource<'a> {
    source: &'a dyn WeightSource,
    size_bytes: AtomicU64,
}

impl WeightSource for MeasuredSource<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let tensor = self.source.load(name)?;
        self.size_bytes.fetch_add(tensor.size_bytes() as u64, Ordering::Relaxed);
        Ok(tensor)
    }

    fn table(&self, name: &str) -> Result<StoredTable, CheckpointError> {
        let table = self.source.table(name)?;
        self.size_bytes.fetch_add(table.size_bytes() as u64, Ordering::Relaxed);
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_name_keeps_what_tells_models_apart() {
        assert_eq!(short_name("a/b/c/config.json"), "c/config.json");
        assert_eq!(short_name("hf:owner/model"), "hf:owner/model");
        assert_eq!(short_name("embedded"), "embedded");
    }
}
