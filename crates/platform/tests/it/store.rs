//! One suite for both databases: the same test runs on SQLite, in a file, and on PostgreSQL.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bitnet_platform::PlatformError;
use bitnet_platform::audit::By;
use bitnet_platform::directory::{Directory, KeyAccess, KeyHasher, KeyScope, NewAccount, NewApiKey};
use bitnet_platform::ids::{AccountId, GrantId, ProjectId};
use bitnet_platform::ledger::event::{Grant, Outcome, Owner, Produced, Purpose, UsageEvent};
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::ledger::service::{LedgerService, LedgerStore};
use bitnet_platform::ledger::{AccountStatus, Ask, Ingested, Measured, Overage, Refusal};
use bitnet_platform::money::{Micros, TokenCounts};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;

pub(crate) const NOW: Timestamp = Timestamp(1_767_225_600_000_000);
const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

/// Who does things in tests.
pub(crate) fn by(at: Timestamp) -> By {
    By::operator("tester", at)
}

/// Runs a test on both databases, each fresh and empty.
pub(crate) fn on_both<F: Future<Output = ()>>(test: impl Fn(Arc<Store>, String) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let sqlite = format!("sqlite:{}", folder.path().join("platform.db").display());
    for url in [Some(sqlite), super::postgres::fresh_database()].into_iter().flatten() {
        println!("on {url}");
        runtime.block_on(async {
            let store = Arc::new(Store::connect(&url).await.expect("it connects"));
            test(store.clone(), url).await;
            store.close().await;
        });
    }
}

/// An account on a plan, with a project.
pub(crate) async fn account(store: &Store, plan: &str) -> (AccountId, ProjectId) {
    let new = NewAccount { name: "Ann".into(), plan: plan.into(), overage: Overage::Refuse, spending_cap: Micros(5_000) };
    let account = store.create_account(new, &by(NOW)).await.expect("created");
    let project = store.create_project(account, "default", ScopeLimits::default(), &by(NOW)).await.expect("created");
    (account, project)
}

pub(crate) async fn open(store: &Arc<Store>, now: Timestamp) -> LedgerService {
    LedgerService::open(Box::new(store.clone()), now).await.expect("it opens")
}

fn ask((account, project): (AccountId, ProjectId)) -> Ask {
    Ask {
        owner: Owner { account, project, api_key: None },
        request_id: "req_1".into(),
        model: "m".into(),
        purpose: Purpose::Chat,
        n_prompt: 100,
        n_output_max: 50,
        n_operations_max: 1,
        lease: LEASE,
    }
}

pub(crate) fn event((account, project): (AccountId, ProjectId), id: &str, n_output: u64) -> UsageEvent {
    UsageEvent {
        owner: Owner { account, project, api_key: None },
        source: "worker' OR 1=1 --".into(),
        event_id: id.into(),
        request_id: "".into(),
        model: "m".into(),
        purpose: Purpose::External,
        outcome: Outcome::Completed,
        occurred_at: NOW,
        tokens: TokenCounts { n_input: 10, n_cached: 5, n_output },
        n_operations: 1,
    }
}

#[test]
fn schema_from_every_version_upgrades_once() {
    on_both(|store, _| async move {
        for n in 0..=MIGRATIONS.len() {
            let n_applied = store.migrate(&MIGRATIONS[..n], NOW).await.expect("it migrates");
            assert_eq!(n_applied, usize::from(n > 0));
        }
        assert_eq!(store.migrate(MIGRATIONS, NOW).await.expect("it is there"), 0);
        let older = store.check_schema(&MIGRATIONS[..1]).await;
        assert!(matches!(older, Err(PlatformError::Schema { version: 2, .. })), "an older program refuses a newer schema: {older:?}");
    });
}

