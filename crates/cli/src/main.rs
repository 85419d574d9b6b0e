//! The `bitnet` command: parses the command line, hands over to one file per verb, and reports how it ended.
//!
//! Nothing is computed here. This crate is the only place where devices, models and checkpoints meet.
#![forbid(unsafe_code)]

mod arguments;
mod cli;
mod clock;
mod device_choice;
mod failure;
mod generation;
mod hub;
mod interrupt;
mod model_source;
mod npy;
mod open;
mod size;
mod standard_input;
mod table;
mod terminal;
mod token_input;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::CommandLine;
use crate::terminal::Terminal;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let terminal = Terminal::detect(command_line.global.quiet);
    failure::exit_code(verbs::perform(command_line, &terminal), &terminal)
}
