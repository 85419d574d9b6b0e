//! Webhooks to a receiver of the tests' own, that does not always take what it is sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bitnet_platform::directory::KeyAccess;
use bitnet_platform::ids::{AccountId, EndpointId};
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::outbound::{Destinations, Outbound};
use bitnet_platform::store::{MIGRATIONS, Store};
use bitnet_platform::time::Timestamp;
use bitnet_platform::webhooks::{EndpointSecrets, NewEndpoint, Webhooks, verify};

use super::invoices::{day, rich_account};
use super::served::Served;
use super::store::{NOW, by, on_both};

/// What a receiver was sent: id, time, signatures, body.
type Received = (String, i64, String, Vec<u8>);

/// A receiver that answers as it is told, and then well.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    answers: Arc<Mutex<VecDeque<u16>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    pub(crate) async fn start(answers: &[u16]) -> (Self, String) {
        let receiver = Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), received: Arc::default() };
        let router = Router::new().route("/hook", post(take)).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, url)
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers[name].to_str().expect("text").to_string();
    let time = header("webhook-timestamp").parse().expect("seconds");
    receiver.received.lock().unwrap().push((header("webhook-id"), time, header("webhook-signature"), body.to_vec()));
    let answer = receiver.answers.lock().unwrap().pop_front().unwrap_or(204);
    StatusCode::from_u16(answer).expect("a status")
}

fn webhooks(store: &Arc<Store>, destinations: Destinations) -> Webhooks {
    Webhooks::new(store.clone(), Outbound::new(destinations), EndpointSecrets::new([4; 32]))
}

async fn endpoint(store: &Store, webhooks: &Webhooks, (account, url, kinds): (AccountId, &str, &[&str])) -> EndpointId {
    let kinds = kinds.iter().map(|kind| (*kind).into()).collect();
    let new = NewEndpoint { account, url: url.into(), kinds };
    store.create_endpoint(&new, webhooks.outbound(), &by(NOW)).await.expect("made").id
}

#[test]
fn message_is_sent_until_it_is_taken_and_can_be_sent_again() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "developer").await;
        let webhooks = webhooks(&store, Destinations::Any);
        let (receiver, url) = Receiver::start(&[500, 302]).await;
        let own = endpoint(&store, &webhooks, (account, &url, &["invoice.issued"])).await;
        endpoint(&store, &webhooks, (account, &url, &["api_key.created"])).await;
        store.close_periods(None, &by(day(31))).await.expect("closed");
        assert_eq!(webhooks.deliver_due(day(31)).await.expect("sent"), 1, "to whom wants to hear of it");
        assert_eq!(webhooks.deliver_due(day(31)).await.expect("sent"), 0, "not at once again");
        let later = |seconds| day(31).plus(Duration::from_secs(seconds));
        assert_eq!(webhooks.deliver_due(later(5)).await.expect("sent"), 1, "a redirection is not followed");
        assert_eq!(webhooks.deliver_due(later(5 + 299)).await.expect("sent"), 0);
        assert_eq!(webhooks.deliver_due(later(5 + 300)).await.expect("sent"), 1);
        assert_eq!(webhooks.deliver_due(later(1_000_000)).await.expect("sent"), 0, "it was taken");
        let received = receiver.received();
        assert!(received.len() == 3 && received.iter().all(|one| one.0 == received[0].0), "one message has one id: {received:?}");
        for (id, time, signatures, body) in &received {
            assert!(verify(&webhooks.secrets().secret(own, 1), (id, *time), body, signatures));
            assert!(!verify(&webhooks.secrets().secret(own, 2), (id, *time), body, signatures));
        }
        let body: serde_json::Value = serde_json::from_slice(&received[0].3).expect("JSON");
        assert_eq!((&body["type"], &body["data"]["number"]), (&"invoice.issued".into(), &"INV-000001".into()));
        let told = store.deliveries(account, own).await.expect("read");
        assert_eq!((told[0].n_attempts, told[0].outcome.as_str(), told[0].delivered_at), (3, "204", Some(later(305))));

        assert_eq!(store.replay((account, own), (Some(told[0].message), NOW), day(40)).await.expect("again"), 1);
        store.rotate_endpoint((account, own), &by(day(40))).await.expect("changed");
        assert_eq!(webhooks.deliver_due(day(40)).await.expect("sent"), 1);
        let (id, time, signatures, body) = receiver.received().pop().expect("one");
        assert_eq!(id, received[0].0);
        let by_version = |version| verify(&webhooks.secrets().secret(own, version), (&id, time), &body, &signatures);
        assert!(by_version(1) && by_version(2), "for a day both secrets sign");
        assert_eq!(store.replay((account, own), (None, NOW), day(42)).await.expect("again"), 1);
        webhooks.deliver_due(day(42)).await.expect("sent");
        let (id, time, signatures, body) = receiver.received().pop().expect("one");
        assert!(!verify(&webhooks.secrets().secret(own, 1), (&id, time), &body, &signatures), "then only the new one");
        store.remove_endpoint((account, own), &by(day(43))).await.expect("removed");
        assert!(
            store.replay((account, own), (None, NOW), day(44)).await.is_err() && store.endpoints(account).await.expect("read").len() == 1
        );
    });
}

