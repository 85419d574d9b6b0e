//! Groups of flags that several verbs share.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_checkpoint::gguf::{GgufOptions, I2sChoice, I2sLayout};
use bitnet_checkpoint::{GenerationDefaults, OpenOptions};
use bitnet_device_cpu::IsaChoice;
use bitnet_model::device::KvType;
use bitnet_model::sampler::{Sampler, SamplerError, SamplingParams};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use crate::device_choice::DeviceChoice;
use crate::hub::HubOptions;
use crate::model_source::{EMBEDDED, ModelSource};

/// Temperature and nucleus of models whose authors name none.
const DEFAULT_TEMPERATURE: f32 = 0.8;
const DEFAULT_TOP_P: f32 = 0.95;

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArguments {
    /// Print results only: no notes, no progress, no rates
    #[arg(short, long, global = true, display_order = 900)]
    pub(crate) quiet: bool,
    /// Use only what has been downloaded before
    #[arg(long, global = true, display_order = 901, env = "HF_HUB_OFFLINE", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
}

impl GlobalArguments {
    /// Where hub models come from.
    pub(crate) fn hub_options(&self) -> HubOptions {
        HubOptions::from_environment(self.offline)
    }
}

/// Which model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArguments {
    /// Folder, .gguf file, or hf:owner/name[@revision][:file.gguf]; without it, the embedded model
    #[arg(short, long = "model", value_name = "MODEL", env = "BITNET_MODEL", hide_env_values = true)]
    model: Option<String>,
    #[command(flatten)]
    pub(crate) open: OpenArguments,
}

/// What the user knows better than the model's files. Every verb that opens a model has these flags.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct OpenArguments {
    /// What linear layers read; by default as the model's files say, but int8-groups for exact where text is written
    #[arg(long, value_enum, hide_short_help = true)]
    activations: Option<ActivationsArgument>,
    /// Order of the codes in I2_S tensors of GGUF files; by default as the weights show, and where they do not, the published one
    #[arg(long, value_enum, value_name = "ORDER", hide_short_help = true)]
    pub(crate) i2s_layout: Option<I2sArgument>,
}

impl OpenArguments {
    /// The same for the checkpoint.
    pub(crate) fn options(self) -> OpenOptions {
        let i2s_layout = self.i2s_layout.map_or(I2sChoice::Detect, |argument| I2sChoice::Is(argument.into()));
        OpenOptions { activations: self.activations.map(Into::into), gguf: GgufOptions { i2s_layout } }
    }
}

impl OpenArguments {
    /// What linear layers read where text is written: as a flag says, else as the model was trained, except that models whose weights
    /// alone are ternary are fast rather than exact (`docs/decisions/0010`).
    pub(crate) fn policy_to_write(self, stated: ActivationPolicy) -> ActivationPolicy {
        match (self.activations, stated) {
            (Some(argument), _) => argument.into(),
            (None, ActivationPolicy::Unquantised) => ActivationPolicy::Int8PerGroup,
            (None, stated) => stated,
        }
    }
}

/// What linear layers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ActivationsArgument {
    /// Integers of 8 bits with one scale for each token, as BitNet models were trained
    Int8,
    /// Integers of 8 bits with a scale for each 128 numbers of a token: models whose weights alone are ternary, fast and nearly exact
    Int8Groups,
    /// The numbers themselves, as models want whose weights alone are ternary (TriLM, Ternary-Bonsai)
    Exact,
}

impl From<ActivationsArgument> for ActivationPolicy {
    fn from(argument: ActivationsArgument) -> Self {
        match argument {
            ActivationsArgument::Int8 => Self::Int8PerToken,
            ActivationsArgument::Int8Groups => Self::Int8PerGroup,
            ActivationsArgument::Exact => Self::Unquantised,
        }
    }
}

/// Order of I2_S codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum I2sArgument {
    /// The published order
    #[value(name = "blocks-128")]
    Blocks128,
    /// As quantised on ARM
    #[value(name = "blocks-64")]
    Blocks64,
    /// As quantised by x86 builds without ACT_PARALLEL
    #[value(name = "rows-4")]
    Rows4,
}

