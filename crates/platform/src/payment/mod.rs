//! Being paid: open invoices of accounts that are collected automatically are charged through Stripe, tried again when that fails, and
//! at last the account may do nothing until they are paid. What Stripe says comes back twice, as the answer to the charge and as an
//! event, in any order and any number of times; a payment counts once.

mod dunning;
mod hook;
mod refund;
mod stripe;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::audit::{By, Deed};
use crate::error::PlatformError;
use crate::ids::{AccountId, InvoiceId, PaymentId};
use crate::limits::COLLECT_EVERY;
use crate::money::Micros;
use crate::store::{Store, Write, get, get_parsed};
use crate::time::{Clock, Timestamp};

pub use dunning::{ATTEMPT_PAUSES, Attempt};
pub use hook::{HookError, HookSecret};
pub use refund::RefundRow;
pub use stripe::{Card, Charge, RefundEnd, Refunded, Stripe, StripeError};

/// What payments are made through.
pub const STRIPE: &str = "stripe";
/// What stands there for an invoice whose amount the next one has.
pub const CARRIED: &str = "carried";

/// Collects invoices.
#[derive(Clone)]
pub struct Payments {
    pub(crate) store: Arc<Store>,
    pub(crate) stripe: Stripe,
    pub(crate) hook: HookSecret,
}

impl Payments {
    /// Through Stripe, whose events are signed with a secret.
    pub fn new(store: Arc<Store>, stripe: Stripe, hook: HookSecret) -> Self {
        Self { store, stripe, hook }
    }

    /// Stripe's name of an account; made there if there is none.
    pub async fn customer(&self, account: AccountId) -> Result<String, PlatformError> {
        let query = sqlx::query("SELECT customer FROM payment_customer WHERE account_id = $1").bind(account.to_string());
        let row = query.fetch_optional(self.store.pool()).await.map_err(PlatformError::database("reading a customer"))?;
        if let Some(row) = row {
            return get(&row, "customer");
        }
        let profile = self.store.billing_profile(account).await?;
        let customer = self.stripe.create_customer(account, (&profile.party.name, &profile.email)).await?;
        let mut write = self.store.begin().await?;
        let failed = || PlatformError::database("noting a customer");
        let insert = sqlx::query(
            "INSERT INTO payment_customer (account_id, provider, customer, payment_method) VALUES ($1, $2, $3, '') ON CONFLICT (account_id) DO NOTHING",
        );
        let insert = insert.bind(account.to_string()).bind(STRIPE).bind(customer);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        // Somebody else may have been faster: theirs counts.
        let query = sqlx::query("SELECT customer FROM payment_customer WHERE account_id = $1").bind(account.to_string());
        let customer = get(&query.fetch_one(&mut *write.transaction).await.map_err(failed())?, "customer")?;
        write.commit("noting a customer").await?;
        Ok(customer)
    }

    /// What a page needs to ask a customer for a card: Stripe's secret of the one setup.
    pub async fn begin_setup(&self, account: AccountId) -> Result<String, PlatformError> {
        let customer = self.customer(account).await?;
        Ok(self.stripe.create_setup(&customer).await?)
    }

    /// Charges a card from now on, that Stripe knows already.
    pub async fn set_payment_method(&self, account: AccountId, method: &str, by: &By) -> Result<(), PlatformError> {
        let is_name = method.starts_with("pm_") && method.len() < 128 && method.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name {
            let reason = "expected what Stripe calls it, pm_…".into();
            return Err(PlatformError::Invalid { field: "payment_method", reason });
        }
        let customer = self.customer(account).await?;
        let card = self.stripe.attach(&customer, method).await?;
        self.store.note_payment_method((STRIPE, &customer), (method, &card), by).await
    }
}

impl Store {
    /// Notes what a customer pays with, and that its invoices are collected by it at once.
    pub(crate) async fn note_payment_method(
        &self,
        (provider, customer): (&str, &str),
        (method, card): (&str, &Card),
        by: &By,
    ) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("noting how an account pays");
        let query = sqlx::query("SELECT account_id FROM payment_customer WHERE provider = $1 AND customer = $2");
        let query = query.bind(provider.to_string()).bind(customer.to_string());
        let row = query.fetch_optional(&mut *write.transaction).await.map_err(failed())?;
        let account: AccountId = get_parsed(&row.ok_or(PlatformError::NotFound { what: "customer" })?, "account_id")?;
        let update = sqlx::query(
            "UPDATE payment_customer SET payment_method = $1, card_brand = $2, card_last_digits = $3, card_expires = $4 WHERE account_id = $5",
        );
        let update = update.bind(method.to_string()).bind(card.brand.clone()).bind(card.last_digits.clone()).bind(card.expires.clone());
        update.bind(account.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        let due = sqlx::query(
            "UPDATE dunning SET next_attempt_at = $1 WHERE account_id = $2 AND invoice_id IN (SELECT i.id FROM invoice i WHERE i.account_id = $2 AND i.status = 'open')",
        );
        due.bind(by.at.0).bind(account.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        let after = json!({ "provider": provider });
        let deed = Deed { action: "payment_method.changed", account: Some(account), target: customer.into(), before: Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("noting how an account pays").await
    }

    /// Notes an attempt to be paid; says what it is called.
    pub(crate) async fn add_payment(
        &self,
        write: &mut Write<'_>,
        (invoice, amount): (InvoiceId, Micros),
        (provider, reference, status): (&str, &str, &'static str),
        now: Timestamp,
    ) -> Result<PaymentId, PlatformError> {
        let id = PaymentId::random()?;
        let insert = sqlx::query(
            "INSERT INTO payment (id, invoice_id, attempt, provider, provider_ref, amount, status, reason, created_at, updated_at) SELECT $1, $2, COALESCE(MAX(p.attempt), 0) + 1, $3, $4, $5, $6, '', $7, $7 FROM payment p WHERE p.invoice_id = $2",
        );
        let insert = insert.bind(id.to_string()).bind(invoice.to_string()).bind(provider.to_string()).bind(reference.to_string());
        let insert = insert.bind(amount.0).bind(status).bind(now.0);
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting a payment"))?;
        Ok(id)
    }
}

impl Payments {
    /// Collects for ever.
    pub async fn run(self, now: Clock) {
        loop {
            if let Err(error) = self.collect_due(now()).await {
                tracing::warn!(%error, "invoices cannot be collected");
            }
            if let Err(error) = self.settle_refunds(&By::job("refunds", now())).await {
                tracing::warn!(%error, "refunds cannot be made");
            }
            tokio::time::sleep(COLLECT_EVERY).await;
        }
    }
}
