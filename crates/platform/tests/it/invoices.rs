//! Months that are closed, on both databases: each once, numbered without a gap, with all that the ledger had and what came late; what
//! is agreed besides; what is taken off and paid later.

use std::sync::Arc;
use std::time::Duration;

use bitnet_platform::PlatformError;
use bitnet_platform::billing::{Closed, Invoice, InvoiceStatus, Issuer, LineKind, NewCoupon, NewTax, Party, Profile};
use bitnet_platform::directory::NewAccount;
use bitnet_platform::ids::{AccountId, InvoiceId, ProjectId};
use bitnet_platform::ledger::event::UsageEvent;
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::ledger::service::LedgerService;
use bitnet_platform::ledger::{Ingested, Overage};
use bitnet_platform::money::{Micros, TokenPrice};
use bitnet_platform::service_level::{Ended, Outcomes};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::{Period, Timestamp};

use super::store::{NOW, by, event, on_both, open};

const DAY: u64 = 86_400;

/// A time so many days after the year began.
pub(crate) fn day(n: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(n * DAY + 2 * 3600))
}

fn january() -> Period {
    NOW.period()
}

pub(crate) async fn rich_account(store: &Store, plan: &str) -> (AccountId, ProjectId) {
    let new = NewAccount { name: "Ann".into(), plan: plan.into(), overage: Overage::Charge, spending_cap: Micros::units(1000) };
    let account = store.create_account(new, &by(NOW)).await.expect("created");
    let project = store.create_project(account, "default", ScopeLimits::default(), &by(NOW)).await.expect("created");
    (account, project)
}

/// Books an event of that time, as it comes in then.
pub(crate) async fn use_tokens(ledger: &LedgerService, event: UsageEvent, now: Timestamp) {
    let booked = ledger.ingest(vec![event], now).await.expect("it looks up");
    assert!(matches!(booked[0], Ingested::Accepted(_)), "{booked:?}");
    ledger.flush().await.expect("durable");
}

async fn close(store: &Store, now: Timestamp) -> Vec<Closed> {
    store.close_periods(None, &by(now)).await.expect("closed")
}

async fn invoice_of(store: &Store, closed: &[Closed], period: Period) -> Invoice {
    let issued = closed.iter().find_map(|closed| closed.invoice.filter(|_| closed.period == period));
    store.invoice(issued.expect("it has an invoice"), None).await.expect("it is there")
}

fn ledger_sum(invoice: &Invoice) -> i64 {
    invoice.lines.iter().filter(|line| line.kind.is_of_ledger()).map(|line| line.amount.0).sum()
}

fn amount_of(invoice: &Invoice, id: &str) -> i64 {
    invoice.lines.iter().find(|line| line.id.starts_with(id)).map_or(0, |line| line.amount.0)
}

#[test]
fn month_is_closed_once_and_what_comes_late_is_on_the_next_invoice() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "payg").await;
        let (account, _) = owner;
        let ledger = open(&store, NOW).await;
        let at = |id: &str, n_output: u64, time: Timestamp| UsageEvent { occurred_at: time, ..event(owner, id, n_output) };
        use_tokens(&ledger, at("1", 20_000, day(3)), day(3)).await;
        use_tokens(&ledger, at("2", 7, day(30)), day(30)).await;
        assert_eq!(close(&store, day(30)).await, [], "the month is not over");
        let early = january().next().start().plus(Duration::from_secs(1800));
        assert_eq!(close(&store, early).await, [], "requests of its last minutes may still be in flight");
        use_tokens(&ledger, at("feb", 5, day(31)), day(31)).await;
        let closed = close(&store, day(31)).await;
        assert_eq!(closed.len(), 1);
        assert_eq!(close(&store, day(31)).await, [], "again, it changes nothing");
        let first = invoice_of(&store, &closed, january()).await;
        let issued = first.issued.clone().expect("issued");
        assert_eq!((issued.number.as_str(), issued.status), ("INV-000001", InvoiceStatus::Open));
        // 10 input, 5 cached at a tenth (half a micro up), and what was written.
        assert_eq!(ledger_sum(&first), 20_011 + 18);
        assert_eq!(first.total(), Micros(20_000), "to whole cents");

        use_tokens(&ledger, at("late", 100, day(20)), day(33)).await;
        let closed_draft = store.draft_invoice(account, january(), day(33)).await;
        assert!(matches!(closed_draft, Err(PlatformError::Invalid { field: "month", .. })), "{closed_draft:?}");
        let draft = store.draft_invoice(account, january().next(), day(33)).await.expect("drawn up");
        assert_eq!(ledger_sum(&draft), 111 + 16);
        let line = draft.lines.iter().find(|line| line.id.starts_with("late:2026-01:usage")).expect("a late line");
        let behind = store.line_requests((account, january().next()), &line.id.parse().expect("an id"), 0).await.expect("read");
        assert_eq!(behind.iter().map(|request| request.charge_micros).collect::<Vec<_>>(), [111], "only what came late");
        let closed = close(&store, day(70)).await;
        let second = invoice_of(&store, &closed, january().next()).await;
        assert_eq!(second.issued.as_ref().expect("issued").number, "INV-000002");
        assert_eq!(second.lines, draft.lines, "a draft becomes what it says");
        for line in second.lines.iter().filter(|line| line.n_requests > 0) {
            let names = (account, second.issued.as_ref().expect("issued").id);
            let behind = store.issued_line_requests(names, &line.id.parse().expect("an id"), 0).await.expect("read");
            assert_eq!(behind.len() as u64, line.n_requests, "{}", line.id);
            assert_eq!(behind.iter().map(|request| request.charge_micros).sum::<i64>(), line.amount.0, "{}", line.id);
        }
        let again = store.invoice(issued.id, None).await.expect("it is there");
        assert_eq!(again.lines, first.lines, "an invoice that was issued is never changed");
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        assert_eq!(report.due.0, ledger_sum(&first) + ledger_sum(&second), "events, ledger and lines agree");
    });
}

