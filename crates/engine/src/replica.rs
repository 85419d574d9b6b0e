//! `Replica`: one engine on its thread, among those of one model.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::engine::EngineCore;
use crate::error::StartError;
use crate::inbox::{IdSeries, Inbox, Phase};
use crate::request::TenantSalt;
use crate::stats::EngineStats;
use crate::thread::{EngineThread, Published};

/// Bounds of one replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReplicaBounds {
    pub(crate) n_waiting_max: usize,
    pub(crate) n_events_max: usize,
}

/// Ends the engine when it goes.
pub(crate) struct Replica {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) published: Arc<Published>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl Replica {
    /// Starts the thread.
    pub(crate) fn start(core: EngineCore, bounds: ReplicaBounds, ids: IdSeries) -> Result<Self, StartError> {
        let inbox = Arc::new(Inbox::new(bounds.n_waiting_max, ids));
        let published = Arc::new(Published::default());
        let engine = EngineThread::new(core, Arc::clone(&inbox), Arc::clone(&published), bounds.n_events_max);
        let join = std::thread::Builder::new().name("engine".into()).spawn(move || engine.run());
        let join = join.map_err(|error| StartError::Thread { reason: error.to_string() })?;
        Ok(Self { inbox, published, join: Mutex::new(Some(join)) })
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.inbox.phase() == Phase::Broken
    }

    /// Whether it would take a request of this tenant now.
    pub(crate) fn has_room(&self, tenant: TenantSalt) -> bool {
        self.inbox.has_room(tenant, self.published.retry_after()).is_ok()
    }

    pub(crate) fn is_idle(&self) -> bool {
        // In this order: a request that does not wait any more is counted as live before (`EngineThread::publish_stats`).
        self.inbox.n_waiting_and_refused().0 == 0 && self.published.n_live() == 0
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let (n_waiting, n_refused) = self.inbox.n_waiting_and_refused();
        let stats = EngineStats { n_waiting, n_refused, ..self.published.stats() };
        // What is broken is no room for anything.
        if self.is_broken() { EngineStats { n_blocks: 0, n_used_blocks: 0, n_idle_blocks: 0, ..stats } } else { stats }
    }

    /// Waits until the thread has ended. A second caller does not wait.
    pub(crate) fn join(&self) {
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join {
            // A panic of the thread was reported when it happened; there is nothing left to do about it.
            drop(join.join());
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.inbox.advance(Phase::Stopping);
    }
}
