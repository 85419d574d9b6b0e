//! One file per verb; each has its flags and one function that performs it.

pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod bench_server;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod devices;
pub(crate) mod embed;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod platform;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod serve;

use crate::cli::{CommandLine, Verb};
use crate::terminal::Terminal;

/// Does what the command line says.
pub(crate) fn perform(command_line: CommandLine, terminal: &Terminal) -> anyhow::Result<()> {
    let global = &command_line.global;
    match &command_line.verb {
        Verb::Run(arguments) => run::perform(arguments, global, terminal),
        Verb::Chat(arguments) => chat::perform(arguments, global, terminal),
        Verb::Serve(arguments) => serve::perform(arguments, global, terminal),
        Verb::Batch(arguments) => batch::perform(arguments, global, terminal),
        Verb::Accounts(arguments) => platform::accounts::perform(arguments, terminal),
        Verb::People(arguments) => platform::people::perform(arguments, terminal),
        Verb::Keys(arguments) => platform::keys::perform(arguments, terminal),
        Verb::Db(arguments) => platform::db::perform(arguments, terminal),
        Verb::Invoices(arguments) => platform::invoices::perform(arguments, terminal),
        Verb::Billing(arguments) => platform::billing::perform(arguments, terminal),
        Verb::Licence(arguments) => platform::licence::perform(arguments, terminal),
        Verb::Audit(arguments) => platform::audit::perform(arguments, terminal),
        Verb::Inspect(arguments) => inspect::perform(arguments, global, terminal),
        Verb::Convert(arguments) => convert::perform(arguments, global, terminal),
        Verb::Bench(arguments) => bench::perform(arguments, global, terminal),
        Verb::BenchServer(arguments) => bench_server::perform(arguments, terminal),
        Verb::Perplexity(arguments) => perplexity::perform(arguments, global, terminal),
        Verb::Logits(arguments) => logits::perform(arguments, global, terminal),
        Verb::Embed(arguments) => embed::perform(arguments, global, terminal),
        Verb::Pull(arguments) => pull::perform(arguments, global, terminal),
        Verb::Devices(arguments) => devices::perform(arguments, terminal),
        Verb::Completions(arguments) => completions::perform(arguments),
    }
}
