//! `bitnet audit`: the audit log, verified and exported.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use bitnet_platform::audit::{AuditRecord, CheckpointFile};
use bitnet_platform::ids::AccountId;
use bitnet_platform::store::Store;
use clap::{Args, Subcommand};

use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, runtime};

/// The platform's audit log: verify, export
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet audit verify\n  bitnet audit verify --checkpoints copy-of.checkpoints\n  bitnet audit export > audit.jsonl\n  bitnet audit export --format syslog --to siem.example.com:601"
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
    /// Write all records to standard output, one a line
    Export {
        /// Of this account only
        #[arg(long)]
        account: Option<AccountId>,
        /// As JSON objects, or as messages of syslog (RFC 5424)
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// Only those behind this one, by its number
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// To a collector of syslog over TCP (RFC 6587) instead, such as siem.example.com:601
        #[arg(long, value_name = "HOST:PORT", requires = "format")]
        to: Option<String>,
    },
    /// Print the key that checkpoints are signed with
    PublicKey,
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Jsonl,
    Syslog,
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
        Deed::Export { account, format, after, to: None } => {
            export(platform, (*account, *after), &mut |record| {
                let line = match format {
                    Format::Jsonl => record.to_json().to_string(),
                    Format::Syslog => record.to_syslog(),
                };
                writeln!(std::io::stdout().lock(), "{line}").context("standard output is gone")
            })?;
            Ok(())
        }
        Deed::Export { account, format, after, to: Some(to) } => {
            anyhow::ensure!(*format == Format::Syslog, "a collector takes --format syslog");
            let connect = || format!("cannot reach {to}");
            let mut collector = std::io::BufWriter::new(std::net::TcpStream::connect(to).with_context(connect)?);
            let last = export(platform, (*account, *after), &mut |record| {
                let message = record.to_syslog();
                // Counted in bytes, so that nothing in a message can end it.
                write!(collector, "{} {message}", message.len()).with_context(|| format!("{to} takes no more"))
            })?;
            collector.flush().with_context(|| format!("{to} takes no more"))?;
            terminal.note(&format!("sent up to record {last}; --after {last} goes on there"));
            Ok(())
        }
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

/// Hands out records in order; says which was the last.
fn export(
    platform: &PlatformArguments,
    (account, mut after): (Option<AccountId>, u64),
    write: &mut dyn FnMut(&AuditRecord) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        loop {
            let records = store.audit_records(after, account).await?;
            let Some(last) = records.last() else { break };
            after = last.seq;
            records.iter().try_for_each(&mut *write)?;
        }
        store.close().await;
        Ok(after)
    })
}
