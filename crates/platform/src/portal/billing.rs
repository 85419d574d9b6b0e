//! Limits, plan and invoices of an account, as the ledger and billing have them.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};

use crate::billing::Invoice;
use crate::catalog::Plan;
use crate::directory::AccountRow;
use crate::error::PlatformError;
use crate::ids::{AccountId, ProjectId};
use crate::ledger::Balance;
use crate::ledger::scope::{ScopeId, ScopeLimits};
use crate::money::Micros;
use crate::platform::CURRENCY;
use crate::portal::Portal;
use crate::portal::account::Share;
use crate::portal::guard::Visit;
use crate::portal::keys::limits_of;
use crate::portal::page::{Fault, PortalError, Shell, counted, dollars, grouped, id_of, redirect, show, show_as};

type Answer = Result<Response, PortalError>;

struct ProjectView {
    id: ProjectId,
    name: String,
    limits: ScopeLimits,
    used: Balance,
}

#[derive(Template)]
#[template(path = "portal/limits.html")]
struct LimitsPage<'a> {
    shell: Shell<'a>,
    account: &'a AccountRow,
    plan: Option<std::sync::Arc<Plan>>,
    balance: Balance,
    operations: Share,
    projects: Vec<ProjectView>,
}

/// A bound that may be absent.
fn bound(limit: &Option<u32>) -> String {
    limit.map_or_else(|| "no limit".into(), |limit| grouped(u64::from(limit)))
}

/// A bound as it is typed.
fn typed<T: std::fmt::Display>(limit: &Option<T>) -> String {
    limit.as_ref().map_or_else(String::new, ToString::to_string)
}

async fn limits_page(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let (account, now) = (&visit.acting()?.account, portal.now());
    let platform = portal.platform();
    let plan = platform.ledger().ledger().plan_at(account.id, now);
    let balance = platform.ledger().ledger().balance(account.id, now);
    let operations = Share { used: balance.used.n_included, most: plan.as_ref().and_then(|plan| plan.included_operations) };
    let limits = platform.store().limits_of_projects(account.id).await?;
    let rows = platform.store().projects(Some(account.id)).await?;
    let view = |row: crate::directory::ProjectRow| {
        let limits = limits.iter().find(|(id, _)| *id == row.id).map(|(_, limits)| *limits).unwrap_or_default();
        let used = platform.ledger().ledger().scope_balance(ScopeId::Project(row.id), now);
        ProjectView { id: row.id, name: row.name, limits, used }
    };
    let projects = rows.into_iter().map(view).collect();
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Limits", "limits")?.with_fault(text);
    show_as(status, &LimitsPage { shell, account, plan, balance, operations, projects })
}

/// What bounds the account and its projects.
pub(super) async fn limits(State(portal): State<Portal>, visit: Visit) -> Answer {
    limits_page(&portal, &visit, None).await
}

