//! Usage, costs and the draft invoice on both databases: what the ledger booked is what they say, to the micro and in every shape, and
//! nobody sees another's.

use bitnet_engine::SimulatedPace;
use bitnet_platform::directory::{KeyAccess, NewCredit};
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::time::Timestamp;
use serde_json::{Value, json};

use super::served::Served;
use super::store::{by, on_both};

const RICH: (Overage, Micros) = (Overage::Charge, Micros::units(1));

fn completion(model: &str, max_tokens: u32) -> Value {
    json!({ "model": model, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": true, "temperature": 0 })
}

/// The sum of a field over all results of all buckets.
fn total(page: &Value, field: &str) -> i64 {
    let buckets = page["data"].as_array().expect("buckets");
    let results = buckets.iter().flat_map(|bucket| bucket["results"].as_array().expect("results"));
    results.map(|result| result.pointer(field).and_then(Value::as_i64).expect("a number")).sum()
}

#[test]
fn usage_costs_and_invoice_say_what_the_ledger_booked() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("payg", RICH).await;
        let stranger = served.account("payg", RICH).await;
        let (_, key) = served.key(account, |_| {}).await;
        let (_, admin) = served.key(account, |key| key.access = KeyAccess::Admin).await;
        let (_, foreign) = served.key(stranger, |key| key.access = KeyAccess::Admin).await;
        let credit = NewCredit { account, amount: Micros(12), expires_at: None, reason: "<b>pilot</b>".into() };
        served.platform.store().order_credit(credit, &by(Timestamp::now())).await.expect("given");
        served.refresh().await;
        for (model, n) in [("sim", 10), ("sim", 20), ("other", 5)] {
            assert_eq!(served.post("/v1/completions", &key, &completion(model, n)).await.status, 200);
        }
        served.platform.ledger().flush().await.expect("durable");
        let balance = served.platform.ledger().ledger().balance(account, Timestamp::now());
        let charge = balance.used.charge.0;
        assert_eq!((balance.used.n_events, balance.used.due.0), (3, charge - 12));

        let start = Timestamp::now().0 / 1_000_000 - 3600;
        let usage = "/v1/organization/usage/completions";
        for width in ["1m&limit=1440", "1h", "1d"] {
            let page = served.get(&format!("{usage}?start_time={start}&bucket_width={width}"), &admin).await;
            assert_eq!(page.status, 200, "{}", page.body);
            let page = page.json();
            assert_eq!((page["object"].as_str(), &page["has_more"]), (Some("page"), &json!(false)));
            let sums = ["/input_tokens", "/output_tokens", "/num_model_requests"].map(|field| total(&page, field));
            assert_eq!(sums, [12, 35, 3], "{width}");
        }
        let by_model = served.get(&format!("{usage}?start_time={start}&group_by=model&models=sim"), &admin).await.json();
        assert_eq!(total(&by_model, "/output_tokens"), 30);
        let embedded = served.get(&format!("/v1/organization/usage/embeddings?start_time={start}"), &admin).await.json();
        assert_eq!(total(&embedded, "/input_tokens"), 0);
        let costs = format!("/v1/organization/costs?start_time={start}");
        assert_eq!(total(&served.get(&costs, &admin).await.json(), "/amount/micros"), charge);
        let lines = served.get(&format!("{costs}&group_by=line_item"), &admin).await.json();
        assert_eq!(total(&lines, "/amount/micros"), charge);
        assert_eq!(total(&served.get(&costs, &foreign).await.json(), "/amount/micros"), 0, "nobody sees another's");
        assert_eq!(served.get(&costs, &key).await.refusal(), (403, "permission_denied".into()));
        assert_eq!(served.get("/v1/organization/costs", &admin).await.refusal(), (400, "missing_required_parameter".into()));

        let draft = "/v1/organization/invoices/draft";
        let invoice = served.get(draft, &admin).await.json();
        let lines = invoice["lines"].as_array().expect("lines");
        let amounts = |with_rounding: bool| {
            let lines = lines.iter().filter(|line| with_rounding || line["kind"] != "rounding");
            lines.map(|line| line["amount_micros"].as_i64().expect("a number")).sum::<i64>()
        };
        assert_eq!(amounts(false), charge - 12, "{invoice}");
        assert_eq!(invoice["total_micros"].as_i64(), Some(amounts(true)), "{invoice}");
        assert_eq!(amounts(true) % 10_000, 0, "what is to be paid is whole cents");
        for line in lines.iter().filter(|line| line["kind"] != "rounding") {
            let id = line["id"].as_str().expect("an id");
            let requests = served.get(&format!("{draft}/requests?line={id}"), &admin).await.json();
            let requests = requests["data"].as_array().expect("requests").clone();
            assert_eq!(requests.len() as u64, line["n_requests"].as_u64().expect("a number"), "{id}");
            let sum: i64 = requests.iter().map(|request| request["charge_micros"].as_i64().expect("a number")).sum();
            assert!(line["kind"] == "credit" || Some(sum) == line["amount_micros"].as_i64(), "{id}");
            let none = served.get(&format!("{draft}/requests?line={id}"), &foreign).await.json();
            assert_eq!(none["data"], json!([]), "nobody sees another's");
        }
        let page = served.get(&format!("{draft}.html"), &admin).await;
        assert!(page.body.contains("&#60;b&#62;pilot") && !page.body.contains("<b>pilot"), "{}", page.body);
        assert!(page.body.len() < 150_000 && page.headers["content-type"] == "text/html; charset=utf-8");
        served.platform.store().rebuild_derived().await.expect("made anew");
        assert_eq!(served.get(draft, &admin).await.json()["lines"], invoice["lines"], "made anew, it is the same");
        assert!(served.platform.store().reconcile().await.expect("it reads").is_balanced());
        served.end().await;
    });
}

#[test]
fn plan_that_is_dearer_is_charged_at_once_and_a_cheaper_one_next_month() {
    on_both(|_, url| async move {
        let served = Served::start(&url, SimulatedPace::default()).await;
        let account = served.account("developer", RICH).await;
        let store = served.platform.store();
        let (now, period) = (Timestamp::now(), Timestamp::now().period());
        let fees = |invoice: bitnet_platform::billing::Invoice| {
            let fees = invoice.lines.iter().filter(|line| matches!(line.kind, bitnet_platform::billing::LineKind::Fee { .. }));
            fees.map(|line| line.amount.0).collect::<Vec<_>>()
        };
        let before = fees(store.draft_invoice(account, period, now).await.expect("drawn up"));
        assert!(before.len() == 1 && before[0] <= 99_000_000 && before[0] > 0, "{before:?}");
        let from = store.set_plan(account, "team", &by(Timestamp::now())).await.expect("changed");
        assert_eq!(from.period(), period);
        let dearer = fees(store.draft_invoice(account, period, now).await.expect("drawn up"));
        assert!(dearer.len() == 2 && dearer[0] < before[0] && dearer[1] > before[0], "{dearer:?}");
        let from = store.set_plan(account, "free", &by(Timestamp::now())).await.expect("changed");
        assert_eq!(from, period.next().start());
        assert_eq!(fees(store.draft_invoice(account, period, now).await.expect("drawn up")), dearer);
        assert_eq!(fees(store.draft_invoice(account, period.next(), now).await.expect("drawn up")), Vec::<i64>::new());
        served.end().await;
    });
}
