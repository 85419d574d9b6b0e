//! Which of the three I2_S orders a file uses, from evidence in its weights.
//!
//! What decoding alone cannot tell: all three orders hold the same codes 0, 1, 2 in the same number of bytes, so code 3 never
//! appears under a wrong order, and the scale lies in the same place. A wrong order is a permutation of the matrix: of columns
//! within 128 (`Blocks64` read as `Blocks128`), or of four rows with each other (`Rows4`). No statistic of one matrix on its own
//! can see a permutation of its columns.
//!
//! What two matrices together can tell: the rows of the gate and up projections feed the columns of the down projection, feature
//! by feature. In a trained model a feature that is mostly zeros on one side tends to be so on the other, so the share of zeros by
//! row of the one correlates with the share of zeros by column of the other, and only the right order lines the two up. On a
//! trained 42 M model the right order stands 13 to 48 standard errors above chance in every layer sampled, most in the middle; a
//! wrong one at most a third of that. [`detect`] leaves the published order only when another one is far ahead. Untrained
//! weights, or features that are all alike, give no evidence: then the answer is the published order and says so. The caller can
//! always override it. (Value and output projections were tried too: their correlation changes sign from model to model.)
//!
//! Threads that report files and builds of each order: microsoft/BitNet#585, #598, #600.

use super::LayoutError;
use super::i2_s::{self, I2sLayout};

/// How many standard errors another order's correlation must lead the published one by to be believed. The chance of such a
/// lead without a cause is below 1e-15 a pair; measured leads of the right order on trained weights are far larger.
pub const LEAD_MIN: f64 = 8.0;

/// A packed I2_S tensor and its shape.
#[derive(Debug, Clone, Copy)]
pub struct PackedMatrix<'a> {
    /// Codes and tail, `[n_rows · n_cols / 4 + 32]`.
    pub bytes: &'a [u8],
    /// Out features.
    pub n_rows: usize,
    /// In features.
    pub n_cols: usize,
}

/// Two projections of which row f of the producer feeds column f of the consumer.
#[derive(Debug, Clone, Copy)]
pub struct FeaturePair<'a> {
    /// Gate or up, `[ffn, hidden]`.
    pub producer: PackedMatrix<'a>,
    /// Down, `[hidden, ffn]`.
    pub consumer: PackedMatrix<'a>,
}

/// What the weights say.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The order to decode with.
    pub layout: I2sLayout,
    /// Correlation of the pairs' zero shares under each order of [`I2sLayout::ALL`], in standard errors (0 = chance);
    /// `None` where an order cannot hold these shapes.
    pub evidence: [Option<f64>; 3],
    /// Whether the evidence decided; if not, `layout` is the published order by default.
    pub decided: bool,
}

