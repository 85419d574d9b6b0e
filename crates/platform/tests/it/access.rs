//! Who may use which route: a matrix of every route of the portal by every role, in the own account and from another, and of every
//! route for programs by every kind of key. What is expected stands in `access.txt` and `access_keys.txt`; a route without a row, or
//! a row without a route, fails. Members are made in the database, so that nothing but the role differs.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bitnet_platform::directory::{KeyAccess, KeyScope};
use bitnet_platform::ledger::Overage;
use bitnet_platform::money::Micros;
use bitnet_platform::portal::{Access, Reach};
use bitnet_platform::time::Timestamp;
use sqlx::AnyPool;

use super::store::on_both;
use super::visitor::{Page, Site, Visitor};

const WHO: [&str; 8] = ["anonymous", "viewer", "billing", "developer", "admin", "owner", "stranger", "operator"];
/// What must not be in what others see.
const CANARY: &str = "canary-of-the-account-8f3a";

/// Rows of a table: a route, and a word for each column.
fn expected(text: &'static str, columns: &[&str]) -> BTreeMap<(String, String), Vec<&'static str>> {
    let rows = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let row = |line: &'static str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.len(), columns.len() + 2, "method, path and {columns:?}: {line}");
        ((words[0].to_string(), words[1].to_string()), words[2..].to_vec())
    };
    rows.map(row).collect()
}

/// Into what a page lets somebody: `in`, or why not.
fn outcome(page: &Page) -> &'static str {
    match page.status {
        StatusCode::SEE_OTHER if page.location().starts_with("/log-in") && !page.location().contains("said=") => "log-in",
        StatusCode::FORBIDDEN => "no",
        StatusCode::NOT_FOUND => "none",
        _ => "in",
    }
}

/// An account with everything that a URL can name, and somebody of every kind.
struct World {
    site: Site,
    account: String,
    people: Vec<(&'static str, Visitor)>,
    pool: AnyPool,
}

impl World {
    async fn make(url: &str) -> Self {
        let site = Site::start(url, Reach::Machine).await;
        let mut people = vec![("anonymous", site.visitor())];
        let operator = site.person("operator@access.example").await;
        let owner = site.person("owner@access.example").await;
        let account = owner.account().await;
        let renamed = owner.send_form(&format!("/accounts/{account}/settings"), &[("name", CANARY)]).await;
        assert_eq!(renamed.status, StatusCode::SEE_OTHER);
        let pool = AnyPool::connect(url).await.expect("it connects");
        for role in ["viewer", "billing", "developer", "admin"] {
            let email = format!("{role}@access.example");
            people.push((role, site.person(&email).await));
            let insert = "INSERT INTO member (account_id, person_id, role, created_at) SELECT $1, id, $2, 0 FROM person WHERE email = $3";
            sqlx::query(insert).bind(account.clone()).bind(role).bind(email).execute(&pool).await.expect("it writes");
        }
        people.push(("owner", owner));
        people.push(("stranger", site.person("stranger@access.example").await));
        people.push(("operator", operator));
        let by = super::store::by(Timestamp::now());
        let id = account.parse().expect("an id");
        site.served.platform.store().set_plan(id, "enterprise", &by).await.expect("changed");
        Self { site, account, people, pool }
    }

    async fn execute(&self, text: &'static str, values: &[&str]) {
        let query = values.iter().fold(sqlx::query(text), |query, value| query.bind((*value).to_string()));
        query.execute(&self.pool).await.expect(text);
    }

    /// An invoice of the account: its month is closed when it is over, which is asked for now.
    async fn issued(&self) -> String {
        let store = self.site.served.platform.store();
        let account = Some(self.account.parse().expect("an id"));
        let later = super::store::by(Timestamp::now().plus(std::time::Duration::from_secs(40 * 86_400)));
        store.close_periods(account, &later).await.expect("it is closed");
        let (invoice, _) = store.invoices(account).await.expect("it reads").swap_remove(0);
        invoice.issued.expect("it was issued").id.to_string()
    }

