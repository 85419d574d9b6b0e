//! Devices under test, inputs that hurt, and the comparison: bits, never tolerance.

use std::ops::Range;

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_checkpoint::{CheckpointError, DenseTensor, DenseType, RowSource, Tensor};
use bitnet_device_cpu::{CpuDevice, CpuOptions, IsaChoice};
use bitnet_model::TokenId;
use bitnet_model::device::{Device, TableUse};
use bitnet_model::reference::ReferenceDevice;
use bitnet_ternary::{Scales, TernaryMatrix};

/// A table that is not in memory, as far as a device knows.
#[derive(Debug)]
pub(crate) struct Elsewhere(pub(crate) DenseTensor);

impl RowSource for Elsewhere {
    fn n_rows(&self) -> usize {
        self.0.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.0.n_cols()
    }

    fn dtype(&self) -> DenseType {
        self.0.dtype()
    }

    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        self.0.read_rows(rows, bytes)
    }
}

/// Every instruction set that the processor has, with several numbers of threads; no table is kept in memory that is not there.
pub(crate) fn devices(threads: &[usize]) -> Vec<CpuDevice> {
    let mut devices = Vec::new();
    for &n_threads in threads {
        for isa in IsaChoice::NAMED {
            devices.extend(CpuDevice::new(CpuOptions { n_threads: Some(n_threads), isa, resident_table_bytes_max: 0 }));
        }
    }
    assert!(devices.len() >= threads.len(), "scalar always exists");
    devices
}

/// Runs `operation` on the reference and on every device and compares bits.
macro_rules! assert_equal_on_all {
    ($devices:expr, $operation:expr, $($context:tt)+) => {
        let expected = $operation(&mut bitnet_model::reference::ReferenceDevice);
        for device in $devices.iter_mut() {
            let description = bitnet_model::device::Device::describe(device);
            let got = $operation(device);
            $crate::support::assert_bits(&got, &expected, &format!("{description:?}: {}", format!($($context)+)));
        }
    };
}
pub(crate) use assert_equal_on_all;

/// Equal lengths and equal bits, save that any NaN equals any NaN.
pub(crate) fn assert_bits(got: &[f32], expected: &[f32], context: &str) {
    assert_eq!(got.len(), expected.len(), "{context}");
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    if let Some(index) = got.iter().zip(expected).position(differs) {
        panic!("{context}: element {index} is {:?}, expected {:?}", got[index], expected[index]);
    }
}

/// Deterministic noise.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In [−1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 7) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn trits(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| (self.next() % 3) as i8 - 1).collect()
    }
}

/// How values are laid out, from random to the worst for 16-bit lanes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pattern {
    Random,
    AllPlus,
    AllMinus,
    Alternating,
    OneHot(usize),
    Zero,
}

pub(crate) const PATTERNS: [Pattern; 6] =
    [Pattern::Random, Pattern::AllPlus, Pattern::AllMinus, Pattern::Alternating, Pattern::OneHot(5), Pattern::Zero];

impl Pattern {
    /// −1, 0 or 1 at element `index` of a row.
    fn sign(self, index: usize, noise: &mut Noise) -> i8 {
        match self {
            Self::Random => (noise.next() % 3) as i8 - 1,
            Self::AllPlus => 1,
            Self::AllMinus => -1,
            Self::Alternating => [1, -1][index % 2],
            Self::OneHot(lane) => i8::from(index % 61 == lane),
            Self::Zero => 0,
        }
    }

    pub(crate) fn trits(self, n_rows: usize, n_cols: usize, noise: &mut Noise) -> Vec<i8> {
        (0..n_rows * n_cols).map(|i| self.sign(i % n_cols, noise)).collect()
    }

    /// Activations that quantise to ±127 and 0, or to anything if random.
    pub(crate) fn activations(self, n_rows: usize, n_cols: usize, noise: &mut Noise) -> Vec<f32> {
        match self {
            Self::Random => noise.floats(n_rows * n_cols),
            _ => (0..n_rows * n_cols).map(|i| f32::from(self.sign(i % n_cols, noise)) * 127.0).collect(),
        }
    }
}

/// Scales of each granularity; `group` must divide the columns.
pub(crate) fn scales(n_rows: usize, n_cols: usize, group: Option<usize>, noise: &mut Noise) -> Scales {
    match group {
        None => Scales::Row(noise.floats(n_rows)),
        Some(group_size) if group_size == n_cols => Scales::Tensor(noise.float()),
        Some(group_size) => Scales::Group { group_size, scales: noise.floats(n_rows * (n_cols / group_size)) },
    }
}

/// Puts `values[n_rows, width]` on a device.
pub(crate) fn upload<D: Device>(device: &mut D, values: &[f32], width: usize) -> D::Hidden {
    let n_rows = values.len() / width;
    let table = DenseTensor::from_f32(vec![n_rows, width], values).expect("whole rows");
    let table = device.table(Tensor::Dense(table).into(), TableUse::Embedding).expect("memory");
    let mut hidden = device.hidden(n_rows, width).expect("memory");
    let token_ids: Vec<TokenId> = (0..n_rows as u32).map(TokenId).collect();
    device.embed(&table, &token_ids, &mut hidden).expect("embed");
    hidden
}

/// `x · Wᵀ` with `first_column` columns to its left and one to its right, then the same added to a residual.
pub(crate) fn products<D: Device>(
    device: &mut D,
    x: &[f32],
    weights: &TernaryMatrix,
    policy: ActivationPolicy,
    first_column: usize,
) -> Vec<f32> {
    let (k, n, m) = (weights.n_cols(), weights.n_rows(), x.len() / weights.n_cols());
    let linear = device.linear(weights, policy).expect("memory");
    let hidden = upload(device, x, k);
    let mut activations = device.activations(m, k, policy).expect("memory");
    device.norm_quantize(&hidden, &[], &mut activations).expect("norm_quantize");
    let width = first_column + n + 1;
    let mut out = upload(device, &vec![0.25; m * width], width);
    device.bit_linear(&activations, &linear, &mut out, first_column).expect("bit_linear");
    let mut residual = upload(device, &vec![0.5; m * n], n);
    device.bit_linear_add(&activations, &linear, &mut residual).expect("bit_linear_add");
    [device.finish(&out).expect("finish").to_vec(), device.finish(&residual).expect("finish").to_vec()].concat()
}

/// The reference itself, to name it in tests.
pub(crate) fn reference() -> ReferenceDevice {
    ReferenceDevice
}
