//! What the platform adds to a request, and how much it takes: `cargo bench -p bitnet-platform --bench admission`.
//!
//! - `admission/sqlite/paced`: requests come at 20,000 a second from two threads, whether earlier ones are done or not; for each, the
//!   time of its admission, its record and its settlement, counted from when it was due (so that a stall is not hidden by its own
//!   lateness), while the journal is committed to SQLite, fsync and all, and projected.
//! - `operations/sqlite`: admissions and settlements as fast as two threads can, until all of them are durable in the journal.
//! - `ingest/postgres`: events of another system, in batches of a thousand, until all of them are durable and in the tables.
//!
//! Bars (issue 6): paced p50 ≤ 50 µs and p99 ≤ 1 ms; ≥ 300,000 operations/s; ≥ 50,000 events/s.

#[path = "../tests/it/postgres.rs"]
mod postgres;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_platform::audit::By;
use bitnet_platform::directory::NewAccount;
use bitnet_platform::ids::{AccountId, ProjectId};
use bitnet_platform::ledger::event::{Outcome, Owner, Produced, Purpose, UsageEvent};
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::ledger::service::LedgerService;
use bitnet_platform::ledger::{Ask, Ingested, Measured, Overage};
use bitnet_platform::money::{Micros, TokenCounts};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;

const N_THREADS: u32 = 2;
const PER_SECOND: u32 = 20_000;
const PACED: Duration = Duration::from_secs(10);
const N_OPERATIONS: u64 = 600_000;
const N_BATCHES: u64 = 200;
const BATCH: u64 = 1000;
const LEASE: Duration = Duration::from_secs(60);

struct Bench {
    store: Arc<Store>,
    ledger: Arc<LedgerService>,
    owner: (AccountId, ProjectId),
}

impl Bench {
    async fn open(url: &str) -> Self {
        let now = Timestamp::now();
        let store = Arc::new(Store::connect(url).await.expect("it connects"));
        store.migrate(MIGRATIONS, now).await.expect("it migrates");
        let by = By::operator("bench", now);
        let spending_cap = Micros::units(1_000_000);
        let account = NewAccount { name: "bench".into(), plan: "payg".into(), overage: Overage::Charge, spending_cap };
        let account = store.create_account(account, &by).await.expect("created");
        let project = store.create_project(account, "bench", ScopeLimits::default(), &by).await.expect("created");
        let ledger = Arc::new(LedgerService::open(Box::new(store.clone()), now).await.expect("it opens"));
        Self { store, ledger, owner: (account, project) }
    }

    fn owner(&self) -> Owner {
        Owner { account: self.owner.0, project: self.owner.1, api_key: None }
    }

    fn ask(&self) -> Ask {
        Ask {
            owner: self.owner(),
            request_id: "req_bench".into(),
            model: "m".into(),
            purpose: Purpose::Chat,
            n_prompt: 100,
            n_output_max: 100,
            n_operations_max: 1,
            lease: LEASE,
        }
    }

    /// Reserves, records a first step, settles.
    fn request(&self, records: bool) {
        let now = Timestamp::now();
        let id = self.ledger.admit(self.ask(), now).expect("it pays").id;
        if records {
            self.ledger.record(id, Produced { n_cached: 10, n_output: 1 }, (now, LEASE)).expect("in flight");
        }
        let measured = Measured { tokens: TokenCounts { n_input: 90, n_cached: 10, n_output: 20 }, n_operations: 1 };
        self.ledger.settle(id, (measured, Outcome::Completed), now).expect("in flight");
    }

    async fn check(self, n_events: u64) {
        self.ledger.flush().await.expect("durable");
        let report = self.store.reconcile().await.expect("it reads");
        assert!(report.is_balanced() && report.n_events == n_events, "lost or wrong: {} events, {:?}", report.n_events, report.differences);
        self.store.close().await;
    }
}

fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * percent / 100.0) as usize]
}

