//! Groups of flags that several verbs share.

use std::num::NonZeroUsize;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use crate::hub::HubOptions;
use crate::model_source::{EMBEDDED, ModelSource};

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArguments {
    /// Print results only: no notes, no progress, no rates
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Use only what has been downloaded before
    #[arg(long, global = true, env = "HF_HUB_OFFLINE", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
}

impl GlobalArguments {
    /// Where hub models come from.
    pub(crate) fn hub_options(&self) -> HubOptions {
        HubOptions::from_environment(self.offline)
    }
}

/// Which model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArguments {
    /// Folder, .gguf file, or hf:owner/name[@revision][:file.gguf]; without it, the embedded model
    #[arg(short, long = "model", value_name = "MODEL", env = "BITNET_MODEL", hide_env_values = true)]
    model: Option<String>,
}

impl ModelArguments {
    /// The model's name on the command line.
    pub(crate) fn name(&self) -> &str {
        self.model.as_deref().unwrap_or(EMBEDDED)
    }

    /// The model meant.
    pub(crate) fn source(&self) -> anyhow::Result<ModelSource> {
        Ok(self.name().parse()?)
    }
}

/// Where a model runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArguments {
    /// Threads that compute; by default, one for each processor that may be used
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What computes
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceChoice,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The fastest there is
    #[default]
    Auto,
    /// The processor, with the best instruction set it has
    Cpu,
    /// The plain scalar code that defines every result: slow, for checking
    Reference,
}
