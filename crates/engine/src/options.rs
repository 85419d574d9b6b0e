//! How an engine is set up. Defaults suit a machine with few cores; bounds are in `limits`.

use crate::error::StartError;
use crate::limits;

/// Bounds and switches of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences that run at once.
    pub n_running_max: usize,
    /// Most requests that wait; more are refused.
    pub n_waiting_max: usize,
    /// Most tokens of a step, at most what the runner takes. Fewer make prompts delay running texts less, more read prompts faster.
    pub n_step_tokens_max: usize,
    /// Most events in a stream whose reader is behind, before its request pauses.
    pub n_stream_events_max: usize,
    /// Whether the beginnings of prompts are remembered.
    pub prefix_cache: PrefixCaching,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
}

/// Whether keys and values of past sequences are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixCaching {
    Off,
    /// Idle blocks that one tenant may leave behind, in percent of all.
    On {
        tenant_percent: u8,
    },
}

/// How tokens are drafted. Drafts change how fast tokens come, never which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// What followed the last three tokens where they occurred before.
    PromptLookup {
        n_drafts_max: usize,
    },
    /// What a smaller model would write.
    DraftModel {
        n_drafts_max: usize,
    },
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            n_running_max: 64,
            n_waiting_max: 1024,
            n_step_tokens_max: 128,
            n_stream_events_max: 1024,
            prefix_cache: PrefixCaching::On { tenant_percent: 50 },
            speculation: Speculation::Off,
        }
    }
}

impl EngineOptions {
    pub(crate) fn validate(&self) -> Result<(), StartError> {
        let check = |name, got: usize, least: usize, most: usize| {
            let is_valid = (least..=most).contains(&got);
            if is_valid { Ok(()) } else { Err(StartError::Option { name, got, expected: format!("{least}..={most}") }) }
        };
        check("n_running_max", self.n_running_max, 1, limits::N_RUNNING_MAX)?;
        check("n_waiting_max", self.n_waiting_max, 1, limits::N_WAITING_MAX)?;
        check("n_step_tokens_max", self.n_step_tokens_max, 1, usize::MAX)?;
        check("n_stream_events_max", self.n_stream_events_max, 1, limits::N_STREAM_EVENTS_MAX)?;
        if let PrefixCaching::On { tenant_percent } = self.prefix_cache {
            check("tenant_percent", usize::from(tenant_percent), 1, 100)?;
        }
        match self.speculation {
            Speculation::Off => Ok(()),
            Speculation::PromptLookup { n_drafts_max } | Speculation::DraftModel { n_drafts_max } => {
                check("n_drafts_max", n_drafts_max, 1, limits::N_DRAFT_MAX)
            }
        }
    }
}