#[test]
fn jobs_that_close_at_once_issue_each_invoice_once_without_gaps() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        for _ in 0..6 {
            rich_account(&store, "developer").await;
        }
        let other = Store::connect(&url).await.expect("it connects");
        let (by, months) = (by(day(62)), 2);
        let jobs = tokio::join!(store.close_periods(None, &by), other.close_periods(None, &by), store.close_periods(None, &by));
        let closed: usize = [jobs.0, jobs.1, jobs.2].into_iter().map(|closed| closed.expect("closed").len()).sum();
        assert_eq!(closed, 6 * months);
        let mut numbers: Vec<String> =
            store.invoices(None).await.expect("read").into_iter().map(|(invoice, _)| invoice.issued.expect("issued").number).collect();
        numbers.sort();
        let expected: Vec<String> = (1..=12).map(|number| format!("INV-{number:06}")).collect();
        assert_eq!(numbers, expected);
        assert!(store.reconcile().await.expect("it reads").is_balanced());
        other.close().await;
    });
}

#[test]
fn agreements_of_an_account_are_on_its_invoice() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "team").await;
        let (idle, _) = rich_account(&store, "free").await;
        let party = Party { name: "Ann GmbH".into(), address: "Weg 1\nBerlin".into(), country: "DE".into(), tax_id: String::new() };
        let (region, email) = (String::new(), "ann@example.com".into());
        let profile = Profile { issuer: "default".into(), party, region, email, is_automatic: false, net_days: 14 };
        store.set_billing_profile(account, &profile, &by(NOW)).await.expect("set");
        let vat = NewTax { country: "DE".into(), region: String::new(), name: "VAT".into(), rate: 190_000, has_reverse_charge: true };
        store.set_tax(&vat, &by(NOW)).await.expect("set");
        let coupon = NewCoupon {
            code: "LAUNCH".into(),
            name: "Launch".into(),
            part_off: Some(100_000),
            n_months: Some(1),
            credit: Some((Micros::units(5), Some(30))),
            n_redemptions_max: Some(1),
            redeem_until: None,
        };
        store.create_coupon(&coupon, &by(NOW)).await.expect("made");
        store.redeem_coupon(account, "LAUNCH", &by(NOW)).await.expect("redeemed");
        for wrong in [(account, "LAUNCH"), (idle, "LAUNCH"), (idle, "NONE")] {
            assert!(store.redeem_coupon(wrong.0, wrong.1, &by(NOW)).await.is_err(), "{wrong:?}");
        }
        store.set_commitment(account, (january(), Micros::units(600)), &by(NOW)).await.expect("set");
        let closed = close(&store, day(31)).await;
        assert_eq!(closed.iter().find(|closed| closed.account == idle).expect("closed").invoice, None, "there was nothing to invoice");
        let invoice = invoice_of(&store, &closed, january()).await;
        // 19% of 550.10 is 104.519, which is 104.52.
        let amounts = [("fee:", 499_000_000), ("coupon:", -49_900_000), ("commitment", 101_000_000), ("tax:DE", 104_520_000)];
        for (id, amount) in amounts {
            assert_eq!(amount_of(&invoice, id), amount, "{id}: {invoice:?}");
        }
        let issued = invoice.issued.clone().expect("issued");
        assert_eq!((issued.due_at, issued.parties.customer.name.as_str()), (day(31 + 14), "Ann GmbH"));
        assert!(invoice.to_html("usd").expect("a page").contains("Ann GmbH"));
        assert!(invoice.to_pdf("usd").starts_with(b"%PDF"));

        // Any text behind "tax id" switches no tax off; the coupon was for one month.
        let with_id = |tax_id: &str| {
            let party = Party { tax_id: tax_id.into(), ..profile.party.clone() };
            Profile { party, ..profile.clone() }
        };
        let issuer = Party { name: "Bit SARL".into(), address: "1 rue".into(), country: "FR".into(), tax_id: "FRXX999999999".into() };
        let issuer = Issuer { id: "default".into(), party: issuer, prefixes: ["INV-".into(), "CN-".into()] };
        store.set_issuer(&issuer, &by(day(32))).await.expect("set");
        store.set_billing_profile(account, &with_id("DE123"), &by(day(32))).await.expect("set");
        let second = invoice_of(&store, &close(&store, day(62)).await, january().next()).await;
        assert_eq!((amount_of(&second, "tax:DE"), amount_of(&second, "coupon:")), (114_000_000, 0));
        // With a number of another country of the Union the customer owes the tax.
        store.set_billing_profile(account, &with_id("DE136695976"), &by(day(63))).await.expect("set");
        let third = invoice_of(&store, &close(&store, day(91)).await, january().next().next()).await;
        assert_eq!(amount_of(&third, "tax:DE"), 0);
        assert!(third.lines.iter().any(|line| line.text.contains("reverse charge")));
        assert_eq!(third.issued.expect("issued").parties.issuer.country, "FR");
        assert!(store.reconcile().await.expect("it reads").is_balanced());
    });
}

