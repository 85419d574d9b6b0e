//! What is agreed with an account besides its plan, and what the issuer of invoices says of itself: profiles, taxes, commitments,
//! coupons. All of it is data with the time in which it holds; a month that is closed is not touched by any of it.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::invoice::Party;
use crate::billing::statement::PARTS;
use crate::directory::{NewCredit, check_label};
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::limits::{NET_DAYS_MAX, TEXT_BYTES_MAX};
use crate::money::Micros;
use crate::store::{Store, get, get_count, get_optional_time};
use crate::time::{Period, Timestamp};

/// To whom and how an account is billed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Whose numbers its invoices have.
    pub issuer: String,
    /// The customer.
    pub party: Party,
    /// Of its country, what stands behind the dash in ISO 3166-2; empty for unknown.
    pub region: String,
    /// Where invoices are sent; empty for nowhere.
    pub email: String,
    /// Collected by itself; otherwise the customer pays.
    pub is_automatic: bool,
    /// Until it is due.
    pub net_days: u16,
}

/// Who issues invoices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Its name here.
    pub id: String,
    /// What is printed.
    pub party: Party,
    /// Stands before numbers of invoices, and of credit notes.
    pub prefixes: [String; 2],
}

/// A tax that holds from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTax {
    /// ISO 3166-1.
    pub country: String,
    /// Empty for all of the country.
    pub region: String,
    /// For people.
    pub name: String,
    /// Parts in a million.
    pub rate: u32,
    /// Customers of another country of the European Union with a valid number of theirs owe it themselves.
    pub has_reverse_charge: bool,
}

/// A coupon to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCoupon {
    /// What is typed in.
    pub code: String,
    /// For people.
    pub name: String,
    /// Parts in a million off fees and usage.
    pub part_off: Option<u32>,
    /// For so many months; without a number, for ever.
    pub n_months: Option<u16>,
    /// Credit, and the days until it ends.
    pub credit: Option<(Micros, Option<u16>)>,
    /// By how many accounts.
    pub n_redemptions_max: Option<u32>,
    /// Until when: at that moment it has ended.
    pub redeem_until: Option<Timestamp>,
}

fn invalid(field: &'static str, reason: &str) -> PlatformError {
    PlatformError::Invalid { field, reason: reason.into() }
}

fn check_text(field: &'static str, text: &str) -> Result<(), PlatformError> {
    let is_fine = text.len() <= TEXT_BYTES_MAX && !text.contains(|c: char| c.is_control() && c != '\n');
    if is_fine { Ok(()) } else { Err(invalid(field, &format!("at most {TEXT_BYTES_MAX} bytes without control characters"))) }
}

fn check_country(country: &str) -> Result<(), PlatformError> {
    let is_code = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
    if country.is_empty() || is_code { Ok(()) } else { Err(invalid("country", "expected two capital letters, as ISO 3166-1 has them")) }
}

impl Store {
    /// To whom and how an account is billed; by default under its name, by hand, in 30 days.
    pub async fn billing_profile(&self, account: AccountId) -> Result<Profile, PlatformError> {
        let query = sqlx::query(
            "SELECT a.name AS account_name, p.* FROM account a LEFT JOIN billing_profile p ON p.account_id = a.id WHERE a.id = $1",
        );
        let row = query.bind(account.to_string()).fetch_optional(self.pool()).await;
        let row = row.map_err(PlatformError::database("reading a billing profile"))?.ok_or(PlatformError::NotFound { what: "account" })?;
        if get::<Option<String>>(&row, "issuer_id")?.is_none() {
            let party = Party { name: get(&row, "account_name")?, ..Party::default() };
            let (region, email) = (String::new(), String::new());
            return Ok(Profile { issuer: "default".into(), party, region, email, is_automatic: false, net_days: 30 });
        }
        let party = Party {
            name: get(&row, "name")?,
            address: get(&row, "address")?,
            country: get(&row, "country")?,
            tax_id: get(&row, "tax_id")?,
        };
        Ok(Profile {
            issuer: get(&row, "issuer_id")?,
            party,
            region: get(&row, "region")?,
            email: get(&row, "email")?,
            is_automatic: get::<String>(&row, "collection")? == "automatic",
            net_days: u16::try_from(get_count(&row, "net_days")?).unwrap_or(u16::MAX),
        })
    }

