//! `bitnet pull`: downloads a model, so that other verbs find it later and offline, and prints where it lies.

use std::io::Write;

use clap::Args;

use crate::arguments::GlobalArguments;
use crate::hub::{self, HubName};
use crate::terminal::{Output, Terminal};

/// Download a model and print its path
#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// hf:owner/name[@revision][:file.gguf]; `hf:` may be left out
    #[arg(value_name = "MODEL")]
    model: String,
}

/// Downloads and prints one line.
pub(crate) fn perform(arguments: &PullArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let name: HubName = arguments.model.strip_prefix("hf:").unwrap_or(&arguments.model).parse()?;
    let path = hub::resolve(&name, &global.hub_options(), terminal)?;
    writeln!(Output, "{}", path.display())?;
    Ok(())
}
