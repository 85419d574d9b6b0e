//! What the platform adds to a request, and how much it takes: `cargo bench -p bitnet-platform --bench admission`.
//!
//! - `admission/sqlite/paced`: requests come at 20,000 a second from two threads, whether earlier ones are done or not; for each, the
//!   time of its admission, its record and its settlement, counted from when it was due (so that a stall is not hidden by its own
//!   lateness), while the journal is committed to SQLite, fsync and all, and projected. The threads sleep in between, as a server's do.
//!   (Threads that spin take both cores whole; the scheduler then owes the writer's threads what they want, and every request that is
//!   due meanwhile waits a slice of some milliseconds, whatever admission costs.)
//! - `operations/sqlite`: admissions and settlements as fast as two threads can, until all of them are durable in the journal.
//! - `ingest/postgres`: events of another system, in batches of a thousand, four of them at once, until all of them are durable and in
//!   the tables.
//!
//! A name behind `--`, such as `ingest`, runs that one only.
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
const N_AT_ONCE: u64 = 4;
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

/// Lets this thread wake when it is due: Linux wakes others up to 50 µs later, to save power.
fn sleep_precisely() {
    let own = std::fs::read_link("/proc/thread-self").ok();
    let thread = own.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    if let Some(thread) = thread {
        let _ = std::fs::write(format!("/proc/{thread}/timerslack_ns"), "1");
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
            sleep_precisely();
            for index in 0..n_each {
                let due = first + between * index as u32;
                std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
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
    let bench = Arc::new(Bench::open(url).await);
    let running = tokio::spawn(bench.ledger.clone().run(Timestamp::now));
    let owner = bench.owner();
    let event = move |index: u64| UsageEvent {
        owner,
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
    let sender = |first: u64| {
        let bench = bench.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            for batch in (first..N_BATCHES).step_by(N_AT_ONCE as usize) {
                let events = (0..BATCH).map(|index| event(batch * BATCH + index)).collect();
                let asked = Instant::now();
                let mut last = None;
                for ingested in bench.ledger.ingest(events, Timestamp::now()).await.expect("it looks up") {
                    let Ingested::Accepted(position) = ingested else { panic!("{ingested:?}") };
                    last = Some(position);
                }
                // A batch is answered when it is durable, as the server answers it.
                bench.ledger.until_durable(last.expect("events")).await.expect("durable");
                took.push(asked.elapsed());
            }
            took
        })
    };
    let mut took = Vec::new();
    for sender in (0..N_AT_ONCE).map(sender).collect::<Vec<_>>() {
        took.extend(sender.await.expect("it ends"));
    }
    took.sort_unstable();
    let last = bench.ledger.ledger().position();
    bench.ledger.until_durable(last).await.expect("durable");
    let durable = began.elapsed().as_secs_f64();
    running.abort();
    let _ = running.await;
    bench.ledger.flush().await.expect("in the tables");
    let in_tables = began.elapsed().as_secs_f64();
    let n_events = N_BATCHES * BATCH;
    let rate = |seconds: f64| n_events as f64 / seconds;
    let ms = |percent| percentile(&took, percent).as_secs_f64() * 1e3;
    println!(
        "ingest/postgres: {:.0} events/s durable, {:.0} events/s into the tables; a batch is durable after p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        rate(durable),
        rate(in_tables),
        ms(50.0),
        ms(99.0),
        ms(100.0)
    );
    let bench = Arc::try_unwrap(bench).unwrap_or_else(|_| panic!("the senders are gone"));
    bench.check(n_events).await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let sqlite = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()));
    if is_wanted("admission/sqlite/paced") {
        runtime.block_on(paced(&sqlite("paced.db")));
    }
    if is_wanted("operations/sqlite") {
        runtime.block_on(operations(&sqlite("operations.db")));
    }
    if !is_wanted("ingest/postgres") {
        return;
    }
    match postgres::fresh_database() {
        Some(url) => runtime.block_on(ingest(&url)),
        None => println!("ingest/postgres: left out, there is no PostgreSQL"),
    }
}
