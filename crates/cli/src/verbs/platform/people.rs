//! `bitnet people`: who has signed up, who runs the installation, and a link for whoever cannot get in. For operators, above all where
//! no mail server is configured.

use bitnet_platform::identity::{OperatorRight, Person, email_of, reset_link};
use clap::{Args, Subcommand};

use crate::failure::Misuse;
use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, Session, with};

/// People of the platform: list them, make operators, hand out links to set a password
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet people list\n  bitnet people operator ann@example.com\n  bitnet people reset ann@example.com --public-url https://ai.example.com"
)]
pub(crate) struct PeopleArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// List everybody who has signed up
    List,
    /// Let somebody run the installation
    Operator {
        /// The address that they signed up with
        email: String,
        /// Take the right back
        #[arg(long)]
        withdraw: bool,
    },
    /// Print a link with which somebody sets a new password; it is good for an hour
    Reset {
        /// The address that they signed up with
        email: String,
        /// Where people reach the portal
        #[arg(long, value_name = "URL", env = "BITNET_PUBLIC_URL", hide_env_values = true, default_value = "http://127.0.0.1:8080")]
        public_url: String,
    },
}

/// Does one of them.
pub(crate) fn perform(arguments: &PeopleArguments, terminal: &Terminal) -> anyhow::Result<()> {
    with(&arguments.platform, async |session| match &arguments.deed {
        Deed::List => list(session, terminal).await,
        Deed::Operator { email, withdraw } => {
            let right = if *withdraw { OperatorRight::Withdrawn } else { OperatorRight::Granted };
            Ok(session.store.set_operator(person(session, email).await?.id, right, &session.by).await?)
        }
        Deed::Reset { email, public_url } => {
            let person = person(session, email).await?;
            let path = reset_link(&session.store, &session.secret, &person.email, &session.by).await?;
            println!("{}{path}", public_url.trim_end_matches('/'));
            Ok(())
        }
    })
}

async fn person(session: &Session, email: &str) -> anyhow::Result<Person> {
    let found = session.store.person_by_email(&email_of(email)?).await?;
    Ok(found.ok_or_else(|| Misuse::new(format!("nobody has signed up as {email}"), "`bitnet people list` lists everybody"))?)
}

async fn list(session: &Session, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["person", "name", "address", "confirmed", "second factor", "operator", "since"]);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    for person in session.store.people().await? {
        table.row(vec![
            person.id.to_string(),
            person.name,
            person.email,
            yes(person.verified_at.is_some()),
            yes(person.totp_since.is_some()),
            yes(person.operator_since.is_some()),
            person.created_at.to_date(),
        ]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}
