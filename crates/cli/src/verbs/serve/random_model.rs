//! Random models of published shapes behind HTTP, so that a server can be measured without a download: speed does not depend on
//! values.

use bitnet_checkpoint::GenerationDefaults;
use bitnet_model::WeightSource;
use bitnet_model::random::{PUBLISHED_SHAPES, RandomWeights, vocabulary};

use crate::arguments::OpenArguments;
use crate::failure::Misuse;
use crate::verbs::serve::models::Opened;

const SEED: u64 = 1;

/// The random model of a shape.
pub(super) fn open(shape: &str, arguments: OpenArguments) -> anyhow::Result<Opened> {
    let Some(weights) = RandomWeights::published(shape, SEED) else {
        return Err(Misuse::new(format!("unknown shape `{shape}`"), format!("shapes are {}", PUBLISHED_SHAPES.join(", "))).into());
    };
    let policy = arguments.policy_to_write(weights.config().activation_policy);
    let weights = weights.with_activation_policy(policy);
    let tokenizer = vocabulary(weights.config().n_vocab as u32)?;
    Ok(Opened { weights: Box::new(weights), tokenizer, template: None, defaults: GenerationDefaults::default() })
}
