//! `bitnet keys`: API keys of an account. A key is printed once, alone on standard output, and is nowhere else.

use std::time::Duration;

use bitnet_platform::directory::{ApiKey, KeyAccess, KeyScope, NewApiKey};
use bitnet_platform::ids::{AccountId, ApiKeyId, ProjectId};
use bitnet_platform::ledger::scope::ScopeLimits;
use bitnet_platform::money::Micros;
use clap::{Args, Subcommand};

use crate::failure::Misuse;
use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, Session, with};

/// API keys of the platform: make, rotate, revoke, list
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet keys create acct_… --name laptop --days 90\n  bitnet keys create acct_… --name batch --model embedded --route /v1/completions --spending-cap 5\n  bitnet keys create acct_… --name usage --admin\n  bitnet keys rotate key_… --keep-hours 24\n  bitnet keys revoke key_…"
)]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Make a key and print it, once
    Create(Box<CreateArguments>),
    /// Make a key that may do the same as another, which ends after a while
    Rotate(RotateArguments),
    /// End a key; servers refuse it within a second
    Revoke { key: ApiKeyId },
    /// List an account's keys, or all
    List { account: Option<AccountId> },
}

#[derive(Debug, Args)]
struct CreateArguments {
    account: AccountId,
    /// Its name, for people
    #[arg(long)]
    name: String,
    /// Its project; needed where the account has several
    #[arg(long, value_name = "PROJECT")]
    project: Option<ProjectId>,
    /// For /v1/organization (usage, costs, invoices), and for no model
    #[arg(long)]
    admin: bool,
    /// A model that it is for; may be given several times; by default any
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// A route that it is for, such as /v1/chat/completions; may be given several times; by default any
    #[arg(long, value_name = "PATH")]
    route: Vec<String>,
    /// Days until it ends; by default it does not
    #[arg(long)]
    days: Option<u32>,
    /// What it may have charged in a month, such as 5 or 12.50
    #[arg(long, value_name = "AMOUNT")]
    spending_cap: Option<Micros>,
    /// Requests in a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Tokens in a minute
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Requests at once
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
}

#[derive(Debug, Args)]
struct RotateArguments {
    key: ApiKeyId,
    /// Hours for which the old key still works
    #[arg(long, default_value_t = 24)]
    keep_hours: u32,
}

/// Does one of them.
pub(crate) fn perform(arguments: &KeysArguments, terminal: &Terminal) -> anyhow::Result<()> {
    with(&arguments.platform, async |session| match &arguments.deed {
        Deed::Create(create) => make(session, create, terminal).await,
        Deed::Rotate(rotate) => {
            let key = session.store.find_api_key(rotate.key).await?;
            let old_until = session.by.at.plus(Duration::from_secs(u64::from(rotate.keep_hours) * 3600));
            let names = (key.owner.account, key.id);
            let made = session.store.rotate_api_key(names, old_until, &session.secret.key_hasher(), &session.by).await?;
            show(made, terminal);
            Ok(())
        }
        Deed::Revoke { key } => {
            let key = session.store.find_api_key(*key).await?;
            Ok(session.store.revoke_api_key(key.owner.account, key.id, &session.by).await?)
        }
        Deed::List { account } => list(session, *account, terminal).await,
    })
}

fn show((id, text): (ApiKeyId, bitnet_platform::directory::KeyText), terminal: &Terminal) {
    println!("{}", text.reveal());
    terminal.note(&format!("{id}: this is the only time that the key is shown; servers know it within a second"));
}

async fn make(session: &Session, create: &CreateArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let project = match create.project {
        Some(project) => project,
        None => only_project(session, create.account).await?,
    };
    let list = |names: &Vec<String>| (!names.is_empty()).then(|| names.clone());
    let days = |days: u32| session.by.at.plus(Duration::from_secs(u64::from(days) * 86_400));
    let key = NewApiKey {
        account: create.account,
        project,
        name: create.name.clone(),
        access: if create.admin { KeyAccess::Admin } else { KeyAccess::Inference },
        scope: KeyScope { models: list(&create.model), routes: list(&create.route) },
        limits: ScopeLimits {
            spending_cap: create.spending_cap,
            requests_per_minute: create.requests_per_minute,
            tokens_per_minute: create.tokens_per_minute,
            n_concurrent_max: create.concurrent,
        },
        expires_at: create.days.map(days),
    };
    show(session.store.create_api_key(key, &session.secret.key_hasher(), &session.by).await?, terminal);
    Ok(())
}

async fn only_project(session: &Session, account: AccountId) -> anyhow::Result<ProjectId> {
    session.store.account(account, session.by.at).await?;
    match session.store.projects(Some(account)).await?.as_slice() {
        [project] => Ok(project.id),
        projects => {
            let what = format!("the account has {} projects", projects.len());
            Err(Misuse::new(what, "name one with --project; `bitnet accounts projects` lists them").into())
        }
    }
}

async fn list(session: &Session, account: Option<AccountId>, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["key", "name", "begins with", "account", "access", "state"]);
    for key in session.store.api_keys(account).await? {
        let state = state(&key, session);
        let cells = [key.id.to_string(), key.name, key.prefix, key.owner.account.to_string(), key.access.name().into(), state];
        table.row(cells.to_vec());
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}

fn state(key: &ApiKey, session: &Session) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", at.to_date()),
        (None, Some(at)) if at <= session.by.at => format!("ended {}", at.to_date()),
        (None, Some(at)) => format!("until {}", at.to_rfc3339()),
        (None, None) => "valid".into(),
    }
}
