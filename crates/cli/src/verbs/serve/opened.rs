//! The platform that a server is started on.

use std::time::Duration;

use anyhow::Context;
use bitnet_platform::Platform;
use bitnet_platform::audit::{CheckpointFile, CheckpointKey};
use bitnet_platform::payment::{HookSecret, Stripe};
use bitnet_platform::rights::Rights;
use bitnet_platform::store::Store;
use bitnet_platform::time::Timestamp;
use clap::Args;
use tokio::task::JoinSet;

use crate::failure::Misuse;
use crate::terminal::Terminal;
use crate::verbs::platform::PlatformArguments;

/// How often the audit log is signed, if there is anything new in it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What the platform reaches outside. Secrets come by the environment only: everybody sees a command line.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Platform")]
pub(super) struct OutsideArguments {
    /// Collect invoices through Stripe: its secret key comes in BITNET_STRIPE_KEY, that of its events (sent to /webhooks/stripe) in
    /// BITNET_STRIPE_HOOK_SECRET
    #[arg(long, value_name = "URL", env = "BITNET_STRIPE_URL", hide_env_values = true, num_args = 0..=1, default_missing_value = "https://api.stripe.com")]
    stripe: Option<String>,
    /// Let webhooks go to addresses that are not public, and without TLS
    #[arg(long, hide_short_help = true)]
    private_webhooks: bool,
}

impl OutsideArguments {
    fn stripe(&self) -> anyhow::Result<Option<(Stripe, HookSecret)>> {
        let Some(url) = &self.stripe else { return Ok(None) };
        let secret = |name: &'static str| {
            let missing = || Misuse::new(format!("{name} is not set"), "Stripe's dashboard shows it; set it in the server's environment");
            std::env::var(name).ok().filter(|secret| !secret.is_empty()).ok_or_else(missing)
        };
        let stripe = Stripe::new(url, &secret("BITNET_STRIPE_KEY")?).context("Stripe cannot be used")?;
        Ok(Some((stripe, HookSecret::new(&secret("BITNET_STRIPE_HOOK_SECRET")?))))
    }
}

/// An open platform, and what signs its audit log.
pub(super) struct Opened {
    pub(super) platform: Platform,
    arguments: PlatformArguments,
}

impl Opened {
    /// Opens it, making what is missing.
    pub(super) async fn open(
        arguments: PlatformArguments,
        outside: &OutsideArguments,
        rights: Rights,
        terminal: &Terminal,
    ) -> anyhow::Result<Self> {
        let (secret, stripe) = (arguments.secret()?, outside.stripe()?);
        let mut platform = Platform::open(arguments.url(), &secret, Timestamp::now).await?.with_rights(rights);
        if outside.private_webhooks {
            platform = platform.with_private_webhooks();
        }
        if let Some((stripe, hook)) = stripe {
            platform = platform.with_payments(stripe, hook);
        }
        if platform.store().accounts(Timestamp::now()).await?.is_empty() {
            terminal.note("there is no account yet, so nobody may use a model: bitnet accounts create NAME");
        }
        Ok(Self { platform, arguments })
    }

    /// What runs beside the server.
    pub(super) fn start(&self) -> anyhow::Result<JoinSet<()>> {
        let mut running = self.platform.start();
        let (key, file) = (self.arguments.secret()?.checkpoint_key(), self.arguments.checkpoints()?);
        running.spawn(sign(self.platform.store().clone(), key, file));
        Ok(running)
    }
}

async fn sign(store: std::sync::Arc<Store>, key: CheckpointKey, file: CheckpointFile) {
    loop {
        if let Err(error) = store.checkpoint(&key, &file, Timestamp::now()).await {
            tracing::warn!(%error, "the audit log could not be signed");
        }
        tokio::time::sleep(CHECKPOINT_EVERY).await;
    }
}
