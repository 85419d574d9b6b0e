//! What all verbs of the platform share: which database, which secret, who acts; and that what they did is signed in the audit log.

pub(crate) mod accounts;
pub(crate) mod audit;
pub(crate) mod billing;
pub(crate) mod db;
pub(crate) mod invoices;
pub(crate) mod keys;
pub(crate) mod licence;
pub(crate) mod people;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use bitnet_platform::InstallationSecret;
use bitnet_platform::audit::{By, CheckpointFile};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use clap::Args;

use crate::failure::Misuse;

/// Where the platform is unless something else is said.
pub(crate) const DEFAULT_URL: &str = "sqlite:bitnet.db";

/// Which platform.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Platform")]
pub(crate) struct PlatformArguments {
    /// The platform's database, sqlite:FILE or postgres://USER@HOST/NAME
    #[arg(long, value_name = "URL", env = "BITNET_PLATFORM", hide_env_values = true, default_value = DEFAULT_URL, global = true)]
    platform: String,
    /// The installation's secret, made if it is not there; by default a file beside the database
    #[arg(long, value_name = "FILE", env = "BITNET_PLATFORM_SECRET", hide_env_values = true, global = true)]
    platform_secret: Option<PathBuf>,
}

impl PlatformArguments {
    /// As `serve` has them.
    pub(crate) fn new(platform: String, platform_secret: Option<PathBuf>) -> Self {
        Self { platform, platform_secret }
    }

    pub(crate) fn url(&self) -> &str {
        &self.platform
    }

    /// A file beside the database, or in this folder where that is elsewhere.
    fn beside(&self, suffix: &str) -> anyhow::Result<PathBuf> {
        let Some(rest) = self.platform.strip_prefix("sqlite:") else { return Ok(format!("bitnet.{suffix}").into()) };
        let path = rest.strip_prefix("//").unwrap_or(rest).split('?').next().unwrap_or_default();
        if path.is_empty() || path.contains(":memory:") {
            return Err(Misuse::new("a database in memory is gone with this command", "name a file, such as sqlite:bitnet.db").into());
        }
        Ok(format!("{path}.{suffix}").into())
    }

    /// Reads the secret, or makes it.
    pub(crate) fn secret(&self) -> anyhow::Result<InstallationSecret> {
        let path = match &self.platform_secret {
            Some(path) => path.clone(),
            None => self.beside("secret")?,
        };
        Ok(InstallationSecret::load_or_create(&path)?)
    }

    /// Where copies of the audit log's checkpoints are kept.
    pub(crate) fn checkpoints(&self) -> anyhow::Result<CheckpointFile> {
        Ok(CheckpointFile::new(self.beside("checkpoints")?))
    }
}

/// Where Stripe is.
pub(crate) const STRIPE_URL: &str = "https://api.stripe.com";

/// A secret of Stripe's, from the environment: an argument would be seen by everybody on this machine.
pub(crate) fn stripe_secret(name: &'static str) -> anyhow::Result<String> {
    let missing = || Misuse::new(format!("{name} is not set"), "Stripe's dashboard shows it; set it in the environment");
    Ok(std::env::var(name).ok().filter(|secret| !secret.is_empty()).ok_or_else(missing)?)
}

/// An open database, and who acts on it.
pub(crate) struct Session {
    pub(crate) store: Arc<Store>,
    pub(crate) secret: InstallationSecret,
    pub(crate) checkpoints: CheckpointFile,
    pub(crate) by: By,
}

/// Opens the platform's database with its schema up to date, works on it, and signs what was done.
pub(crate) fn with<T>(arguments: &PlatformArguments, work: impl AsyncFnOnce(&Session) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (secret, checkpoints) = (arguments.secret()?, arguments.checkpoints()?);
    runtime()?.block_on(async {
        let now = Timestamp::now();
        let store = Arc::new(Store::connect(arguments.url()).await?);
        store.migrate(MIGRATIONS, now).await?;
        store.check_secret(&secret).await?;
        let session = Session { store, secret, checkpoints, by: By::operator(&user(), now) };
        let done = work(&session).await;
        let signed = session.store.checkpoint(&session.secret.checkpoint_key(), &session.checkpoints, Timestamp::now()).await;
        session.store.close().await;
        let done = done?;
        signed.context("it is done, but the audit log could not be signed")?;
        Ok(done)
    })
}

/// One thread is enough for a command.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Who uses this machine, as far as the system says.
fn user() -> String {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_stands_beside_its_database() {
        let beside = |url: &str| PlatformArguments::new(url.into(), None).beside("secret").map(|path| path.display().to_string());
        assert_eq!(beside("sqlite:/var/b.db").expect("a file"), "/var/b.db.secret");
        assert_eq!(beside("sqlite://b.db?mode=rwc").expect("a file"), "b.db.secret");
        assert_eq!(beside("postgres://h/b").expect("elsewhere"), "bitnet.secret");
        assert!(beside("sqlite::memory:").is_err());
    }
}
