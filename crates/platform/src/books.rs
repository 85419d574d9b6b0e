//! What is done to the books by itself: months that are over are closed; thresholds that were passed, invoices that are overdue and keys
//! that end soon are told of; rate cards are read again; what is old is deleted. Each of these does nothing where there is nothing to do, so
//! that it does not matter how often it runs, nor where.

use std::sync::Arc;

use crate::audit::By;
use crate::directory::Directory;
use crate::limits::BOOKS_EVERY;
use crate::store::Store;
use crate::time::Clock;

/// Closes months that are over and tells of thresholds, for ever.
pub(crate) async fn run(store: Arc<Store>, directory: Arc<Directory>, now: Clock) {
    loop {
        let by = By::job("billing", now());
        match store.close_periods(None, &by).await {
            Ok(closed) if !closed.is_empty() => tracing::info!(n_months = closed.len(), "months were closed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "months cannot be closed"),
        }
        if let Err(error) = store.note_thresholds(now()).await {
            tracing::warn!(%error, "thresholds of usage cannot be looked at");
        }
        if let Err(error) = store.forget_old(now()).await {
            tracing::warn!(%error, "what is old cannot be deleted");
        }
        if let Err(error) = store.note_what_is_due(now()).await {
            tracing::warn!(%error, "invoices that are overdue and keys that end soon cannot be looked for");
        }
        if let Err(error) = directory.refresh_catalog().await {
            tracing::warn!(%error, "rate cards cannot be read");
        }
        tokio::time::sleep(BOOKS_EVERY).await;
    }
}
