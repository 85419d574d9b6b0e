//! Rate cards are changed by new versions only: each begins later than now, so that all who admit requests know of it when it does, and
//! what was rated before stays rated as it was.

use serde_json::json;

use crate::audit::{By, Deed};
use crate::catalog::Meter;
use crate::directory::{check_label, note_change};
use crate::error::PlatformError;
use crate::limits::RATE_CARD_NOTICE;
use crate::money::{Micros, TokenPrice};
use crate::store::Store;
use crate::time::Timestamp;

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database("changing rate cards")
}

/// A version begins in time, and costs nothing or more.
fn check(from: Timestamp, amounts: &[Micros], now: Timestamp) -> Result<(), PlatformError> {
    if from < now.plus(RATE_CARD_NOTICE) {
        let reason = format!("it begins at least {} s from now, so that every server knows of it", RATE_CARD_NOTICE.as_secs());
        return Err(PlatformError::Invalid { field: "from", reason });
    }
    if amounts.iter().any(|amount| *amount < Micros::ZERO) {
        return Err(PlatformError::Invalid { field: "price", reason: "it is negative".into() });
    }
    Ok(())
}

impl Store {
    /// What a class of models costs from a time on. A version that was to begin later gives way.
    pub async fn set_token_price(&self, class: &str, (price, from): (TokenPrice, Timestamp), by: &By) -> Result<(), PlatformError> {
        check_label(class)?;
        check(from, &[price.input_per_million, price.cached_per_million, price.output_per_million], by.at)?;
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM token_price WHERE class = $1 AND valid_from > $2").bind(class.to_string()).bind(by.at.0);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let end = sqlx::query("UPDATE token_price SET valid_until = $1 WHERE class = $2 AND (valid_until IS NULL OR valid_until > $3)");
        let end = end.bind(from.0).bind(class.to_string()).bind(by.at.0);
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query(
            "INSERT INTO token_price (class, valid_from, valid_until, input_per_million, cached_per_million, output_per_million) VALUES ($1, $2, NULL, $3, $4, $5)",
        );
        let insert = insert.bind(class.to_string()).bind(from.0).bind(price.input_per_million.0);
        let insert = insert.bind(price.cached_per_million.0).bind(price.output_per_million.0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        note_change(&mut write, "catalog", class).await?;
        let after = json!({
            "valid_from": from.0,
            "input_per_million_micros": price.input_per_million.0,
            "cached_per_million_micros": price.cached_per_million.0,
            "output_per_million_micros": price.output_per_million.0,
        });
        let deed = Deed { action: "token_price.changed", account: None, target: class.into(), before: serde_json::Value::Null, after };
        self.audit(&mut write, by, deed).await?;
        write.commit("changing rate cards").await
    }

    /// What a plan costs and includes from a time on; its limits stay. A version that was to begin later gives way.
    pub async fn set_plan_price(
        &self,
        plan: &str,
        (monthly_price, included, from): (Micros, Option<u64>, Timestamp),
        by: &By,
    ) -> Result<(), PlatformError> {
        check(from, &[monthly_price], by.at)?;
        let present = self.catalog().await?.named_plan(plan, by.at)?.clone();
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM plan WHERE id = $1 AND valid_from > $2").bind(plan.to_string()).bind(by.at.0);
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        let end = sqlx::query("UPDATE plan SET valid_until = $1 WHERE id = $2 AND (valid_until IS NULL OR valid_until > $3)");
        let end = end.bind(from.0).bind(plan.to_string()).bind(by.at.0);
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        // All but price and quota as the present version has it.
        let insert = sqlx::query(
            "INSERT INTO plan (id, valid_from, valid_until, name, monthly_price, meter, included_operations, requests_per_minute, tokens_per_minute, n_concurrent_max, n_api_keys_max, n_members_max, priority) SELECT id, $1, NULL, name, $2, meter, $3, requests_per_minute, tokens_per_minute, n_concurrent_max, n_api_keys_max, n_members_max, priority FROM plan WHERE id = $4 AND valid_from = $5",
        );
        let included = included.filter(|_| present.meter == Meter::Operations).map(super::as_i64);
        let insert = insert.bind(from.0).bind(monthly_price.0).bind(included).bind(plan.to_string()).bind(present.validity.from.0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        note_change(&mut write, "catalog", plan).await?;
        let before = json!({ "monthly_price_micros": present.monthly_price.0, "included_operations": present.included_operations });
        let after = json!({ "valid_from": from.0, "monthly_price_micros": monthly_price.0, "included_operations": included });
        self.audit(&mut write, by, Deed { action: "plan.changed", account: None, target: plan.into(), before, after }).await?;
        write.commit("changing rate cards").await
    }
}