impl From<I2sArgument> for I2sLayout {
    fn from(argument: I2sArgument) -> Self {
        match argument {
            I2sArgument::Blocks128 => Self::Blocks128,
            I2sArgument::Blocks64 => Self::Blocks64,
            I2sArgument::Rows4 => Self::Rows4,
        }
    }
}

impl ModelArguments {
    /// The model's name on the command line.
    pub(crate) fn name(&self) -> &str {
        self.model.as_deref().unwrap_or(EMBEDDED)
    }

    /// The model meant.
    pub(crate) fn source(&self) -> anyhow::Result<ModelSource> {
        Ok(self.name().parse()?)
    }
}

/// Where a model runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct DeviceArguments {
    /// Threads that compute; by default, one for each processor that may be used
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) choice: DeviceChoiceArguments,
}

/// Which device, and what it may use.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceChoiceArguments {
    /// What computes: auto (a GPU if one works, else the processor), cpu, cuda, cuda:NUMBER (`bitnet devices` lists them), or reference,
    /// the plain code that defines every result. A server and a batch take several, as cuda:0,1: a replica of the model on each
    #[arg(long, default_value_t)]
    pub(crate) device: DeviceChoice,
    /// Instruction set of the processor, to compare; results are the same
    #[arg(long, value_enum, default_value_t, hide_short_help = true)]
    pub(crate) isa: IsaArgument,
    /// How keys and values are cached; by default f32, but f16 on a GPU
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv_cache: Option<KvArgument>,
    /// Where an embedding or head above 64 MiB stays; by default in the file, but in memory where every token needs all of it (sampling
    /// without top-k or min-p, and requests to a server)
    #[arg(long, value_enum, value_name = "PLACE", hide_short_help = true)]
    pub(crate) head: Option<HeadArgument>,
}

impl DeviceArguments {
    /// The same for text that is sampled so.
    pub(crate) fn for_sampling(&self, sampling: &SamplingParams) -> Result<Self, SamplerError> {
        let reads_all = Sampler::new(sampling.clone())?.reach(0).is_none();
        Ok(if reads_all { self.for_any_sampling() } else { self.clone() })
    }

    /// The same where any sampling may be asked for.
    pub(crate) fn for_any_sampling(&self) -> Self {
        let mut arguments = self.clone();
        arguments.choice.head.get_or_insert(HeadArgument::Memory);
        arguments
    }
}

/// Where an embedding or head above 64 MiB stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadArgument {
    /// Faster where all logits are needed
    Memory,
    /// Rows are read when they are needed: a third less memory
    File,
}

/// How keys and values are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvArgument {
    /// As computed
    F32,
    /// Rounded to 16-bit floats: half the memory
    F16,
    /// Rounded to 8-bit integers with a scale for each key and value: a quarter of the memory, coarser
    Int8,
}

impl From<KvArgument> for KvType {
    fn from(argument: KvArgument) -> Self {
        match argument {
            KvArgument::F16 => Self::F16,
            KvArgument::Int8 => Self::Int8,
            KvArgument::F32 => Self::F32,
        }
    }
}

impl DeviceChoiceArguments {
    /// How keys and values are cached on the processor.
    pub(crate) fn kv_type(&self) -> KvType {
        self.kv_cache.map_or(KvType::F32, Into::into)
    }

    /// The same on a GPU, whose tensor cores read halves.
    pub(crate) fn kv_type_on_gpu(&self) -> KvType {
        self.kv_cache.map_or(KvType::F16, Into::into)
    }
}

/// Instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum IsaArgument {
    /// The fastest that the processor has
    #[default]
    Auto,
    /// Portable code
    Scalar,
    /// AVX2
    Avx2,
    /// AVX2 with AVX-VNNI
    AvxVnni,
    /// AVX-512 with VNNI
    #[value(name = "avx512-vnni")]
    Avx512Vnni,
    /// AVX-512 with VNNI and AMX
    Amx,
    /// NEON
    Neon,
    /// NEON with dot products
    NeonDotprod,
    /// NEON with int8 matrix products
    #[value(name = "neon-i8mm")]
    NeonI8mm,
}