async fn paced(url: &str) {
    let bench = Arc::new(Bench::open(url).await);
    let running = tokio::spawn(bench.ledger.clone().run(Timestamp::now));
    let n_each = u64::from(PER_SECOND / N_THREADS) * PACED.as_secs();
    let began = Instant::now();
    let client = |thread: u32| {
        let bench = bench.clone();
        std::thread::spawn(move || {
            let between = Duration::from_secs(1) / (PER_SECOND / N_THREADS);
            let first = began + between / N_THREADS * thread;
            let mut took = Vec::with_capacity(n_each as usize);
            for index in 0..n_each {
                let due = first + between * index as u32;
                while Instant::now() < due {
                    std::thread::yield_now();
                }
                bench.request(true);
                took.push(due.elapsed());
            }
            took
        })
    };
    let clients: Vec<_> = (0..N_THREADS).map(client).collect();
    let mut took: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().expect("it ends")).collect();
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |percent| percentile(&took, percent).as_secs_f64() * 1e6;
    println!(
        "admission/sqlite/paced: {rate:.0} requests/s, p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, worst {:.1} µs",
        at(50.0),
        at(99.0),
        at(99.9),
        at(100.0)
    );
    running.abort();
    let _ = running.await;
    let bench = Arc::try_unwrap(bench).unwrap_or_else(|_| panic!("the clients are gone"));
    bench.check(n_each * u64::from(N_THREADS)).await;
}

async fn operations(url: &str) {
    let bench = Arc::new(Bench::open(url).await);
    let committing = {
        let ledger = bench.ledger.clone();
        tokio::spawn(async move {
            loop {
                if ledger.commit().await.expect("it commits").is_none() {
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    let began = Instant::now();
    let client = |_| {
        let bench = bench.clone();
        std::thread::spawn(move || (0..N_OPERATIONS / u64::from(N_THREADS)).for_each(|_| bench.request(false)))
    };
    let clients: Vec<_> = (0..N_THREADS).map(client).collect();
    clients.into_iter().for_each(|client| client.join().expect("it ends"));
    let position = bench.ledger.ledger().position();
    bench.ledger.until_durable(position).await.expect("durable");
    let seconds = began.elapsed().as_secs_f64();
    println!("operations/sqlite: {:.0} operations/s, all of {N_OPERATIONS} durable in the journal", N_OPERATIONS as f64 / seconds);
    committing.abort();
    let _ = committing.await;
    let bench = Arc::try_unwrap(bench).unwrap_or_else(|_| panic!("the clients are gone"));
    bench.check(N_OPERATIONS).await;
}

async fn ingest(url: &str) {
    let bench = Bench::open(url).await;
    let running = tokio::spawn(bench.ledger.clone().run(Timestamp::now));
    let event = |index: u64| UsageEvent {
        owner: bench.owner(),
        source: "bench".into(),
        event_id: index.to_string().into(),
        request_id: "".into(),
        model: "m".into(),
        purpose: Purpose::External,
        outcome: Outcome::Completed,
        occurred_at: Timestamp::now(),
        tokens: TokenCounts { n_input: 100, n_cached: 0, n_output: 20 },
        n_operations: 1,
    };
    let began = Instant::now();
    let mut last = None;
    for batch in 0..N_BATCHES {
        let events = (0..BATCH).map(|index| event(batch * BATCH + index)).collect();
        for ingested in bench.ledger.ingest(events, Timestamp::now()).await.expect("it looks up") {
            let Ingested::Accepted(position) = ingested else { panic!("{ingested:?}") };
            last = Some(position);
        }
    }
    bench.ledger.until_durable(last.expect("some")).await.expect("durable");
    let durable = began.elapsed().as_secs_f64();
    running.abort();
    let _ = running.await;
    bench.ledger.flush().await.expect("in the tables");
    let in_tables = began.elapsed().as_secs_f64();
    let n_events = N_BATCHES * BATCH;
    let rate = |seconds: f64| n_events as f64 / seconds;
    println!("ingest/postgres: {:.0} events/s durable, {:.0} events/s into the tables", rate(durable), rate(in_tables));
    bench.check(n_events).await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let sqlite = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    runtime.block_on(paced(&sqlite("paced.db")));
    runtime.block_on(operations(&sqlite("operations.db")));
    match postgres::fresh_database() {
        Some(url) => runtime.block_on(ingest(&url)),
        None => println!("ingest/postgres: left out, there is no PostgreSQL"),
    }
}
