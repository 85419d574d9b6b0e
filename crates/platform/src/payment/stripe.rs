//! The few calls of Stripe's API that are needed, as forms over HTTPS. Every call that makes something carries an idempotency key that
//! follows from what it is for, so that a call whose answer was lost is made again without a second effect.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::ids::{AccountId, InvoiceId, PaymentId, RefundId};
use crate::outbound::{Answered, Destinations, Outbound, OutboundError, Outgoing};

/// The version of the API that this was written for.
const API_VERSION: &str = "2024-06-20";

/// Why Stripe did not do something.
#[derive(Debug, Error)]
pub enum StripeError {
    /// It was not reached, or its answer is not known.
    #[error("no answer of Stripe: {0}")]
    Outbound(#[from] OutboundError),
    /// It is not well at the moment, or wants less.
    #[error("answer {status} of Stripe")]
    Busy { status: u16 },
    /// It refuses.
    #[error("refused by Stripe with {status}: {code}: {message}")]
    Refused { status: u16, code: String, message: String },
    /// It says something that is not understood.
    #[error("an answer of Stripe cannot be read: {reason}")]
    Answer { reason: String },
    /// It has another address than one of the web.
    #[error("expected a URL of Stripe such as https://api.stripe.com, got {got:?}")]
    Url { got: String },
    /// A key that is none.
    #[error("a key of Stripe's has only letters, digits and underscores")]
    Key,
}

impl StripeError {
    /// Whether what was sent is wrong by itself, such as a card that is not there. Otherwise nobody knows what became of the call, or
    /// it goes well once something of ours is in order: our key (401, 403), the network, Stripe.
    pub fn is_of_input(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 402 | 404, .. })
    }

    /// Whether a charge failed by its card. Everything else that is refused is no fault of who pays.
    fn is_of_card(&self) -> bool {
        let Self::Refused { status, code, .. } = self else { return false };
        *status == 402 || *status < 500 && (code == "resource_missing" || code.starts_with("payment_method_") || code.starts_with("card_"))
    }

    /// Its words, for who pays.
    fn said(&self) -> String {
        match self {
            Self::Refused { code, message, .. } => format!("{code}: {message}"),
            error => error.to_string(),
        }
    }

    /// Whether the amount is less than Stripe charges.
    fn is_too_small(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "amount_too_small")
    }
}

/// What became of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// It is paid.
    Succeeded { reference: String },
    /// The bank takes its time, and will say.
    Processing { reference: String },
    /// It is not paid.
    Failed { reference: String, reason: String },
    /// It is less than is charged at all.
    TooSmall { reason: String },
}

/// What became of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundEnd {
    /// The money is on its way to whoever paid.
    Succeeded,
    /// Stripe will say.
    Pending,
    /// It does not go back.
    Failed,
}

impl RefundEnd {
    /// As Stripe says it.
    pub(super) fn of(status: &str) -> Self {
        match status {
            "succeeded" => Self::Succeeded,
            "failed" | "canceled" => Self::Failed,
            _ => Self::Pending,
        }
    }
}

/// A refund as Stripe knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refunded {
    /// What it is called there.
    pub reference: String,
    /// What became of it.
    pub end: RefundEnd,
}

/// What a card's holder knows it by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// Such as `visa`; empty for what is no card.
    pub brand: String,
    /// Of its number.
    pub last_digits: String,
    /// Month and year, as it is printed on it.
    pub expires: String,
}

/// Calls Stripe.
#[derive(Clone)]
pub struct Stripe {
    base: Arc<str>,
    key: HeaderValue,
    outbound: Outbound,
}

#[derive(Debug, Deserialize)]
struct Intent {
    id: String,
    status: String,
    #[serde(default)]
    last_payment_error: Option<Value>,
}

