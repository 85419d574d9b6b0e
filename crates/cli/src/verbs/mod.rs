//! One file per verb; each has its flags and one function that performs it.

pub(crate) mod completions;
pub(crate) mod pull;

use crate::cli::{CommandLine, Verb};
use crate::terminal::Terminal;

/// Does what the command line says.
pub(crate) fn perform(command_line: CommandLine, terminal: &Terminal) -> anyhow::Result<()> {
    let global = &command_line.global;
    match &command_line.verb {
        Verb::Pull(arguments) => pull::perform(arguments, global, terminal),
        Verb::Completions(arguments) => completions::perform(arguments),
    }
}
