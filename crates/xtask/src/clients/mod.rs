//! `cargo xtask clients`: real clients against the real binary. `packages` prepares them, pinned, in the build directory; `server`
//! starts `bitnet serve` on a free port; `journeys` lists what is done to it. Where a component is missing and cannot be installed, the
//! run says which journeys it left out, and fails unless that is allowed.
//!
//! The binary under test is the one that `cargo test` has built already (optimised, dependencies more so than our own crates). The
//! release binary takes a second build of many minutes on two cores and answers the same, bit for bit; `--release` tests that one.

mod journeys;
mod packages;
mod postgres;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::embedding_model;
use crate::repository::Repository;

use journeys::{Component, JOURNEYS, Journey, Keeps, Setting};
use packages::Packages;
use postgres::RunningPostgres;
use server::RunningServer;

/// Run real clients against the server.
///
/// The official OpenAI and Anthropic clients, LiteLLM, LangChain, openai-python's own tests, schemathesis over the OpenAPI description,
/// promtool over metrics and rules, Chromium on the chat page and on the portal, the latter on SQLite and on PostgreSQL; localstripe in
/// Stripe's place.
#[derive(Args, Default)]
pub(crate) struct ClientsArgs {
    /// Only journeys whose name holds one of these.
    pub(crate) only: Vec<String>,
    /// Leave out the journeys of components that are neither there nor can be installed, and say so.
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Let schemathesis try many more requests (some minutes).
    #[arg(long)]
    pub(crate) long: bool,
    /// Test the release binary, and build it first.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Runs all journeys, and hands each line that they print to `on_line`.
pub(crate) fn run(args: &ClientsArgs, on_line: &mut dyn FnMut(&str)) -> Result<()> {
    let repository = Repository::find()?;
    let sources = repository.root.join(journeys::FOLDER);
    let build = repository.target_folder()?.join("clients");
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let is_wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|part| name.to_lowercase().contains(&part.to_lowercase()));
    let wanted: Vec<_> = JOURNEYS.iter().filter(|journey| is_wanted(journey.name)).collect();
    let mut components: Vec<Component> = wanted.iter().flat_map(|journey| journey.needs.iter().copied()).collect();
    components.sort_unstable();
    components.dedup();
    let packages = Packages::prepare(&components, &sources, &build)?;
    let (possible, left_out): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|journey| packages.have(journey.needs));
    if !left_out.is_empty() {
        let names: Vec<&str> = left_out.iter().map(|journey| journey.name).collect();
        let missing = format!("{}: not installed, so left out: {}", packages.missing(), names.join(", "));
        if !args.allow_missing {
            bail!("{missing} (--allow-missing leaves them out)");
        }
        on_line(&missing);
    }
    let vectors = build.join("vectors");
    fs::create_dir_all(&vectors).with_context(|| format!("cannot make {}", vectors.display()))?;
    embedding_model::write(&vectors, &repository.root.join("fixtures/tales-42m/tokenizer.json"));
    let binary = binary(args, &repository)?;
    let folders = Folders { sources: &sources, build: &build, root: &repository.root };
    let mut failed = Vec::new();
    let mut take = |journeys: &[&Journey], url: &str| -> Result<()> {
        for journey in journeys {
            on_line(&format!("── {}", journey.name));
            let started = std::time::Instant::now();
            let setting = Setting {
                sources: &sources,
                build: &build,
                root: folders.root,
                packages: &packages,
                url,
                binary: &binary,
                long: args.long,
            };
            if !command::run_lines(&mut journey.command(&setting)?, &mut *on_line)? {
                failed.push(journey.name);
            }
            on_line(&format!("   {:.1} s", started.elapsed().as_secs_f64()));
        }
        Ok(())
    };
    let (shared, own): (Vec<&Journey>, Vec<&Journey>) = possible.into_iter().partition(|journey| journey.keeps == Keeps::Nothing);
    if !shared.is_empty() {
        let server = RunningServer::start(&binary, &sources, &build)?;
        take(&shared, &server.url)?;
        server.end()?;
    }
    for journey in own {
        on_platform(journey, (&binary, &packages, &folders), &mut take)?;
    }
    if !failed.is_empty() {
        bail!("{} failed", failed.join(", "));
    }
    Ok(())
}

/// Where everything is.
struct Folders<'a> {
    sources: &'a Path,
    build: &'a Path,
    root: &'a Path,
}

/// Takes a journey on a server with a fresh database of its own.
fn on_platform(
    journey: &Journey,
    (binary, packages, folders): (&Path, &Packages, &Folders),
    take: &mut dyn FnMut(&[&Journey], &str) -> Result<()>,
) -> Result<()> {
    let home = folders.build.join("platform");
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let initdb = packages.program(Component::Postgres).filter(|_| journey.keeps == Keeps::Postgres);
    let postgres = initdb.map(RunningPostgres::start).transpose()?;
    let url = postgres.as_ref().map_or_else(|| format!("sqlite:{}", home.join("portal.db").display()), |postgres| postgres.url.clone());
    let server = RunningServer::start_platform(binary, folders.sources, folders.build, (&url, &home.join("secret")))?;
    take(&[journey], &server.url)?;
    server.end()
}

fn binary(args: &ClientsArgs, repository: &Repository) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--package", "bitnet-cli"]).args(args.release.then_some("--release"));
    command::run(cargo.current_dir(&repository.root))?;
    let profile = if args.release { "release" } else { "debug" };
    Ok(repository.target_folder()?.join(profile).join(format!("bitnet{}", std::env::consts::EXE_SUFFIX)))
}
