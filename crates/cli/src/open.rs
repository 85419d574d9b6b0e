//! From the name of a model to one that runs: the only place where checkpoint, device and runner are put together.

use anyhow::Context;
use bitnet_checkpoint::{Checkpoint, Note};
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_model::device::Device;
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::{LoadError, Runner, RunnerError, RunnerOptions, Session, TransformerRunner, WeightSource};

use crate::arguments::{DeviceArguments, DeviceChoice, GlobalArguments, ModelArguments, OpenArguments};
use crate::failure::Misuse;
use crate::model_source::{ModelLocation, ModelSource};
use crate::terminal::Terminal;

/// tales-42m (fixtures say how it is made), so that the first command needs no download.
static EMBEDDED_MODEL: &[u8] = include_bytes!("../assets/tales-42m.gguf");

/// Opens the model that `arguments` name, downloading it if need be.
pub(crate) fn open_checkpoint(arguments: &ModelArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    open_source(&arguments.source()?, arguments.open, global, terminal)
}

/// The same for writing text, where speed counts for more than the last digits of a logit.
pub(crate) fn open_to_write(arguments: &ModelArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    let mut checkpoint = open_checkpoint(arguments, global, terminal)?;
    checkpoint.set_activation_policy(arguments.open.policy_to_write(checkpoint.config().activation_policy));
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
    let options = RunnerOptions { kv_type: arguments.choice.kv_cache.into(), ..RunnerOptions::single_sequence(n_context) };
    Ok(Session::new(load_runner(source, arguments, options, terminal)?))
}

/// The options of the processor as a device.
pub(crate) fn cpu_options(arguments: &DeviceArguments) -> CpuOptions {
    CpuOptions { n_threads: arguments.threads.map(usize::from), isa: arguments.choice.isa.into(), ..CpuOptions::default() }
}

/// Loads `source` onto the device that `arguments` name.
pub(crate) fn load_runner(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    options: RunnerOptions,
    terminal: &Terminal,
) -> anyhow::Result<Box<dyn Runner>> {
    let bar = terminal.steps_bar(source.config().n_layers as u64, "loading");
    let mut progress = |layer| bar.set_position(layer as u64);
    let runner = match arguments.choice.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => load_onto(CpuDevice::new(cpu_options(arguments))?, source, options, &mut progress),
        DeviceChoice::Reference => load_onto(ReferenceDevice, source, options, &mut progress),
    };
    bar.finish_and_clear();
    Ok(runner?)
}

fn load_onto<D: Device + 'static>(
    device: D,
    source: &dyn WeightSource,
    options: RunnerOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Box<dyn Runner>, LoadError> {
    Ok(Box::new(TransformerRunner::load(device, source, options, progress)?))
}
