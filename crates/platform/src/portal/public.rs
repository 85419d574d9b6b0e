//! Pages for whoever comes: what this is, what it costs, whether it works. Prices are the rate cards' of now.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use bitnet_server::ServedModel;

use crate::portal::Portal;
use crate::portal::account::{ModelView, model_views};
use crate::portal::billing::{PlanView, plan_views};
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, counted, dollars, show};
use crate::time::Timestamp;

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/landing.html")]
struct LandingPage<'a> {
    shell: Shell<'a>,
    base: &'a str,
    model: String,
    path: &'static str,
    question: &'static str,
    answer: &'static str,
    plans: Vec<PlanView>,
}

/// What this is.
pub(super) async fn landing(State(portal): State<Portal>, visit: Visit) -> Answer {
    let models = model_views(&portal).await?;
    let model = models.iter().find(|model| model.has_chat).or_else(|| models.iter().find(|model| model.is_text));
    let (path, question, answer) = match model {
        Some(model) if !model.has_chat => ("completions", r#""prompt": "Once upon a time""#, r#""text": "…""#),
        _ => {
            let question = r#""messages": [{"role": "user", "content": "Hello"}]"#;
            ("chat/completions", question, r#""message": {"role": "assistant", "content": "…"}"#)
        }
    };
    let model = model.map_or_else(|| "MODEL".to_string(), |model| model.name.clone());
    let plans = plan_views(&portal, None).await?;
    show(&LandingPage {
        shell: Shell::new(&visit, "Ternary language models, served", "")?,
        base: portal.public_url(),
        model,
        path,
        question,
        answer,
        plans,
    })
}

struct ClassView {
    class: String,
    input: String,
    cached: String,
    output: String,
}

#[derive(Template)]
#[template(path = "portal/pricing.html")]
struct PricingPage<'a> {
    shell: Shell<'a>,
    plans: Vec<PlanView>,
    classes: Vec<ClassView>,
    models: Vec<ModelView>,
}

/// What it costs.
pub(super) async fn pricing(State(portal): State<Portal>, visit: Visit) -> Answer {
    let catalog = portal.platform().store().catalog().await?;
    let view = |price: std::sync::Arc<crate::catalog::ClassPrice>| ClassView {
        class: price.class.to_string(),
        input: dollars(price.price.input_per_million),
        cached: dollars(price.price.cached_per_million),
        output: dollars(price.price.output_per_million),
    };
    let classes = catalog.prices_at(portal.now()).into_iter().map(view).collect();
    let (plans, models) = (plan_views(&portal, None).await?, model_views(&portal).await?);
    show(&PricingPage { shell: Shell::new(&visit, "Pricing", "pricing")?, plans, classes, models })
}

struct Part {
    name: String,
    is_up: bool,
    text: String,
}

#[derive(Template)]
#[template(path = "portal/status.html")]
struct StatusPage<'a> {
    shell: Shell<'a>,
    parts: Vec<Part>,
    is_all_up: bool,
    at: Timestamp,
}

/// How a model's engine is, as it says itself.
fn model_part(model: &ServedModel) -> Part {
    let n_broken = model.engine.n_broken_replicas();
    let (is_up, text) = match (model.engine.is_broken(), n_broken) {
        (true, _) => (false, "its engine has broken down: it answers nothing until the server is started anew".into()),
        (false, 0) => (true, format!("loaded, {} of context", counted(model.context_length, "token"))),
        (false, _) => (true, format!("loaded, slower than usual: {} broken down", counted(n_broken, "replica"))),
    };
    Part { name: model.name.clone(), is_up, text }
}

/// Whether it works, asked now.
pub(super) async fn status(State(portal): State<Portal>, visit: Visit) -> Answer {
    let mut parts = Vec::new();
    let is_draining = portal.app().lifecycle().is_draining();
    let text = if is_draining { "finishing what it has, and taking nothing new" } else { "taking requests" };
    parts.push(Part { name: "API".into(), is_up: !is_draining, text: text.into() });
    let is_readable = portal.platform().store().revision().await.is_ok();
    let text = if is_readable { "answering" } else { "away: requests wait or are refused until it is back" };
    parts.push(Part { name: "Accounts and metering".into(), is_up: is_readable, text: text.into() });
    let models = portal.app().models().all();
    if models.is_empty() {
        parts.push(Part { name: "Models".into(), is_up: false, text: "none is loaded yet".into() });
    }
    for model in models {
        parts.push(model_part(&model));
    }
    let is_all_up = parts.iter().all(|part| part.is_up);
    show(&StatusPage { shell: Shell::new(&visit, "Status", "status")?, parts, is_all_up, at: portal.now() })
}
