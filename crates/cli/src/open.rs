//! From the name of a model to one that runs: the only place where checkpoint, device and runner are put together.

use anyhow::Context;
use bitnet_checkpoint::{Checkpoint, Note};
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_device_cuda::limits::STEP_TOKENS;
use bitnet_device_cuda::{CudaDevice, CudaError, CudaOptions, TablePlace};
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::device::Device;
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::{LoadError, Runner, RunnerError, RunnerOptions, Session, TokenId, TransformerRunner, WeightSource};

use crate::arguments::{DeviceArguments, GlobalArguments, HeadArgument, ModelArguments, OpenArguments};
use crate::device_choice::ChosenDevice;
use crate::failure::Misuse;
use crate::model_source::{ModelLocation, ModelSource};
use crate::terminal::Terminal;

/// tales-42m (fixtures say how it is made), so that the first command needs no download.
static EMBEDDED_MODEL: &[u8] = include_bytes!("../assets/tales-42m.gguf");

/// The GPU that `--device auto` takes; the driver numbers those that it may show from 0.
pub(crate) const FIRST_GPU: usize = 0;

/// Opens the model that `arguments` name, downloading it if need be.
pub(crate) fn open_checkpoint(arguments: &ModelArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    open_source(&arguments.source()?, arguments.open, global, terminal)
}

/// The same for writing text, where speed counts for more than the last digits of a logit.
pub(crate) fn open_to_write(arguments: &ModelArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    open_source_to_write(&arguments.source()?, arguments.open, global, terminal)
}

/// [`open_source`] for writing text. Models that yield embeddings stay as they were trained.
pub(crate) fn open_source_to_write(
    source: &ModelSource,
    arguments: OpenArguments,
    global: &GlobalArguments,
    terminal: &Terminal,
) -> anyhow::Result<Checkpoint> {
    let mut checkpoint = open_source(source, arguments, global, terminal)?;
    if !checkpoint.config().last_token_pooling {
        checkpoint.set_activation_policy(arguments.policy_to_write(checkpoint.config().activation_policy));
    }
    Ok(checkpoint)
}

/// Opens `source`, downloading it if need be, and notes what its files leave open.
pub(crate) fn open_source(
    source: &ModelSource,
    arguments: OpenArguments,
    global: &GlobalArguments,
    terminal: &Terminal,
) -> anyhow::Result<Checkpoint> {
    let options = arguments.options();
    let checkpoint = match source.locate(&global.hub_options(), terminal)? {
        ModelLocation::Embedded => Checkpoint::from_gguf_bytes_with(EMBEDDED_MODEL, options).context("cannot open the embedded model"),
        ModelLocation::Path(path) => Checkpoint::open_with(&path, options).with_context(|| format!("cannot open {}", path.display())),
    }?;
    for note in checkpoint.notes()? {
        terminal.note(&format!("note: {note} ({})", flag_for(note)));
    }
    Ok(checkpoint)
}

/// What to say where a note's decision was the wrong one.
fn flag_for(note: Note) -> &'static str {
    match note {
        Note::ActivationsUnstated => "--activations says which",
        Note::I2sOrderUndecided(_) => "--i2s-layout says which",
    }
}

/// Refuses models that yield embeddings where text is wanted.
pub(crate) fn require_text_model(checkpoint: &Checkpoint) -> anyhow::Result<()> {
    if checkpoint.config().last_token_pooling {
        return Err(Misuse::new("this model yields embeddings, not text", "`bitnet embed` prints them").into());
    }
    Ok(())
}

/// Refuses models that yield text where embeddings are wanted, before their weights are loaded.
pub(crate) fn require_embedding_model(checkpoint: &Checkpoint) -> Result<(), RunnerError> {
    if checkpoint.config().last_token_pooling { Ok(()) } else { Err(RunnerError::NoPooling) }
}

/// Loads `source` with room for `n_context` tokens of one sequence.
pub(crate) fn load_session(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    n_context: usize,
    terminal: &Terminal,
) -> anyhow::Result<Session> {
    let n_context = n_context.min(source.config().context_length).max(1);
    let options = RunnerOptions { kv_type: arguments.choice.kv_type(), ..RunnerOptions::single_sequence(n_context) };
    Ok(Session::new(load_runner(source, arguments, options, terminal)?))
}

