//! An account: choosing one, its overview, the way to a first request, its models and settings.

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_server::ModelTask;

use crate::directory::{AccountRow, KeyAccess, NewApiKey};
use crate::ids::{AccountId, ProjectId};
use crate::ledger::Balance;
use crate::money::Micros;
use crate::policy::Role;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, Shell, dollars, grouped, redirect, show, show_as};
use crate::time::Timestamp;

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/choose.html")]
struct ChoosePage<'a> {
    shell: Shell<'a>,
    accounts: Vec<(AccountRow, Role)>,
}

async fn choices(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let accounts = portal.platform().store().accounts_of(visit.person()?.person.id, portal.now()).await?;
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    show_as(status, &ChoosePage { shell: Shell::new(visit, "Your accounts", "accounts")?.with_fault(text), accounts })
}

/// The accounts of whoever has signed in; with one, that one.
pub(super) async fn choose(State(portal): State<Portal>, visit: Visit) -> Answer {
    let accounts = portal.platform().store().accounts_of(visit.person()?.person.id, portal.now()).await?;
    if let [(account, role)] = accounts.as_slice()
        && visit.asked("all").is_empty()
    {
        let is_new = portal.platform().store().n_api_keys(account.id, Timestamp(0)).await? == 0;
        let begins = is_new && matches!(role, Role::Owner | Role::Admin | Role::Developer);
        return Ok(redirect(&format!("/accounts/{}{}", account.id, if begins { "/start" } else { "" })));
    }
    choices(&portal, &visit, None).await
}

/// Makes another account.
pub(super) async fn create(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().create_account(&visit.person()?.person, visit.field("name"), visit.by()).await {
        Ok(id) => {
            portal.know().await?;
            Ok(redirect(&format!("/accounts/{id}")))
        }
        Err(error) => choices(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// A model, for people.
pub(super) struct ModelView {
    pub(super) name: String,
    pub(super) task: &'static str,
    pub(super) context: String,
    pub(super) class: String,
    pub(super) input: String,
    pub(super) cached: String,
    pub(super) output: String,
    pub(super) has_chat: bool,
    pub(super) is_text: bool,
}

/// The models that are served now, with their prices.
pub(super) async fn model_views(portal: &Portal) -> Result<Vec<ModelView>, PortalError> {
    let catalog = portal.platform().store().catalog().await?;
    let now = portal.now();
    let view = |model: std::sync::Arc<bitnet_server::ServedModel>| {
        let price = catalog.price_at(&model.name, now);
        let amount = |of: fn(&crate::money::TokenPrice) -> Micros| price.map_or_else(|| "–".into(), |price| dollars(of(&price.price)));
        let is_text = matches!(model.task, ModelTask::Text);
        ModelView {
            name: model.name.clone(),
            task: if is_text { "text" } else { "vectors" },
            context: grouped(model.context_length as u64),
            class: price.map_or_else(|| "not for sale".into(), |price| price.class.to_string()),
            input: amount(|price| price.input_per_million),
            cached: amount(|price| price.cached_per_million),
            output: amount(|price| price.output_per_million),
            has_chat: is_text && model.template.is_some(),
            is_text,
        }
    };
    Ok(portal.app().models().all().into_iter().map(view).collect())
}

#[derive(Template)]
#[template(path = "portal/models.html")]
struct ModelsPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    models: Vec<ModelView>,
}

/// What is served.
pub(super) async fn models(State(portal): State<Portal>, visit: Visit) -> Answer {
    let models = model_views(&portal).await?;
    show(&ModelsPage { shell: Shell::new(&visit, "Models", "models")?, account: visit.account()?, models })
}

/// How much of something is used.
pub(super) struct Share {
    pub(super) used: u64,
    pub(super) most: Option<u64>,
}

impl Share {
    pub(super) fn text(&self) -> String {
        self.most.map_or_else(|| format!("{} used", grouped(self.used)), |most| format!("{} of {}", grouped(self.used), grouped(most)))
    }

    /// What is left of a bound, for a meter.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.most.is_some_and(|most| self.used.saturating_mul(10) >= most.saturating_mul(9))
    }
}

#[derive(Template)]
#[template(path = "portal/overview.html")]
struct OverviewPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    plan: String,
    balance: Balance,
    operations: Share,
    n_keys: u64,
    n_members: usize,
    models: Vec<ModelView>,
    days: crate::portal::usage::Table,
    is_seen: bool,
}

