//! `bitnet audit`: the audit log, verified and exported.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use bitnet_platform::audit::CheckpointFile;
use bitnet_platform::ids::AccountId;
use bitnet_platform::store::Store;
use clap::{Args, Subcommand};

use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, runtime};

/// The platform's audit log: verify, export
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet audit verify\n  bitnet audit verify --checkpoints copy-of.checkpoints\n  bitnet audit export > audit.jsonl"
)]
pub(crate) struct AuditArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Find any record that was changed, removed or moved, and any older state that was put back
    Verify {
        /// Copies of the checkpoints, kept where nobody who can write the database can write; by default a file beside it
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<PathBuf>,
        /// The key that signed them, in hexadecimal digits; by default this installation's
        #[arg(long, value_name = "HEX")]
        public_key: Option<String>,
    },
    /// Write all records to standard output, one JSON object a line
    Export {
        /// Of this account only
        #[arg(long)]
        account: Option<AccountId>,
    },
    /// Print the key that checkpoints are signed with
    PublicKey,
}

/// Does one of them.
pub(crate) fn perform(arguments: &AuditArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let platform = &arguments.platform;
    match &arguments.deed {
        Deed::Verify { checkpoints, public_key } => {
            let file = checkpoints.as_ref().map_or_else(|| platform.checkpoints(), |path| Ok(CheckpointFile::new(path)))?;
            let public_key = match public_key {
                Some(key) => key.clone(),
                None => platform.secret()?.checkpoint_key().public_key(),
            };
            verify(platform, &file, &public_key, terminal)
        }
        Deed::Export { account } => export(platform, *account),
        Deed::PublicKey => {
            println!("{}", platform.secret()?.checkpoint_key().public_key());
            Ok(())
        }
    }
}

fn verify(platform: &PlatformArguments, file: &CheckpointFile, public_key: &str, terminal: &Terminal) -> anyhow::Result<()> {
    let copies = file.read()?;
    let report = runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        let report = store.verify_audit(&copies, public_key).await;
        store.close().await;
        report
    })?;
    if report.is_whole() {
        let (n_records, n_checkpoints) = (report.n_records, report.n_checkpoints);
        terminal.note(&format!("{n_records} records are whole, {n_checkpoints} signed states agree; the last hash is {}", report.head));
        return Ok(());
    }
    let mut table = Table::new(&["record", "what"]);
    report.findings.iter().for_each(|finding| table.row(vec![finding.seq.to_string(), finding.what.clone()]));
    table.write(&mut std::io::stdout().lock(), terminal)?;
    anyhow::bail!("the audit log is not as it was written")
}

fn export(platform: &PlatformArguments, account: Option<AccountId>) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        let mut after = 0;
        loop {
            let records = store.audit_records(after, account).await?;
            let Some(last) = records.last() else { break };
            after = last.seq;
            let mut out = std::io::stdout().lock();
            records.iter().try_for_each(|record| writeln!(out, "{}", record.to_json())).context("standard output is gone")?;
        }
        store.close().await;
        Ok(())
    })
}
