//! The audit log on both databases: every change leaves a record, and whatever is done to the records afterwards is found.

use bitnet_platform::InstallationSecret;
use bitnet_platform::audit::CheckpointFile;
use bitnet_platform::audit::verify::AuditReport;
use bitnet_platform::ids::AccountId;
use bitnet_platform::ledger::AccountStatus;
use bitnet_platform::store::{MIGRATIONS, Store};
use proptest::prelude::*;

use super::store::{NOW, account, by, later, on_both};

async fn suspend_and_resume(store: &Store, account: AccountId, n: u64) {
    for second in 0..n {
        let status = if second % 2 == 0 { AccountStatus::Suspended } else { AccountStatus::Active };
        store.set_account_status(account, status, &by(later(second))).await.expect("changed");
    }
}

/// What stands in the way of whoever wants to hide something.
struct Guard {
    secret: InstallationSecret,
    file: CheckpointFile,
    _folder: tempfile::TempDir,
}

impl Guard {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = CheckpointFile::new(folder.path().join("checkpoints"));
        Self { secret: InstallationSecret::new([3; 32]), file, _folder: folder }
    }

    async fn sign(&self, store: &Store) {
        store.checkpoint(&self.secret.checkpoint_key(), &self.file, NOW).await.expect("signed");
    }

    async fn verify(&self, store: &Store) -> AuditReport {
        let copies = self.file.read().expect("it reads");
        store.verify_audit(&copies, &self.secret.checkpoint_key().public_key()).await.expect("it reads")
    }
}

#[test]
fn change_leaves_a_record_of_who_did_what_to_whom() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, project) = account(&store, "free").await;
        suspend_and_resume(&store, account, 1).await;
        let records = store.audit_records(0, Some(account)).await.expect("it reads");
        let told: Vec<(&str, &str)> = records.iter().map(|record| (record.action.as_str(), record.target.as_str())).collect();
        let (account, project) = (account.to_string(), project.to_string());
        let expected = [("account.created", &*account), ("project.created", &*project), ("account.status_changed", &*account)];
        assert_eq!(told, expected);
        assert_eq!((records[2].before.as_str(), records[2].after.as_str()), (r#"{"status":"active"}"#, r#"{"status":"suspended"}"#));
        assert!(records.iter().all(|record| record.actor == "operator:tester"));
        let guard = Guard::new();
        guard.sign(&store).await;
        let report = guard.verify(&store).await;
        assert!(report.is_whole() && (report.n_records, report.n_checkpoints) == (3, 1), "{report:?}");
        let other = InstallationSecret::new([4; 32]).checkpoint_key().public_key();
        assert!(!store.verify_audit(&[], &other).await.expect("it reads").is_whole(), "signed by somebody else");
    });
}

#[test]
fn record_that_was_changed_removed_moved_or_put_back_is_found_where_it_is() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = account(&store, "free").await;
        let guard = Guard::new();
        suspend_and_resume(&store, account, 6).await;
        guard.sign(&store).await;
        assert!(guard.verify(&store).await.is_whole());
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        let damages = [
            (4, "UPDATE audit_record SET actor = 'nobody' WHERE seq = 4"),
            (4, "UPDATE audit_record SET at = at + 1 WHERE seq = 4"),
            (4, "UPDATE audit_record SET before_state = after_state, after_state = before_state WHERE seq = 4"),
            (4, "UPDATE audit_record SET hash = previous_hash WHERE seq = 4"),
            (4, "DELETE FROM audit_record WHERE seq = 4"),
            (1, "DELETE FROM audit_record WHERE seq <= 3"),
            (8, "DELETE FROM audit_record WHERE seq = 8"),
            (4, "UPDATE audit_record SET seq = CASE seq WHEN 4 THEN 50 WHEN 5 THEN 4 ELSE seq END WHERE seq IN (4, 5)"),
            (8, "UPDATE audit_head SET seq = 7, hash = (SELECT hash FROM audit_record WHERE seq = 7)"),
            (8, "UPDATE audit_checkpoint SET seq = 7"),
        ];
        let backup = "CREATE TABLE saved AS SELECT * FROM audit_record";
        sqlx::query(backup).execute(&pool).await.expect("it writes");
        for (first, damage) in damages {
            sqlx::query(damage).execute(&pool).await.expect(damage);
            let report = guard.verify(&store).await;
            let found = report.findings.first().map(|finding| finding.seq);
            // A signed state that was moved to another record is found at either.
            assert!(found.is_some_and(|found| found == first || found == first - 1), "{damage}: {report:?}");
            for repair in [
                "DELETE FROM audit_record",
                "INSERT INTO audit_record SELECT * FROM saved",
                "UPDATE audit_head SET seq = 8, hash = (SELECT hash FROM saved WHERE seq = 8)",
                "UPDATE audit_checkpoint SET seq = 8",
            ] {
                sqlx::query(repair).execute(&pool).await.expect(repair);
            }
            assert!(guard.verify(&store).await.is_whole());
        }
        // An older state of the whole database, with all that is in it.
        for rollback in [
            "DELETE FROM audit_record WHERE seq > 5",
            "UPDATE audit_head SET seq = 5, hash = (SELECT hash FROM saved WHERE seq = 5)",
            "DELETE FROM audit_checkpoint",
        ] {
            sqlx::query(rollback).execute(&pool).await.expect(rollback);
        }
        let key = guard.secret.checkpoint_key().public_key();
        assert!(store.verify_audit(&[], &key).await.expect("it reads").is_whole(), "nothing inside gives it away");
        let report = guard.verify(&store).await;
        assert!(report.findings.iter().any(|finding| finding.what.contains("older state")), "{report:?}");
        // And a history that was written anew, as long as the old one and consistent in itself.
        suspend_and_resume(&store, account, 3).await;
        let report = guard.verify(&store).await;
        assert!(report.findings.iter().any(|finding| finding.seq == 8 && finding.what.contains("rewritten")), "{report:?}");
        pool.close().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn checkpoint_with_any_bit_changed_is_refused(byte in 0usize..1000, bit in 0u8..8) {
        let key = InstallationSecret::new([3; 32]).checkpoint_key();
        let checkpoint = key.sign((7, [9; 32]), NOW);
        prop_assert!(checkpoint.is_signed_by(&key.public_key()));
        let mut text = serde_json::to_vec(&checkpoint).expect("JSON");
        let place = byte % text.len();
        text[place] ^= 1 << bit;
        if let Ok(changed) = serde_json::from_slice::<bitnet_platform::audit::Checkpoint>(&text) {
            // Letters of hexadecimal digits may be large or small.
            let is_same = changed.signature.eq_ignore_ascii_case(&checkpoint.signature) && changed.hash == checkpoint.hash
                && (changed.seq, changed.at_micros, &changed.public_key) == (checkpoint.seq, checkpoint.at_micros, &checkpoint.public_key);
            prop_assert!(is_same || !changed.is_signed_by(&key.public_key()), "{changed:?}");
        }
    }
}