impl Stripe {
    /// At an address, with a secret key.
    pub fn new(base: &str, key: &str) -> Result<Self, StripeError> {
        let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_key {
            return Err(StripeError::Key);
        }
        let wrong = || StripeError::Url { got: base.into() };
        let url: Uri = base.parse().map_err(|_| wrong())?;
        let outbound = Outbound::new(Destinations::Any);
        outbound.check(&url).map_err(|_| wrong())?;
        let mut key = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| StripeError::Key)?;
        key.set_sensitive(true);
        Ok(Self { base: base.trim_end_matches('/').into(), key, outbound })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        idempotency_key: Option<String>,
    ) -> Result<Value, StripeError> {
        let form = form(fields);
        let is_get = method == Method::GET;
        let url = if is_get && !form.is_empty() { format!("{}{path}?{form}", self.base) } else { format!("{}{path}", self.base) };
        let url: Uri = url.parse().map_err(|_| StripeError::Url { got: url.clone() })?;
        let mut headers = vec![
            (header::AUTHORIZATION, self.key.clone()),
            (HeaderName::from_static("stripe-version"), HeaderValue::from_static(API_VERSION)),
        ];
        if !is_get {
            headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
        }
        if let Some(key) = idempotency_key {
            let key = HeaderValue::from_str(&key).map_err(|_| StripeError::Key)?;
            headers.push((HeaderName::from_static("idempotency-key"), key));
        }
        let body = if is_get { Vec::new() } else { form.into_bytes() };
        let answered = self.outbound.send(Outgoing { method, url, headers, body }).await?;
        read_answer(&answered)
    }

    /// Makes a customer; returns its name there.
    pub async fn create_customer(&self, account: AccountId, (name, email): (&str, &str)) -> Result<String, StripeError> {
        let id = account.to_string();
        let mut fields = vec![("name", name), ("metadata[account]", id.as_str())];
        if !email.is_empty() {
            fields.push(("email", email));
        }
        let made = self.call(Method::POST, "/v1/customers", &fields, Some(format!("customer:{id}"))).await?;
        text(&made, "id")
    }

    /// Begins asking a customer for a card that may be charged later; returns the secret that a page needs for it.
    pub async fn create_setup(&self, customer: &str) -> Result<String, StripeError> {
        let fields = [("customer", customer), ("usage", "off_session")];
        let made = self.call(Method::POST, "/v1/setup_intents", &fields, None).await?;
        text(&made, "client_secret")
    }

    /// Lets a customer pay with a card.
    pub async fn attach(&self, customer: &str, method: &str) -> Result<Card, StripeError> {
        let path = format!("/v1/payment_methods/{method}/attach");
        self.call(Method::POST, &path, &[("customer", customer)], None).await.map(|method| read_card(&method))
    }

    /// The card that a payment method is.
    pub async fn card(&self, method: &str) -> Result<Card, StripeError> {
        self.call(Method::GET, &format!("/v1/payment_methods/{}", escaped(method)), &[], None).await.map(|method| read_card(&method))
    }

    /// Charges a customer's card for an invoice; `cents` of a currency.
    pub async fn charge(
        &self,
        (customer, method): (&str, &str),
        (cents, currency): (i64, &str),
        (invoice, payment): (InvoiceId, PaymentId),
    ) -> Result<Charge, StripeError> {
        let (cents, invoice, payment) = (cents.to_string(), invoice.to_string(), payment.to_string());
        let fields = [
            ("amount", cents.as_str()),
            ("currency", currency),
            ("customer", customer),
            ("payment_method", method),
            ("confirm", "true"),
            ("off_session", "true"),
            ("metadata[invoice]", &invoice),
            ("metadata[payment]", &payment),
        ];
        match self.call(Method::POST, "/v1/payment_intents", &fields, Some(format!("payment:{payment}"))).await {
            Ok(made) => read_intent(made),
            Err(error) if error.is_too_small() => Ok(Charge::TooSmall { reason: error.to_string() }),
            Err(error) if error.is_of_card() => Ok(Charge::Failed { reference: String::new(), reason: error.said() }),
            Err(error) => Err(error),
        }
    }

    /// Sends money of a payment back; `cents` of it.
    pub async fn refund(&self, intent: &str, cents: i64, refund: RefundId) -> Result<Refunded, StripeError> {
        let (cents, id) = (cents.to_string(), refund.to_string());
        let fields = [("payment_intent", intent), ("amount", cents.as_str()), ("metadata[refund]", &id)];
        let made = self.call(Method::POST, "/v1/refunds", &fields, Some(format!("refund:{id}"))).await?;
        read_refund(&made)
    }

    /// The refund that was made under our name for it, if there is one.
    pub async fn find_refund(&self, intent: &str, refund: RefundId) -> Result<Option<Refunded>, StripeError> {
        let list = self.call(Method::GET, "/v1/refunds", &[("payment_intent", intent), ("limit", "100")], None).await?;
        let refund = refund.to_string();
        let all = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        all.iter().find(|other| other["metadata"]["refund"].as_str() == Some(&refund)).map(read_refund).transpose()
    }

    /// The charge that was made for a payment, if there is one: for a call whose answer was lost longer ago than idempotency keys are kept.
    pub async fn find_charge(&self, customer: &str, payment: PaymentId) -> Result<Option<Charge>, StripeError> {
        let list = self.call(Method::GET, "/v1/payment_intents", &[("customer", customer), ("limit", "100")], None).await?;
        let payment = payment.to_string();
        let all = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        let found = all.iter().find(|intent| intent["metadata"]["payment"].as_str() == Some(&payment));
        found.cloned().map(read_intent).transpose()
    }
}