    /// A path with every parameter filled in by something that is there, made anew where the deed takes it away.
    async fn fill(&self, path: &str) -> String {
        let mut filled = path.replace("{account}", &self.account).replace("{id}", &self.account);
        if path.contains("{key}") {
            let (id, _) = self.site.served.key(self.account.parse().expect("an id"), |_| {}).await;
            filled = filled.replace("{key}", &id.to_string());
        }
        if path.contains("{person}") {
            let guest = "user_00000000000000000000000000000099";
            let values = &[guest];
            self.execute("INSERT INTO person (id, email, name, password_hash, created_at, verified_at) VALUES ($1, 'guest@access.example', 'guest', '', 0, 0) ON CONFLICT DO NOTHING", values).await;
            self.execute(
                "INSERT INTO member (account_id, person_id, role, created_at) VALUES ($2, $1, 'viewer', 0) ON CONFLICT DO NOTHING",
                &[guest, &self.account],
            )
            .await;
            filled = filled.replace("{person}", guest);
        }
        if path.contains("{invitation}") {
            let invitation = "invite_00000000000000000000000000000099";
            let insert = "INSERT INTO invitation (id, account_id, email, role, hash, invited_by, created_at, expires_at) VALUES ($1, $2, 'x@access.example', 'viewer', $3, '', 0, 9000000000000000000) ON CONFLICT DO NOTHING";
            let query = sqlx::query(insert).bind(invitation).bind(self.account.clone()).bind(vec![9_u8]);
            query.execute(&self.pool).await.expect("it writes");
            filled = filled.replace("{invitation}", invitation);
        }
        if path.contains("{webhook}") {
            let endpoint = "we_00000000000000000000000000000099";
            self.execute("INSERT INTO webhook_endpoint (id, account_id, url, kinds, secret_version, secret_since, created_at) VALUES ($1, $2, 'https://example.com', '[]', 1, 0, 0) ON CONFLICT (id) DO UPDATE SET removed_at = NULL", &[endpoint, &self.account]).await;
            filled = filled.replace("{webhook}", endpoint);
        }
        if path.contains("/invoices/{invoice}") {
            return filled.replace("{invoice}", &self.issued().await);
        }
        if path.contains("{project}") {
            let projects = self.site.served.platform.store().projects(Some(self.account.parse().expect("an id"))).await.expect("it reads");
            filled = filled.replace("{project}", &projects[0].id.to_string());
        }
        // Somebody else's: passkeys are a person's and not an account's.
        let filled = filled.replace("{passkey}", "passkey_00000000000000000000000000000099");
        let others = [("{page}", "quickstart"), ("{operation}", "get_v1_models"), ("{file}", "portal.css"), ("{link}", "0")];
        others.iter().fold(filled, |filled, (name, value)| filled.replace(name, value))
    }

