//! Mails to members about their account: to whose role it concerns and who has not refused it, written with what they tell of, sent when
//! the mail server is there, once.

use std::time::Duration;

use bitnet_engine::SimulatedPace;
use bitnet_platform::InstallationSecret;
use bitnet_platform::identity::mail::MailRoute;
use bitnet_platform::portal::{Portal, PortalConfig, Reach};
use bitnet_platform::time::Timestamp;
use sqlx::AnyPool;
use tokio::net::TcpListener;

use super::mail::{answer, take};
use super::served::Served;
use super::store::on_both;
use super::visitor::{Site, Visitor};

/// Another member of an account, made in the database.
async fn join(pool: &AnyPool, (account, email, role): (&str, &str, &str)) {
    let insert = "INSERT INTO member (account_id, person_id, role, created_at) SELECT $1, id, $2, 0 FROM person WHERE email = $3";
    let query = sqlx::query(insert).bind(account.to_string()).bind(role.to_string()).bind(email.to_string());
    assert_eq!(query.execute(pool).await.expect("it writes").rows_affected(), 1);
}

/// Who is told of what, in order.
async fn told(pool: &AnyPool) -> Vec<(String, String)> {
    let text = "SELECT m.kind, p.email FROM notice n JOIN webhook_message m ON m.id = n.message_id JOIN person p ON p.id = n.person_id ORDER BY m.kind, p.email";
    sqlx::query_as(text).fetch_all(pool).await.expect("it reads")
}

async fn make_key(visitor: &Visitor, account: &str) {
    let page = visitor.send_form(&format!("/accounts/{account}/start"), &[]).await;
    assert_eq!(page.status, 200, "{}", page.body);
}

#[test]
fn members_hear_of_what_concerns_their_role_until_they_refuse_it() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@told.example").await;
        let account = ann.account().await;
        let pool = AnyPool::connect(&url).await.expect("it connects");
        sqlx::query("UPDATE account_plan SET plan_id = 'enterprise'").execute(&pool).await.expect("it writes");
        for role in ["billing", "developer", "viewer"] {
            let email = format!("{role}@told.example");
            site.person(&email).await;
            join(&pool, (&account, &email, role)).await;
        }
        make_key(&ann, &account).await;
        let mail = site.mail_to("ann@told.example", 2).await;
        assert!(mail.subject.starts_with("bitnet: A new key of “ann@told.example”"), "{mail:?}");
        assert!(mail.text.contains(&format!("http://127.0.0.1:8080/accounts/{account}/keys")) && mail.text.contains("as owner of"));
        let invoice = "INSERT INTO invoice (id, issuer_id, kind, number, name, account_id, period, corrects, issued_at, due_at, currency, parties, total, collection, status, credited, paid) VALUES ('inv_00000000000000000000000000000001', 'default', 'invoice', 1, 'INV-1', $1, 1, NULL, 0, 1000, 'usd', '{}', 5000000, 'manual', 'open', 0, 1000000)";
        sqlx::query(invoice).bind(account.clone()).execute(&pool).await.expect("it writes");
        let now = Timestamp::now();
        assert_eq!(store.note_what_is_due(now).await.expect("it looks"), 1);
        assert_eq!(store.note_what_is_due(now).await.expect("it looks"), 0, "each is told of once");
        assert!(site.mail_to("billing@told.example", 2).await.text.contains("$4.00 of it is open"));
        let expected = [("api_key.created", "ann"), ("invoice.overdue", "ann"), ("invoice.overdue", "billing")];
        assert_eq!(told(&pool).await, expected.map(|(kind, who)| (kind.to_string(), format!("{who}@told.example"))));
        assert!(ann.get("/profile").await.body.contains(r#"value="keys" checked"#));
        assert_eq!(ann.send_form("/profile/notices", &[("topics", "usage")]).await.location(), "/profile?said=saved");
        let page = ann.get("/profile").await.body;
        assert!(page.contains(r#"value="usage" checked"#) && !page.contains(r#"value="keys" checked"#), "{page}");
        make_key(&ann, &account).await;
        assert_eq!(told(&pool).await.len(), 3, "refused");
        pool.close().await;
        site.end().await;
    });
}

#[test]
fn key_that_was_made_for_long_is_told_of_before_it_ends() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@ending.example").await;
        let account = ann.account().await;
        let project = store.projects(Some(account.parse().expect("an id"))).await.expect("it reads")[0].id.to_string();
        let pool = AnyPool::connect(&url).await.expect("it connects");
        sqlx::query("UPDATE account_plan SET plan_id = 'enterprise'").execute(&pool).await.expect("it writes");
        for days in ["", "1", "30"] {
            let fields = [("name", "k"), ("project", project.as_str()), ("access", "inference"), ("days", days)];
            assert_eq!(ann.send_form(&format!("/accounts/{account}/keys"), &fields).await.status, 200);
        }
        let after = |days: u64| Timestamp::now().plus(Duration::from_secs(days * 86_400));
        assert_eq!(store.note_what_is_due(after(0)).await.expect("it looks"), 0, "a key for a day ends without a word");
        assert_eq!(store.note_what_is_due(after(24)).await.expect("it looks"), 1);
        assert_eq!(store.note_what_is_due(after(25)).await.expect("it looks"), 0);
        pool.close().await;
        site.end().await;
    });
}