#[test]
fn message_that_nobody_takes_is_given_up() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "developer").await;
        let webhooks = webhooks(&store, Destinations::Any);
        // Nobody listens there any more.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        drop(listener);
        let (_, gone_url) = Receiver::start(&[410]).await;
        let (own, gone) =
            (endpoint(&store, &webhooks, (account, &url, &[])).await, endpoint(&store, &webhooks, (account, &gone_url, &[])).await);
        store.close_periods(None, &by(day(31))).await.expect("closed");
        let mut time = day(31);
        let mut n_sent = 0;
        for _ in 0..200 {
            n_sent += webhooks.deliver_due(time).await.expect("sent");
            time = time.plus(Duration::from_secs(3600));
        }
        assert_eq!(n_sent, 9 + 1, "eight pauses, nine attempts; and who is gone is asked once");
        let told = |id| {
            let store = store.clone();
            async move { store.deliveries(account, id).await.expect("read").remove(0) }
        };
        let lost = told(own).await;
        assert!(lost.next_attempt_at.is_none() && lost.delivered_at.is_none() && lost.outcome.contains("cannot be reached"), "{lost:?}");
        assert_eq!(told(gone).await.outcome, "410");
    });
}

/// Takes connections and says nothing; tells of each.
async fn silent() -> (String, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let (told, hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            open.push(connection);
            let _ = told.send(());
        }
    });
    (url, hears)
}

#[test]
fn endpoint_that_does_not_answer_keeps_nobody_else_waiting() {
    on_both(|store, _| async move {
        let now = Timestamp::now();
        store.migrate(MIGRATIONS, now).await.expect("it migrates");
        let webhooks = webhooks(&store, Destinations::Any);
        let (slow, slow_project) = rich_account(&store, "enterprise").await;
        let (other, other_project) = rich_account(&store, "enterprise").await;
        let (silent_url, mut connected) = silent().await;
        let (receiver, url) = Receiver::start(&[]).await;
        endpoint(&store, &webhooks, (slow, &silent_url, &[])).await;
        endpoint(&store, &webhooks, (other, &url, &[])).await;
        let happens = async |account, project| {
            let (name, access) = ("k".into(), KeyAccess::Inference);
            let (scope, limits) = (Default::default(), Default::default());
            let key = bitnet_platform::directory::NewApiKey { account, project, name, access, scope, limits, expires_at: None };
            let hasher = bitnet_platform::directory::KeyHasher::new([9; 32]);
            store.create_api_key(key, &hasher, &by(Timestamp::now())).await.expect("created");
        };
        // More than are sent at once to one account, and more than once were sent at once to all.
        for _ in 0..40 {
            happens(slow, slow_project).await;
        }
        let running = tokio::spawn(webhooks.run(Timestamp::now));
        connected.recv().await.expect("it is tried");
        happens(other, other_project).await;
        let began = std::time::Instant::now();
        while receiver.received().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(12), "it waits for somebody else's endpoint");
            tokio::task::yield_now().await;
        }
        running.abort();
    });
}

