//! `bitnet serve`: models behind HTTP. Puts configuration, models and server together; what it serves is the server's to say.

mod check;
pub(crate) mod models;
mod opened;
mod portal;
mod random_model;
mod settings;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bitnet_platform::rights::Rights;
use bitnet_server::admission::{Admission, StaticKeys};
use bitnet_server::{App, Config, Server, telemetry};
use clap::Args;

use crate::arguments::GlobalArguments;
use crate::failure::Misuse;
use crate::terminal::Terminal;
use crate::verbs::platform::{DEFAULT_URL, PlatformArguments, licence};
use crate::verbs::serve::models::ServedArguments;
use crate::verbs::serve::opened::{Opened, OutsideArguments};
use crate::verbs::serve::portal::PortalArguments;
use crate::verbs::serve::settings::Settings;

/// Longest time that the runtime's threads may take to end once the server has.
const END_GRACE: Duration = Duration::from_secs(5);

/// Serve models over HTTP, as OpenAI and Anthropic do
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet serve\n  bitnet serve -m hf:microsoft/bitnet-b1.58-2B-4T-gguf --listen 0.0.0.0:8080 --api-key sk-secret\n  bitnet serve --platform sqlite:bitnet.db\n  bitnet serve --config /etc/bitnet/serve.toml --check-config"
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
    /// Serve accounts and their keys, metered, with a portal at /: a database, sqlite:FILE or postgres://USER@HOST/NAME; by default
    /// sqlite:bitnet.db, which is made if it is not there
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = DEFAULT_URL, env = "BITNET_PLATFORM", hide_env_values = true, help_heading = "Platform")]
    platform: Option<String>,
    /// The installation's secret, made if it is not there; by default a file beside the database
    #[arg(long, value_name = "FILE", env = "BITNET_PLATFORM_SECRET", hide_env_values = true, help_heading = "Platform")]
    platform_secret: Option<PathBuf>,
    #[command(flatten)]
    portal: PortalArguments,
    /// What this installation may use, as a signed file; see `bitnet licence`
    #[arg(long, value_name = "FILE", env = "BITNET_LICENCE", hide_env_values = true, help_heading = "Platform")]
    licence: Option<PathBuf>,
    /// A key that may sign licences, in hexadecimal digits; may be given several times
    #[arg(
        long,
        value_name = "HEX",
        env = "BITNET_LICENCE_PUBLIC_KEYS",
        hide_env_values = true,
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = "Platform"
    )]
    licence_public_key: Vec<String>,
    #[command(flatten)]
    outside: OutsideArguments,
    #[command(flatten)]
    settings: Settings,
}

impl ServeArguments {
    /// The platform, if there is one: then every caller needs a key of its database, and there are no others.
    fn platform_of(&self, settings: &mut Settings) -> anyhow::Result<Option<PlatformArguments>> {
        let Some(url) = &self.platform else { return Ok(None) };
        if !settings.api_key.is_empty() || !settings.api_keys.is_empty() {
            return Err(Misuse::new("keys of a platform stand in its database", "leave out --api-key, and see `bitnet keys`").into());
        }
        settings.allow_unauthenticated = Some(true);
        // The portal is at /, and has a playground.
        settings.no_chat_page = Some(true);
        Ok(Some(PlatformArguments::new(url.clone(), self.platform_secret.clone())))
    }
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
    let platform = arguments.platform_of(&mut settings)?;
    let config = settings.config()?;
    telemetry::init(log.0, &log.1)?;
    let rights = match &arguments.licence {
        Some(file) => licence::serve_under(file, &arguments.licence_public_key, terminal)?,
        None => Rights::unlimited(),
    };
    let runtime = runtime(config.n_io_threads)?;
    let open = |platform| runtime.block_on(Opened::open(platform, &arguments.outside, rights));
    let platform = platform.map(open).transpose()?;
    let app = app(config, platform.as_ref().map(|opened| opened.platform.admission()))?;
    let portal = arguments.portal.clone();
    let served = runtime.block_on(async {
        let mut running = platform.as_ref().map(Opened::start).transpose()?;
        let server = Server::bind(app.clone()).await.with_context(|| format!("cannot listen on {}", app.config().listen))?;
        let address = server.address()?;
        let (server, mounted) = match (&platform, &mut running) {
            (Some(opened), Some(running)) => {
                let (server, portal) = opened.mount(server, (&portal, &app), running)?;
                (server, Some((opened, portal)))
            }
            _ => (server, None),
        };
        // The address is taken before models load, so that a supervisor sees a server that starts and not none.
        let end = end_of_service()?;
        let serving = tokio::spawn(server.run(end));
        let loader = (global.clone(), *terminal);
        let models = tokio::task::spawn_blocking(move || served.load(&loader.0, &loader.1)).await.context("loading panicked")??;
        for model in models {
            app.models().insert(model);
        }
        let scheme = if app.config().tls.is_some() { "https" } else { "http" };
        terminal.note(&format!("serving {} on {scheme}://{address}", names(&app)));
        match &mounted {
            Some((opened, mounted)) => {
                terminal.note(&opened.invitation(mounted, &portal.url((address, app.config().tls.is_some()))).await?);
            }
            None => terminal.note("with accounts, keys, usage and invoices at the same address: bitnet serve --platform"),
        }
        app.resume_batches();
        let served = serving.await.context("the server panicked");
        if let (Some(opened), Some(running)) = (platform, running) {
            opened.platform.end(running).await;
        }
        served
    });
    runtime.shutdown_timeout(END_GRACE);
    served
}

/// A server's state, with static keys unless somebody else says who may do what.
pub(crate) fn app(config: Config, admission: Option<Box<dyn Admission>>) -> anyhow::Result<App> {
    let keys = || Box::new(StaticKeys::new(config.api_keys.clone(), bitnet_server::admission::new_secret()));
    let admission = admission.unwrap_or_else(|| keys());
    Ok(App::new(config, admission, SystemTime::now)?)
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
