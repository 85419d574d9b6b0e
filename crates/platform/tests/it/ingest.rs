//! Ingests and commits at once: nobody waits for a question to the database that somebody else has asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitnet_platform::ledger::event::{EventKey, PayloadHash};
use bitnet_platform::ledger::projection::Projection;
use bitnet_platform::ledger::service::{LedgerService, LedgerStore, Takeover};
use bitnet_platform::ledger::{Ingested, Opening};
use bitnet_platform::store::{BoxFuture, MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use tokio::sync::Notify;

use super::invoices::rich_account;
use super::store::{NOW, event, on_both};

/// A store whose first question what is known waits.
struct Waiting {
    store: Arc<Store>,
    asked: Arc<Notify>,
    goes_on: Arc<Notify>,
    is_first: AtomicBool,
}

impl LedgerStore for Waiting {
    fn take_over(&self) -> BoxFuture<'_, Takeover> {
        self.store.take_over()
    }

    fn load(&self, now: Timestamp) -> BoxFuture<'_, Opening> {
        self.store.load(now)
    }

    fn append<'a>(&'a self, epoch: u64, number: u64, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        self.store.append(epoch, number, bytes)
    }

    fn rows_after(&self, number: u64) -> BoxFuture<'_, Vec<(u64, Vec<u8>)>> {
        self.store.rows_after(number)
    }

    fn project<'a>(&'a self, epoch: u64, projection: &'a Projection) -> BoxFuture<'a, ()> {
        self.store.project(epoch, projection)
    }

    fn known<'a>(&'a self, keys: &'a [EventKey]) -> BoxFuture<'a, HashMap<EventKey, PayloadHash>> {
        Box::pin(async move {
            let known = self.store.known(keys).await;
            if self.is_first.swap(false, Ordering::Relaxed) {
                self.asked.notify_one();
                self.goes_on.notified().await;
            }
            known
        })
    }
}

#[test]
fn ingest_that_waits_for_the_database_keeps_nobody_from_committing() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "payg").await;
        let (asked, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let waiting = Waiting { store: store.clone(), asked: asked.clone(), goes_on: goes_on.clone(), is_first: true.into() };
        let ledger = Arc::new(LedgerService::open(Box::new(waiting), NOW).await.expect("it opens"));
        let slow = {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.ingest(vec![event(owner, "1", 5), event(owner, "2", 5)], NOW).await.expect("booked") })
        };
        asked.notified().await;
        // The same event by another way: booked, durable and in the tables, while the first one still waits for its answer.
        let booked = ledger.ingest(vec![event(owner, "1", 5)], NOW).await.expect("booked");
        assert!(matches!(booked[0], Ingested::Accepted(_)), "{booked:?}");
        let flushed = tokio::time::timeout(Duration::from_secs(20), ledger.flush()).await;
        flushed.expect("nobody waits for the first").expect("durable");
        goes_on.notify_one();
        let late = slow.await.expect("it ends");
        assert!(matches!(late[..], [Ingested::Duplicate(_), Ingested::Accepted(_)]), "and nothing is booked twice: {late:?}");
        ledger.flush().await.expect("durable");
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced() && report.n_events == 2, "{report:?}");
    });
}