#[test]
fn requests_from_admission_to_the_tables_balance() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let payg = account(&store, "payg").await;
        let free = account(&store, "free").await;
        let ledger = open(&store, NOW).await;
        let grant = Grant {
            id: GrantId::from_u128(7),
            account: payg.0,
            amount: Micros(100),
            granted_at: NOW,
            expires_at: Some(later(3600)),
            reason: "pilot".into(),
        };
        ledger.grant(grant);
        let streamed = ledger.admit(ask(payg), NOW).expect("admitted");
        ledger.record(streamed.id, Produced { n_cached: 10, n_output: 3 }, (NOW, LEASE)).expect("in flight");
        ledger.commit().await.expect("durable");
        ledger.project().await.expect("in the tables");
        ledger.record(streamed.id, Produced { n_cached: 10, n_output: 9 }, (NOW, LEASE)).expect("in flight");
        ledger.flush().await.expect("durable");
        let measured = Measured { tokens: TokenCounts { n_input: 90, n_cached: 10, n_output: 20 }, n_operations: 1 };
        let position = ledger.settle(streamed.id, (measured, Outcome::Completed), NOW).expect("in flight");
        let included = ledger.admit(ask(free), NOW).expect("admitted");
        ledger.settle(included.id, (measured, Outcome::Cancelled), NOW).expect("in flight");
        ledger.flush().await.expect("durable");
        ledger.until_durable(position).await.expect("it is");

        // 90 + 20 micros, and a tenth for each of 10 cached ones.
        let report = store.reconcile().await.expect("it reads");
        assert_eq!((report.n_events, report.charge, report.due), (2, Micros(111), Micros(11)));
        assert_eq!(report.differences, []);
        let before = ledger.ledger().balance(payg.0, NOW);
        assert_eq!((before.credit, before.held.money, before.used.due), (Micros::ZERO, Micros::ZERO, Micros(11)));
        let reopened = open(&store, NOW).await;
        assert_eq!(reopened.ledger().balance(payg.0, NOW), before);
        assert_eq!(reopened.ledger().balance(free.0, NOW).used.n_included, 1);
        for _ in 0..2 {
            store.rebuild_derived().await.expect("it rebuilds");
            assert_eq!(store.reconcile().await.expect("it reads"), report);
        }
    });
}

#[test]
fn crashed_stream_is_billed_for_what_was_recorded() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let payg = account(&store, "payg").await;
        let first = open(&store, NOW).await;
        let streamed = first.admit(ask(payg), NOW).expect("admitted");
        first.record(streamed.id, Produced { n_cached: 0, n_output: 7 }, (NOW, LEASE)).expect("in flight");
        first.commit().await.expect("durable");
        first.record(streamed.id, Produced { n_cached: 0, n_output: 8 }, (NOW, LEASE)).expect("in flight");
        let silent = first.admit(ask(payg), NOW).expect("admitted");
        let second = open(&store, later(1)).await;
        second.flush().await.expect("durable");
        let balance = second.ledger().balance(payg.0, NOW);
        assert_eq!((balance.used.charge, balance.held), (Micros(107), Default::default()), "100 read and 7 recorded");
        assert!(matches!(first.commit().await, Err(PlatformError::Fenced { .. })), "the old writer is out");
        assert_eq!(first.admit(ask(payg), NOW), Err(Refusal::Unavailable));
        assert!(second.void(silent.id, NOW).is_err());
        assert_eq!(open(&store, later(2)).await.ledger().balance(payg.0, NOW), balance, "it is billed once");
        assert!(store.reconcile().await.expect("it reads").is_balanced());
    });
}

#[test]
fn event_that_comes_again_is_booked_once() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let payg = account(&store, "payg").await;
        let ledger = open(&store, NOW).await;
        for round in 0..3 {
            let events = vec![event(payg, "1", 3), event(payg, "1", 3), event(payg, "1", 4), event(payg, "2", 1)];
            let results = ledger.ingest(events, later(round)).await.expect("it looks up");
            let is_first = round == 0;
            assert_eq!(matches!(results[0], Ingested::Accepted(_)), is_first);
            assert!(matches!(results[1], Ingested::Duplicate(_)));
            assert_eq!(results[2], Ingested::Conflict);
            assert_eq!(matches!(results[3], Ingested::Accepted(_)), is_first);
            ledger.flush().await.expect("durable");
        }
        let late = UsageEvent { occurred_at: NOW.minus(Duration::from_secs(36 * 86_400)), ..event(payg, "3", 1) };
        assert_eq!(ledger.ingest(vec![late], NOW).await.expect("it looks up"), [Ingested::OutOfWindow]);
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced());
        assert_eq!(report.n_events, 2);
    });
}