    async fn ask(&self, method: &str, path: &str, who: &Visitor) -> Page {
        let filled = self.fill(path).await;
        if method == "GET" { who.get(&filled).await } else { who.send_form(&filled, &[]).await }
    }
}

#[test]
fn every_route_of_the_portal_lets_in_whom_its_row_says() {
    on_both(|_, url| async move {
        let world = World::make(&url).await;
        let expected = expected(include_str!("access.txt"), &WHO);
        let rows = world.site.portal.rows();
        let routes: BTreeSet<(String, String)> = rows.iter().map(|row| (row.method.to_string(), row.path.to_string())).collect();
        assert_eq!(
            expected.keys().cloned().collect::<BTreeSet<_>>(),
            routes,
            "every route has its row in access.txt, and every row its route"
        );
        let mut wrong = Vec::new();
        for row in &rows {
            let mut got = Vec::new();
            for (name, visitor) in &world.people {
                // Signing out takes the session away: a session of their own.
                let is_end = row.path.starts_with("/log-out");
                let page = if is_end && *name != "anonymous" {
                    signed_in_again(&world, name, row.path).await
                } else {
                    world.ask(row.method, row.path, visitor).await
                };
                let is_outside = ["anonymous", "stranger"].contains(name);
                assert!(!is_outside || !page.body.contains(CANARY), "{} {} shows {name} the account of others", row.method, row.path);
                let has_policy = page.headers.contains_key("content-security-policy");
                assert!(has_policy, "{} {} comes without its policy", row.method, row.path);
                got.push(outcome(&page));
            }
            let want = &expected[&(row.method.to_string(), row.path.to_string())];
            if got != *want {
                wrong.push(format!("{} {} {}", row.method, row.path, got.join(" ")));
            }
        }
        assert!(wrong.is_empty(), "columns are {WHO:?}; these differ from access.txt, and were:\n{}", wrong.join("\n"));
        assert!(rows.iter().any(|row| matches!(row.access, Access::Member(_))));
        world.pool.close().await;
        world.site.end().await;
    });
}

async fn signed_in_again(world: &World, name: &str, path: &str) -> Page {
    let visitor = world.site.visitor().at("192.0.2.77:1");
    let fields = [("email", format!("{name}@access.example"))];
    let signed_in = visitor.post("/log-in", &[("email", &fields[0].1), ("password", super::visitor::PASSWORD)]).await;
    assert_eq!(signed_in.location(), "/accounts", "{}", signed_in.body);
    if path == "/log-out/everywhere" {
        // It would end the sessions that the rest of the matrix needs; that it ends them all, another test shows.
        return visitor.get("/profile").await;
    }
    visitor.send_form(path, &[]).await
}

const KEYS: [&str; 5] = ["none", "revoked", "models", "other", "admin"];

/// The sources of the crate, whatever their folder.
fn sources(folder: &std::path::Path) -> Vec<String> {
    let entries: Vec<_> = std::fs::read_dir(folder).expect("it reads").flatten().map(|entry| entry.path()).collect();
    let (folders, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_dir());
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The methods and the path of what stands behind `.route(`.
fn route_in(text: &str) -> Vec<(String, String)> {
    let Some(path) = text.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else { return Vec::new() };
    let handlers = text.split("\n        .").next().unwrap_or_default();
    let is_called = |call: &str| handlers.match_indices(call).any(|(at, _)| handlers[..at].ends_with([' ', '.', '(']));
    let calls = [("get(", "GET"), ("post(", "POST"), ("delete(", "DELETE"), ("put(", "PUT"), ("patch(", "PATCH")];
    calls.into_iter().filter(|(call, _)| is_called(call)).map(|(_, method)| (method.to_string(), path.to_string())).collect()
}

/// The routes for programs that the platform adds, by what its source says: wherever one is added, it needs a row.
fn organization_routes() -> BTreeSet<(String, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&folder).iter().flat_map(|text| text.split(".route(").skip(1).flat_map(route_in).collect::<Vec<_>>()).collect()
}

/// The routes that the server has without a platform.
fn server_routes() -> BTreeSet<(String, String)> {
    let api = bitnet_server::openapi();
    let paths = api["paths"].as_object().expect("paths").iter();
    let of_path = |(path, item): (&String, &serde_json::Value)| {
        let methods: Vec<String> = item.as_object().expect("methods").keys().map(|method| method.to_uppercase()).collect();
        methods.into_iter().map(|method| (method, path.clone())).collect::<Vec<_>>()
    };
    paths.flat_map(of_path).collect()
}

#[test]
fn every_route_for_programs_lets_in_the_keys_that_its_row_says() {
    on_both(|_, url| async move {
        let site = Site::start(&url, Reach::Machine).await;
        let served = &site.served;
        let account = served.account("enterprise", (Overage::Refuse, Micros::ZERO)).await;
        let (revoked, revoked_text) = served.key(account, |_| {}).await;
        served.platform.store().revoke_api_key(account, revoked, &super::store::by(Timestamp::now())).await.expect("revoked");
        let elsewhere = KeyScope { models: None, routes: Some(vec!["/nowhere".into()]) };
        let keys = [
            String::new(),
            revoked_text,
            served.key(account, |_| {}).await.1,
            served.key(account, |key| key.scope = elsewhere).await.1,
            served.key(account, |key| key.access = KeyAccess::Admin).await.1,
        ];
        let expected = expected(include_str!("access_keys.txt"), &KEYS);
        let routes: BTreeSet<(String, String)> = organization_routes().into_iter().chain(server_routes()).collect();
        assert_eq!(
            expected.keys().cloned().collect::<BTreeSet<_>>(),
            routes,
            "every route has its row in access_keys.txt, and every row its route"
        );
        let mut wrong = Vec::new();
        for (method, path) in &routes {
            let mut got = Vec::new();
            for key in &keys {
                let verb: Method = method.parse().expect("a method");
                let mut request =
                    Request::builder().method(verb).uri(path.replace(['{', '}', '*'], "")).header("content-type", "application/json");
                if !key.is_empty() {
                    request = request.header("authorization", format!("Bearer {key}"));
                }
                let answer = site.send(request.body(Body::from("{}")).expect("a request")).await;
                got.push(match answer.status.as_u16() {
                    401 => "who",
                    403 => "no",
                    _ => "in",
                });
            }
            let want = &expected[&(method.clone(), path.clone())];
            if got != *want {
                wrong.push(format!("{method} {path} {}", got.join(" ")));
            }
        }
        assert!(wrong.is_empty(), "columns are {KEYS:?}; these differ from access_keys.txt, and were:\n{}", wrong.join("\n"));
        site.end().await;
    });
}
