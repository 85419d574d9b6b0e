//! Events that Stripe sends: checked to be Stripe's and recent, heard once, and taken for what they say of our own payments. What they
//! say of anything else is acknowledged and ignored.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;
use thiserror::Error;

use crate::audit::By;
use crate::billing::statement::MICROS_PER_CENT;
use crate::error::PlatformError;
use crate::ids::{PaymentId, RefundId};
use crate::money::Micros;
use crate::payment::refund::Elsewhere;
use crate::payment::stripe::{read_intent, read_refund};
use crate::payment::{Payments, STRIPE, StripeError};
use crate::time::Timestamp;

/// How old an event's signature may be, or how far ahead: who repeats one later is not heard.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Why an event is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HookError {
    /// Nobody signed it.
    #[error("there is no signature, or it cannot be read")]
    Unsigned,
    /// Somebody else signed it, or another body.
    #[error("the signature is not of this body")]
    Forged,
    /// It is an old one, repeated.
    #[error("the signature is not recent")]
    Old,
    /// It is no event.
    #[error("the body is no event")]
    Malformed,
}

/// What events are signed with.
#[derive(Clone)]
pub struct HookSecret(Arc<[u8]>);

impl HookSecret {
    /// As Stripe shows it, `whsec_…`.
    pub fn new(secret: &str) -> Self {
        Self(secret.as_bytes().into())
    }

