//! What loading a tensor yields: dense numbers as stored, or a ternary matrix.

use bitnet_ternary::TernaryMatrix;
use half::{bf16, f16};

/// Element type of a dense tensor in memory. Block-quantised types decode to `F32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl DenseType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A dense tensor, row-major, little-endian, in its stored precision. Invariant: `bytes.len() == Π shape × size_bytes`.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseTensor {
    shape: Vec<usize>,
    dtype: DenseType,
    bytes: Vec<u8>,
}

impl DenseTensor {
    /// Takes little-endian bytes. `None` if their number does not match the shape.
    pub fn from_bytes(shape: Vec<usize>, dtype: DenseType, bytes: Vec<u8>) -> Option<Self> {
        let n_elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        (n_elements.checked_mul(dtype.size_bytes())? == bytes.len()).then_some(Self { shape, dtype, bytes })
    }

    /// Takes f32 values. `None` if their number does not match the shape.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Option<Self> {
        Self::from_bytes(shape, DenseType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DenseType {
        self.dtype
    }

    /// Little-endian elements.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements alone.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Elements `range` as f32 (exact for every [`DenseType`]) into `values`. Panics if the range is outside or of another length.
    pub fn read_f32(&self, range: std::ops::Range<usize>, values: &mut [f32]) {
        assert_eq!(range.len(), values.len(), "read_f32 needs a buffer of the range's length");
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes[range.start * size..range.end * size];
        widen(self.dtype, bytes, values);
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_elements()];
        self.read_f32(0..values.len(), &mut values);
        values
    }
}

/// Little-endian elements as f32, exactly.
pub(crate) fn widen(dtype: DenseType, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        DenseType::F32 => convert(bytes, values, f32::from_le_bytes),
        DenseType::F16 => convert(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DenseType::Bf16 => convert(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
    }
}

fn convert<const SIZE: usize>(bytes: &[u8], values: &mut [f32], number: impl Fn([u8; SIZE]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
        *value = number(*bytes);
    }
}

/// A loaded tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// Numbers in their stored precision.
    Dense(DenseTensor),
    /// Trits with scales.
    Ternary(TernaryMatrix),
}

impl Tensor {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Dense(dense) => dense.shape().to_vec(),
            Self::Ternary(matrix) => vec![matrix.n_rows(), matrix.n_cols()],
        }
    }

    /// Bytes that it takes in memory: two bits a trit and f32 scales, or numbers in their stored precision.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.bytes().len(),
            Self::Ternary(matrix) => matrix.size_bytes(),
        }
    }
}