#[test]
fn row_or_projection_that_was_applied_is_recognised() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let payg = account(&store, "payg").await;
        let ledger = open(&store, NOW).await;
        ledger.ingest(vec![event(payg, "1", 3)], NOW).await.expect("booked");
        ledger.commit().await.expect("durable");
        let epoch = ledger.ledger().epoch();
        let rows = store.rows_after(0).await.expect("rows");
        store.append(epoch, 1, &rows[0].1).await.expect("a commit whose answer was lost is tried again");
        assert!(matches!(store.append(epoch, 3, &rows[0].1).await, Err(PlatformError::Corrupt { .. })), "no row is left out");
        let projection = bitnet_platform::ledger::projection::Projection::of_rows(&rows).expect("it reads");
        for _ in 0..2 {
            store.project(epoch, &projection).await.expect("applied once");
        }
        open(&store, NOW).await;
        let late = store.project(epoch, &projection).await;
        assert!(matches!(late, Err(PlatformError::Fenced { .. })), "an earlier writer moves nothing any more: {late:?}");
        assert_eq!(store.reconcile().await.expect("it reads").n_events, 1);
    });
}

#[test]
fn difference_in_any_table_is_found() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let payg = account(&store, "payg").await;
        let ledger = open(&store, NOW).await;
        ledger.grant(Grant {
            id: GrantId::from_u128(1),
            account: payg.0,
            amount: Micros(5),
            granted_at: NOW,
            expires_at: None,
            reason: "".into(),
        });
        ledger.ingest(vec![event(payg, "1", 3), event(payg, "2", 3)], NOW).await.expect("booked");
        ledger.flush().await.expect("durable");
        assert!(store.reconcile().await.expect("it reads").is_balanced());
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        let planted = [
            (
                "UPDATE usage_event SET n_output = n_output + 1 WHERE seq = 1",
                "UPDATE usage_event SET n_output = n_output - 1 WHERE seq = 1",
            ),
            (
                "UPDATE ledger_entry SET charge = charge + 1, due = due + 1 WHERE seq = 2",
                "UPDATE ledger_entry SET charge = charge - 1, due = due - 1 WHERE seq = 2",
            ),
            ("UPDATE credit_draw SET amount = amount - 1", "UPDATE credit_draw SET amount = amount + 1"),
            ("UPDATE credit_grant SET remaining = remaining + 1", "UPDATE credit_grant SET remaining = remaining - 1"),
            (
                "UPDATE usage_rollup SET n_cached = n_cached + 1 WHERE grain = 'day'",
                "UPDATE usage_rollup SET n_cached = n_cached - 1 WHERE grain = 'day'",
            ),
            (
                "UPDATE period_use SET due = due + 1 WHERE scope_kind = 'project'",
                "UPDATE period_use SET due = due - 1 WHERE scope_kind = 'project'",
            ),
        ];
        for (damage, repair) in planted {
            sqlx::query(damage).execute(&pool).await.expect("it writes");
            assert!(!store.reconcile().await.expect("it reads").is_balanced(), "{damage}");
            sqlx::query(repair).execute(&pool).await.expect("it writes");
            assert!(store.reconcile().await.expect("it reads").is_balanced(), "{repair}");
        }
        pool.close().await;
    });
}