/// Weighs the evidence of `pairs` (several add up; none is no evidence). Errors: bytes that are not I2_S of the given shapes.
pub fn detect(pairs: &[FeaturePair<'_>]) -> Result<Detection, LayoutError> {
    let mut evidence = [None; 3];
    for (slot, layout) in evidence.iter_mut().zip(I2sLayout::ALL) {
        *slot = standard_errors(layout, pairs)?;
    }
    let strength = |index: usize| evidence[index].unwrap_or(f64::NEG_INFINITY);
    let best = (0..3).max_by(|&a, &b| strength(a).total_cmp(&strength(b))).unwrap_or(0);
    let second = (0..3).filter(|&index| index != best).map(strength).fold(0.0, f64::max);
    let decided = strength(best) - second >= LEAD_MIN;
    // An order that cannot hold the shapes is out, however little evidence there is for the others.
    let published_is_out = evidence[0].is_none() && evidence[best].is_some();
    let layout = if decided || published_is_out { I2sLayout::ALL[best] } else { I2sLayout::Blocks128 };
    Ok(Detection { layout, evidence, decided })
}

/// Sum over pairs of Fisher's z of the correlation, over its standard deviation. `None` if the order cannot hold a shape.
fn standard_errors(layout: I2sLayout, pairs: &[FeaturePair<'_>]) -> Result<Option<f64>, LayoutError> {
    let (mut sum, mut n_pairs) = (0.0, 0usize);
    for pair in pairs {
        let fits = |matrix: &PackedMatrix<'_>| layout.check_shape(matrix.n_rows, matrix.n_cols).is_ok();
        if !fits(&pair.producer) || !fits(&pair.consumer) {
            return Ok(None);
        }
        let by_row = zeros_by_row(layout, &pair.producer)?;
        let by_column = zeros_by_column(layout, &pair.consumer)?;
        let producer: Vec<f64> = by_row.iter().map(|&n| f64::from(n)).collect();
        let consumer: Vec<f64> = by_column.iter().map(|&n| f64::from(n)).collect();
        if producer.len() != consumer.len() || producer.len() < 8 {
            continue;
        }
        let correlation = correlation(&producer, &consumer).clamp(-0.999_999, 0.999_999);
        sum += correlation.atanh() * ((producer.len() - 3) as f64).sqrt();
        n_pairs += 1;
    }
    Ok((n_pairs > 0).then(|| sum / (n_pairs as f64).sqrt()))
}

fn zeros_by_row(layout: I2sLayout, matrix: &PackedMatrix<'_>) -> Result<Vec<u32>, LayoutError> {
    let mut trits = vec![0; matrix.n_rows * matrix.n_cols];
    i2_s::unpack(layout, matrix.bytes, matrix.n_cols, &mut trits)?;
    Ok(trits.chunks_exact(matrix.n_cols).map(|row| row.iter().map(|&trit| u32::from(trit == 0)).sum()).collect())
}

fn zeros_by_column(layout: I2sLayout, matrix: &PackedMatrix<'_>) -> Result<Vec<u32>, LayoutError> {
    let mut trits = vec![0; matrix.n_rows * matrix.n_cols];
    i2_s::unpack(layout, matrix.bytes, matrix.n_cols, &mut trits)?;
    let mut zeros = vec![0; matrix.n_cols];
    for row in trits.chunks_exact(matrix.n_cols) {
        for (count, &trit) in zeros.iter_mut().zip(row) {
            *count += u32::from(trit == 0);
        }
    }
    Ok(zeros)
}

/// Pearson's r; 0 where one side does not vary.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        ab += (x - mean_a) * (y - mean_b);
        aa += (x - mean_a).powi(2);
        bb += (y - mean_b).powi(2);
    }
    if aa == 0.0 || bb == 0.0 { 0.0 } else { ab / (aa * bb).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trits of which each row (or column) has its own share of zeros.
    fn trits(n_rows: usize, n_cols: usize, zero_share: impl Fn(usize, usize) -> f64, mut state: u64) -> Vec<i8> {
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        (0..n_rows * n_cols)
            .map(|i| match uniform() {
                u if u < zero_share(i / n_cols, i % n_cols) => 0,
                _ => (uniform() < 0.5) as i8 * 2 - 1,
            })
            .collect()
    }

    fn packed(layout: I2sLayout, n_cols: usize, trits: &[i8]) -> Vec<u8> {
        let mut bytes = vec![0; trits.len() / 4 + i2_s::TAIL_BYTES];
        i2_s::pack(layout, trits, n_cols, 1.0, &mut bytes).expect("packs");
        bytes
    }

    fn detect_pair(layout: I2sLayout, share: impl Fn(usize) -> f64 + Copy) -> Detection {
        let (hidden, ffn) = (256, 512);
        let gate = packed(layout, hidden, &trits(ffn, hidden, |row, _| share(row), 1));
        let down = packed(layout, ffn, &trits(hidden, ffn, |_, column| share(column), 2));
        let pair = FeaturePair {
            producer: PackedMatrix { bytes: &gate, n_rows: ffn, n_cols: hidden },
            consumer: PackedMatrix { bytes: &down, n_rows: hidden, n_cols: ffn },
        };
        detect(&[pair]).expect("valid bytes")
    }

    #[test]
    fn detect_with_features_that_differ_finds_every_layout() {
        let share = |feature: usize| 0.25 + 0.3 * ((feature.wrapping_mul(0x9E37_79B9) >> 9) % 97) as f64 / 97.0;
        for layout in I2sLayout::ALL {
            let detection = detect_pair(layout, share);
            assert_eq!((detection.layout, detection.decided), (layout, true), "{detection:?}");
        }
    }

    #[test]
    fn detect_without_evidence_says_so_and_keeps_the_published_layout() {
        for layout in I2sLayout::ALL {
            let detection = detect_pair(layout, |_| 0.4);
            assert_eq!((detection.layout, detection.decided), (I2sLayout::Blocks128, false), "{detection:?}");
        }
        assert_eq!(detect(&[]), Ok(Detection { layout: I2sLayout::Blocks128, evidence: [None; 3], decided: false }));
    }

    #[test]
    fn detect_of_shapes_that_only_one_layout_holds_takes_that_one() {
        // 64 · 33 weights are no multiple of 128, and 33 rows are no whole groups of four.
        let bytes = packed(I2sLayout::Blocks64, 33, &trits(64, 33, |_, _| 0.3, 5));
        let producer = PackedMatrix { bytes: &bytes, n_rows: 64, n_cols: 33 };
        let consumer = PackedMatrix { bytes: &bytes, n_rows: 33, n_cols: 64 };
        let pair = FeaturePair { producer, consumer };
        assert_eq!(detect(&[pair]).expect("valid").layout, I2sLayout::Blocks64);
    }
}
