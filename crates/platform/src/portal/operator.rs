//! The operator's console: how the installation is, its accounts with plans and credit, its people, and whether the books balance.

use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::directory::{AccountRow, NewCredit, Search};
use crate::error::PlatformError;
use crate::identity::{Member, OperatorRight, Person};
use crate::ids::{AccountId, PersonId};
use crate::ledger::{AccountStatus, Balance, Overage};
use crate::limits::N_CONSOLE_ROWS_PER_PAGE;
use crate::money::Micros;
use crate::portal::Portal;
use crate::portal::account::{ModelView, model_views};
use crate::portal::billing::{IssuedView, PlanView, issued_view, plan_views};
use crate::portal::guard::Visit;
use crate::portal::keys::optional;
use crate::portal::page::{Fault, PortalError, Shell, id_of, redirect, show, show_as};
use crate::reconcile::Report;
use crate::store::Dialect;

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/operator.html")]
struct OperatorPage<'a> {
    shell: Shell<'a>,
    database: &'static str,
    n_accounts: u64,
    n_people: u64,
    n_in_flight: usize,
    n_holding: usize,
    n_audit: u64,
    models: Vec<ModelView>,
    sends_mail: bool,
    report: Option<Report>,
}

async fn console(portal: &Portal, visit: &Visit, report: Option<Report>) -> Answer {
    let store = portal.platform().store();
    let n_holding = portal.platform().ledger().ledger().n_holding();
    let page = OperatorPage {
        shell: Shell::new(visit, "Console", "operator")?,
        database: if store.dialect() == Dialect::Sqlite { "SQLite" } else { "PostgreSQL" },
        n_accounts: store.n_accounts().await?,
        n_people: store.n_people().await?,
        n_in_flight: portal.app().lifecycle().n_in_flight(),
        n_holding,
        n_audit: store.audit_head().await?.0,
        models: model_views(portal).await?,
        sends_mail: portal.sends_mail(),
        report,
    };
    show(&page)
}

/// How it is.
pub(super) async fn overview(State(portal): State<Portal>, visit: Visit) -> Answer {
    console(&portal, &visit, None).await
}

/// Checks the books now. What is in flight is written first.
pub(super) async fn reconcile(State(portal): State<Portal>, visit: Visit) -> Answer {
    portal.platform().ledger().flush().await?;
    let report = portal.platform().store().reconcile().await?;
    console(&portal, &visit, Some(report)).await
}

#[derive(Template)]
#[template(path = "portal/operator_accounts.html")]
struct AccountsPage<'a> {
    shell: Shell<'a>,
    accounts: Vec<(AccountRow, Balance)>,
    search: &'a str,
    more: Option<String>,
}

/// What a list of the console was asked for: one row more than a page, to know whether there is another page.
fn search(visit: &Visit) -> Search<'_> {
    Search { text: visit.asked("q").trim(), after: visit.asked("after"), n_max: N_CONSOLE_ROWS_PER_PAGE + 1 }
}

/// Cuts rows to a page; returns behind which one the next page begins.
fn cut<T>(rows: &mut Vec<T>, id: impl Fn(&T) -> String) -> Option<String> {
    let is_cut = rows.len() > N_CONSOLE_ROWS_PER_PAGE as usize;
    rows.truncate(N_CONSOLE_ROWS_PER_PAGE as usize);
    rows.last().filter(|_| is_cut).map(id)
}

/// Accounts, a page at a time.
pub(super) async fn accounts(State(portal): State<Portal>, visit: Visit) -> Answer {
    let now = portal.now();
    let mut rows = portal.platform().store().find_accounts(search(&visit), now).await?;
    let more = cut(&mut rows, |row| row.id.to_string());
    let balance = |row: AccountRow| {
        let balance = portal.platform().ledger().ledger().balance(row.id, now);
        (row, balance)
    };
    let accounts = rows.into_iter().map(balance).collect();
    show(&AccountsPage { shell: Shell::new(&visit, "Accounts", "operator-accounts")?, accounts, search: visit.asked("q"), more })
}

#[derive(Template)]
#[template(path = "portal/operator_account.html")]
struct AccountPage<'a> {
    shell: Shell<'a>,
    account: AccountRow,
    balance: Balance,
    plans: Vec<PlanView>,
    members: Vec<Member>,
    n_keys: u64,
    issued: Vec<IssuedView>,
}