#[test]
fn credit_note_takes_off_and_what_was_paid_too_much_comes_back() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "developer").await;
        let tax = NewTax { country: "DE".into(), region: String::new(), name: "VAT".into(), rate: 190_000, has_reverse_charge: false };
        store.set_tax(&tax, &by(NOW)).await.expect("set");
        let profile = store.billing_profile(account).await.expect("a profile");
        let party = Party { country: "DE".into(), ..profile.party.clone() };
        store.set_billing_profile(account, &Profile { party, ..profile }, &by(NOW)).await.expect("set");
        let first = invoice_of(&store, &close(&store, day(31)).await, january()).await;
        let (id, total) = (first.issued.as_ref().expect("issued").id, first.total());
        assert_eq!(total, Micros(117_810_000), "99 and 19% of it");
        for wrong in [Micros(-10_000), Micros::ZERO, Micros(5), total.plus(Micros(10_000))] {
            assert!(store.credit_invoice(id, (wrong, "too much"), &by(day(32))).await.is_err(), "{wrong}");
        }
        let note = store.credit_invoice(id, (Micros(11_900_000), "a day was lost"), &by(day(32))).await.expect("credited");
        let note = store.invoice(note, Some(account)).await.expect("it is there");
        assert_eq!(note.issued.as_ref().expect("issued").number, "CN-000001");
        assert_eq!(note.lines.iter().map(|line| line.amount.0).collect::<Vec<_>>(), [-10_000_000, -1_900_000], "net and its tax");
        let outstanding = |invoice: Invoice, total: Micros| {
            let issued = invoice.issued.expect("issued");
            (total.minus(issued.credited).minus(issued.paid), issued.status)
        };
        let read = |id: InvoiceId| {
            let store = store.clone();
            async move { store.invoice(id, Some(account)).await.expect("it is there") }
        };
        assert_eq!(outstanding(read(id).await, total), (Micros(105_910_000), InvoiceStatus::Open));
        store.mark_paid(id, "transfer 1", &by(day(33))).await.expect("paid");
        assert!(store.mark_paid(id, "transfer 1", &by(day(33))).await.is_err(), "it is paid once");
        assert_eq!(outstanding(read(id).await, total), (Micros::ZERO, InvoiceStatus::Paid));
        store.credit_invoice(id, (Micros(50_000_000), "goodwill"), &by(day(34))).await.expect("credited");
        let second = invoice_of(&store, &close(&store, day(62)).await, january().next()).await;
        assert_eq!(amount_of(&second, "overpaid:"), -50_000_000, "it was paid, so it comes back");
        assert_eq!(second.total(), Micros(67_810_000), "117.81 less 50.00, whose tax the note gave back");
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        assert!(store.invoice(id, Some(AccountId::from_u128(1))).await.is_err(), "nobody sees another's");
    });
}

