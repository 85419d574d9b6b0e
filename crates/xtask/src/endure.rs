//! `cargo xtask endure`: the tests of what a server must bear, for as long and as strictly as they are meant: minutes of overload, a
//! hundred thousand clients that leave, a database that is away for half a minute, a million requests of accounts that must not hear of each
//! other, millions of tokens that are almost right. `cargo xtask test` runs the same tests, short.

use anyhow::Result;
use clap::Args;

use crate::command;
use crate::repository::Repository;

/// Run the long version of the server's fault tests, kill a metered server two hundred times, stop its database, and try forged tokens.
///
/// Optimised, one after another, with what they measured printed. Bounds of time are tight, so the machine should do nothing else; and
/// there should be room for 20,000 open files.
#[derive(Args)]
pub(crate) struct EndureArgs {
    /// Only tests whose name holds this.
    #[arg(default_value = "")]
    filter: String,
}

/// Packages, their targets, and how the tests' names begin.
const TESTS: &[(&str, &[&str], &str)] = &[
    ("bitnet-server", &["--test", "it"], "endurance::"),
    ("bitnet-cli", &["--test", "it"], "platform::server_killed"),
    ("bitnet-platform", &["--test", "it"], "away::"),
    ("bitnet-platform", &["--test", "it"], "canary::"),
    ("bitnet-platform", &["--lib"], "identity::mutants::"),
];

pub(crate) fn run(args: &EndureArgs) -> Result<()> {
    let root = Repository::find()?.root;
    for (package, target, tests) in TESTS {
        let mut cargo = command::cargo();
        cargo.args(["test", "--locked", "--release", "-p", package]).args(*target);
        cargo.arg(format!("{tests}{}", args.filter)).args(["--", "--nocapture", "--test-threads", "1"]);
        cargo.env("BITNET_ENDURE", "1").current_dir(&root);
        command::run(&mut cargo)?;
    }
    Ok(())
}