async fn account_page(portal: &Portal, visit: &Visit, (id, fault): (AccountId, Option<Fault>)) -> Answer {
    let now = portal.now();
    let store = portal.platform().store();
    let account = store.account(id, now).await?;
    let plans = plan_views(portal, account.plan.as_deref()).await?;
    let balance = portal.platform().ledger().ledger().balance(id, now);
    let n_keys = store.n_api_keys(id, now).await?;
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, account.name.clone(), "operator-accounts")?.with_fault(text);
    let members = store.members(id).await?;
    let issued = store.invoices(Some(id)).await?.into_iter().filter_map(issued_view).collect();
    show_as(status, &AccountPage { shell, account, balance, plans, members, n_keys, issued })
}

/// One account.
pub(super) async fn account(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    account_page(&portal, &visit, (id_of(&id)?, None)).await
}

async fn done(portal: &Portal, visit: &Visit, (id, said): (AccountId, &str), result: Result<(), PlatformError>) -> Answer {
    match result {
        Ok(()) => {
            portal.know().await?;
            Ok(redirect(&format!("/operator/accounts/{id}?said={said}")))
        }
        Err(error) => account_page(portal, visit, (id, Some(PortalError(error).fault()?))).await,
    }
}

/// Gives an account another plan.
pub(super) async fn set_plan(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    let id: AccountId = id_of(&id)?;
    let result = portal.platform().store().set_plan(id, visit.field("plan"), visit.by()).await.map(|_| ());
    done(&portal, &visit, (id, "plan"), result).await
}

/// Gives an account credit.
pub(super) async fn give_credit(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    let id: AccountId = id_of(&id)?;
    let given = async {
        let amount = optional::<Micros>(&visit, "amount")?.unwrap_or(Micros::ZERO);
        let days: Option<u32> = optional(&visit, "days")?;
        let expires_at = days.map(|days| portal.now().plus(Duration::from_secs(u64::from(days) * 86_400)));
        let credit = NewCredit { account: id, amount, expires_at, reason: visit.field("reason").into() };
        portal.platform().store().order_credit(credit, visit.by()).await.map(|_| ())
    };
    let result = given.await;
    done(&portal, &visit, (id, "credit"), result).await
}

/// Says what an account may owe.
pub(super) async fn set_spending(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    let id: AccountId = id_of(&id)?;
    let set = async {
        let cap = optional::<Micros>(&visit, "spending_cap")?.unwrap_or(Micros::ZERO);
        let overage = if visit.field("overage") == "charge" { Overage::Charge } else { Overage::Refuse };
        portal.platform().store().set_spending(id, (overage, cap), visit.by()).await
    };
    let result = set.await;
    done(&portal, &visit, (id, "saved"), result).await
}

/// Lets an account work, or not.
pub(super) async fn set_status(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    let id: AccountId = id_of(&id)?;
    let (status, said) = match visit.field("status") {
        "suspended" => (AccountStatus::Suspended, "suspended"),
        _ => (AccountStatus::Active, "resumed"),
    };
    let result = portal.platform().store().set_account_status(id, status, visit.by()).await;
    done(&portal, &visit, (id, said), result).await
}

#[derive(Template)]
#[template(path = "portal/operator_people.html")]
struct PeoplePage<'a> {
    shell: Shell<'a>,
    people: Vec<Person>,
    own: PersonId,
    search: &'a str,
    more: Option<String>,
}

/// People, a page at a time.
pub(super) async fn people(State(portal): State<Portal>, visit: Visit) -> Answer {
    let mut people = portal.platform().store().find_people(search(&visit)).await?;
    let more = cut(&mut people, |person| person.id.to_string());
    let (own, search) = (visit.person()?.person.id, visit.asked("q"));
    show(&PeoplePage { shell: Shell::new(&visit, "People", "operator-people")?, people, own, search, more })
}

/// Makes somebody an operator, or not any more; nobody does that to themselves, so there is always one.
pub(super) async fn set_operator(State(portal): State<Portal>, visit: Visit, Path(person): Path<String>) -> Answer {
    let person: PersonId = id_of(&person)?;
    if person == visit.person()?.person.id {
        return Err(PortalError(PlatformError::Invalid { field: "person", reason: "nobody changes this of themselves".into() }));
    }
    let right = if visit.field("operator") == "yes" { OperatorRight::Granted } else { OperatorRight::Withdrawn };
    portal.platform().store().set_operator(person, right, visit.by()).await?;
    Ok(redirect("/operator/people?said=saved"))
}
