//! `bitnet billing`: what is agreed with accounts besides their plans, what is said on invoices, and what plans and tokens cost from a
//! time on.

use anyhow::Context;
use bitnet_platform::billing::{Issuer, NewCoupon, NewTax, Party};
use bitnet_platform::ids::AccountId;
use bitnet_platform::money::{Micros, TokenPrice};
use bitnet_platform::time::{Period, Timestamp};
use clap::{Args, Subcommand, ValueEnum};

use crate::failure::Misuse;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, Session, with};

/// What is agreed and charged: profiles, taxes, coupons, minimums, prices
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet billing issuer --name \"Bit GmbH\" --address \"Weg 1, Berlin\" --country DE --tax-id DE123\n  bitnet billing profile acct_… --name \"Ann & Co\" --country DE --collection automatic\n  bitnet billing tax DE VAT 19 --reverse-charge\n  bitnet billing coupon LAUNCH --name Launch --percent-off 10 --months 3\n  bitnet billing price small --input 1.00 --cached 0.10 --output 2.00 --from 2026-09-01T00:00:00Z"
)]
pub(crate) struct BillingArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Collection {
    /// The customer pays when the invoice says so
    Manual,
    /// The customer's card is charged
    Automatic,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Say to whom and how an account is billed; what is not named stays
    Profile(ProfileArguments),
    /// Say who issues invoices; their numbers go on
    Issuer {
        /// Its name here
        #[arg(long, default_value = "default")]
        id: String,
        #[arg(long)]
        name: String,
        /// In lines, or with commas
        #[arg(long, default_value = "")]
        address: String,
        /// Where it is, in two capital letters; customers of other countries of the European Union may then owe the tax themselves
        #[arg(long, default_value = "")]
        country: String,
        #[arg(long, default_value = "")]
        tax_id: String,
        /// Stands before numbers of invoices
        #[arg(long, default_value = "INV-")]
        invoice_prefix: String,
        /// Stands before numbers of credit notes
        #[arg(long, default_value = "CN-")]
        note_prefix: String,
    },
    /// Set a tax from now on; a rate of 0 ends it
    Tax {
        /// Two capital letters
        country: String,
        name: String,
        /// In percent, such as 19 or 7.5
        percent: Micros,
        /// Only of this region of the country
        #[arg(long, default_value = "")]
        region: String,
        /// Customers of another country of the European Union than the issuer's owe it themselves, if they have a valid number of theirs
        #[arg(long)]
        reverse_charge: bool,
    },
    /// Make a coupon
    Coupon(CouponArguments),
    /// Give an account what a coupon promises
    Redeem { account: AccountId, code: String },
    /// Set what an account spends in a month at least; 0 ends it
    Minimum {
        account: AccountId,
        amount: Micros,
        /// From this month on; by default the present one
        #[arg(long)]
        from: Option<Period>,
    },
    /// Set what a million tokens of a class of models cost from a time on
    Price {
        /// Such as small, medium or large
        class: String,
        #[arg(long)]
        input: Micros,
        #[arg(long)]
        cached: Micros,
        #[arg(long)]
        output: Micros,
        /// A time such as 2026-09-01T00:00:00Z, at least a minute ahead
        #[arg(long)]
        from: String,
    },
    /// Set what a plan costs and includes from a time on
    Plan {
        plan: String,
        /// A month's price
        #[arg(long)]
        price: Micros,
        /// Operations in it; by default any number
        #[arg(long)]
        included: Option<u64>,
        /// A time such as 2026-09-01T00:00:00Z, at least a minute ahead
        #[arg(long)]
        from: String,
    },
}

#[derive(Debug, Args)]
struct ProfileArguments {
    account: AccountId,
    #[arg(long)]
    name: Option<String>,
    #[arg(long)]
    address: Option<String>,
    /// Two capital letters
    #[arg(long)]
    country: Option<String>,
    #[arg(long)]
    region: Option<String>,
    #[arg(long)]
    tax_id: Option<String>,
    #[arg(long)]
    email: Option<String>,
    #[arg(long)]
    collection: Option<Collection>,
    /// Days until an invoice is due
    #[arg(long)]
    net_days: Option<u16>,
    /// Who issues its invoices
    #[arg(long)]
    issuer: Option<String>,
}

