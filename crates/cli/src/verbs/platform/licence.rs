//! `bitnet licence`: files that say what an installation may use. Issuing takes the vendor's key; verifying takes nothing but its
//! public half.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bitnet_platform::licence::{self, LicenceKey, LicenceState, LicenceTerms};
use bitnet_platform::rights::Rights;
use bitnet_platform::time::Timestamp;
use clap::{Args, Subcommand};

use crate::failure::Misuse;
use crate::terminal::Terminal;

/// Licence files: issue, verify
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet licence issue --customer \"Ann & Co\" --days 365 --signing-key vendor.key > ann.licence\n  bitnet licence verify ann.licence --public-key HEX"
)]
pub(crate) struct LicenceArguments {
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Sign a licence and print it
    Issue(IssueArguments),
    /// Check a licence, and say what it allows now, on this machine
    Verify {
        file: PathBuf,
        #[command(flatten)]
        trust: TrustArguments,
    },
    /// Print what names this machine
    Machine,
}

#[derive(Debug, Args)]
struct IssueArguments {
    #[arg(long)]
    customer: String,
    #[arg(long, default_value = "enterprise")]
    plan: String,
    /// What it opens besides, such as sso; may be given several times
    #[arg(long, value_name = "NAME")]
    entitlement: Vec<String>,
    /// Members
    #[arg(long)]
    seats: Option<u32>,
    /// Days until it ends
    #[arg(long)]
    days: u32,
    /// The one machine that it is for, as `bitnet licence machine` says there
    #[arg(long, value_name = "HEX")]
    machine: Option<String>,
    /// File with the vendor's secret key, made if it is not there
    #[arg(long, value_name = "FILE")]
    signing_key: PathBuf,
}

/// Whose licences count.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrustArguments {
    /// A key that may sign licences, in hexadecimal digits; may be given several times, so that keys can be changed
    #[arg(long = "public-key", value_name = "HEX", env = "BITNET_LICENCE_PUBLIC_KEYS", hide_env_values = true, value_delimiter = ',')]
    public_key: Vec<String>,
}

impl TrustArguments {
    /// As `serve` has them.
    pub(crate) fn new(public_key: Vec<String>) -> Self {
        Self { public_key }
    }

    /// Those, and the one that this program was built with.
    fn keys(&self) -> anyhow::Result<Vec<String>> {
        let built_in = option_env!("BITNET_LICENCE_PUBLIC_KEY").map(str::to_string);
        let keys: Vec<String> = self.public_key.iter().cloned().chain(built_in).collect();
        if keys.is_empty() {
            return Err(Misuse::new("nobody's licences are trusted", "name the vendor's key with --public-key HEX").into());
        }
        Ok(keys)
    }

    /// Reads a licence that one of them signed.
    pub(crate) fn verify(&self, file: &Path) -> anyhow::Result<LicenceTerms> {
        Ok(licence::verify_file(file, &self.keys()?)?)
    }
}

/// What a licence allows, in words.
pub(crate) fn in_words(terms: &LicenceTerms, time: Timestamp) -> String {
    let what = format!("licence of {}, plan {}", terms.customer, terms.plan);
    match terms.state_at(time, licence::machine_id().as_deref()) {
        LicenceState::Valid => format!("{what}, valid until {}", Timestamp(terms.expires_at_micros).to_date()),
        LicenceState::NotYet => format!("{what}, begins on {}", Timestamp(terms.valid_from_micros).to_date()),
        LicenceState::Grace { until } => format!("{what}, has ended; everything goes on until {}", until.to_date()),
        LicenceState::ReadOnly => format!("{what}, has ended; paid features are read-only, models go on"),
        LicenceState::OtherMachine => format!("{what}, is for another machine; paid features are read-only, models go on"),
    }
}

/// Says what a server's licence allows. One that is forged is refused; one that has ended stops nothing.
pub(crate) fn serve_under(file: &Path, public_key: &[String], terminal: &Terminal) -> anyhow::Result<Rights> {
    let terms = TrustArguments::new(public_key.to_vec()).verify(file).with_context(|| format!("{} is refused", file.display()))?;
    let clock_file = file.with_added_extension("clock");
    let clock = licence::check_clock(&clock_file, Timestamp::now())?;
    if let Some(set_back) = clock.set_back {
        let hours = set_back.as_secs() / 3600;
        tracing::warn!(hours, "the clock was set back: the latest time that was seen counts for the licence");
    }
    let words = in_words(&terms, clock.time);
    terminal.note(&words);
    tracing::info!(licence = words, "serving under a licence");
    let rights = Rights::of(terms, clock_file);
    rights.look_at_clock(Timestamp::now());
    Ok(rights)
}

/// Does one of them.
pub(crate) fn perform(arguments: &LicenceArguments, terminal: &Terminal) -> anyhow::Result<()> {
    match &arguments.deed {
        Deed::Issue(issue) => {
            let key = LicenceKey::load_or_create(&issue.signing_key)?;
            let now = Timestamp::now();
            let terms = LicenceTerms {
                customer: issue.customer.clone(),
                plan: issue.plan.clone(),
                entitlements: issue.entitlement.clone(),
                seats: issue.seats,
                valid_from_micros: now.0,
                expires_at_micros: now.plus(Duration::from_secs(u64::from(issue.days) * 86_400)).0,
                machine: issue.machine.clone(),
            };
            println!("{}", key.issue(&terms)?);
            terminal.note(&format!("it is verified with --public-key {}", key.public_key()));
            Ok(())
        }
        Deed::Verify { file, trust } => {
            let terms = trust.verify(file).with_context(|| format!("{} is refused", file.display()))?;
            println!("{}", in_words(&terms, Timestamp::now()));
            Ok(())
        }
        Deed::Machine => {
            let id =
                licence::machine_id().ok_or_else(|| Misuse::new("this system has no machine id", "issue the licence without --machine"))?;
            println!("{id}");
            Ok(())
        }
    }
}
