//! How the last months kept what the account's plan promises.

use axum::Json;
use axum::extract::State;
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::organization::{Administrator, as_server_error};
use crate::platform::Platform;

/// Months told of, the present one among them.
const N_MONTHS: u16 = 3;

/// The last months, the present one first.
pub(super) async fn months(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    let present = platform.now().period();
    let mut months = Vec::new();
    for ago in 0..N_MONTHS {
        let period = present.minus_months(ago);
        let level = platform.store().service_level(by.account, period).await.map_err(as_server_error)?;
        let objective = level.objective.as_ref().map(|objective| {
            json!({
                "plan": objective.plan,
                "availability_ppm": objective.availability,
                "in_time_ppm": objective.latency_part,
                "first_token_ms": objective.latency_ms_max,
            })
        });
        months.push(json!({
            "object": "organization.service_level",
            "period": period.to_string(),
            "n_served": level.n_served,
            "n_failed": level.n_failed,
            "availability_ppm": level.availability(),
            "in_time_ppm": level.in_time(),
            "objective": objective,
            "credit_ppm_of_fee": level.credit_part(),
        }));
    }
    Ok(Json(json!({ "object": "list", "data": months })))
}