fn read_answer(answered: &Answered) -> Result<Value, StripeError> {
    let status = answered.status;
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::CONFLICT {
        return Err(StripeError::Busy { status: status.as_u16() });
    }
    let body: Value = serde_json::from_slice(&answered.body).map_err(|error| StripeError::Answer { reason: error.to_string() })?;
    if status.is_success() {
        return Ok(body);
    }
    let said = |field: &str| body["error"][field].as_str().unwrap_or_default().chars().take(200).collect::<String>();
    Err(StripeError::Refused { status: status.as_u16(), code: said("code"), message: said("message") })
}

fn text(value: &Value, field: &str) -> Result<String, StripeError> {
    let text = value[field].as_str().map(str::to_string);
    text.ok_or_else(|| StripeError::Answer { reason: format!("it has no {field}") })
}

/// The card of a payment method; what it does not say is empty.
fn read_card(method: &Value) -> Card {
    let card = &method["card"];
    let text = |field: &str| card[field].as_str().unwrap_or_default().chars().take(32).collect::<String>();
    let expires = match (card["exp_month"].as_u64(), card["exp_year"].as_u64()) {
        (Some(month @ 1..=12), Some(year @ 2000..=9999)) => format!("{month:02}/{year}"),
        _ => String::new(),
    };
    Card { brand: text("brand"), last_digits: text("last4"), expires }
}

/// What a refund says, also in an event.
pub(super) fn read_refund(refund: &Value) -> Result<Refunded, StripeError> {
    Ok(Refunded { reference: text(refund, "id")?, end: RefundEnd::of(&text(refund, "status")?) })
}

/// What a payment intent says, also in an event.
pub(super) fn read_intent(intent: Value) -> Result<Charge, StripeError> {
    let Intent { id, status, last_payment_error } =
        serde_json::from_value(intent).map_err(|error| StripeError::Answer { reason: error.to_string() })?;
    let said = |field: &str| last_payment_error.as_ref().and_then(|error| error[field].as_str()).unwrap_or_default().to_string();
    Ok(match status.as_str() {
        "succeeded" => Charge::Succeeded { reference: id },
        "processing" => Charge::Processing { reference: id },
        "requires_action" => Charge::Failed { reference: id, reason: "authentication_required: the bank asks for the customer".into() },
        _ => Charge::Failed { reference: id, reason: format!("{}: {}", said("code"), said("message")) },
    })
}

/// Fields as a form has them.
fn form(fields: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{}={}", escaped(name), escaped(value));
    fields.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_escapes_what_would_end_a_field() {
        assert_eq!(form(&[("metadata[a]", "x&y=ä z"), ("b", "1")]), "metadata%5Ba%5D=x%26y%3D%C3%A4%20z&b=1");
    }

    #[test]
    fn card_is_known_by_what_is_printed_on_it() {
        let read = |text: &str| read_card(&serde_json::from_str(text).expect("JSON"));
        let visa = Card { brand: "visa".into(), last_digits: "4242".into(), expires: "04/2050".into() };
        assert_eq!(read(r#"{"card":{"brand":"visa","last4":"4242","exp_month":4,"exp_year":2050}}"#), visa);
        for none in [r#"{"type":"sepa_debit"}"#, r#"{"card":null}"#, r#"{"card":{"exp_month":"4","exp_year":-1}}"#] {
            assert_eq!(read(none), Card::default(), "{none}");
        }
    }

    #[test]
    fn intent_is_paid_only_when_it_says_so() {
        let read = |text: &str| read_intent(serde_json::from_str(text).expect("JSON")).expect("an intent");
        assert_eq!(read(r#"{"id":"pi_1","status":"succeeded"}"#), Charge::Succeeded { reference: "pi_1".into() });
        assert_eq!(read(r#"{"id":"pi_1","status":"processing"}"#), Charge::Processing { reference: "pi_1".into() });
        let declined = r#"{"id":"pi_1","status":"requires_payment_method","last_payment_error":{"code":"card_declined","message":"No."}}"#;
        assert_eq!(read(declined), Charge::Failed { reference: "pi_1".into(), reason: "card_declined: No.".into() });
        for status in ["requires_action", "canceled", "requires_capture", "requires_confirmation", "something new"] {
            let text = format!(r#"{{"id":"pi_1","status":"{status}"}}"#);
            assert!(matches!(read(&text), Charge::Failed { .. }), "{status}");
        }
    }

    #[test]
    fn key_or_address_that_is_none_is_refused() {
        assert!(Stripe::new("https://api.stripe.com", "sk_test_1").is_ok());
        assert!(Stripe::new("https://api.stripe.com", "sk\r\nx").is_err() && Stripe::new("https://api.stripe.com", "").is_err());
        assert!(Stripe::new("api.stripe.com", "sk_test_1").is_err());
    }
}