/// The options of the processor as a device, which several replicas share.
pub(crate) fn cpu_options(arguments: &DeviceArguments) -> CpuOptions {
    let default = CpuOptions::default();
    let resident_table_bytes_max = match arguments.choice.head {
        Some(HeadArgument::Memory) => usize::MAX,
        Some(HeadArgument::File) | None => default.resident_table_bytes_max,
    };
    let n_replicas = arguments.choice.device.n_on_processor();
    let n_threads = match (arguments.threads.map(usize::from), n_replicas) {
        (n_threads, 0 | 1) => n_threads,
        (n_threads, _) => {
            let of_all = n_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
            Some((of_all / n_replicas).max(1))
        }
    };
    CpuOptions { n_threads, isa: arguments.choice.isa.into(), resident_table_bytes_max }
}

/// Loads `source` onto the one device that `arguments` name.
pub(crate) fn load_runner(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    options: RunnerOptions,
    terminal: &Terminal,
) -> anyhow::Result<Box<dyn Runner>> {
    load_onto_device(source, (arguments.choice.device.one()?, arguments), options, terminal)
}

/// Loads `source` onto each device that `arguments` name.
pub(crate) fn load_replicas(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    options: RunnerOptions,
    terminal: &Terminal,
) -> anyhow::Result<Vec<Box<dyn Runner>>> {
    let devices = arguments.choice.device.all();
    let load = |&device| {
        let loaded = load_onto_device(source, (device, arguments), options, terminal).and_then(|mut runner| {
            if runner.device().name == "cuda" {
                warm_up(&mut *runner).context("the largest steps that the GPU is to take do not succeed")?;
            }
            Ok(runner)
        });
        if devices.len() > 1 { loaded.with_context(|| format!("cannot load the replica on {device}")) } else { loaded }
    };
    devices.iter().map(load).collect()
}

/// Runs the largest steps that `runner` takes, of as many tokens and of as many rows of logits, on blocks that nobody uses yet. A GPU takes memory for a step
/// when it meets it first: what is missing is to be missed now, and not while somebody is served.
fn warm_up(runner: &mut dyn Runner) -> Result<(), RunnerError> {
    /// Rows of logits that a GPU has at a time at most.
    const ROWS: usize = 256;
    let (limits, has_logits) = (runner.limits(), !runner.config().last_token_pooling);
    let n_tokens = limits.n_tokens_max.min(limits.context_length).min(limits.n_blocks * BLOCK_TOKENS);
    let n_sequences = ROWS.min(limits.n_tokens_max).min(limits.n_blocks);
    let sequence = |first_block: usize, n_tokens: usize, rows| {
        let block_table = (first_block..first_block + n_tokens.div_ceil(BLOCK_TOKENS)).map(|block| BlockId(block as u32)).collect();
        BatchSequence { n_tokens, first_position: 0, block_table, rows }
    };
    let best = if has_logits { Rows::LastGreedy } else { Rows::Last };
    let alone = (0..n_sequences).map(|index| sequence(index, 1, best)).collect();
    for sequences in [vec![sequence(0, n_tokens, best)], alone, vec![sequence(0, 1, Rows::Last)]] {
        let n: usize = sequences.iter().map(|sequence| sequence.n_tokens).sum();
        runner.step(&Batch { token_ids: vec![TokenId(0); n], sequences })?;
    }
    Ok(())
}

fn load_onto_device(
    source: &dyn WeightSource,
    (device, arguments): (ChosenDevice, &DeviceArguments),
    options: RunnerOptions,
    terminal: &Terminal,
) -> anyhow::Result<Box<dyn Runner>> {
    let bar = terminal.steps_bar(source.config().n_layers as u64, "loading");
    let mut progress = |layer| bar.set_position(layer as u64);
    let on_gpu = match device {
        ChosenDevice::Cuda { ordinal } => {
            let gpu = CudaDevice::with_options(ordinal, cuda_options(arguments))?;
            Some(load_onto(gpu, source, gpu_options(options, arguments), &mut progress)?)
        }
        ChosenDevice::Auto => load_onto_gpu_if_any((source, arguments), options, (terminal, &mut progress))?,
        ChosenDevice::Cpu | ChosenDevice::Reference => None,
    };
    let runner = match on_gpu {
        Some(runner) => runner,
        None if device == ChosenDevice::Reference => load_onto(ReferenceDevice, source, options, &mut progress)?,
        None => load_onto(CpuDevice::new(cpu_options(arguments))?, source, options, &mut progress)?,
    };
    bar.finish_and_clear();
    Ok(runner)
}