    /// Checks a header `t=SECONDS,v1=HEX,…`.
    pub fn verify(&self, header: &str, body: &[u8], now: Timestamp) -> Result<(), HookError> {
        let fields = || header.split(',').filter_map(|field| field.trim().split_once('='));
        let time = fields().find(|(name, _)| *name == "t").and_then(|(_, value)| value.parse::<i64>().ok()).ok_or(HookError::Unsigned)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{time}.").as_bytes());
        mac.update(body);
        let is_right = |signature: &str| unhex(signature).is_some_and(|bytes| mac.clone().verify_slice(&bytes).is_ok());
        let mut signatures = fields().filter(|(name, _)| *name == "v1").peekable();
        signatures.peek().ok_or(HookError::Unsigned)?;
        if !signatures.any(|(_, signature)| is_right(signature)) {
            return Err(HookError::Forged);
        }
        let time = Timestamp(time.saturating_mul(1_000_000));
        if time.since(now).max(now.since(time)) > AGE_MAX { Err(HookError::Old) } else { Ok(()) }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[derive(Debug, Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    data: EventData,
}

#[derive(Debug, Deserialize)]
struct EventData {
    object: Value,
}

impl Payments {
    /// Hears an event. The same again changes nothing.
    pub async fn hear(&self, header: &str, body: &[u8], now: Timestamp) -> Result<Result<(), HookError>, PlatformError> {
        if let Err(error) = self.hook.verify(header, body, now) {
            return Ok(Err(error));
        }
        let Ok(event) = serde_json::from_slice::<Event>(body) else { return Ok(Err(HookError::Malformed)) };
        if event.id.is_empty() || event.id.len() > crate::limits::NAME_BYTES_MAX {
            return Ok(Err(HookError::Malformed));
        }
        if self.has_heard(&event.id).await? {
            return Ok(Ok(()));
        }
        self.take(&event, now).await?;
        // Noted last: what was not taken to its end is taken again, and what it does, it does once.
        self.note_heard(&event.id, now).await?;
        Ok(Ok(()))
    }

    async fn take(&self, event: &Event, now: Timestamp) -> Result<(), PlatformError> {
        let object = &event.data.object;
        let by = By::job("stripe", now);
        match event.kind.as_str() {
            "payment_intent.succeeded" | "payment_intent.payment_failed" | "payment_intent.processing" => {
                let payment = object["metadata"]["payment"].as_str().and_then(|id| id.parse::<PaymentId>().ok());
                // Somebody else's, on the same account of Stripe.
                let Some(payment) = payment else { return Ok(()) };
                let charge = read_intent(object.clone())?;
                ignore_unknown(self.store.end_attempt(payment, &charge, &by).await)
            }
            "setup_intent.succeeded" => {
                let (customer, method) = (object["customer"].as_str(), object["payment_method"].as_str());
                let (Some(customer), Some(method)) = (customer, method) else { return Ok(()) };
                let card = self.stripe.card(method).await?;
                ignore_unknown(self.store.note_payment_method((STRIPE, customer), (method, &card), &by).await)
            }
            // What went back in all of a charge, whoever sent it.
            "charge.refunded" => {
                let (intent, cents) = (object["payment_intent"].as_str(), object["amount_refunded"].as_i64());
                let (Some(intent), Some(cents)) = (intent, cents) else { return Ok(()) };
                self.store.note_refunds_elsewhere(intent, Micros(cents.saturating_mul(MICROS_PER_CENT)), &by).await
            }
            "refund.updated" | "refund.failed" | "charge.refund.updated" => {
                let refund = object["metadata"]["refund"].as_str().and_then(|id| id.parse::<RefundId>().ok());
                let Some(refund) = refund else { return Ok(()) };
                ignore_unknown(self.store.end_refund(refund, &read_refund(object)?, &by).await)
            }
            kind if kind.starts_with("charge.dispute.") => self.take_dispute(kind, object, &by).await,
            _ => Ok(()),
        }
    }

    /// A dispute takes the money when it is made, and gives it back if it is won; a warning takes none.
    async fn take_dispute(&self, kind: &str, object: &Value, by: &By) -> Result<(), PlatformError> {
        let (reference, intent) = (object["id"].as_str(), object["payment_intent"].as_str());
        let (Some(reference), Some(intent), Some(cents)) = (reference, intent, object["amount"].as_i64()) else { return Ok(()) };
        let status = object["status"].as_str().unwrap_or_default();
        let is_lost = match kind {
            "charge.dispute.created" | "charge.dispute.funds_withdrawn" => !status.starts_with("warning"),
            "charge.dispute.funds_reinstated" => false,
            "charge.dispute.closed" => status == "lost",
            _ => return Ok(()),
        };
        let amount = Micros(cents.saturating_mul(MICROS_PER_CENT));
        if amount <= Micros::ZERO || status.starts_with("warning") {
            return Ok(());
        }
        let reason = object["reason"].as_str().unwrap_or_default();
        self.store.note_dispute(intent, (Elsewhere { kind: "dispute", reference, amount, reason }, is_lost), by).await
    }

    async fn has_heard(&self, event: &str) -> Result<bool, PlatformError> {
        let query = sqlx::query("SELECT received_at FROM provider_event WHERE provider = $1 AND event_id = $2")
            .bind(STRIPE)
            .bind(event.to_string());
        let row = query.fetch_optional(self.store.pool()).await.map_err(PlatformError::database("reading events of Stripe"))?;
        Ok(row.is_some())
    }

    async fn note_heard(&self, event: &str, now: Timestamp) -> Result<(), PlatformError> {
        let mut write = self.store.begin().await?;
        let insert = sqlx::query(
            "INSERT INTO provider_event (provider, event_id, received_at) VALUES ($1, $2, $3) ON CONFLICT (provider, event_id) DO NOTHING",
        );
        let insert = insert.bind(STRIPE).bind(event.to_string()).bind(now.0);
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting an event of Stripe"))?;
        write.commit("noting an event of Stripe").await
    }
}

/// What is not ours is nobody's fault.
fn ignore_unknown(result: Result<(), PlatformError>) -> Result<(), PlatformError> {
    match result {
        Err(PlatformError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

impl From<StripeError> for PlatformError {
    fn from(source: StripeError) -> Self {
        Self::Payment { source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(secret: &str, time: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
        mac.update(format!("{time}.").as_bytes());
        mac.update(body);
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("t={time},v1={hex}")
    }

    #[test]
    fn event_that_is_forged_old_or_unsigned_is_refused() {
        let secret = HookSecret::new("whsec_1");
        let verify = |header: &str, body: &[u8], seconds: i64| secret.verify(header, body, Timestamp(seconds * 1_000_000));
        let header = signed("whsec_1", 1000, b"{}");
        assert_eq!(verify(&header, b"{}", 1000), Ok(()));
        assert_eq!(verify(&format!("{header},v0=00,v1=ff"), b"{}", 1290), Ok(()));
        assert_eq!(verify(&header, b"{ }", 1000), Err(HookError::Forged));
        assert_eq!(verify(&signed("whsec_2", 1000, b"{}"), b"{}", 1000), Err(HookError::Forged));
        assert_eq!(verify(&header.replace("t=1000", "t=1001"), b"{}", 1000), Err(HookError::Forged));
        assert_eq!((verify(&header, b"{}", 1301), verify(&header, b"{}", 699)), (Err(HookError::Old), Err(HookError::Old)));
        for unsigned in ["", "t=1000", "v1=00", "t=x,v1=00", ","] {
            assert_eq!(verify(unsigned, b"{}", 1000), Err(HookError::Unsigned), "{unsigned}");
        }
        assert_eq!(verify("t=1000,v1=0", b"{}", 1000), Err(HookError::Forged));
    }
}
