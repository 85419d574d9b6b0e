//! `bitnet completions`: prints a script that teaches a shell the verbs and flags.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::CommandLine;
use crate::terminal::Output;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "For bash: bitnet completions bash > ~/.local/share/bash-completion/completions/bitnet")]
pub(crate) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(crate) fn perform(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "bitnet", &mut script);
    Output.write_all(&script)?;
    Ok(())
}
