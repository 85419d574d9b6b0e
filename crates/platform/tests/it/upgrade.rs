//! A database with data in it, of an older schema, becomes one of this release with all that it had.

use bitnet_platform::store::MIGRATIONS;
use sqlx::{AnyPool, Row};

use super::store::{NOW, on_both};

async fn rollups(pool: &AnyPool) -> Vec<(String, i64, String, i64, i64, i64)> {
    let text = "SELECT grain, bucket_start, purpose, n_events, n_output, charge FROM usage_rollup ORDER BY grain, bucket_start, purpose";
    let rows = sqlx::query(text).fetch_all(pool).await.expect("it reads");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5))).collect()
}

#[test]
fn rollups_of_an_older_schema_are_made_anew_from_its_events() {
    on_both(|store, url| async move {
        // Before rollups told purposes apart.
        store.migrate(&MIGRATIONS[..5], NOW).await.expect("it migrates");
        let pool = AnyPool::connect(&url).await.expect("it connects");
        for (seq, purpose, later) in [(1_i64, "chat", 0), (2, "chat", 59_000_000), (3, "embedding", 61_000_000), (4, "chat", 3_600_000_000)]
        {
            let event = "INSERT INTO usage_event (seq, account_id, source, event_id, payload_hash, project_id, api_key_id, request_id, model, purpose, outcome, occurred_at, n_input, n_cached, n_output, n_operations) VALUES ($1, 'acct_a', 'gateway', $2, $3, 'proj_a', NULL, 'r', 'm', $4, 'completed', $5, 10, 0, 5, 1)";
            let query = sqlx::query(event).bind(seq).bind(seq.to_string()).bind(vec![0_u8; 32]).bind(purpose).bind(NOW.0 + later);
            query.execute(&pool).await.expect("it writes");
            let entry = "INSERT INTO ledger_entry (seq, account_id, period, posted_at, plan_id, class, price_from, funding, charge, due) VALUES ($1, 'acct_a', 24312, $2, 'payg', 'small', 0, 'metered', 15, 15)";
            sqlx::query(entry).bind(seq).bind(NOW.0).execute(&pool).await.expect("it writes");
        }
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let upgraded = rollups(&pool).await;
        assert_eq!(upgraded.len(), 2 + 3 + 3, "days, hours and minutes, by purpose: {upgraded:?}");
        assert_eq!(upgraded.iter().filter(|row| row.0 == "day").map(|row| row.5).sum::<i64>(), 60);
        store.rebuild_derived().await.expect("made anew");
        assert_eq!(rollups(&pool).await, upgraded, "as this release makes them");
        pool.close().await;
    });
}
