//! `bitnet db`: the platform's database as an operator sees it: schema, integrity, backups, books.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_platform::audit::CheckpointFile;
use bitnet_platform::reconcile::Report;
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use clap::{Args, Subcommand};

use crate::failure::Misuse;
use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, runtime, with};

/// The platform's database: migrate, check, back up, restore, reconcile
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet db check\n  bitnet db backup bitnet.backup\n  bitnet db restore bitnet.backup --platform postgres://bitnet@localhost/bitnet\n  bitnet db reconcile --rebuild"
)]
pub(crate) struct DbArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Make the schema what this release needs
    Migrate,
    /// Check schema, secret, file and audit log; changes nothing
    Check,
    /// Write everything to a new file, while servers go on
    Backup { file: PathBuf },
    /// Fill an empty database, of either kind, from a backup
    Restore { file: PathBuf },
    /// Rate every event anew and check that all sums agree
    Reconcile {
        /// First make rollups and counters anew from the events
        #[arg(long)]
        rebuild: bool,
    },
}

/// Does one of them.
pub(crate) fn perform(arguments: &DbArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let platform = &arguments.platform;
    match &arguments.deed {
        Deed::Migrate => migrate(platform, terminal),
        Deed::Check => check(platform, terminal),
        Deed::Backup { file } => backup(platform, file, terminal),
        Deed::Restore { file } => restore(platform, file, terminal),
        Deed::Reconcile { rebuild } => with(platform, async |session| {
            if *rebuild {
                session.store.rebuild_derived().await?;
            }
            told(&session.store.reconcile().await?, terminal)
        }),
    }
}

fn migrate(platform: &PlatformArguments, terminal: &Terminal) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        let n_applied = store.migrate(MIGRATIONS, Timestamp::now()).await?;
        store.close().await;
        terminal.note(&format!("{n_applied} migrations applied, {} in all", MIGRATIONS.len()));
        Ok(())
    })
}

fn check(platform: &PlatformArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let (secret, checkpoints): (_, CheckpointFile) = (platform.secret()?, platform.checkpoints()?);
    runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        store.check_schema(MIGRATIONS).await?;
        store.check_secret(&secret).await?;
        store.check_integrity().await?;
        let report = store.verify_audit(&checkpoints.read()?, &secret.checkpoint_key().public_key()).await?;
        store.close().await;
        if let Some(finding) = report.findings.first() {
            anyhow::bail!("the audit log is not whole, from record {} on: {}", finding.seq, finding.what);
        }
        terminal.note(&format!("schema, secret and file are as they should be; the audit log's {} records are whole", report.n_records));
        Ok(())
    })
}

fn backup(platform: &PlatformArguments, path: &Path, terminal: &Terminal) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    if path.exists() {
        return Err(Misuse::new(format!("{} is there already", path.display()), "name a new file").into());
    }
    // Written beside its place and renamed: a backup that was broken off is none.
    let beside = path.with_added_extension("part");
    let n_rows = runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        let mut file = BufWriter::new(File::create(&beside).with_context(what)?);
        let n_rows = store.backup(&mut file, Timestamp::now()).await?;
        file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).with_context(what)?;
        store.close().await;
        anyhow::Ok(n_rows)
    });
    if n_rows.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    let n_rows = n_rows?;
    std::fs::rename(&beside, path).with_context(what)?;
    terminal.note(&format!("{n_rows} rows in {}; keep the secret's file with it", path.display()));
    Ok(())
}

fn restore(platform: &PlatformArguments, path: &Path, terminal: &Terminal) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let store = Store::connect(platform.url()).await?;
        let n_rows =
            store.restore(|| File::open(path), Timestamp::now()).await.with_context(|| format!("cannot restore {}", path.display()))?;
        let report = store.reconcile().await?;
        store.close().await;
        terminal.note(&format!("{n_rows} rows restored"));
        told(&report, terminal)
    })
}

fn told(report: &Report, terminal: &Terminal) -> anyhow::Result<()> {
    if report.is_balanced() {
        terminal.note(&format!("{} events, {} charged, {} owed: all sums agree", report.n_events, report.charge, report.due));
        return Ok(());
    }
    let mut table = Table::new(&["what", "of", "expected", "got"]);
    table.align_right(&[2, 3]);
    for difference in &report.differences {
        table.row(vec![difference.what.into(), difference.at.clone(), difference.expected.to_string(), difference.got.to_string()]);
    }
    table.write(&mut std::io::stdout().lock(), terminal)?;
    anyhow::bail!("{} sums do not agree", report.differences.len())
}
