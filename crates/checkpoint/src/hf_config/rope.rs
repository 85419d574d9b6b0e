//! Rotary embedding keys: `rope_theta` and `rope_scaling` as transformers 4 writes them, `rope_parameters` as transformers 5 does.
//! A file may hold both; then they must say the same.
//!
//! Types default, linear, llama3 and yarn. Dynamic, longrope and mscale variants of yarn are refused by name.
//! Source: huggingface/transformers:src/transformers/modeling_rope_utils.py; YaRN: arXiv 2309.00071.

use super::unsupported;
use crate::config::{Rope, RopeScaling};
use crate::error::CheckpointError;
use crate::json::{Fields, shown};

/// YaRN's ramp where a file leaves it out: both the paper and transformers have 32 and 1.
const YARN_BETA_FAST: f64 = 32.0;
const YARN_BETA_SLOW: f64 = 1.0;

pub(super) fn read(fields: &Fields) -> Result<Rope, CheckpointError> {
    let parameters = fields.object("rope_parameters")?;
    let scaling = fields.object("rope_scaling")?;
    let inner_theta = parameters.as_ref().map(|parameters| parameters.number("rope_theta")).transpose()?.flatten();
    let theta = match (fields.number("rope_theta")?, inner_theta) {
        (Some(outer), Some(inner)) if outer != inner => {
            return Err(CheckpointError::config("rope_theta", format!("{outer}, but rope_parameters.rope_theta is {inner}")));
        }
        (outer, inner) => fields.required("rope_theta", outer.or(inner))?,
    };
    let new = parameters.as_ref().map(read_scaling).transpose()?;
    let old = scaling.as_ref().map(read_scaling).transpose()?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(CheckpointError::config("rope_scaling", "contradicts rope_parameters; only one of them can be what was trained"))
        }
        (new, old) => Ok(Rope { theta, scaling: new.or(old).unwrap_or(RopeScaling::None) }),
    }
}

fn read_scaling(fields: &Fields) -> Result<RopeScaling, CheckpointError> {
    if fields.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(unsupported("partial_rotary_factor", "rotary embedding turns whole heads"));
    }
    let rope_type = match (fields.text("rope_type")?, fields.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(CheckpointError::config(fields.name("rope_type"), format!("{}, but `type` is {}", shown(new), shown(old))));
        }
        (new, old) => new.or(old),
    };
    match rope_type {
        None if fields.value("factor").is_none() => Ok(RopeScaling::None),
        None => fields.required("rope_type", None),
        Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number(fields, "factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number(fields, "factor")?,
            low_freq_factor: number(fields, "low_freq_factor")?,
            high_freq_factor: number(fields, "high_freq_factor")?,
            original_context: original_context(fields)?,
        }),
        Some("yarn") => read_yarn(fields),
        Some(other) => Err(unsupported(format!("rope type {}", shown(other)), "default, linear, llama3 and yarn are computed")),
    }
}

fn read_yarn(fields: &Fields) -> Result<RopeScaling, CheckpointError> {
    for key in ["mscale", "mscale_all_dim"] {
        if fields.number(key)?.is_some() {
            return Err(unsupported(fields.name(key), "the variant of yarn with mscale is not computed"));
        }
    }
    if fields.flag("truncate")? == Some(false) {
        return Err(unsupported(fields.name("truncate"), "yarn's ramp begins and ends at whole dimensions"));
    }
    let factor = number(fields, "factor")?;
    if factor <= 0.0 {
        return Err(CheckpointError::config(fields.name("factor"), format!("{factor} is not positive")));
    }
    Ok(RopeScaling::Yarn {
        factor,
        original_context: original_context(fields)?,
        beta_fast: fields.number("beta_fast")?.unwrap_or(YARN_BETA_FAST),
        beta_slow: fields.number("beta_slow")?.unwrap_or(YARN_BETA_SLOW),
        attention_factor: fields.number("attention_factor")?.unwrap_or_else(|| default_attention_factor(factor)),
    })
}

/// 0.1·ln(factor) + 1, and 1 where nothing is stretched.
fn default_attention_factor(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

fn number(fields: &Fields, key: &str) -> Result<f64, CheckpointError> {
    fields.required(key, fields.number(key)?)
}

/// Readers disagree on what an absent original context means (the model's, or the model's divided by the factor), so it is required.
fn original_context(fields: &Fields) -> Result<usize, CheckpointError> {
    let key = "original_max_position_embeddings";
    fields.required(key, fields.count(key)?)
}
