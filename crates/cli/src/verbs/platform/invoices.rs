//! `bitnet invoices`: what an account owes, drawn up from the ledger.

use std::path::PathBuf;

use anyhow::Context;
use bitnet_platform::ids::AccountId;
use bitnet_platform::platform::CURRENCY;
use bitnet_platform::time::Period;
use clap::{Args, Subcommand};

use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, with};

/// Invoices of the platform's accounts
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bitnet invoices draft acct_…\n  bitnet invoices draft acct_… --month 2026-01 --html invoice.html")]
pub(crate) struct InvoicesArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Draw up what a month has come to so far
    Draft {
        account: AccountId,
        /// Which month, such as 2026-01; by default the present one
        #[arg(long)]
        month: Option<Period>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Write a page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
}

/// Draws it up.
pub(crate) fn perform(arguments: &InvoicesArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let Deed::Draft { account, month, json, html } = &arguments.deed;
    with(&arguments.platform, async |session| {
        let now = session.by.at;
        let invoice = session.store.draft_invoice(*account, month.unwrap_or(now.period()), now).await?;
        if let Some(path) = html {
            std::fs::write(path, invoice.to_html(CURRENCY)?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if *json {
            println!("{:#}", invoice.to_json(CURRENCY));
            return Ok(());
        }
        let mut table = Table::new(&["what", "requests", CURRENCY]);
        table.align_right(&[1, 2]);
        for line in &invoice.lines {
            table.row(vec![line.text.clone(), line.n_requests.to_string(), line.amount.to_string()]);
        }
        table.row(vec!["total".into(), String::new(), invoice.total().to_string()]);
        Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
    })
}
