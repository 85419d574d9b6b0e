//! Groups of flags that several verbs share.

use clap::Args;
use clap::builder::FalseyValueParser;

use crate::hub::HubOptions;

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