/// What is going on.
pub(super) async fn overview(State(portal): State<Portal>, visit: Visit) -> Answer {
    let (account, now) = (visit.account()?, portal.now());
    let store = portal.platform().store();
    let plan = portal.platform().ledger().ledger().plan_at(account, now);
    let balance = portal.platform().ledger().ledger().balance(account, now);
    let operations = Share { used: balance.used.n_included, most: plan.as_ref().and_then(|plan| plan.included_operations) };
    let n_keys = store.n_api_keys(account, now).await?;
    let n_members = store.members(account).await?.len();
    let days = crate::portal::usage::table(&portal, account, (7, "")).await?;
    let shell = Shell::new(&visit, "Overview", "overview")?;
    let plan = plan.map_or_else(|| "none".into(), |plan| plan.name.clone());
    let (models, is_seen) = (model_views(&portal).await?, is_seen(&portal, account).await?);
    show(&OverviewPage { shell, account, plan, balance, operations, n_keys, n_members, models, days, is_seen })
}

/// A first request, in four languages.
struct Snippets {
    curl: String,
    python: String,
    javascript: String,
    rust: String,
}

fn snippets(base: &str, key: &str, model: Option<&ModelView>) -> Snippets {
    let name = model.map_or("MODEL", |model| model.name.as_str());
    let has_chat = model.is_none_or(|model| model.has_chat);
    let (path, body, python, reply) = if has_chat {
        (
            "chat/completions",
            format!(
                r#"{{"model": "{name}", "max_tokens": 60, "messages": [{{"role": "user", "content": "Tell me a story about a fox."}}]}}"#
            ),
            format!(
                "reply = client.chat.completions.create(\n    model=\"{name}\",\n    max_tokens=60,\n    messages=[{{\"role\": \"user\", \"content\": \"Tell me a story about a fox.\"}}],\n)\nprint(reply.choices[0].message.content)"
            ),
            "choices[0].message.content",
        )
    } else {
        (
            "completions",
            format!(r#"{{"model": "{name}", "max_tokens": 60, "prompt": "Once upon a time"}}"#),
            format!(
                "reply = client.completions.create(model=\"{name}\", max_tokens=60, prompt=\"Once upon a time\")\nprint(reply.choices[0].text)"
            ),
            "choices[0].text",
        )
    };
    let pointer = if has_chat { "/choices/0/message/content" } else { "/choices/0/text" };
    Snippets {
        curl: format!(
            "curl {base}/v1/{path} \\\n  -H \"Authorization: Bearer {key}\" \\\n  -H \"Content-Type: application/json\" \\\n  -d '{body}'"
        ),
        python: format!(
            "# pip install openai\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"{base}/v1\", api_key=\"{key}\")\n{python}"
        ),
        javascript: format!(
            "// node first.mjs\nconst reply = await fetch(\"{base}/v1/{path}\", {{\n  method: \"POST\",\n  headers: {{ \"authorization\": \"Bearer {key}\", \"content-type\": \"application/json\" }},\n  body: JSON.stringify({body}),\n}});\nconst answer = await reply.json();\nconsole.log(answer.{reply});"
        ),
        rust: format!(
            "// cargo add ureq --features json && cargo add serde_json\nfn main() -> Result<(), Box<dyn std::error::Error>> {{\n    let body = serde_json::json!({body});\n    let mut reply = ureq::post(\"{base}/v1/{path}\")\n        .header(\"authorization\", \"Bearer {key}\")\n        .send_json(&body)?;\n    let answer: serde_json::Value = reply.body_mut().read_json()?;\n    println!(\"{{}}\", answer.pointer(\"{pointer}\").unwrap_or(&answer));\n    Ok(())\n}}"
        ),
    }
}

#[derive(Template)]
#[template(path = "portal/start.html")]
struct StartPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    key: Option<String>,
    n_keys: u64,
    snippets: Snippets,
    is_seen: bool,
    has_model: bool,
    wait: Wait,
}

/// How a page waits for the first request: often at first, then less, then not any more.
struct Wait {
    /// How often it will have asked.
    n_asked: u32,
    /// How long until it asks.
    pause_s: Option<u32>,
}