impl From<IsaArgument> for IsaChoice {
    fn from(argument: IsaArgument) -> Self {
        match argument {
            IsaArgument::Auto => Self::Auto,
            IsaArgument::Scalar => Self::Scalar,
            IsaArgument::Avx2 => Self::Avx2,
            IsaArgument::AvxVnni => Self::AvxVnni,
            IsaArgument::Avx512Vnni => Self::Avx512Vnni,
            IsaArgument::Amx => Self::Amx,
            IsaArgument::Neon => Self::Neon,
            IsaArgument::NeonDotprod => Self::NeonDotprod,
            IsaArgument::NeonI8mm => Self::NeonI8mm,
        }
    }
}

/// How tokens are drawn. What is not said is as the model's authors recommend. Numbers may look negative, so that one out of range is
/// refused by its parameter's name and not as an unknown flag.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling (by default as the model's authors recommend)")]
pub(crate) struct SamplingArguments {
    /// Always the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Above 1 bolder, below 1 more careful, 0 greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Only the most likely tokens that together have probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Only tokens at least P times as likely as the most likely
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Divides the logits of tokens that occurred; 1 does nothing
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Lowers the logits of tokens that were generated
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Lowers the logits of generated tokens, once for each time
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Same seed, same text; by default, another each time
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl SamplingArguments {
    /// The flags over the model's own defaults.
    pub(crate) fn params(&self, defaults: &GenerationDefaults) -> SamplingParams {
        let asked = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let greedy = self.greedy || (defaults.do_sample == Some(false) && !asked);
        let top_k = self.top_k.or(defaults.top_k).filter(|&top_k| top_k > 0);
        SamplingParams {
            temperature: if greedy { 0.0 } else { self.temperature.or(defaults.temperature).unwrap_or(DEFAULT_TEMPERATURE) },
            top_k: top_k.map(|top_k| top_k as usize),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(DEFAULT_TOP_P),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            // The standard library's own random keys; short, so that a seed that was liked can be typed again.
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0u8) % 1_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        sampling: SamplingArguments,
    }

    fn params(flags: &[&str], defaults: &GenerationDefaults) -> SamplingParams {
        Only::parse_from([&["x"], flags].concat()).sampling.params(defaults)
    }

    #[test]
    fn sampling_flags_go_before_the_models_defaults() {
        let model =
            GenerationDefaults { temperature: Some(0.6), top_p: Some(0.9), top_k: Some(50), do_sample: Some(true), ..Default::default() };
        let model = GenerationDefaults { min_p: Some(0.1), repetition_penalty: Some(1.2), ..model };
        let as_model = params(&["--seed", "7"], &model);
        assert_eq!((as_model.temperature, as_model.top_p, as_model.top_k, as_model.seed), (0.6, 0.9, Some(50), 7));
        assert_eq!((as_model.min_p, as_model.repetition_penalty), (0.1, 1.2));
        let none = params(&["--min-p", "0", "--repetition-penalty", "1"], &model);
        assert_eq!((none.min_p, none.repetition_penalty), (0.0, 1.0));
        let flags = params(&["--temperature", "0.2", "--top-k", "0"], &model);
        assert_eq!((flags.temperature, flags.top_p, flags.top_k), (0.2, 0.9, None));
        assert_eq!(params(&["--greedy"], &model).temperature, 0.0);
        let greedy_model = GenerationDefaults { do_sample: Some(false), ..Default::default() };
        assert_eq!(params(&[], &greedy_model).temperature, 0.0);
        assert_eq!(params(&["--top-p", "0.5"], &greedy_model).temperature, DEFAULT_TEMPERATURE);
        assert_eq!(params(&[], &GenerationDefaults::default()).top_p, DEFAULT_TOP_P);
    }
}