    /// Says to whom and how an account is billed from now on.
    pub async fn set_billing_profile(&self, account: AccountId, profile: &Profile, by: &By) -> Result<(), PlatformError> {
        check_label(&profile.party.name)?;
        check_text("address", &profile.party.address)?;
        check_country(&profile.party.country)?;
        for (field, text) in [("region", &profile.region), ("tax_id", &profile.party.tax_id), ("email", &profile.email)] {
            check_text(field, text)?;
        }
        if profile.net_days > NET_DAYS_MAX {
            return Err(invalid("net_days", &format!("at most {NET_DAYS_MAX}")));
        }
        let before = self.billing_profile(account).await?;
        let mut write = self.begin().await?;
        let doing = "changing a billing profile";
        let query = sqlx::query("SELECT id FROM invoice_issuer WHERE id = $1").bind(profile.issuer.clone());
        if query.fetch_optional(&mut *write.transaction).await.map_err(PlatformError::database(doing))?.is_none() {
            return Err(PlatformError::NotFound { what: "issuer" });
        }
        sqlx::query("INSERT INTO billing_profile (account_id, issuer_id, name, address, country, region, tax_id, email, collection, net_days) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (account_id) DO UPDATE SET issuer_id = excluded.issuer_id, name = excluded.name, address = excluded.address, country = excluded.country, region = excluded.region, tax_id = excluded.tax_id, email = excluded.email, collection = excluded.collection, net_days = excluded.net_days")
            .bind(account.to_string())
            .bind(profile.issuer.clone())
            .bind(profile.party.name.clone())
            .bind(profile.party.address.clone())
            .bind(profile.party.country.clone())
            .bind(profile.region.clone())
            .bind(profile.party.tax_id.clone())
            .bind(profile.email.clone())
            .bind(if profile.is_automatic { "automatic" } else { "manual" })
            .bind(i64::from(profile.net_days))
            .execute(&mut *write.transaction)
            .await
            .map_err(PlatformError::database(doing))?;
        let (before, after) = (profile_json(&before), profile_json(profile));
        let deed = Deed { action: "billing_profile.changed", account: Some(account), target: account.to_string(), before, after };
        self.audit(&mut write, by, deed).await?;
        write.commit(doing).await
    }

