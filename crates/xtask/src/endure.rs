//! `cargo xtask endure`: the tests of what a server must bear, for as long and as strictly as they are meant: minutes of overload, a
//! hundred thousand clients that leave. `cargo xtask test` runs the same tests, short.

use anyhow::Result;
use clap::Args;

use crate::command;
use crate::repository::Repository;

/// Run the long version of the server's fault tests.
///
/// Optimised, one after another, with what they measured printed. Bounds of time are tight, so the machine should do nothing else; and
/// there should be room for 20,000 open files.
#[derive(Args)]
pub(crate) struct EndureArgs {
    /// Only tests whose name holds this.
    #[arg(default_value = "")]
    filter: String,
}

pub(crate) fn run(args: &EndureArgs) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--locked", "--release", "-p", "bitnet-server", "--test", "it"]);
    cargo.arg(format!("endurance::{}", args.filter)).args(["--", "--nocapture", "--test-threads", "1"]);
    cargo.env("BITNET_ENDURE", "1").current_dir(&Repository::find()?.root);
    command::run(&mut cargo)
}