/// The options of a GPU as a device.
fn cuda_options(arguments: &DeviceArguments) -> CudaOptions {
    let table_place = match arguments.choice.head {
        Some(HeadArgument::Memory) => TablePlace::Device,
        Some(HeadArgument::File) | None => TablePlace::Host,
    };
    CudaOptions { table_place }
}

/// The GPU, if there is one that works and has room for the model; otherwise says why not, where that is news.
fn load_onto_gpu_if_any(
    (source, arguments): (&dyn WeightSource, &DeviceArguments),
    options: RunnerOptions,
    (terminal, progress): (&Terminal, &mut dyn FnMut(usize)),
) -> anyhow::Result<Option<Box<dyn Runner>>> {
    let device = match CudaDevice::with_options(FIRST_GPU, cuda_options(arguments)) {
        Ok(device) => device,
        Err(CudaError::NoDriver | CudaError::NoDevice) => return Ok(None),
        Err(error) => {
            terminal.note(&format!("note: the GPU is not used: {error}"));
            return Ok(None);
        }
    };
    match load_onto(device, source, gpu_options(options, arguments), progress) {
        Ok(runner) => Ok(Some(runner)),
        Err(LoadError::Device(error)) => {
            terminal.note(&format!("note: the GPU is not used: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A GPU reads a prompt in longer steps, as far as the cache holds them.
fn gpu_options(options: RunnerOptions, arguments: &DeviceArguments) -> RunnerOptions {
    let n_tokens_max = options.n_tokens_max.max(STEP_TOKENS.min(options.n_cached_tokens));
    RunnerOptions { n_tokens_max, kv_type: arguments.choice.kv_type_on_gpu(), ..options }
}

fn load_onto<D: Device + 'static>(
    device: D,
    source: &dyn WeightSource,
    options: RunnerOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Box<dyn Runner>, LoadError> {
    Ok(Box::new(TransformerRunner::load(device, source, options, progress)?))
}

#[cfg(test)]
mod tests {
    use bitnet_checkpoint::config::ActivationPolicy;
    use bitnet_model::device::KvType;

    use super::*;

    #[test]
    fn runner_warms_up_whatever_its_limits() {
        let source: ModelSource = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-qwen3-group128").parse().expect("a path");
        let (global, terminal) = (GlobalArguments { quiet: true, offline: true }, Terminal::plain());
        let model = open_source(&source, OpenArguments::default(), &global, &terminal).expect("the fixture opens");
        for (n_tokens_max, n_cached_tokens) in [(1, 16), (64, 16), (16, 300), (48, 1000)] {
            let options = RunnerOptions { n_tokens_max, n_cached_tokens, kv_type: KvType::F32 };
            let mut runner = load_onto(ReferenceDevice, &model, options, &mut |_| {}).expect("it loads");
            assert_eq!(warm_up(&mut *runner), Ok(()), "{n_tokens_max} of {n_cached_tokens}");
        }
    }

    #[test]
    fn weight_only_model_that_writes_has_int8_activations_in_groups() {
        let source: ModelSource = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-qwen3-group128").parse().expect("a path");
        let (global, terminal) = (GlobalArguments { quiet: true, offline: true }, Terminal::plain());
        let policy = |opened: anyhow::Result<Checkpoint>| opened.expect("the fixture opens").config().activation_policy;
        assert_eq!(policy(open_source(&source, OpenArguments::default(), &global, &terminal)), ActivationPolicy::Unquantised);
        assert_eq!(policy(open_source_to_write(&source, OpenArguments::default(), &global, &terminal)), ActivationPolicy::Int8PerGroup);
    }
}