    /// Makes an issuer, or says something else of it. Its numbers go on.
    pub async fn set_issuer(&self, issuer: &Issuer, by: &By) -> Result<(), PlatformError> {
        check_label(&issuer.id)?;
        check_text("address", &issuer.party.address)?;
        check_country(&issuer.party.country)?;
        for text in [&issuer.party.name, &issuer.party.tax_id, &issuer.prefixes[0], &issuer.prefixes[1]] {
            check_text("issuer", text)?;
        }
        let mut write = self.begin().await?;
        sqlx::query("INSERT INTO invoice_issuer (id, name, address, country, tax_id, invoice_prefix, note_prefix, last_invoice, last_credit_note) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0) ON CONFLICT (id) DO UPDATE SET name = excluded.name, address = excluded.address, country = excluded.country, tax_id = excluded.tax_id, invoice_prefix = excluded.invoice_prefix, note_prefix = excluded.note_prefix")
            .bind(issuer.id.clone())
            .bind(issuer.party.name.clone())
            .bind(issuer.party.address.clone())
            .bind(issuer.party.country.clone())
            .bind(issuer.party.tax_id.clone())
            .bind(issuer.prefixes[0].clone())
            .bind(issuer.prefixes[1].clone())
            .execute(&mut *write.transaction)
            .await
            .map_err(PlatformError::database("changing an issuer"))?;
        let after = json!({ "name": issuer.party.name, "country": issuer.party.country, "tax_id": issuer.party.tax_id, "prefixes": issuer.prefixes });
        let deed = Deed { action: "issuer.changed", account: None, target: issuer.id.clone(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("changing an issuer").await
    }

    /// A tax from now on; one of the same name ends. A rate of nothing ends it.
    pub async fn set_tax(&self, tax: &NewTax, by: &By) -> Result<(), PlatformError> {
        check_label(&tax.name)?;
        check_country(&tax.country)?;
        check_text("region", &tax.region)?;
        if tax.rate > PARTS {
            return Err(invalid("rate", "it is more than all"));
        }
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("changing a tax");
        let end =
            sqlx::query("UPDATE tax_rate SET valid_until = $1 WHERE country = $2 AND region = $3 AND name = $4 AND valid_until IS NULL");
        let end = end.bind(by.at.0).bind(tax.country.clone()).bind(tax.region.clone()).bind(tax.name.clone());
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        if tax.rate > 0 {
            let insert = sqlx::query(
                "INSERT INTO tax_rate (country, region, name, rate, reverse_charge, valid_from, valid_until) VALUES ($1, $2, $3, $4, $5, $6, NULL)",
            );
            let insert = insert.bind(tax.country.clone()).bind(tax.region.clone()).bind(tax.name.clone());
            let insert = insert.bind(i64::from(tax.rate)).bind(i64::from(tax.has_reverse_charge)).bind(by.at.0);
            insert.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let target = format!("{}/{}/{}", tax.country, tax.region, tax.name);
        let after = json!({ "rate_ppm": tax.rate, "reverse_charge": tax.has_reverse_charge });
        self.audit(&mut write, by, Deed { action: "tax.changed", account: None, target, before: Value::Null, after }).await?;
        write.commit("changing a tax").await
    }

    /// What an account promises to spend each month from one on; nothing ends it.
    pub async fn set_commitment(&self, account: AccountId, (from, amount): (Period, Micros), by: &By) -> Result<(), PlatformError> {
        self.account(account, by.at).await?;
        if amount < Micros::ZERO {
            return Err(invalid("amount", "it is negative"));
        }
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("changing a commitment");
        let period = i64::from(from.0);
        let delete =
            sqlx::query("DELETE FROM commitment WHERE account_id = $1 AND from_period >= $2").bind(account.to_string()).bind(period);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let end =
            sqlx::query("UPDATE commitment SET until_period = $1 WHERE account_id = $2 AND (until_period IS NULL OR until_period > $1)");
        end.bind(period).bind(account.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        if amount > Micros::ZERO {
            let insert = sqlx::query("INSERT INTO commitment (account_id, from_period, until_period, amount) VALUES ($1, $2, NULL, $3)");
            insert.bind(account.to_string()).bind(period).bind(amount.0).execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let after = json!({ "from": from.to_string(), "amount_micros": amount.0 });
        let deed = Deed { action: "commitment.changed", account: Some(account), target: account.to_string(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("changing a commitment").await
    }

    /// Makes a coupon.
    pub async fn create_coupon(&self, coupon: &NewCoupon, by: &By) -> Result<(), PlatformError> {
        check_label(&coupon.code)?;
        check_label(&coupon.name)?;
        let is_part = coupon.part_off.is_none_or(|part| (1..=PARTS).contains(&part));
        let is_credit = coupon.credit.is_none_or(|(amount, _)| amount > Micros::ZERO);
        if !is_part || !is_credit || (coupon.part_off.is_none() && coupon.credit.is_none()) {
            return Err(invalid("coupon", "expected a part off, credit, or both"));
        }
        let mut write = self.begin().await?;
        let doing = "creating a coupon";
        let inserted = sqlx::query("INSERT INTO coupon (code, name, part_off, n_months, credit, credit_days, n_redemptions_max, redeem_until, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (code) DO NOTHING")
            .bind(coupon.code.clone())
            .bind(coupon.name.clone())
            .bind(coupon.part_off.map(i64::from))
            .bind(coupon.n_months.map(i64::from))
            .bind(coupon.credit.map(|(amount, _)| amount.0))
            .bind(coupon.credit.and_then(|(_, days)| days).map(i64::from))
            .bind(coupon.n_redemptions_max.map(i64::from))
            .bind(coupon.redeem_until.map(|time| time.0))
            .bind(by.at.0)
            .execute(&mut *write.transaction)
            .await
            .map_err(PlatformError::database(doing))?;
        if inserted.rows_affected() == 0 {
            return Err(invalid("code", "there is such a coupon"));
        }
        let after =
            json!({ "name": coupon.name, "part_off_ppm": coupon.part_off, "credit_micros": coupon.credit.map(|(amount, _)| amount.0) });
        let deed = Deed { action: "coupon.created", account: None, target: coupon.code.clone(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit(doing).await
    }

    /// Gives an account what a coupon promises, once. Its part off begins with the present month.
    pub async fn redeem_coupon(&self, account: AccountId, code: &str, by: &By) -> Result<(), PlatformError> {
        self.account(account, by.at).await?;
        let mut write = self.begin().await?;
        let doing = "redeeming a coupon";
        let failed = || PlatformError::database(doing);
        // Its row is locked, so that no two accounts are the last.
        let lock = sqlx::query("UPDATE coupon SET name = name WHERE code = $1").bind(code.to_string());
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let query = sqlx::query(
            "SELECT c.*, (SELECT COUNT(*) FROM coupon_redemption r WHERE r.code = c.code) AS n_redeemed FROM coupon c WHERE c.code = $1",
        );
        let row = query.bind(code.to_string()).fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let row = row.ok_or(PlatformError::NotFound { what: "coupon" })?;
        if get_optional_time(&row, "redeem_until")?.is_some_and(|until| by.at >= until) {
            return Err(invalid("code", "the coupon has ended"));
        }
        if get::<Option<i64>>(&row, "n_redemptions_max")?.is_some_and(|most| get::<i64>(&row, "n_redeemed").is_ok_and(|n| n >= most)) {
            return Err(invalid("code", "the coupon is used up"));
        }
        let from = by.at.period();
        let until = get::<Option<i64>>(&row, "n_months")?.map(|n| i64::from(from.0) + n);
        let insert = sqlx::query(
            "INSERT INTO coupon_redemption (code, account_id, redeemed_at, from_period, until_period) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (code, account_id) DO NOTHING",
        );
        let insert = insert.bind(code.to_string()).bind(account.to_string()).bind(by.at.0).bind(i64::from(from.0)).bind(until);
        if insert.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(invalid("code", "the account has redeemed it"));
        }
        if let Some(credit) = coupon_credit(&row, account, by.at)? {
            self.insert_credit(&mut write, &credit, by).await?;
        }
        let deed = Deed {
            action: "coupon.redeemed",
            account: Some(account),
            target: code.to_string(),
            before: Value::Null,
            after: json!({ "from": from.to_string() }),
        };
        self.audit(&mut write, by, deed).await?;
        write.commit(doing).await
    }
}

fn coupon_credit(row: &AnyRow, account: AccountId, now: Timestamp) -> Result<Option<NewCredit>, PlatformError> {
    let Some(amount) = get::<Option<i64>>(row, "credit")?.map(Micros) else { return Ok(None) };
    let days = get::<Option<i64>>(row, "credit_days")?.and_then(|days| u64::try_from(days).ok());
    let expires_at = days.map(|days| now.plus(std::time::Duration::from_secs(days * 86_400)));
    Ok(Some(NewCredit { account, amount, expires_at, reason: get(row, "name")? }))
}

fn profile_json(profile: &Profile) -> Value {
    json!({
        "issuer": profile.issuer,
        "customer": profile.party,
        "region": profile.region,
        "email": profile.email,
        "collection": if profile.is_automatic { "automatic" } else { "manual" },
        "net_days": profile.net_days,
    })
}