#[test]
fn mail_to_a_member_waits_for_the_mail_server_and_is_sent_once() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("slow@waits-for.example").await;
        let account = ann.account().await;
        let pool = AnyPool::connect(&url).await.expect("it connects");
        sqlx::query("UPDATE account_plan SET plan_id = 'enterprise'").execute(&pool).await.expect("it writes");
        // Nobody sends: the notice is in the database, as after a crash.
        site.end().await;
        let served = Served::start(&url, SimulatedPace::default()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let smtp = format!("smtp://{}", listener.local_addr().expect("an address"));
        let mail = MailRoute::Smtp { url: smtp, from: "bitnet <no-reply@example.com>".into() };
        let config = PortalConfig { public_url: "https://ai.example".into(), reach: Reach::Network, mail, show_mail: |_| (), cards: None };
        let secret = InstallationSecret::new([5; 32]);
        let (_, post) = Portal::new(served.platform.clone(), served.app.clone(), &secret, config).expect("a portal");
        served.key(account.parse().expect("an id"), |_| {}).await;
        let now = Timestamp::now();
        let (sent, _) = tokio::join!(post.send_due(now), async { answer(listener.accept().await.expect("a client").0).await });
        assert_eq!(sent.expect("it says later"), 0);
        assert_eq!(post.send_due(now).await.expect("nothing is due"), 0);
        sqlx::query("UPDATE person SET email = 'ann@waits-for.example'").execute(&pool).await.expect("it writes");
        let later = now.plus(Duration::from_secs(90));
        let (sent, said) = tokio::join!(post.send_due(later), async { take(listener.accept().await.expect("a client").0).await });
        assert_eq!(sent.expect("it takes it"), 1);
        assert!(said.iter().any(|line| line == "RCPT TO:<ann@waits-for.example>"), "{said:?}");
        assert!(said.iter().any(|line| line.starts_with("Message-ID: <msg_") && line.ends_with("@example.com>")), "{said:?}");
        assert_eq!(post.send_due(later.plus(Duration::from_secs(86_400))).await.expect("nothing is due"), 0, "once");
        // Who is no member any more hears nothing of what waited.
        served.key(account.parse().expect("an id"), |_| {}).await;
        sqlx::query("DELETE FROM member").execute(&pool).await.expect("it writes");
        assert_eq!(post.send_due(Timestamp::now()).await.expect("nobody is asked"), 0);
        let outcome: String = sqlx::query_scalar("SELECT outcome FROM notice WHERE sent_at IS NULL").fetch_one(&pool).await.expect("one");
        assert_eq!(outcome, "no member any more");
        pool.close().await;
        drop(store);
        served.end().await;
    });
}