impl Wait {
    fn after(n_asked: u32) -> Self {
        let pause_s = match n_asked {
            0..60 => Some(2),
            60..180 => Some(10),
            _ => None,
        };
        Self { n_asked: n_asked.saturating_add(1), pause_s }
    }
}

async fn start_page(portal: &Portal, visit: &Visit, (key, fault): (Option<String>, Option<Fault>)) -> Answer {
    let (account, now) = (visit.account()?, portal.now());
    let n_keys = portal.platform().store().n_api_keys(account, now).await?;
    let models = model_views(portal).await?;
    // One that chats is the friendliest to begin with.
    let model = models.iter().find(|model| model.has_chat).or_else(|| models.iter().find(|model| model.is_text));
    let shown = key.clone().unwrap_or_else(|| "$YOUR_KEY".into());
    let snippets = snippets(portal.public_url(), &shown, model);
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Get started", "start")?.with_fault(text);
    let (is_seen, has_model) = (is_seen(portal, account).await?, model.is_some());
    let wait = Wait::after(0);
    show_as(status, &StartPage { shell, account, key, n_keys, snippets, is_seen, has_model, wait })
}

/// The way to a first request.
pub(super) async fn start(State(portal): State<Portal>, visit: Visit) -> Answer {
    start_page(&portal, &visit, (None, None)).await
}

/// A first key, with which the first request is written out.
pub(super) async fn first_key(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let project = first_project(&portal, account).await?;
    let (name, access) = ("first key".into(), KeyAccess::Inference);
    let key = NewApiKey { account, project, name, access, scope: Default::default(), limits: Default::default(), expires_at: None };
    let platform = portal.platform();
    match platform.store().create_api_key(key, platform.hasher(), visit.by()).await {
        Ok((_, text)) => {
            // Known here at once, so that the first request does not come too early.
            portal.know().await?;
            start_page(&portal, &visit, (Some(text.reveal().to_string()), None)).await
        }
        Err(error) => start_page(&portal, &visit, (None, Some(PortalError(error).fault()?))).await,
    }
}

/// The oldest of an account's projects.
pub(super) async fn first_project(portal: &Portal, account: AccountId) -> Result<ProjectId, PortalError> {
    let projects = portal.platform().store().projects(Some(account)).await?;
    Ok(projects.first().map(|project| project.id).ok_or(crate::error::PlatformError::NotFound { what: "project" })?)
}

/// Whether a request has ever come: in this month, as the ledger knows at once, or in the tables.
async fn is_seen(portal: &Portal, account: AccountId) -> Result<bool, PortalError> {
    let is_of_month = portal.platform().ledger().ledger().balance(account, portal.now()).used.n_events > 0;
    Ok(is_of_month || portal.platform().store().has_usage(account).await?)
}

#[derive(Template)]
#[template(path = "portal/seen.html")]
struct SeenPart {
    account: AccountId,
    is_seen: bool,
    wait: Wait,
}

/// Whether the first request is there, for the page that waits for it.
pub(super) async fn seen(State(portal): State<Portal>, visit: Visit) -> Answer {
    if visit.asked("page") == "whole" {
        return Ok(redirect(&format!("/accounts/{}/start", visit.account()?)));
    }
    let account = visit.account()?;
    let wait = Wait::after(visit.asked("n").parse().unwrap_or(0));
    let mut response = show(&SeenPart { account, is_seen: is_seen(&portal, account).await?, wait })?;
    response.headers_mut().insert(header::CACHE_CONTROL, axum::http::HeaderValue::from_static("no-store"));
    Ok(response.into_response())
}

#[derive(Template)]
#[template(path = "portal/settings.html")]
struct SettingsPage<'a> {
    shell: Shell<'a>,
    account: AccountRow,
}

async fn settings_page(visit: &Visit, fault: Option<Fault>) -> Answer {
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let account = visit.acting()?.account.clone();
    show_as(status, &SettingsPage { shell: Shell::new(visit, "Settings", "settings")?.with_fault(text), account })
}

/// Name and id.
pub(super) async fn settings(visit: Visit) -> Answer {
    settings_page(&visit, None).await
}

/// Calls it something else.
pub(super) async fn rename(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    match portal.platform().store().rename_account(account, visit.field("name"), visit.by()).await {
        Ok(()) => Ok(redirect(&format!("/accounts/{account}/settings?said=saved"))),
        Err(error) => settings_page(&visit, Some(PortalError(error).fault()?)).await,
    }
}