#[test]
fn webhook_to_an_own_network_is_refused() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let (account, _) = rich_account(&store, "developer").await;
        let public = webhooks(&store, Destinations::Public);
        for url in
            ["http://example.com/", "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest", "https://intranet/", "x"]
        {
            let new = NewEndpoint { account, url: url.into(), kinds: Vec::new() };
            assert!(store.create_endpoint(&new, public.outbound(), &by(NOW)).await.is_err(), "{url}");
        }
        let new = NewEndpoint { account, url: "https://example.com/".into(), kinds: vec!["invoice.eaten".into()] };
        assert!(store.create_endpoint(&new, public.outbound(), &by(NOW)).await.is_err(), "an unknown kind");
        // One that was let in under another setting, or whose name points elsewhere now, is looked at when it is sent to.
        let (receiver, url) = Receiver::start(&[]).await;
        endpoint(&store, &webhooks(&store, Destinations::Any), (account, &url.replace("127.0.0.1", "localhost"), &[])).await;
        store.close_periods(None, &by(day(31))).await.expect("closed");
        assert_eq!(public.deliver_due(day(31)).await.expect("tried"), 1);
        assert!(receiver.received().is_empty());
    });
}

#[test]
fn threshold_of_usage_is_told_of_once() {
    on_both(|store, _| async move {
        store.migrate(MIGRATIONS, NOW).await.expect("it migrates");
        let owner = rich_account(&store, "free").await;
        let ledger = super::store::open(&store, NOW).await;
        let used = |id: &str, n_operations| {
            let event = super::store::event(owner, id, 1);
            bitnet_platform::ledger::event::UsageEvent { n_operations, ..event }
        };
        super::invoices::use_tokens(&ledger, used("1", 7999), NOW).await;
        assert_eq!(store.note_thresholds(day(1)).await.expect("looked"), 0);
        super::invoices::use_tokens(&ledger, used("2", 1), NOW).await;
        assert_eq!(store.note_thresholds(day(1)).await.expect("looked"), 1, "four fifths");
        super::invoices::use_tokens(&ledger, used("3", 2000), NOW).await;
        assert_eq!(store.note_thresholds(day(1)).await.expect("looked"), 1, "all");
        assert_eq!(store.note_thresholds(day(2)).await.expect("looked"), 0);
        assert_eq!(store.note_thresholds(Timestamp(day(40).0)).await.expect("looked"), 0, "another month");
    });
}

#[test]
fn licence_that_has_ended_makes_management_read_only_and_stops_no_model() {
    on_both(|_, url| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let ended = Timestamp::now().minus(Duration::from_secs(15 * 86_400));
        let terms = bitnet_platform::licence::LicenceTerms {
            customer: "Ann".into(),
            plan: "enterprise".into(),
            entitlements: Vec::new(),
            seats: None,
            valid_from_micros: 0,
            expires_at_micros: ended.0,
            machine: None,
        };
        let rights = bitnet_platform::rights::Rights::of(terms, folder.path().join("clock"));
        let served = Served::start_with(&url, Default::default(), |platform| platform.with_rights(rights)).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, key) = served.key(account, |_| {}).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        let body = serde_json::json!({ "url": "https://example.com/hook" });
        assert_eq!(served.post("/v1/organization/webhooks", &admin, &body).await.refusal(), (403, "permission_denied".into()));
        assert_eq!(served.get("/v1/organization/webhooks", &admin).await.status, 200, "what is there is read");
        assert_eq!(served.get("/v1/organization/invoices", &admin).await.status, 200);
        let prompt = serde_json::json!({ "model": "sim", "prompt": "Once", "max_tokens": 2 });
        assert_eq!(served.post("/v1/completions", &key, &prompt).await.status, 200, "models go on");
        let project = served.platform.store().projects(Some(account)).await.expect("read")[0].id.to_string();
        let event = serde_json::json!({
            "specversion": "1.0", "type": "ai.bitnet.usage.v1", "source": "s", "id": "1",
            "data": { "project_id": project, "model": "m", "output_tokens": 1 },
        });
        assert_eq!(served.post("/v1/events", &admin, &event).await.status, 202, "what was used is booked");
        served.end().await;
    });
}
