//! Projects, keys, members, invitations and the audit log for programs, in the shapes that OpenAI's clients read.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bitnet_platform::directory::KeyAccess;
use bitnet_platform::ids::AccountId;
use bitnet_platform::ledger::AccountStatus;
use bitnet_platform::portal::Reach;
use bitnet_platform::time::Timestamp;
use serde_json::{Value, json};

use super::store::{by, on_both};
use super::visitor::{Site, link_in};

/// A program with a key for administration.
struct Program<'a> {
    site: &'a Site,
    key: String,
}

impl Program<'_> {
    async fn ask(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(format!("/v1/organization/{path}"));
        let request = request.header("authorization", format!("Bearer {}", self.key)).header("content-type", "application/json");
        let answer = self.site.send(request.body(Body::from(body.to_string())).expect("a request")).await;
        (answer.status, answer.json())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask("POST", path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    async fn refused(&self, (method, path): (&str, &str), body: Value) -> u16 {
        self.ask(method, path, body).await.0.as_u16()
    }
}

fn ids(list: &Value) -> Vec<&str> {
    assert_eq!(list["object"], "list");
    list["data"].as_array().expect("a list").iter().map(|object| object["id"].as_str().expect("an id")).collect()
}

/// An account on the plan for teams, whose owner has signed up, and a program of its.
async fn world<'a>(site: &'a Site, email: &str) -> (AccountId, Program<'a>) {
    let owner = site.person(email).await;
    let account: AccountId = owner.account().await.parse().expect("an id");
    site.served.platform.store().set_plan(account, "team", &by(Timestamp::now())).await.expect("changed");
    let (_, key) = site.served.key(account, |key| key.access = KeyAccess::Admin).await;
    (account, Program { site, key })
}

#[test]
fn projects_and_keys_are_made_listed_and_ended_by_programs() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let (account, program) = world(&site, "ann@programs.example").await;
        let made = program.post("projects", json!({ "name": "research" })).await;
        assert_eq!(
            (&made["object"], &made["status"], &made["name"]),
            (&json!("organization.project"), &json!("active"), &json!("research"))
        );
        let id = made["id"].as_str().expect("an id").to_string();
        let renamed = program.post(&format!("projects/{id}"), json!({ "name": "archive" })).await;
        assert_eq!((&renamed["name"], &program.get(&format!("projects/{id}")).await), (&json!("archive"), &renamed));
        let all = program.get("projects?limit=1").await;
        assert_eq!((ids(&all).len(), &all["has_more"]), (1, &json!(true)));
        let rest = program.get(&format!("projects?after={}&include_archived=true", ids(&all)[0])).await;
        assert_eq!((ids(&rest), &rest["has_more"]), (vec![id.as_str()], &json!(false)));

        let project = id.parse().expect("an id");
        let (key, text) = site.served.key(account, |new| new.project = project).await;
        let listed = program.get(&format!("projects/{id}/api_keys")).await;
        assert_eq!(ids(&listed), [key.to_string()]);
        assert!(!listed.to_string().contains(&text), "no list has a key in it");
        assert!(text.starts_with(listed["data"][0]["redacted_value"].as_str().expect("text").trim_end_matches('…')));
        let path = format!("projects/{id}/api_keys/{key}");
        assert_eq!(
            program.ask("DELETE", &path, Value::Null).await.1,
            json!({ "object": "organization.project.api_key.deleted", "id": key.to_string(), "deleted": true })
        );
        site.served.refresh().await;
        assert_eq!(site.served.get("/v1/models", &text).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(program.refused(("GET", &path), Value::Null).await, 404);

        let made = program.post("admin_api_keys", json!({ "name": "deploy" })).await;
        let value = made["value"].as_str().expect("its text").to_string();
        site.served.refresh().await;
        let second = Program { site: &site, key: value.clone() };
        let listed = second.get("admin_api_keys?order=desc").await;
        assert!(ids(&listed).contains(&made["id"].as_str().expect("an id")) && !listed.to_string().contains(&value));
        let path = format!("admin_api_keys/{}", made["id"].as_str().expect("an id"));
        assert_eq!(second.get(&path).await["name"], "deploy");
        assert_eq!(program.ask("DELETE", &path, Value::Null).await.1["deleted"], true);
        site.served.refresh().await;
        assert_eq!(second.refused(("GET", "projects"), Value::Null).await, 401, "it has ended");

        // Another account's, names that are none, and an account that rests.
        let (_, stranger) = world(&site, "eve@programs.example").await;
        assert_eq!(stranger.refused(("GET", &format!("projects/{id}")), Value::Null).await, 404);
        assert_eq!(stranger.refused(("POST", &format!("projects/{id}")), json!({ "name": "mine" })).await, 404);
        assert_eq!(program.refused(("POST", "projects"), json!({ "name": "" })).await, 400);
        assert_eq!(program.refused(("POST", "projects"), json!({ "name": "x", "colour": "red" })).await, 400);
        assert_eq!(program.refused(("GET", "projects?colour=red"), Value::Null).await, 400);
        site.served.platform.store().set_account_status(account, AccountStatus::Suspended, &by(Timestamp::now())).await.expect("set");
        assert_eq!(program.refused(("POST", "projects"), json!({ "name": "more" })).await, 403);
        site.end().await;
    });
}