/// Makes a project.
pub(super) async fn create_project(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    match portal.platform().store().create_project(account, visit.field("name"), ScopeLimits::default(), visit.by()).await {
        Ok(_) => Ok(redirect(&format!("/accounts/{account}/limits?said=saved"))),
        Err(error) => limits_page(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Bounds a project.
pub(super) async fn bound_project(State(portal): State<Portal>, visit: Visit, Path((_, project)): Path<(String, String)>) -> Answer {
    let account = visit.account()?;
    let project: ProjectId = id_of(&project)?;
    let saved = async {
        let limits = limits_of(&visit)?;
        portal.platform().store().set_project_limits((account, project), limits, visit.by()).await
    };
    match saved.await {
        Ok(()) => Ok(redirect(&format!("/accounts/{account}/limits?said=saved"))),
        Err(error) => limits_page(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

#[derive(Template)]
#[template(path = "portal/invoices.html")]
struct InvoicesPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    invoice: Invoice,
    balance: Balance,
    issued: Vec<IssuedView>,
}

/// An invoice or credit note that was issued.
pub(super) struct IssuedView {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) number: String,
    pub(super) month: String,
    pub(super) total: Micros,
    pub(super) state: &'static str,
}

pub(super) fn issued_view((invoice, total): (Invoice, Micros)) -> Option<IssuedView> {
    let month = invoice.period.to_string();
    let issued = invoice.issued?;
    Some(IssuedView {
        id: issued.id.to_string(),
        kind: issued.kind.title(),
        number: issued.number,
        month,
        total,
        state: issued.status.name(),
    })
}

/// The draft of this month.
pub(super) async fn invoices(State(portal): State<Portal>, visit: Visit) -> Answer {
    let (account, now) = (visit.account()?, portal.now());
    let invoice = portal.platform().store().draft_invoice(account, now.period(), now).await?;
    let balance = portal.platform().ledger().ledger().balance(account, now);
    let issued = portal.platform().store().invoices(Some(account)).await?.into_iter().filter_map(issued_view).collect();
    show(&InvoicesPage { shell: Shell::new(&visit, "Invoices", "invoices")?, account, invoice, balance, issued })
}

/// A page that brings its style with it, and nothing else.
fn printed(invoice: &Invoice) -> Answer {
    let mut response = Html(invoice.to_html(CURRENCY)?).into_response();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let policy = axum::http::HeaderValue::from_static(policy);
    response.headers_mut().insert(axum::http::header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// The draft to be printed.
pub(super) async fn draft(State(portal): State<Portal>, visit: Visit) -> Answer {
    let now = portal.now();
    printed(&portal.platform().store().draft_invoice(visit.account()?, now.period(), now).await?)
}

/// One that was issued, as a page; and with `.pdf` behind its id, as a file.
pub(super) async fn issued(State(portal): State<Portal>, visit: Visit, Path((_, id)): Path<(String, String)>) -> Answer {
    let (id, is_file) = id.strip_suffix(".pdf").map_or((id.as_str(), false), |id| (id, true));
    let invoice = portal.platform().store().invoice(id_of(id)?, Some(visit.account()?)).await?;
    if !is_file {
        return printed(&invoice);
    }
    let kind = (axum::http::header::CONTENT_TYPE, axum::http::HeaderValue::from_static("application/pdf"));
    Ok(([kind], invoice.to_pdf(CURRENCY)).into_response())
}

/// A plan, for people.
pub(super) struct PlanView {
    pub(super) plan: std::sync::Arc<Plan>,
    pub(super) is_present: bool,
}

impl PlanView {
    pub(super) fn price(&self) -> String {
        let text = dollars(self.plan.monthly_price);
        text.strip_suffix(".00").map_or(text.clone(), str::to_string)
    }

    pub(super) fn operations(&self) -> String {
        match (self.plan.included_operations, self.plan.meter) {
            (Some(included), _) => format!("{} a month", counted(included, "operation")),
            (None, crate::catalog::Meter::Operations) => "unlimited operations, fair use".into(),
            (None, crate::catalog::Meter::Tokens) => "pay for the tokens that you use".into(),
        }
    }

    /// What bounds it, a line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let limits = &self.plan.limits;
        let line = |limit: Option<u32>, one: &str| limit.map_or_else(|| format!("unlimited {one}s"), |limit| counted(limit, one));
        let mut lines = vec![line(limits.n_api_keys_max, "API key"), line(limits.n_members_max, "member")];
        lines.extend(limits.requests_per_minute.map(|limit| format!("{} a minute", counted(limit, "request"))));
        lines.extend(limits.tokens_per_minute.map(|limit| format!("{} a minute", counted(limit, "token"))));
        lines.extend(limits.n_concurrent_max.map(|limit| format!("{} at once", counted(limit, "request"))));
        if self.plan.priority == crate::catalog::PriorityClass::Priority {
            lines.push("served first when it is busy".into());
        }
        lines
    }

    /// Whether an account can take it without a payment.
    pub(super) fn is_free(&self) -> bool {
        self.plan.monthly_price == Micros::ZERO
    }
}

/// The plans of now.
pub(super) async fn plan_views(portal: &Portal, present: Option<&str>) -> Result<Vec<PlanView>, PortalError> {
    let plans = portal.platform().store().catalog().await?.plans_at(portal.now());
    Ok(plans.into_iter().map(|plan| PlanView { is_present: present == Some(&*plan.id), plan }).collect())
}

#[derive(Template)]
#[template(path = "portal/plan.html")]
struct PlanPage<'a> {
    shell: Shell<'a>,
    account: &'a AccountRow,
    plans: Vec<PlanView>,
}

async fn plan_page(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let account = &visit.acting()?.account;
    let plans = plan_views(portal, account.plan.as_deref()).await?;
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    show_as(status, &PlanPage { shell: Shell::new(visit, "Plan", "plan")?.with_fault(text), account, plans })
}

/// Which plan it has, and which there are.
pub(super) async fn plan(State(portal): State<Portal>, visit: Visit) -> Answer {
    plan_page(&portal, &visit, None).await
}

/// Takes a plan that costs nothing by itself; any other is the operator's to give.
pub(super) async fn change_plan(State(portal): State<Portal>, visit: Visit) -> Answer {
    let (account, wanted) = (visit.account()?, visit.field("plan"));
    let changed = async {
        let catalog = portal.platform().store().catalog().await?;
        if catalog.named_plan(wanted, portal.now())?.monthly_price > Micros::ZERO {
            let reason = "this plan has a monthly price: the operator of this installation gives it".into();
            return Err(PlatformError::Invalid { field: "plan", reason });
        }
        portal.platform().store().set_plan(account, wanted, visit.by()).await?;
        portal.know().await
    };
    match changed.await {
        Ok(()) => Ok(redirect(&format!("/accounts/{account}/plan?said=plan"))),
        Err(error) => plan_page(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}
