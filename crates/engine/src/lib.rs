//! Continuous batching: many requests share one model, step by step, and none sees the others.
//!
//! [`EngineCore`] is the pure engine: requests in, one step at a time, events out. [`EngineHandle`] is the same on a thread, for a
//! server; [`ModelPool`] holds several by name. There is no tensor here and no HTTP: below is a `Runner`, above whoever reads a
//! [`TokenStream`].
#![forbid(unsafe_code)]

mod admission;
mod block_pool;
mod choice;
mod constraint;
mod dispatch;
mod engine;
mod error;
mod fair_share;
mod handle;
mod inbox;
pub mod limits;
mod live;
mod logprobs;
mod model_pool;
mod options;
mod prefix_cache;
mod quarantine;
mod replica;
mod request;
mod scheduler;
mod sequence;
mod simulated;
mod speculation;
mod state;
mod stats;
mod step;
mod stream;
mod text_stream;
mod thread;
mod writing;

pub use admission::Output;
pub use engine::{DraftPart, EngineCore, EngineModel, EventSink, StepOutcome};
pub use error::{PoolError, RequestError, StartError, SubmitError};
pub use handle::EngineHandle;
pub use model_pool::ModelPool;
pub use options::{EngineOptions, PrefixCaching, Speculation};
pub use request::{
    Constraint, EndOfSequence, Event, FinishReason, Generate, Priority, Request, RequestEnd, RequestId, Task, TenantSalt, TokenLogprob,
    Usage, UsageSink,
};
pub use simulated::{Fault, SimulatedPace, SimulatedRunner};
pub use speculation::check_draft_vocabulary;
pub use stats::{EngineStats, STEP_BUCKETS_US};
pub use stream::TokenStream;