#[test]
fn people_are_invited_changed_and_removed_by_programs_as_an_admin_may() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let (_, program) = world(&site, "ann@people.example").await;
        let owner = program.get("users").await["data"][0].clone();
        assert_eq!(
            (&owner["object"], &owner["role"], &owner["email"]),
            (&json!("organization.user"), &json!("owner"), &json!("ann@people.example"))
        );
        let invite = program.post("invites", json!({ "email": "bob@people.example", "role": "viewer" })).await;
        assert_eq!((&invite["object"], &invite["status"]), (&json!("organization.invite"), &json!("pending")));
        assert_eq!(ids(&program.get("invites").await), [invite["id"].as_str().expect("an id")]);
        let link = link_in(&site.mail_to("bob@people.example", 1).await, "/invitations/");
        let bob = site.visitor();
        bob.send_form("/sign-up", &[("name", "Bob"), ("email", "bob@people.example"), ("password", super::visitor::PASSWORD)]).await;
        let confirm = link_in(&site.mail_to("bob@people.example", 2).await, "/confirm/");
        bob.send_form(&confirm, &[]).await;
        assert!(bob.send_form(&link, &[]).await.location().ends_with("said=joined"));
        assert!(ids(&program.get("invites").await).is_empty(), "it was accepted");
        let found = program.get("users?emails=bob@people.example").await;
        let path = format!("users/{}", ids(&found)[0]);
        assert_eq!(program.post(&path, json!({ "role": "developer" })).await["role"], "developer");
        assert_eq!(program.get(&path).await["role"], "developer");

        // What an admin may not: make owners, or change them; and what nobody may.
        let ann = format!("users/{}", owner["id"].as_str().expect("an id"));
        assert_eq!(program.refused(("POST", &path), json!({ "role": "owner" })).await, 403);
        assert_eq!(program.refused(("POST", &ann), json!({ "role": "viewer" })).await, 403);
        assert_eq!(program.refused(("DELETE", &ann), Value::Null).await, 403);
        assert_eq!(program.refused(("POST", "invites"), json!({ "email": "x@people.example", "role": "owner" })).await, 403);
        assert_eq!(program.refused(("POST", "invites"), json!({ "email": "x@people.example", "role": "king" })).await, 400);
        assert_eq!(program.refused(("POST", "invites"), json!({ "email": "nobody", "role": "viewer" })).await, 400);
        let (_, stranger) = world(&site, "eve@people.example").await;
        assert_eq!(stranger.refused(("DELETE", &path), Value::Null).await, 404);

        assert_eq!(program.ask("DELETE", &path, Value::Null).await.1["object"], "organization.user.deleted");
        assert_eq!(ids(&program.get("users").await).len(), 1);
        let second = program.post("invites", json!({ "email": "cy@people.example", "role": "billing" })).await;
        let path = format!("invites/{}", second["id"].as_str().expect("an id"));
        assert_eq!(program.get(&path).await["email"], "cy@people.example");
        assert_eq!(program.ask("DELETE", &path, Value::Null).await.1["deleted"], true);
        assert_eq!(program.refused(("DELETE", &path), Value::Null).await, 404);

        let log = program.get("audit_logs?limit=100").await;
        let kinds: Vec<&str> =
            log["data"].as_array().expect("a list").iter().map(|record| record["type"].as_str().expect("text")).collect();
        for kind in ["user.added", "user.updated", "user.deleted", "invite.sent", "invite.accepted", "invite.deleted"] {
            assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
        }
        site.end().await;
    });
}

