//! `POST /v1/events` through the router, on both databases.

use axum::body::Body;
use axum::http::Request;
use bitnet_engine::SimulatedPace;
use bitnet_platform::directory::KeyAccess;
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use serde_json::{Value, json};

use super::served::{Answer, Served};
use super::store::on_both;

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json; charset=utf-8";

async fn send(served: &Served, key: &str, (kind, body): (&str, &Value)) -> Answer {
    let request = Request::post("/v1/events").header("content-type", kind).header("authorization", format!("Bearer {key}"));
    served.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

fn event(project: &str, id: &str, n_output: u64) -> Value {
    json!({
        "specversion": "1.0",
        "type": "ai.bitnet.usage.v1",
        "source": "/worker/7",
        "id": id,
        "time": Timestamp::now().to_rfc3339(),
        "datacontenttype": "application/json",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
        "data": { "project_id": project, "model": "m", "input_tokens": 10, "output_tokens": n_output },
    })
}

#[test]
fn event_is_booked_once_and_another_of_its_name_is_a_conflict() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let foreign = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, key) = served.key(account, |_| {}).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        let project_of = async |account| served.platform.store().projects(Some(account)).await.expect("read")[0].id.to_string();
        let (project, others) = (project_of(account).await, project_of(foreign).await);
        let first = event(&project, "1", 20);
        assert_eq!(send(&served, &key, (ONE, &first)).await.refusal(), (403, "permission_denied".into()));
        let accepted = send(&served, &admin, (ONE, &first)).await;
        assert_eq!((accepted.status.as_u16(), accepted.json()["status"].clone()), (202, json!("accepted")), "{accepted:?}");
        let again = send(&served, &admin, ("application/json", &first)).await;
        assert_eq!((again.status.as_u16(), again.json()["status"].clone()), (200, json!("duplicate")));
        let mut other = first.clone();
        other["data"]["output_tokens"] = 21.into();
        assert_eq!(send(&served, &admin, (ONE, &other)).await.refusal(), (409, "conflict".into()));

        let mut late = event(&project, "late", 1);
        late["time"] = Timestamp::now().minus(std::time::Duration::from_secs(36 * 86_400)).to_rfc3339().into();
        let mut ahead = event(&project, "ahead", 1);
        ahead["time"] = Timestamp::now().plus(std::time::Duration::from_secs(400)).to_rfc3339().into();
        let batch = json!([first, event(&project, "2", 5), other, late, ahead, event(&others, "3", 5)]);
        let answer = send(&served, &admin, (BATCH, &batch)).await;
        assert_eq!(answer.status, 207, "{}", answer.body);
        let statuses: Vec<Value> = answer.json()["data"].as_array().expect("a list").iter().map(|one| one["status"].clone()).collect();
        assert_eq!(statuses, ["duplicate", "accepted", "conflict", "refused", "refused", "refused"]);
        let whole = send(&served, &admin, (BATCH, &json!([event(&project, "4", 5)]))).await;
        assert_eq!(whole.status, 200);
        served.platform.ledger().flush().await.expect("durable");
        let report = served.platform.store().reconcile().await.expect("it reads");
        assert!(report.is_balanced(), "{report:?}");
        assert_eq!((report.n_events, report.charge), (3, Micros(30 + 15 + 15)));
        served.end().await;
    });
}

