//! How an account is billed and pays: its profile, coupons, its card, paying an invoice now; and what Stripe says of that.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use bitnet_server::ServerError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::billing::{Party, Profile};
use crate::organization::body::{Body, Raw};
use crate::organization::{Administrator, as_server_error, known};
use crate::payment::{Charge, HookError, Payments};
use crate::platform::Platform;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileBody {
    name: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    country: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    tax_id: String,
    #[serde(default)]
    email: String,
}

fn shown(profile: &Profile) -> Json<Value> {
    Json(json!({
        "object": "organization.billing_profile",
        "name": profile.party.name,
        "address": profile.party.address,
        "country": profile.party.country,
        "region": profile.region,
        "tax_id": profile.party.tax_id,
        "email": profile.email,
        "collection": if profile.is_automatic { "automatic" } else { "manual" },
        "net_days": profile.net_days,
    }))
}

/// To whom the account is billed.
pub(super) async fn profile(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    platform.store().billing_profile(by.account).await.map(|profile| shown(&profile)).map_err(as_server_error)
}

/// Says so. Who issues its invoices, how they are collected and when they are due is the operator's to say.
pub(super) async fn set_profile(
    State(platform): State<Platform>,
    by: Administrator,
    Body(body): Body<ProfileBody>,
) -> Result<Json<Value>, ServerError> {
    let before = platform.store().billing_profile(by.account).await.map_err(as_server_error)?;
    let ProfileBody { name, address, country, region, tax_id, email } = body;
    let profile = Profile { party: Party { name, address, country, tax_id }, region, email, ..before };
    platform.store().set_billing_profile(by.account, &profile, &by.acting(&platform)).await.map_err(as_server_error)?;
    Ok(shown(&profile))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CouponBody {
    code: String,
}

/// Redeems a coupon.
pub(super) async fn redeem(
    State(platform): State<Platform>,
    by: Administrator,
    Body(CouponBody { code }): Body<CouponBody>,
) -> Result<Json<Value>, ServerError> {
    platform.store().redeem_coupon(by.account, &code, &by.acting(&platform)).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.coupon", "code": code, "redeemed": true })))
}

fn payments(platform: &Platform) -> Result<&Payments, ServerError> {
    let reason = "this installation takes no cards: invoices are paid as they say".to_string();
    platform.payments().ok_or(ServerError::Forbidden { reason })
}

/// Begins asking for a card: the secret that Stripe's page needs.
pub(super) async fn begin_setup(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    let secret = payments(&platform)?.begin_setup(by.account).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.payment_setup", "client_secret": secret })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MethodBody {
    payment_method: String,
}

/// Pays with a card from now on; what is open is collected at once.
pub(super) async fn set_method(
    State(platform): State<Platform>,
    by: Administrator,
    Body(body): Body<MethodBody>,
) -> Result<Json<Value>, ServerError> {
    let set = payments(&platform)?.set_payment_method(by.account, &body.payment_method, &by.acting(&platform)).await;
    set.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.payment_method", "payment_method": body.payment_method })))
}

/// Pays an invoice now.
pub(super) async fn pay(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Result<Json<Value>, ServerError> {
    let id = known("invoice", &id)?;
    platform.store().invoice(id, Some(by.account)).await.map_err(as_server_error)?;
    let charge = payments(&platform)?.collect(id, &by.acting(&platform)).await.map_err(as_server_error)?;
    let (status, reason) = match charge {
        None => ("paid", String::new()),
        Some(Charge::Succeeded { .. }) => ("paid", String::new()),
        Some(Charge::Processing { .. }) => ("processing", String::new()),
        Some(Charge::TooSmall { reason }) => ("carried", reason),
        Some(Charge::Failed { reason, .. }) => ("failed", reason),
    };
    Ok(Json(json!({ "object": "organization.payment", "invoice": id.to_string(), "status": status, "reason": reason })))
}

/// Hears Stripe. Its signature is all the right that it needs.
pub(super) async fn stripe(State(platform): State<Platform>, headers: HeaderMap, Raw(body): Raw) -> Result<Json<Value>, ServerError> {
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let heard = payments(&platform)?.hear(signature, &body, platform.now()).await.map_err(as_server_error)?;
    let refused = |error: HookError| match error {
        HookError::Malformed => ServerError::MalformedJson { reason: error.to_string() },
        error => ServerError::Forbidden { reason: error.to_string() },
    };
    heard.map_err(refused)?;
    Ok(Json(json!({ "received": true })))
}