#[test]
fn audit_log_is_searched_and_read_a_page_at_a_time() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let (account, program) = world(&site, "ann@searched.example").await;
        for n in 0..5 {
            program.post("projects", json!({ "name": format!("p{n}") })).await;
        }
        let made = program.get("audit_logs?event_types[]=project.created&limit=100").await;
        let record = &made["data"][0];
        assert_eq!((ids(&made).len(), &record["type"], &record["actor"]["type"]), (6, &json!("project.created"), &json!("api_key")));
        assert_eq!(record["project.created"]["changes_requested"]["name"], "p4", "the latest first: {record}");
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = program.get(&format!("audit_logs?event_types=project.created&limit=2{after}")).await;
            seen.extend(ids(&page).into_iter().map(str::to_string));
            if page["has_more"] == false {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().expect("an id"));
        }
        assert_eq!(seen, ids(&made));
        let newer = program.get(&format!("audit_logs?event_types=project.created&limit=2&before={}", seen[3])).await;
        assert_eq!(ids(&newer), [&seen[1], &seen[2]], "those next to it");
        let of_one = program.get(&format!("audit_logs?resource_ids={}", record["project.created"]["id"].as_str().expect("an id"))).await;
        assert_eq!(ids(&of_one).len(), 1);
        let by_key =
            program.get(&format!("audit_logs?limit=100&actor_ids={}", record["actor"]["api_key"]["id"].as_str().expect("an id"))).await;
        assert_eq!(ids(&by_key).len(), 5);
        let now = Timestamp::now().0 / 1_000_000;
        assert!(ids(&program.get(&format!("audit_logs?effective_at[gt]={}", now + 60)).await).is_empty());
        assert!(!ids(&program.get(&format!("audit_logs?effective_at[gte]={}&effective_at[lte]={now}", now - 600)).await).is_empty());
        for wrong in ["limit=0", "limit=101", "after=7", "effective_at[gt]=x", "colour=red"] {
            assert_eq!(program.refused(("GET", &format!("audit_logs?{wrong}")), Value::Null).await, 400, "{wrong}");
        }
        let (_, stranger) = world(&site, "eve@searched.example").await;
        let foreign = stranger.get("audit_logs?limit=100").await.to_string();
        assert!(!foreign.contains(&account.to_string()) && !foreign.contains("\"p4\""), "another account's");

        // The same records for a collector that speaks syslog.
        let records = site.served.platform.store().audit_records(0, Some(account)).await.expect("it reads");
        let mut record = records[0].clone();
        assert!(record.to_syslog().starts_with("<109>1 20") && record.to_syslog().contains("[bitnet@32473 seq=\""));
        (record.target, record.action) = ("a\"b\\c]d\ne".into(), "x y".into());
        let line = record.to_syslog();
        assert!(line.contains(r#" target="a\"b\\c\]d e""#) && line.contains(" - xy [") && !line.contains('\n'), "{line}");
        site.end().await;
    });
}
