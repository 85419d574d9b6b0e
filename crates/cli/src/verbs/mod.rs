//! One file per verb; each has its flags and one function that performs it.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod pull;

use crate::cli::{CommandLine, Verb};
use crate::terminal::Terminal;

/// Does what the command line says.
pub(crate) fn perform(command_line: CommandLine, terminal: &Terminal) -> anyhow::Result<()> {
    let global = &command_line.global;
    match &command_line.verb {
        Verb::Bench(arguments) => bench::perform(arguments, global, terminal),
        Verb::Perplexity(arguments) => perplexity::perform(arguments, global, terminal),
        Verb::Logits(arguments) => logits::perform(arguments, global, terminal),
        Verb::Pull(arguments) => pull::perform(arguments, global, terminal),
        Verb::Completions(arguments) => completions::perform(arguments),
    }
}