#[test]
fn credit_notes_are_their_invoices_issuers_and_their_taxes_add_up() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "developer").await;
        let tax = NewTax { country: "DE".into(), region: String::new(), name: "VAT".into(), rate: 190_000, has_reverse_charge: false };
        store.set_tax(&tax, &by(NOW)).await.expect("set");
        let profile = store.billing_profile(account).await.expect("a profile");
        let party = Party { country: "DE".into(), ..profile.party.clone() };
        let profile = Profile { party, ..profile };
        store.set_billing_profile(account, &profile, &by(NOW)).await.expect("set");
        let invoice = invoice_of(&store, &close(&store, day(31)).await, january()).await;
        let issuer = Issuer { id: "other".into(), party: Party::default(), prefixes: ["O-".into(), "OC-".into()] };
        store.set_issuer(&issuer, &by(day(32))).await.expect("set");
        let moved = Profile { issuer: "other".into(), party: Party { name: "Bob".into(), ..profile.party.clone() }, ..profile };
        store.set_billing_profile(account, &moved, &by(day(32))).await.expect("set");
        let id = invoice.issued.as_ref().expect("issued").id;
        let mut taxes = 0;
        // 117.81 in parts of which none has a whole cent of tax.
        for (n, amount) in [33_330_000, 33_330_000, 33_330_000, 17_820_000].into_iter().enumerate() {
            let note = store.credit_invoice(id, (Micros(amount), "x"), &by(day(33))).await.expect("credited");
            let note = store.invoice(note, None).await.expect("it is there");
            let issued = note.issued.as_ref().expect("issued");
            assert_eq!(issued.number, format!("CN-{:06}", n + 1), "of whoever issued the invoice");
            assert_eq!(issued.parties, invoice.issued.as_ref().expect("issued").parties);
            assert_eq!(note.total(), Micros(-amount));
            taxes += amount_of(&note, "tax:");
        }
        assert_eq!(taxes, -18_810_000, "all of the tax, and no cent more");
        assert!(store.reconcile().await.expect("it reads").is_balanced());
    });
}

#[test]
fn coupon_ends_at_its_time() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let coupon = NewCoupon {
            code: "SOON".into(),
            name: "Soon".into(),
            part_off: Some(100_000),
            n_months: None,
            credit: None,
            n_redemptions_max: None,
            redeem_until: Some(day(5)),
        };
        store.create_coupon(&coupon, &by(NOW)).await.expect("made");
        let (account, _) = rich_account(&store, "team").await;
        assert!(store.redeem_coupon(account, "SOON", &by(day(5))).await.is_err(), "then it has ended");
        store.redeem_coupon(account, "SOON", &by(Timestamp(day(5).0 - 1))).await.expect("a moment before");
    });
}

#[test]
fn each_plan_of_a_month_gives_back_by_its_own_promise() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "enterprise").await;
        let half = NOW.plus(Duration::from_secs(31 * DAY / 2));
        store.set_plan(account, "enterprise-plus", &by(half)).await.expect("changed");
        let outcomes = Outcomes::default();
        // 99.93%: what Enterprise promises, and less than Enterprise Plus does; and all of it in time.
        for n in 0..10_000 {
            let ended = if n < 7 { Ended::Failed } else { Ended::Served { first_token: Duration::from_millis(40) } };
            outcomes.note(account, ended, day(n % 31));
        }
        outcomes.flush(&store).await.expect("written");
        let invoice = invoice_of(&store, &close(&store, day(31)).await, january()).await;
        assert_eq!(amount_of(&invoice, "item:"), -499_950_000, "a tenth of half of 9,999: {invoice:?}");
        for n in 0..1000 {
            let ended = if n < 20 { Ended::Failed } else { Ended::Served { first_token: Duration::from_millis(40) } };
            outcomes.note(account, ended, day(31 + n % 28));
        }
        outcomes.flush(&store).await.expect("written");
        let middle = day(45);
        store.set_plan(account, "free", &by(middle)).await.expect("changed");
        let next = invoice_of(&store, &close(&store, day(62)).await, january().next()).await;
        assert_eq!(amount_of(&next, "item:"), -2_999_700_000, "three tenths, of the month to its end");
    });
}