#[test]
fn key_works_until_revoked_expired_or_rotated_away() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (own, project) = account(&store, "free").await;
        let (foreign, _) = account(&store, "developer").await;
        let ledger = Arc::new(open(&store, NOW).await);
        let hasher = KeyHasher::new([9; 32]);
        let directory = Directory::open(store.clone(), ledger.clone(), hasher.clone()).await.expect("it reads");
        // Another process: its own connection, no copy in common.
        let elsewhere = Store::connect(&url).await.expect("it connects");
        let new = NewApiKey {
            account: own,
            project,
            name: "k".into(),
            access: KeyAccess::Inference,
            scope: KeyScope { models: Some(vec!["m".into()]), routes: None },
            limits: ScopeLimits::default(),
            expires_at: Some(later(100)),
        };
        let (id, text) = elsewhere.create_api_key(new.clone(), &hasher, &by(NOW)).await.expect("created");
        assert!(directory.find(text.reveal(), NOW).is_none(), "not yet heard of");
        directory.refresh(NOW).await.expect("it reads");
        let found = directory.find(text.reveal(), NOW).expect("a key");
        assert_eq!((found.id, found.owner.account, &found.scope), (id, own, &new.scope));
        assert!(directory.find(text.reveal(), later(100)).is_none(), "expired");
        let almost = format!("{}0", &text.reveal()[..text.reveal().len() - 1]);
        for wrong in ["", "sk-bitnet-", "' OR 1=1 --", text.shown(), if almost == text.reveal() { "" } else { &almost }] {
            assert!(directory.find(wrong, NOW).is_none(), "{wrong}");
        }
        let second = elsewhere.create_api_key(new.clone(), &hasher, &by(NOW)).await;
        assert!(matches!(second, Err(PlatformError::PlanLimit { limit: 1, .. })), "the plan has one key");
        let stranger = NewApiKey { account: foreign, ..new };
        assert!(
            matches!(elsewhere.create_api_key(stranger, &hasher, &by(NOW)).await, Err(PlatformError::NotFound { .. })),
            "not its project"
        );
        assert!(matches!(elsewhere.revoke_api_key(foreign, id, &by(NOW)).await, Err(PlatformError::NotFound { .. })), "not its key");

        let (newer, newer_text) = elsewhere.rotate_api_key((own, id), later(10), &hasher, &by(NOW)).await.expect("rotated");
        directory.refresh(NOW).await.expect("it reads");
        assert!(directory.find(text.reveal(), later(9)).is_some() && directory.find(text.reveal(), later(10)).is_none());
        assert!(directory.find(newer_text.reveal(), later(10)).is_some());
        elsewhere.revoke_api_key(own, newer, &by(later(20))).await.expect("revoked");
        directory.refresh(NOW).await.expect("it reads");
        assert!(directory.find(newer_text.reveal(), later(20)).is_none());
        assert!(ledger.admit(ask((own, project)), NOW).is_ok());
        elsewhere.set_account_status(own, AccountStatus::Suspended, &by(NOW)).await.expect("suspended");
        directory.refresh(NOW).await.expect("it reads");
        assert_eq!(ledger.admit(ask((own, project)), NOW), Err(Refusal::Suspended));
        elsewhere.close().await;
    });
}

#[test]
fn backup_of_either_database_fills_either() {
    let backups = std::sync::Mutex::new(Vec::new());
    on_both(|store, _| {
        let backups = &backups;
        async move {
            store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
            let payg = account(&store, "payg").await;
            let ledger = open(&store, NOW).await;
            ledger.ingest((0..300).map(|id| event(payg, &id.to_string(), 3)).collect(), NOW).await.expect("booked");
            ledger.commit().await.expect("durable");
            ledger.project().await.expect("in the tables");
            // Something that is in the journal only.
            ledger.ingest(vec![event(payg, "late", 3)], NOW).await.expect("booked");
            ledger.commit().await.expect("durable");
            let mut file = Vec::new();
            let n_rows = store.backup(&mut file, NOW).await.expect("written");
            assert!(n_rows > 600, "{n_rows}");
            let refused = store.restore(|| Ok(file.as_slice()), NOW).await;
            assert!(matches!(refused, Err(PlatformError::NotEmpty)), "{refused:?}");
            backups.lock().unwrap().push(file);
        }
    });
    for file in backups.into_inner().unwrap() {
        on_both(|store, _| {
            let file = file.as_slice();
            async move {
                let mut changed = file.to_vec();
                let place = changed.len() / 2;
                changed[place] ^= 1;
                assert!(store.restore(|| Ok(changed.as_slice()), NOW).await.is_err(), "it was changed");
                assert!(store.restore(|| Ok(&file[..file.len() - 200]), NOW).await.is_err(), "it was cut");
                store.restore(|| Ok(file), NOW).await.expect("restored");
                let again = open(&store, NOW).await;
                again.flush().await.expect("durable");
                let report = store.reconcile().await.expect("it reads");
                assert!(report.is_balanced() && report.n_events == 301, "{report:?}");
            }
        });
    }
}

#[test]
fn every_table_is_in_a_backup() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        let text = if url.starts_with("sqlite") {
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        } else {
            "SELECT CAST(tablename AS TEXT) AS name FROM pg_tables WHERE schemaname = current_schema()"
        };
        let rows = sqlx::query(text).fetch_all(&pool).await.expect("it reads");
        let mut there: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, "name")).collect();
        there.retain(|name| name != "schema_migration");
        there.sort();
        let mut known = bitnet_platform::store::TABLES.to_vec();
        known.sort_unstable();
        assert_eq!(there, known);
        pool.close().await;
    });
}
