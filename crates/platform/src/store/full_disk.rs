//! A disk that is full, as SQLite sees it: what was decided meanwhile waits in memory, and is written when there is room again. The limit is
//! SQLite's own (`max_page_count`), which fails as a full disk does, in the midst of a transaction.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};

use crate::audit::By;
use crate::directory::NewAccount;
use crate::ledger::event::{Outcome, Owner, Purpose};
use crate::ledger::scope::ScopeLimits;
use crate::ledger::service::LedgerService;
use crate::ledger::{Ask, Measured, Overage};
use crate::limits::N_CONNECTIONS_MAX;
use crate::money::{Micros, TokenCounts};
use crate::store::{MIGRATIONS, Store};
use crate::time::Timestamp;

const NOW: Timestamp = Timestamp(1_767_225_600_000_000);

/// Lets the file have so many pages more than it has; as many as it likes without a number. Each connection has its own limit.
async fn limit(store: &Store, n_pages: Option<i64>) {
    let mut connections = Vec::new();
    for _ in 0..N_CONNECTIONS_MAX {
        connections.push(store.pool().acquire().await.expect("a connection"));
    }
    let row = sqlx::query("PRAGMA page_count").fetch_one(&mut *connections[0]).await.expect("read");
    let n_pages = n_pages.map_or(1 << 30, |more| row.get::<i64, _>(0) + more);
    for connection in &mut connections {
        sqlx::query(AssertSqlSafe(format!("PRAGMA max_page_count = {n_pages}"))).execute(&mut **connection).await.expect("set");
    }
}

#[tokio::test]
async fn disk_that_is_full_loses_nothing_and_is_written_to_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(Store::connect(&format!("sqlite:{}", folder.path().join("p.db").display())).await.expect("it opens"));
    store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
    let by = By::operator("test", NOW);
    let new = NewAccount { name: "Ann".into(), plan: "payg".into(), overage: Overage::Charge, spending_cap: Micros::units(1) };
    let account = store.create_account(new, &by).await.expect("created");
    let project = store.create_project(account, "default", ScopeLimits::default(), &by).await.expect("created");
    let ledger = LedgerService::open(Box::new(store.clone()), NOW).await.expect("it opens");
    let request = || {
        let owner = Owner { account, project, api_key: None };
        let ask = Ask {
            owner,
            request_id: "req_1".into(),
            model: "m".into(),
            purpose: Purpose::Chat,
            n_prompt: 1,
            n_output_max: 1,
            n_operations_max: 1,
            lease: Duration::from_secs(60),
        };
        let id = ledger.admit(ask, NOW).expect("it pays").id;
        let measured = Measured { tokens: TokenCounts { n_input: 1, n_cached: 0, n_output: 1 }, n_operations: 1 };
        ledger.settle(id, (measured, Outcome::Completed), NOW).expect("in flight");
    };
    limit(&store, Some(64)).await;
    let mut n_requests = 0;
    let error = loop {
        (0..100).for_each(|_| request());
        n_requests += 100;
        if let Err(error) = ledger.flush().await {
            break error;
        }
        assert!(n_requests < 100_000, "the disk is never full");
    };
    assert!(error.is_transient() && error.to_string().contains("full"), "{error}");
    // Who comes meanwhile is served: it waits in memory. Others read what there is, and what they would write is refused.
    for _ in 0..5 {
        request();
        n_requests += 1;
        assert!(ledger.flush().await.is_err_and(|error| error.is_transient()));
    }
    let report = store.reconcile().await.expect("it reads");
    assert!(report.is_balanced() && report.n_events < n_requests, "{report:?}");
    limit(&store, None).await;
    // A connection whose transaction SQLite has ended by itself is replaced first.
    let mut n_tries = 0;
    while let Err(error) = ledger.flush().await {
        n_tries += 1;
        assert!(error.is_transient() && n_tries <= N_CONNECTIONS_MAX, "{error}");
    }
    let report = store.reconcile().await.expect("it reads");
    assert!(report.is_balanced() && report.n_events == n_requests, "{n_requests} requests, {report:?}");
    store.check_integrity().await.expect("the file is whole");
}
