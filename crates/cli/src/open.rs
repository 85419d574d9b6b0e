//! From the name of a model to one that runs: the only place where checkpoint, device and runner are put together.

use std::path::PathBuf;

use anyhow::Context;
use bitnet_checkpoint::Checkpoint;
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::{Runner, RunnerOptions, Session, TransformerRunner, WeightSource};

use crate::arguments::{DeviceArguments, DeviceChoice, GlobalArguments, ModelArguments};
use crate::failure::Misuse;
use crate::model_source::{ModelLocation, ModelSource};
use crate::terminal::Terminal;

/// Opens the model that `arguments` name, downloading it if need be.
pub(crate) fn open_checkpoint(arguments: &ModelArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    open_source(&arguments.source()?, global, terminal)
}

/// Opens `source`, downloading it if need be.
pub(crate) fn open_source(source: &ModelSource, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Checkpoint> {
    match source.locate(&global.hub_options(), terminal)? {
        ModelLocation::Embedded => open_embedded(),
        ModelLocation::Path(path) => open_path(&path),
    }
}

fn open_path(path: &PathBuf) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn open_embedded() -> anyhow::Result<Checkpoint> {
    Err(Misuse::new("this build has no embedded model", "name one with -m").into())
}

/// Loads `source` with room for `n_context` tokens of one sequence.
pub(crate) fn load_session(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    n_context: usize,
    terminal: &Terminal,
) -> anyhow::Result<Session> {
    let n_context = n_context.min(source.config().context_length).max(1);
    let bar = terminal.steps_bar(source.config().n_layers as u64, "loading");
    let runner = load_runner(source, arguments, RunnerOptions::single_sequence(n_context), &mut |layer| bar.set_position(layer as u64));
    bar.finish_and_clear();
    Ok(Session::new(runner?))
}

fn load_runner(
    source: &dyn WeightSource,
    arguments: &DeviceArguments,
    options: RunnerOptions,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Box<dyn Runner>> {
    Ok(match arguments.device {
        DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::Reference => {
            Box::new(TransformerRunner::load(ReferenceDevice, source, options, progress)?)
        }
    })
}
