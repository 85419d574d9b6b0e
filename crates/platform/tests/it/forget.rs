//! What is old is deleted, and what money is made of stays.

use std::time::Duration;

use bitnet_platform::outbound::{Destinations, Outbound};
use bitnet_platform::service_level::{Ended, Outcomes};
use bitnet_platform::store::MIGRATIONS;
use bitnet_platform::webhooks::NewEndpoint;

use super::invoices::{day, rich_account, use_tokens};
use super::store::{NOW, by, event, on_both, open};

#[test]
fn what_is_old_is_deleted_and_the_books_still_balance() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "payg").await;
        let ledger = open(&store, NOW).await;
        for n in [0, 1, 60, 120] {
            let event = bitnet_platform::ledger::event::UsageEvent { occurred_at: day(n), ..event(owner, &n.to_string(), 100_000) };
            use_tokens(&ledger, event, day(n)).await;
        }
        let new = NewEndpoint { account: owner.0, url: "http://127.0.0.1:9/".into(), kinds: Vec::new() };
        let endpoint = store.create_endpoint(&new, &Outbound::new(Destinations::Any), &by(NOW)).await.expect("made").id;
        let outcomes = Outcomes::default();
        outcomes.note(owner.0, Ended::Failed, day(3));
        outcomes.note(owner.0, Ended::Failed, day(120));
        outcomes.flush(&store).await.expect("written");
        store.close_periods(None, &by(day(31))).await.expect("closed");
        store.close_periods(None, &by(day(130))).await.expect("closed");
        assert_eq!(store.forget_old(day(31)).await.expect("looked"), 0, "nothing is old");
        let n_invoices = store.invoices(None).await.expect("read").len();
        let draft = || store.draft_invoice(owner.0, day(130).period(), day(130));
        let before = draft().await.expect("drawn up");
        // A day of minutes in each run, and the message of January's invoice.
        let mut n_deleted = 0;
        for _ in 0..5 {
            n_deleted += store.forget_old(day(122)).await.expect("deleted");
        }
        assert_eq!(n_deleted, 4, "two minutes of January, a message and its delivery");
        assert_eq!(store.deliveries(owner.0, endpoint).await.expect("read").len(), 1, "the younger one stays");
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        store.rebuild_derived().await.expect("made anew");
        assert_eq!(store.forget_old(day(122)).await.expect("looked"), 0, "what was deleted is not made anew");
        assert_eq!(draft().await.expect("drawn up").lines, before.lines);
        assert_eq!(store.invoices(None).await.expect("read").len(), n_invoices);
        assert_eq!(store.service_level(owner.0, NOW.period()).await.expect("read").n_failed, 1, "a year is not over");
        store.forget_old(day(3).plus(Duration::from_secs(401 * 86_400))).await.expect("deleted");
        assert_eq!(store.service_level(owner.0, NOW.period()).await.expect("read").n_failed, 0);
    });
}
