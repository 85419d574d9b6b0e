//! The project's chores as commands: `cargo xtask VERB`. One file a verb; nothing here is part of the product, and no chore lives
//! anywhere else (no Makefile, no scripts folder).
//!
//! Idea: matklad/cargo-xtask, chores written in the project's own language so that they run wherever it does.
#![forbid(unsafe_code)]

mod arm;
mod clients;
mod command;
mod coverage;
// The small model that the command line's tests embed with; journeys need one, too.
#[path = "../../cli/tests/it/embedding_model.rs"]
mod embedding_model;
mod endure;
mod fixtures;
mod fuzz;
mod nvrtc;
mod repository;
mod test;
mod tidy;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores.
///
/// `cargo xtask test` is what a change has to pass.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Test(test::TestArgs),
    Tidy(tidy::TidyArgs),
    Fuzz(fuzz::FuzzArgs),
    Coverage(coverage::CoverageArgs),
    Endure(endure::EndureArgs),
    Fixtures(fixtures::FixturesArgs),
    Arm(arm::ArmArgs),
    Clients(clients::ClientsArgs),
    Nvrtc(nvrtc::NvrtcArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Test(args) => test::run(&args),
        Verb::Tidy(args) => tidy::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Coverage(args) => coverage::run(&args),
        Verb::Endure(args) => endure::run(&args),
        Verb::Fixtures(args) => fixtures::run(&args),
        Verb::Arm(args) => arm::run(&args),
        Verb::Clients(args) => clients::run(&args, &mut |line| println!("{line}")),
        Verb::Nvrtc(args) => nvrtc::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