#[test]
fn month_that_missed_its_service_level_gives_back_by_itself() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "enterprise").await;
        let outcomes = Outcomes::default();
        for n in 0..1000 {
            let first_token = Duration::from_millis(if n < 100 { 20_001 } else { 40 });
            let ended = if n < 2 { Ended::Failed } else { Ended::Served { first_token } };
            outcomes.note(account, ended, day(n % 31));
        }
        outcomes.flush(&store).await.expect("written");
        outcomes.flush(&store).await.expect("nothing is left");
        let level = store.service_level(account, january()).await.expect("read");
        assert_eq!((level.n_served, level.n_failed, level.n_in_time), (998, 2, 900));
        let invoice = invoice_of(&store, &close(&store, day(31)).await, january()).await;
        // A tenth of 2,999 for each of the two objectives.
        assert_eq!(amount_of(&invoice, "item:"), -599_800_000, "{invoice:?}");
        let next = invoice_of(&store, &close(&store, day(62)).await, january().next()).await;
        assert_eq!(amount_of(&next, "item:"), 0, "a month without requests kept it, and nothing is given back twice");
    });
}

#[test]
fn rate_card_that_is_changed_holds_from_its_time_on_without_a_restart() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "payg").await;
        let ledger = Arc::new(open(&store, NOW).await);
        let hasher = bitnet_platform::directory::KeyHasher::new([9; 32]);
        let directory = bitnet_platform::directory::Directory::open(store.clone(), ledger.clone(), hasher).await.expect("it reads");
        let price = TokenPrice { input_per_million: Micros(0), cached_per_million: Micros(0), output_per_million: Micros(5_000_000) };
        assert!(store.set_token_price("small", (price, NOW), &by(NOW)).await.is_err(), "nobody would know of it in time");
        store.set_token_price("small", (price, day(10)), &by(NOW)).await.expect("changed");
        store.set_plan_price("team", (Micros::units(600), Some(5), day(14)), &by(NOW)).await.expect("changed");
        directory.refresh(NOW).await.expect("it reads");
        let at = |id: &str, time: Timestamp| UsageEvent { occurred_at: time, ..event(owner, id, 10) };
        use_tokens(&ledger, at("before", day(9)), day(11)).await;
        use_tokens(&ledger, at("after", day(10)), day(11)).await;
        let charge = ledger.ledger().balance(owner.0, day(11)).used.charge;
        assert_eq!(charge, Micros(21 + 50), "each by the price of its time");
        let report = store.reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        let (team, _) = rich_account(&store, "team").await;
        let draft = store.draft_invoice(team, january(), day(20)).await.expect("drawn up");
        let fees: Vec<i64> =
            draft.lines.iter().filter(|line| matches!(line.kind, LineKind::Fee { .. })).map(|line| line.amount.0).collect();
        assert!(fees.len() == 2 && fees.iter().sum::<i64>() > 499_000_000 && fees.iter().sum::<i64>() < 600_000_000, "{fees:?}");
    });
}

#[test]
fn difference_in_an_invoice_is_found() {
    on_both(|store, url| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "payg").await;
        let ledger = open(&store, NOW).await;
        use_tokens(&ledger, UsageEvent { occurred_at: day(3), ..event(owner, "1", 50_000) }, day(3)).await;
        let invoice = invoice_of(&store, &close(&store, day(31)).await, january()).await;
        store.credit_invoice(invoice.issued.expect("issued").id, (Micros(10_000), "x"), &by(day(32))).await.expect("credited");
        assert!(store.reconcile().await.expect("it reads").is_balanced());
        let pool = sqlx::AnyPool::connect(&url).await.expect("it connects");
        let planted = [
            (
                "UPDATE invoice_line SET amount = amount + 1 WHERE line_id LIKE 'usage:%'",
                "UPDATE invoice_line SET amount = amount - 1 WHERE line_id LIKE 'usage:%'",
            ),
            ("UPDATE invoice SET total = total + 1 WHERE kind = 'invoice'", "UPDATE invoice SET total = total - 1 WHERE kind = 'invoice'"),
            (
                "UPDATE invoice SET credited = credited + 1 WHERE kind = 'invoice'",
                "UPDATE invoice SET credited = credited - 1 WHERE kind = 'invoice'",
            ),
            ("UPDATE invoice SET paid = 7 WHERE kind = 'invoice'", "UPDATE invoice SET paid = 0 WHERE kind = 'invoice'"),
            ("UPDATE invoice SET number = 9 WHERE kind = 'invoice'", "UPDATE invoice SET number = 1 WHERE kind = 'invoice'"),
            ("UPDATE invoice_issuer SET last_credit_note = 2", "UPDATE invoice_issuer SET last_credit_note = 1"),
            ("UPDATE closed_period SET upto_seq = 0", "UPDATE closed_period SET upto_seq = 1"),
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
