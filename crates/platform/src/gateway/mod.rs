//! The server's admission on the platform: callers are keys of the directory, what a request may cost is reserved in the ledger, and
//! its output is recorded there before it is shown. What HTTP makes of a refusal stays the server's to say.

mod refusal;
mod reservation;

use std::sync::Arc;

use axum::http::HeaderMap;
use bitnet_engine::{Priority, TenantSalt};
use bitnet_server::ServerError;
use bitnet_server::admission::{Admission, BoxFuture, Caller, Ceiling, Operation, Reservation, credential};

use crate::catalog::{PriorityClass, TOKENS_PER_OPERATION};
use crate::directory::{ApiKey, Directory, KeyAccess};
use crate::gateway::reservation::Held;
use crate::ids::AccountId;
use crate::ledger::event::Purpose;
use crate::ledger::service::LedgerService;
use crate::ledger::{Ask, Refusal};
use crate::limits::LEASE;
use crate::service_level::{Ended, Outcomes};
use crate::time::Clock;

/// See the module.
pub struct Gateway {
    directory: Arc<Directory>,
    ledger: Arc<LedgerService>,
    /// Makes the salts that keep cached prefixes of accounts apart.
    tenant_key: [u8; 32],
    outcomes: Outcomes,
    now: Clock,
}

impl Gateway {
    pub(crate) fn new(
        (directory, ledger): (Arc<Directory>, Arc<LedgerService>),
        tenant_key: [u8; 32],
        outcomes: Outcomes,
        now: Clock,
    ) -> Self {
        Self { directory, ledger, tenant_key, outcomes, now }
    }

    fn caller(&self, headers: &HeaderMap, route: &str) -> Result<Caller, ServerError> {
        let now = (self.now)();
        let key = self.directory.find(credential(headers)?, now).ok_or(ServerError::InvalidKey)?;
        allow(&key, route, None)?;
        let plan = self.ledger.ledger().plan_at(key.owner.account, now);
        let has_priority = plan.is_some_and(|plan| plan.priority == PriorityClass::Priority);
        Ok(Caller {
            // Files, batches and kept responses are the project's, whichever of its keys made them.
            name: key.owner.project.to_string(),
            tenant: self.tenant(key.owner.account),
            priority_best: if has_priority { Priority::High } else { Priority::Normal },
            api_key: Some(key.id.to_string().into()),
        })
    }

    fn tenant(&self, account: AccountId) -> TenantSalt {
        TenantSalt(*blake3::keyed_hash(&self.tenant_key, &account.as_u128().to_be_bytes()).as_bytes())
    }

    fn reserve(&self, caller: &Caller, ceiling: Ceiling) -> Result<Box<dyn Reservation>, ServerError> {
        let now = (self.now)();
        // Asked again, since the line of a batch comes long after its caller was authenticated.
        let id = caller.api_key.as_deref().and_then(|id| id.parse().ok()).ok_or(ServerError::InvalidKey)?;
        let key = self.directory.get(id, now).ok_or(ServerError::InvalidKey)?;
        allow(&key, &ceiling.route, Some(&ceiling.model))?;
        let Ceiling { request_id, operation, model, n_prompt_tokens, n_completion_tokens_max, n_items, .. } = ceiling;
        let (n_prompt, n_output_max) = (n_prompt_tokens as u64, n_completion_tokens_max as u64);
        let ask = Ask {
            owner: key.owner,
            request_id: request_id.into(),
            model: model.as_str().into(),
            purpose: purpose(operation),
            n_prompt,
            n_output_max,
            // However the tokens are spread over the items, they cannot count for more.
            n_operations_max: n_items as u64 + (n_prompt + n_output_max) / TOKENS_PER_OPERATION,
            lease: LEASE,
        };
        let account = key.owner.account;
        let admitted = self.ledger.admit(ask, now).map_err(|refusal| {
            if refusal == Refusal::Unavailable {
                self.outcomes.note(account, Ended::Failed, now);
            }
            refusal::as_server_error(refusal, model)
        })?;
        Ok(Box::new(Held::new(self.ledger.clone(), &admitted, (account, self.outcomes.clone()), self.now)))
    }
}

/// Whether a key covers a route, and a model on it.
fn allow(key: &ApiKey, route: &str, model: Option<&str>) -> Result<(), ServerError> {
    if key.access == KeyAccess::Admin {
        let reason = "this is an admin key: it is for /v1/organization, and for no model".into();
        return Err(ServerError::Forbidden { reason });
    }
    if !key.scope.allows_route(route) {
        return Err(ServerError::Forbidden { reason: format!("this key is not for {route}") });
    }
    match model {
        Some(model) if !key.scope.allows(model, route) => {
            Err(ServerError::Forbidden { reason: format!("this key is not for the model `{model}`") })
        }
        _ => Ok(()),
    }
}

fn purpose(operation: Operation) -> Purpose {
    match operation {
        Operation::Chat => Purpose::Chat,
        Operation::Completion => Purpose::Completion,
        Operation::Embedding => Purpose::Embedding,
    }
}

impl Admission for Gateway {
    fn authenticate<'a>(&'a self, headers: &'a HeaderMap, route: &'a str) -> BoxFuture<'a, Result<Caller, ServerError>> {
        Box::pin(std::future::ready(self.caller(headers, route)))
    }

    fn turned_away(&self, caller: &Caller) {
        let now = (self.now)();
        let key = caller.api_key.as_deref().and_then(|id| id.parse().ok()).and_then(|id| self.directory.get(id, now));
        if let Some(key) = key {
            self.outcomes.note(key.owner.account, Ended::Failed, now);
        }
    }

    fn admit<'a>(&'a self, caller: &'a Caller, ceiling: Ceiling) -> BoxFuture<'a, Result<Box<dyn Reservation>, ServerError>> {
        Box::pin(std::future::ready(self.reserve(caller, ceiling)))
    }
}
