//! The command line as a tree: which verbs there are, and the flags that all of them take. A verb's own flags stand in its file.

use clap::{Parser, Subcommand};

use crate::arguments::GlobalArguments;
use crate::verbs;

/// Runs ternary (1.58-bit) language models.
#[derive(Debug, Parser)]
#[command(name = "bitnet", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done, 1 failed, 2 misused.\nTry: bitnet run \"Once upon a time\"")]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) global: GlobalArguments,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<verbs::run::RunArguments>),
    Chat(Box<verbs::chat::ChatArguments>),
    Serve(Box<verbs::serve::ServeArguments>),
    Batch(Box<verbs::batch::BatchArguments>),
    Accounts(Box<verbs::platform::accounts::AccountsArguments>),
    People(Box<verbs::platform::people::PeopleArguments>),
    Keys(Box<verbs::platform::keys::KeysArguments>),
    Db(Box<verbs::platform::db::DbArguments>),
    Invoices(Box<verbs::platform::invoices::InvoicesArguments>),
    Billing(Box<verbs::platform::billing::BillingArguments>),
    Audit(Box<verbs::platform::audit::AuditArguments>),
    Licence(Box<verbs::platform::licence::LicenceArguments>),
    Inspect(verbs::inspect::InspectArguments),
    Convert(verbs::convert::ConvertArguments),
    Bench(verbs::bench::BenchArguments),
    BenchServer(verbs::bench_server::BenchServerArguments),
    Perplexity(verbs::perplexity::PerplexityArguments),
    Logits(verbs::logits::LogitsArguments),
    Embed(verbs::embed::EmbedArguments),
    Pull(verbs::pull::PullArguments),
    Devices(verbs::devices::DevicesArguments),
    Completions(verbs::completions::CompletionsArguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
