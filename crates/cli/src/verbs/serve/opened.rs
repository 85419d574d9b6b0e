//! The platform that a server is started on.

use std::time::Duration;

use bitnet_platform::Platform;
use bitnet_platform::audit::{CheckpointFile, CheckpointKey};
use bitnet_platform::store::Store;
use bitnet_platform::time::Timestamp;
use tokio::task::JoinSet;

use crate::terminal::Terminal;
use crate::verbs::platform::PlatformArguments;

/// How often the audit log is signed, if there is anything new in it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// An open platform, and what signs its audit log.
pub(super) struct Opened {
    pub(super) platform: Platform,
    arguments: PlatformArguments,
}

impl Opened {
    /// Opens it, making what is missing.
    pub(super) async fn open(arguments: PlatformArguments, terminal: &Terminal) -> anyhow::Result<Self> {
        let secret = arguments.secret()?;
        let platform = Platform::open(arguments.url(), &secret, Timestamp::now).await?;
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