#[test]
fn event_that_is_none_is_refused_by_name() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        let project = served.platform.store().projects(Some(account)).await.expect("read")[0].id.to_string();
        let changed = |field: &str, value: Value| {
            let mut event = event(&project, "1", 1);
            match field.split_once('.') {
                Some((_, inner)) => event["data"][inner] = value,
                None => event[field] = value,
            }
            event
        };
        let wrong = [
            (changed("specversion", json!("0.3")), "specversion"),
            (changed("type", json!("x")), "type"),
            (changed("time", json!("yesterday")), "time"),
            (changed("datacontenttype", json!("text/plain")), "datacontenttype"),
            (changed("source", json!("gateway")), "source"),
            (changed("source", json!("")), "source"),
            (changed("id", json!("")), "id"),
            (changed("Extension", json!("x")), "extensions"),
            (changed("data.project_id", json!("' OR 1=1 --")), "project_id"),
            (changed("data.model", json!("")), "model"),
            (changed("data.output_tokens", json!(u64::MAX)), "tokens"),
        ];
        for (event, field) in wrong {
            let answer = send(&served, &admin, (ONE, &event)).await;
            assert_eq!((answer.status.as_u16(), answer.json()["error"]["param"].clone()), (400, json!(field)), "{}", answer.body);
        }
        let unknown = send(&served, &admin, (ONE, &changed("data.price", json!(0)))).await;
        assert_eq!((unknown.status.as_u16(), unknown.json()["error"]["param"].clone()), (400, json!("price")), "{}", unknown.body);
        assert_eq!(send(&served, &admin, (ONE, &json!({}))).await.status, 400);
        assert_eq!(send(&served, &admin, ("text/plain", &event(&project, "1", 1))).await.status, 415);
        assert_eq!(send(&served, &admin, (ONE, &changed("id", json!("x".repeat(5 << 20))))).await.status, 413);
        let many: Vec<Value> = (0..1001).map(|id| event(&project, &id.to_string(), 1)).collect();
        assert_eq!(send(&served, &admin, (BATCH, &many.into())).await.status, 400);
        let nested = Request::post("/v1/events").header("content-type", ONE).header("authorization", format!("Bearer {admin}"));
        assert_eq!(served.send(nested.body(Body::from("[".repeat(1 << 20))).expect("a request")).await.status, 400);
        served.platform.ledger().flush().await.expect("durable");
        assert_eq!(served.platform.store().reconcile().await.expect("it reads").n_events, 0);
        served.end().await;
    });
}

#[test]
fn request_under_a_key_is_done_once() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", (Overage::Charge, Micros::units(1))).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        let coupon = bitnet_platform::billing::NewCoupon {
            code: "ONE".into(),
            name: "One".into(),
            part_off: None,
            n_months: None,
            credit: Some((Micros::units(5), None)),
            n_redemptions_max: None,
            redeem_until: None,
        };
        served.platform.store().create_coupon(&coupon, &super::store::by(Timestamp::now())).await.expect("made");
        let send = async |key: &str, path: &str, body: Value| {
            let request = Request::post(format!("/v1/organization/billing/{path}")).header("authorization", format!("Bearer {admin}"));
            let request = request.header("content-type", "application/json").header("idempotency-key", key);
            served.send(request.body(Body::from(body.to_string())).expect("a request")).await
        };
        let body = json!({ "code": "ONE" });
        let (first, second) = tokio::join!(send("k1", "coupons", body.clone()), send("k1", "coupons", body.clone()));
        let mut statuses = [first.status.as_u16(), second.status.as_u16()];
        statuses.sort_unstable();
        assert!(statuses == [200, 200] || statuses == [200, 409], "{statuses:?}");
        let again = send("k1", "coupons", body.clone()).await;
        assert_eq!((again.status.as_u16(), again.json()["redeemed"].clone()), (200, json!(true)), "the first answer");
        assert_eq!(send("k1", "coupons", json!({ "code": "TWO" })).await.refusal(), (409, "conflict".into()));
        assert_eq!(send("k1", "profile", json!({ "name": "Ann" })).await.refusal(), (409, "conflict".into()));
        let other = send("k2", "coupons", body).await;
        assert_eq!(other.status, 400, "under another key it is another request: {}", other.body);
        assert_eq!(send("k2", "coupons", json!({ "code": "ONE" })).await.body, other.body, "what was refused is refused again");
        assert_eq!(send("", "coupons", json!({})).await.status, 400);
        served.refresh().await;
        let balance = served.platform.ledger().ledger().balance(account, Timestamp::now());
        assert_eq!(balance.credit, Micros::units(5));
        served.end().await;
    });
}
