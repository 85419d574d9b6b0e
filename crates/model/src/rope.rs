//! Rotary position embedding: frequencies of a model (with linear, Llama 3 or YaRN stretching) and the angles of a step.
//!
//! Frequencies and angles are computed in f32 as `transformers` does, so that long positions round alike; sines and cosines
//! come from the pure-Rust `libm` in f64, so that every machine gets the same bits. Sources: RoFormer (arXiv 2104.09864),
//! YaRN (arXiv 2309.00071 §3), huggingface/transformers:src/transformers/modeling_rope_utils.py.

use bitnet_checkpoint::config::{Rope, RopeScaling};

/// Rotary frequencies of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// Radians per position, `[head_dim / 2]`.
    frequencies: Vec<f32>,
    /// Multiplies cos and sin (1 unless YaRN).
    amplitude: f32,
}

/// cos and sin for the tokens of a step, each `[n_tokens, head_dim / 2]`. Angles of positions that were asked for before are kept: they
/// cost more than all else that is done for a token of a long prompt on the host.
#[derive(Debug, Clone, Default)]
pub struct RopeRows {
    cos: Vec<f32>,
    sin: Vec<f32>,
    width: usize,
    /// The table that `known` is of.
    table: Option<RopeTable>,
    /// cos and sin of every [`KNOWN_POSITIONS`] neighbouring positions, `[KNOWN_POSITIONS, head_dim / 2]` each, where one was asked for.
    known: Vec<Option<[Vec<f32>; 2]>>,
}

/// Positions whose angles are computed together.
const KNOWN_POSITIONS: usize = 64;

impl RopeRows {
    /// cos and sin of one token, each `[head_dim / 2]`.
    pub fn token(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.width..(token + 1) * self.width;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// All rows, `[n_tokens, head_dim / 2]`: cos, then sin.
    pub fn all(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
}

impl RopeTable {
    /// Frequencies for heads of `head_dim` (even, checked by `ModelConfig::validate`).
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let base: Vec<f32> = (0..head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / head_dim as f32;
                1.0 / libm::pow(rope.theta, f64::from(exponent)) as f32
            })
            .collect();
        let (frequencies, amplitude) = match rope.scaling {
            RopeScaling::None => (base, 1.0),
            RopeScaling::Linear { factor } => (base.iter().map(|frequency| frequency / factor as f32).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let stretch = Llama3 { factor, low_freq_factor, high_freq_factor, original_context: original_context as f64 };
                (base.iter().map(|&frequency| stretch.apply(f64::from(frequency)) as f32).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                let dim = head_dim as f64;
                let pair_of = |rotations: f64| {
                    let wavelength = original_context as f64 / (rotations * std::f64::consts::TAU);
                    dim * libm::log(wavelength) / (2.0 * libm::log(rope.theta))
                };
                let low = pair_of(beta_fast).floor().max(0.0);
                let high = pair_of(beta_slow).ceil().min(dim - 1.0);
                (yarn(&base, factor, low, high), attention_factor as f32)
            }
        };
        Self { frequencies, amplitude }
    }

    /// Angles of `positions`, into reused buffers.
    pub fn fill(&self, positions: &[usize], rows: &mut RopeRows) {
        if rows.table.as_ref() != Some(self) {
            *rows = RopeRows { width: self.frequencies.len(), table: Some(self.clone()), ..RopeRows::default() };
        }
        rows.cos.clear();
        rows.sin.clear();
        for &position in positions {
            let (group, place) = (position / KNOWN_POSITIONS, position % KNOWN_POSITIONS * rows.width);
            if rows.known.len() <= group {
                rows.known.resize(group + 1, None);
            }
            let [cos, sin] = rows.known[group].get_or_insert_with(|| self.angles(group * KNOWN_POSITIONS));
            rows.cos.extend_from_slice(&cos[place..place + rows.width]);
            rows.sin.extend_from_slice(&sin[place..place + rows.width]);
        }
    }

    /// cos and sin of [`KNOWN_POSITIONS`] positions from `first`.
    fn angles(&self, first: usize) -> [Vec<f32>; 2] {
        let [mut cos, mut sin] = [(); 2].map(|()| Vec::with_capacity(KNOWN_POSITIONS * self.frequencies.len()));
        for position in first..first + KNOWN_POSITIONS {
            for &frequency in &self.frequencies {
                let angle = libm::sincos(f64::from(position as f32 * frequency));
                cos.push(angle.1 as f32 * self.amplitude);
                sin.push(angle.0 as f32 * self.amplitude);
            }
        }
        [cos, sin]
    }
}

struct Llama3 {
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_context: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < self.original_context / self.high_freq_factor {
            return frequency;
        }
        if wavelength > self.original_context / self.low_freq_factor {
            return frequency / self.factor;
        }
        let ramp = self.original_context / wavelength - self.low_freq_factor;
        let smooth = ramp / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// Pairs below `low` keep their frequency, pairs above `high` are divided by `factor`, a linear ramp between.
fn yarn(base: &[f32], factor: f64, low: f64, high: f64) -> Vec<f32> {
    let width = if high > low { high - low } else { 0.001 };
    base.iter()
        .enumerate()
        .map(|(pair, &frequency)| {
            let interpolated = ((pair as f64 - low) / width).clamp(0.0, 1.0);
            let frequency = f64::from(frequency);
            (frequency / factor * interpolated + frequency * (1.0 - interpolated)) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling) -> Vec<f32> {
        RopeTable::new(&Rope { theta: 10_000.0, scaling }, 128).frequencies
    }

    #[test]
    fn position_zero_does_not_turn_and_pair_zero_turns_one_radian() {
        let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, 8);
        let mut rows = RopeRows::default();
        table.fill(&[0, 1], &mut rows);
        assert_eq!(rows.token(0), (&[1.0f32; 4][..], &[0.0f32; 4][..]));
        assert_eq!(rows.token(1).0[0], 1.0f64.cos() as f32);
        assert!((rows.token(1).1[1] - 0.1f32.sin()).abs() < 1e-7, "second of four pairs turns by 10000^(-1/4)");
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = frequencies(RopeScaling::None);
        let scaled = frequencies(RopeScaling::Linear { factor: 4.0 });
        assert!(plain.iter().zip(&scaled).all(|(a, b)| a / 4.0 == *b));
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let plain = frequencies(RopeScaling::None);
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let scaled = frequencies(scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / 8.0 - scaled[63]).abs() <= plain[63] * 1e-6);
        assert!(plain.iter().zip(&scaled).all(|(a, b)| b <= a && *b >= a / 8.001));
    }

    #[test]
    fn yarn_scaling_ramps_between_its_bounds() {
        let plain = frequencies(RopeScaling::None);
        let scaling = RopeScaling::Yarn { factor: 4.0, original_context: 8192, beta_fast: 32.0, beta_slow: 1.0, attention_factor: 1.1386 };
        let scaled = frequencies(scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / 4.0 - scaled[63]).abs() <= plain[63] * 1e-6);
        let mut rows = RopeRows::default();
        RopeTable::new(&Rope { theta: 10_000.0, scaling }, 128).fill(&[0], &mut rows);
        assert_eq!(rows.token(0).0[0], 1.1386);
    }
}
