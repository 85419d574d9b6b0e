//! `bitnet accounts`: who may use the server, on which plan, with how much money. For operators; there is no other way to make the
//! first one.

use std::time::Duration;

use bitnet_platform::directory::{NewAccount, NewCredit};
use bitnet_platform::ids::AccountId;
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::ledger::{AccountStatus, Overage};
use bitnet_platform::money::Micros;
use clap::{Args, Subcommand};

use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, Session, with};

/// Accounts of the platform: make, list, suspend, give a plan or credit
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet accounts create \"My company\" --plan enterprise\n  bitnet keys create acct_… --name laptop\n  bitnet accounts credit acct_… 25 --days 30 --reason pilot"
)]
pub(crate) struct AccountsArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Make an account with a first project
    Create(CreateArguments),
    /// List all accounts
    List,
    /// Give an account another plan: a dearer one now, a cheaper one when the month ends
    Plan { account: AccountId, plan: String },
    /// Give credit, which pays before anything is owed
    Credit(CreditArguments),
    /// Let an account do nothing
    Suspend { account: AccountId },
    /// Let it work again
    Resume { account: AccountId },
    /// List an account's projects, or all
    Projects { account: Option<AccountId> },
    /// Make another project
    CreateProject { account: AccountId, name: String },
}

#[derive(Debug, Args)]
struct CreateArguments {
    /// Its name, for people
    name: String,
    /// Its plan: free, developer, team, enterprise, enterprise-plus or payg
    #[arg(long, default_value = "free")]
    plan: String,
    /// When the plan's operations are used up, charge for tokens instead of refusing
    #[arg(long)]
    overage: bool,
    /// What it may owe for tokens in a month, such as 100 or 12.50
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    spending_cap: Micros,
    /// Its first project's name
    #[arg(long, value_name = "NAME", default_value = "default")]
    project: String,
}

#[derive(Debug, Args)]
struct CreditArguments {
    account: AccountId,
    /// How much, such as 25 or 12.50
    amount: Micros,
    /// Days until it ends; by default it does not
    #[arg(long)]
    days: Option<u32>,
    /// Why, for the invoice
    #[arg(long, default_value = "credit")]
    reason: String,
}

/// Does one of them.
pub(crate) fn perform(arguments: &AccountsArguments, terminal: &Terminal) -> anyhow::Result<()> {
    with(&arguments.platform, async |session| match &arguments.deed {
        Deed::Create(create) => make(session, create, terminal).await,
        Deed::List => list(session, terminal).await,
        Deed::Plan { account, plan } => {
            let from = session.store.set_plan(*account, plan, &session.by).await?;
            terminal.note(&format!("{account} has the plan {plan} from {} on", from.to_rfc3339()));
            Ok(())
        }
        Deed::Credit(credit) => give(session, credit, terminal).await,
        Deed::Suspend { account } => Ok(session.store.set_account_status(*account, AccountStatus::Suspended, &session.by).await?),
        Deed::Resume { account } => Ok(session.store.set_account_status(*account, AccountStatus::Active, &session.by).await?),
        Deed::Projects { account } => projects(session, *account, terminal).await,
        Deed::CreateProject { account, name } => {
            println!("{}", session.store.create_project(*account, name, ScopeLimits::default(), &session.by).await?);
            Ok(())
        }
    })
}

async fn make(session: &Session, create: &CreateArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let account = NewAccount {
        name: create.name.clone(),
        plan: create.plan.clone(),
        overage: if create.overage { Overage::Charge } else { Overage::Refuse },
        spending_cap: create.spending_cap,
    };
    let account = session.store.create_account(account, &session.by).await?;
    session.store.create_project(account, &create.project, ScopeLimits::default(), &session.by).await?;
    println!("{account}");
    terminal.note(&format!("make a key for it: bitnet keys create {account} --name NAME"));
    Ok(())
}

async fn give(session: &Session, credit: &CreditArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let days = |days: u32| session.by.at.plus(Duration::from_secs(u64::from(days) * 86_400));
    let expires_at = credit.days.map(days);
    let credit = NewCredit { account: credit.account, amount: credit.amount, expires_at, reason: credit.reason.clone() };
    println!("{}", session.store.order_credit(credit, &session.by).await?);
    terminal.note("a server that runs takes it up within a second");
    Ok(())
}

async fn list(session: &Session, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["account", "name", "status", "plan", "overage", "spending cap", "since"]);
    table.align_right(&[5]);
    for account in session.store.accounts(session.by.at).await? {
        table.row(vec![
            account.id.to_string(),
            account.name,
            account.status.name().into(),
            account.plan.unwrap_or_else(|| "none".into()),
            account.overage.name().into(),
            account.spending_cap.to_string(),
            account.created_at.to_date(),
        ]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}

async fn projects(session: &Session, account: Option<AccountId>, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["project", "name", "account", "since"]);
    for project in session.store.projects(account).await? {
        table.row(vec![project.id.to_string(), project.name, project.account.to_string(), project.created_at.to_date()]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}
