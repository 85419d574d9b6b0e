//! The platform that a server is started on.

use std::time::Duration;

use anyhow::Context;
use bitnet_platform::Platform;
use bitnet_platform::audit::{CheckpointFile, CheckpointKey};
use bitnet_platform::payment::{HookSecret, Stripe};
use bitnet_platform::portal::{CardForm, Portal};
use bitnet_platform::rights::Rights;
use bitnet_platform::store::Store;
use bitnet_platform::time::Timestamp;
use bitnet_server::{App, Server};
use clap::Args;
use tokio::task::JoinSet;

use crate::verbs::platform::{PlatformArguments, STRIPE_URL, stripe_secret};
use crate::verbs::serve::portal::PortalArguments;

/// How often the audit log is signed, if there is anything new in it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What the platform reaches outside. Secrets come by the environment only: everybody sees a command line.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Platform")]
pub(super) struct OutsideArguments {
    /// Collect invoices through Stripe: its secret key comes in BITNET_STRIPE_KEY, that of its events (sent to /webhooks/stripe) in
    /// BITNET_STRIPE_HOOK_SECRET; for a page that asks for cards, its publishable key in BITNET_STRIPE_PUBLISHABLE_KEY
    #[arg(long, value_name = "URL", env = "BITNET_STRIPE_URL", hide_env_values = true, num_args = 0..=1, default_missing_value = STRIPE_URL)]
    stripe: Option<String>,
    /// Let webhooks go to addresses that are not public, and without TLS
    #[arg(long, hide_short_help = true)]
    private_webhooks: bool,
}

impl OutsideArguments {
    fn stripe(&self) -> anyhow::Result<Option<(Stripe, HookSecret)>> {
        let Some(url) = &self.stripe else { return Ok(None) };
        let stripe = Stripe::new(url, &stripe_secret("BITNET_STRIPE_KEY")?).context("Stripe cannot be used")?;
        Ok(Some((stripe, HookSecret::new(&stripe_secret("BITNET_STRIPE_HOOK_SECRET")?))))
    }
}

impl OutsideArguments {
    /// How the portal asks for cards: by Stripe's own script, or that of whatever stands in for Stripe.
    fn cards(&self) -> Option<CardForm> {
        let url = self.stripe.as_deref()?.trim_end_matches('/');
        let publishable_key = std::env::var("BITNET_STRIPE_PUBLISHABLE_KEY").ok().filter(|key| !key.is_empty())?;
        let is_stripe = url == "https://api.stripe.com";
        let script = if is_stripe { "https://js.stripe.com/v3/".into() } else { format!("{url}/js.stripe.com/v3/") };
        Some(CardForm { publishable_key, script })
    }
}

/// An open platform, and what signs its audit log.
pub(super) struct Opened {
    pub(super) platform: Platform,
    arguments: PlatformArguments,
    cards: Option<CardForm>,
}

impl Opened {
    /// Opens it, making what is missing.
    pub(super) async fn open(arguments: PlatformArguments, outside: &OutsideArguments, rights: Rights) -> anyhow::Result<Self> {
        let (secret, stripe) = (arguments.secret()?, outside.stripe()?);
        let mut platform = Platform::open(arguments.url(), &secret, Timestamp::now).await?.with_rights(rights);
        if outside.private_webhooks {
            platform = platform.with_private_webhooks();
        }
        if let Some((stripe, hook)) = stripe {
            platform = platform.with_payments(stripe, hook);
        }
        Ok(Self { platform, arguments, cards: outside.cards() })
    }

    /// Puts the platform's routes and the portal, which it returns, on a server; what sends its mails runs beside it.
    pub(super) fn mount(
        &self,
        server: Server,
        (portal, app): (&PortalArguments, &App),
        running: &mut JoinSet<()>,
    ) -> anyhow::Result<(Server, Portal)> {
        let config = portal.config((server.address()?, app.config().tls.is_some()), self.cards.clone());
        let (portal, sender) = Portal::new(self.platform.clone(), app.clone(), &self.arguments.secret()?, config)?;
        running.spawn(sender.run());
        Ok((server.mount(self.platform.routes()).mount(portal.routes()), portal))
    }

    /// What to do next, for whoever has started it.
    pub(super) async fn invitation(&self, portal: &Portal, url: &str) -> anyhow::Result<String> {
        let is_new = self.platform.store().has_no_people().await?;
        // The link itself is what shows who reads this terminal.
        Ok(if is_new { format!("nobody has signed up yet: open {}", portal.first_url()) } else { format!("the portal is at {url}") })
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
