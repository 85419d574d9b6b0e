//! All of the platform as one thing that a server starts, mounts and ends: store, ledger, directory and what runs beside them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bitnet_server::App;
use bitnet_server::admission::Admission;
use tokio::task::JoinSet;

use crate::books;
use crate::directory::{Directory, KeyHasher};
use crate::error::PlatformError;
use crate::gateway::Gateway;
use crate::ledger::service::LedgerService;
use crate::organization;
use crate::outbound::{Destinations, Outbound};
use crate::payment::{HookSecret, Payments, Stripe};
use crate::rights::Rights;
use crate::secret_file::InstallationSecret;
use crate::service_level::Outcomes;
use crate::store::{MIGRATIONS, Store};
use crate::time::{Clock, Timestamp};
use crate::webhooks::{EndpointSecrets, Webhooks};

/// The currency of all amounts, as ISO 4217 has it, in small letters.
pub const CURRENCY: &str = "usd";
/// How long the last records may take to be written when the server ends.
const END_MAX: Duration = Duration::from_secs(10);

/// An open platform.
#[derive(Clone)]
pub struct Platform {
    store: Arc<Store>,
    ledger: Arc<LedgerService>,
    directory: Arc<Directory>,
    hasher: KeyHasher,
    tenant_key: [u8; 32],
    webhooks: Webhooks,
    payments: Option<Payments>,
    rights: Rights,
    outcomes: Outcomes,
    now: Clock,
}

impl Platform {
    /// Opens a database, makes its schema up to date, and takes its ledger over: requests are admitted here from now on.
    pub async fn open(url: &str, secret: &InstallationSecret, now: Clock) -> Result<Self, PlatformError> {
        let store = Arc::new(Store::connect(url).await?);
        store.migrate(MIGRATIONS, now()).await?;
        store.check_secret(secret).await?;
        let ledger = Arc::new(LedgerService::open(Box::new(store.clone()), now()).await?);
        let hasher = secret.key_hasher();
        let directory = Arc::new(Directory::open(store.clone(), ledger.clone(), hasher.clone()).await?);
        let tenant_key = secret.derive("bitnet platform 2026 salts of cached prefixes");
        let secrets = EndpointSecrets::new(secret.derive("bitnet platform 2026 secrets of webhooks"));
        let webhooks = Webhooks::new(store.clone(), Outbound::new(Destinations::Public), secrets);
        let (payments, rights, outcomes) = (None, Rights::unlimited(), Outcomes::default());
        Ok(Self { store, ledger, directory, hasher, tenant_key, webhooks, payments, rights, outcomes, now })
    }

    /// Lets webhooks go to addresses that are not public, and without TLS: where the operator's own network is the customer.
    #[must_use]
    pub fn with_private_webhooks(mut self) -> Self {
        let secrets = self.webhooks.secrets().clone();
        self.webhooks = Webhooks::new(self.store.clone(), Outbound::new(Destinations::Any), secrets);
        self
    }

    /// Collects invoices through Stripe.
    #[must_use]
    pub fn with_payments(mut self, stripe: Stripe, hook: HookSecret) -> Self {
        self.payments = Some(Payments::new(self.store.clone(), stripe, hook));
        self
    }

    /// Runs under a licence.
    #[must_use]
    pub fn with_rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    /// What runs beside the server: commits, projections, and the directory's following of changes. Dropping the set ends it.
    pub fn start(&self) -> JoinSet<()> {
        let mut running = JoinSet::new();
        let (ledger, now) = (self.ledger.clone(), self.now);
        running.spawn(async move {
            let error = ledger.run(now).await;
            tracing::error!(%error, "the ledger has ended: no request is admitted any more");
        });
        running.spawn(self.directory.clone().run(self.now));
        running.spawn(self.webhooks.clone().run(self.now));
        if let Some(payments) = &self.payments {
            running.spawn(payments.clone().run(self.now));
        }
        running.spawn(self.rights.clone().run(self.now));
        running.spawn(self.outcomes.clone().run(self.store.clone()));
        running.spawn(books::run(self.store.clone(), self.directory.clone(), self.now));
        running
    }

    /// Who may do what.
    pub fn admission(&self) -> Box<dyn Admission> {
        Box::new(Gateway::new((self.directory.clone(), self.ledger.clone()), self.tenant_key, self.outcomes.clone(), self.now))
    }

    /// The routes that it answers.
    pub fn routes(&self) -> Router<App> {
        organization::routes(self.clone())
    }

    /// What tells the time.
    pub(crate) fn clock(&self) -> Clock {
        self.now
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The database.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<LedgerService> {
        &self.ledger
    }

    /// The copy of keys.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Tells accounts of what happened.
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// Collects invoices, if something is set up for that.
    pub fn payments(&self) -> Option<&Payments> {
        self.payments.as_ref()
    }

    /// What the licence allows.
    pub fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Counts of how requests ended.
    pub fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    /// Hashes keys.
    pub fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    /// Writes what is left to be written and closes the database. What cannot be written in time is written by nobody: it was
    /// shown to nobody.
    pub async fn end(self, mut running: JoinSet<()>) {
        running.shutdown().await;
        match tokio::time::timeout(END_MAX, self.ledger.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the ledger's last records could not be written"),
            Err(_) => tracing::error!("the ledger's last records could not be written in time"),
        }
        if !matches!(tokio::time::timeout(END_MAX, self.outcomes.flush(&self.store)).await, Ok(Ok(()))) {
            tracing::warn!("the last outcomes of requests could not be written");
        }
        let _ = tokio::time::timeout(END_MAX, self.store.close()).await;
    }
}

impl InstallationSecret {
    /// Hashes API keys under this secret.
    pub fn key_hasher(&self) -> KeyHasher {
        KeyHasher::new(self.derive("bitnet platform 2026 hashes of api keys"))
    }
}