#[derive(Debug, Args)]
struct CouponArguments {
    code: String,
    /// For people
    #[arg(long)]
    name: String,
    /// Off fees and usage
    #[arg(long, value_name = "PERCENT")]
    percent_off: Option<Micros>,
    /// For so many months; by default for ever
    #[arg(long)]
    months: Option<u16>,
    /// Credit that it gives
    #[arg(long, value_name = "AMOUNT")]
    credit: Option<Micros>,
    /// Days until that credit ends
    #[arg(long)]
    credit_days: Option<u16>,
    /// Accounts that may redeem it
    #[arg(long)]
    redemptions: Option<u32>,
    /// Until when it may be redeemed, such as 2026-09-01T00:00:00Z; at that moment it has ended
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// A percentage as parts in a million: a percent is ten thousand of them, and ten thousand of its micros are one.
fn parts(percent: Micros) -> anyhow::Result<u32> {
    let whole = percent.0 % 100 == 0;
    let parts = u32::try_from(percent.0 / 100).ok().filter(|_| whole);
    parts.ok_or_else(|| Misuse::new("this is no percentage with at most four digits behind the point", "give one such as 19 or 7.5").into())
}

fn time(text: &str) -> anyhow::Result<Timestamp> {
    let wrong = || Misuse::new(format!("{text:?} is not a time"), "give one such as 2026-09-01T00:00:00Z");
    Ok(Timestamp::from_rfc3339(text).ok_or_else(wrong)?)
}

/// Does one of them.
pub(crate) fn perform(arguments: &BillingArguments, terminal: &Terminal) -> anyhow::Result<()> {
    with(&arguments.platform, async |session| {
        change(session, &arguments.deed).await?;
        terminal.note("noted; what was issued before stays as it was");
        Ok(())
    })
}

async fn change(session: &Session, deed: &Deed) -> anyhow::Result<()> {
    let (store, by) = (&session.store, &session.by);
    match deed {
        Deed::Profile(profile) => set_profile(session, profile).await?,
        Deed::Issuer { id, name, address, country, tax_id, invoice_prefix, note_prefix } => {
            let party = Party { name: name.clone(), address: lines(address), country: country.clone(), tax_id: tax_id.clone() };
            let prefixes = [invoice_prefix.clone(), note_prefix.clone()];
            store.set_issuer(&Issuer { id: id.clone(), party, prefixes }, by).await?;
        }
        Deed::Tax { country, name, percent, region, reverse_charge } => {
            let (country, region, name) = (country.clone(), region.clone(), name.clone());
            let tax = NewTax { country, region, name, rate: parts(*percent)?, has_reverse_charge: *reverse_charge };
            store.set_tax(&tax, by).await?;
        }
        Deed::Coupon(coupon) => {
            let new = NewCoupon {
                code: coupon.code.clone(),
                name: coupon.name.clone(),
                part_off: coupon.percent_off.map(parts).transpose()?,
                n_months: coupon.months,
                credit: coupon.credit.map(|amount| (amount, coupon.credit_days)),
                n_redemptions_max: coupon.redemptions,
                redeem_until: coupon.until.as_deref().map(time).transpose()?,
            };
            store.create_coupon(&new, by).await?;
        }
        Deed::Redeem { account, code } => store.redeem_coupon(*account, code, by).await?,
        Deed::Minimum { account, amount, from } => {
            store.set_commitment(*account, (from.unwrap_or(by.at.period()), *amount), by).await?;
        }
        Deed::Price { class, input, cached, output, from } => {
            let price = TokenPrice { input_per_million: *input, cached_per_million: *cached, output_per_million: *output };
            store.set_token_price(class, (price, time(from)?), by).await?;
        }
        Deed::Plan { plan, price, included, from } => store.set_plan_price(plan, (*price, *included, time(from)?), by).await?,
    }
    Ok(())
}

fn lines(address: &str) -> String {
    address.split(',').map(str::trim).collect::<Vec<_>>().join("\n")
}

async fn set_profile(session: &Session, new: &ProfileArguments) -> anyhow::Result<()> {
    let mut profile = session.store.billing_profile(new.account).await.context("cannot read its profile")?;
    let set = |field: &mut String, value: &Option<String>| {
        if let Some(value) = value {
            field.clone_from(value);
        }
    };
    set(&mut profile.party.name, &new.name);
    set(&mut profile.party.address, &new.address.as_deref().map(lines));
    set(&mut profile.party.country, &new.country);
    set(&mut profile.party.tax_id, &new.tax_id);
    set(&mut profile.region, &new.region);
    set(&mut profile.email, &new.email);
    set(&mut profile.issuer, &new.issuer);
    profile.net_days = new.net_days.unwrap_or(profile.net_days);
    if let Some(collection) = new.collection {
        profile.is_automatic = matches!(collection, Collection::Automatic);
    }
    Ok(session.store.set_billing_profile(new.account, &profile, &session.by).await?)
}
