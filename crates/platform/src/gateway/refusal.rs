//! What a refusal of the ledger is to a client: whether to wait, to pay, or to ask for less.

use std::time::Duration;

use bitnet_server::ServerError;

use crate::ledger::Refusal;
use crate::ledger::scope::{Bound, ScopeId};

/// How soon a client asks again when the ledger's store is away.
pub(super) const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_secs(2);

/// The server's error for a refusal.
pub(super) fn as_server_error(refusal: Refusal, model: String) -> ServerError {
    match refusal {
        Refusal::UnknownAccount => ServerError::InvalidKey,
        Refusal::Suspended => ServerError::Forbidden { reason: "the account is suspended".into() },
        Refusal::NoPlan => ServerError::PaymentRequired { reason: "the account has no plan".into() },
        // Nobody said what it costs, so it is not for sale.
        Refusal::NoPrice => ServerError::UnknownModel { model },
        Refusal::QuotaExhausted { included } => {
            ServerError::InsufficientQuota { reason: format!("the plan includes {included} operations a month") }
        }
        Refusal::NothingToPayWith => ServerError::PaymentRequired { reason: "the account has neither credit nor a spending cap".into() },
        Refusal::SpendingCap { missing } => ServerError::InsufficientQuota {
            reason: format!("this request may cost {missing} more than the account's credit and spending cap cover"),
        },
        Refusal::ScopeCap { scope } => {
            ServerError::InsufficientQuota { reason: format!("the spending cap of this {} would be passed", kind(scope)) }
        }
        Refusal::Limited { scope, bound, retry_after } => limited(scope, bound, retry_after),
        Refusal::Unavailable => ServerError::Overloaded { retry_after: UNAVAILABLE_RETRY_AFTER },
    }
}

fn limited(scope: ScopeId, bound: Bound, retry_after: Option<Duration>) -> ServerError {
    let kind = kind(scope);
    match (bound, retry_after) {
        (Bound::Concurrency, retry_after) => ServerError::SlowDown {
            reason: format!("as many as this {kind} may have are in flight"),
            retry_after: retry_after.unwrap_or(Duration::from_secs(1)),
        },
        (Bound::Requests, Some(retry_after)) => {
            ServerError::RateLimited { reason: format!("the requests per minute of this {kind}"), retry_after }
        }
        (Bound::Tokens, Some(retry_after)) => {
            ServerError::RateLimited { reason: format!("the tokens per minute of this {kind}"), retry_after }
        }
        (Bound::Requests, None) => ServerError::Forbidden { reason: format!("this {kind} may make no requests") },
        (Bound::Tokens, None) => ServerError::InvalidParameter {
            param: "max_tokens".into(),
            reason: format!("prompt and reply may have more tokens than this {kind} has in a minute"),
        },
    }
}

fn kind(scope: ScopeId) -> &'static str {
    match scope {
        ScopeId::Account(_) => "account",
        ScopeId::Project(_) => "project",
        ScopeId::ApiKey(_) => "key",
    }
}
