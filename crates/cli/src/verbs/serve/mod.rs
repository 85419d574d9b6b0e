//! `bitnet serve`: models behind HTTP. Puts configuration, models and server together; what it serves is the server's to say.

mod check;
pub(crate) mod models;
mod random_model;
mod settings;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bitnet_server::admission::StaticKeys;
use bitnet_server::{App, Config, Server, telemetry};
use clap::Args;

use crate::arguments::GlobalArguments;
use crate::terminal::Terminal;
use crate::verbs::serve::models::ServedArguments;
use crate::verbs::serve::settings::Settings;

/// Longest time that the runtime's threads may take to end once the server has.
const END_GRACE: Duration = Duration::from_secs(5);

/// Serve models over HTTP, as OpenAI and Anthropic do
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet serve\n  bitnet serve -m hf:microsoft/bitnet-b1.58-2B-4T-gguf --listen 0.0.0.0:8080 --api-key sk-secret\n  bitnet serve --config /etc/bitnet/serve.toml --check-config"
)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    served: ServedArguments,
    /// A TOML file with the settings below by their names, such as drain_seconds = 45
    #[arg(long, value_name = "FILE", env = "BITNET_CONFIG", hide_env_values = true, help_heading = "Server")]
    config: Option<PathBuf>,
    /// Check all that a start needs and loads no weights: settings, certificate, models and whether they fit; then end
    #[arg(long, help_heading = "Server")]
    check_config: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Serves until it is told to end.
pub(crate) fn perform(arguments: &ServeArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    if arguments.check_config {
        return check::perform(arguments, global, terminal);
    }
    let file = arguments.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
    let mut settings = arguments.settings.clone().over(file);
    let served = arguments.served.clone().over(settings.served());
    let log = (settings.log().0, settings.log().1.to_string());
    let config = settings.config()?;
    telemetry::init(log.0, &log.1)?;
    let app = app(config)?;
    let runtime = runtime(app.config().n_io_threads)?;
    let served = runtime.block_on(async {
        let server = Server::bind(app.clone()).await.with_context(|| format!("cannot listen on {}", app.config().listen))?;
        let address = server.address()?;
        // The address is taken before models load, so that a supervisor sees a server that starts and not none.
        let end = end_of_service()?;
        let running = tokio::spawn(server.run(end));
        let loader = (global.clone(), *terminal);
        let models = tokio::task::spawn_blocking(move || served.load(&loader.0, &loader.1)).await.context("loading panicked")??;
        for model in models {
            app.models().insert(model);
        }
        let scheme = if app.config().tls.is_some() { "https" } else { "http" };
        terminal.note(&format!("serving {} on {scheme}://{address}", names(&app)));
        app.resume_batches();
        running.await.context("the server panicked")
    });
    runtime.shutdown_timeout(END_GRACE);
    served
}

/// A server's state with static keys.
pub(crate) fn app(config: Config) -> anyhow::Result<App> {
    let keys = StaticKeys::new(config.api_keys.clone(), bitnet_server::admission::new_secret());
    Ok(App::new(config, Box::new(keys), SystemTime::now)?)
}

/// The threads that serve.
pub(crate) fn runtime(n_threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(n_threads).thread_name("serve").enable_all().build().context("cannot start the server's threads")
}

/// SIGTERM or Ctrl-C; a second one ends the process at once, as the system does by default.
fn end_of_service() -> anyhow::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                std::process::exit(1);
            });
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

fn names(app: &App) -> String {
    app.models().all().iter().map(|model| model.name.clone()).collect::<Vec<_>>().join(", ")
}
