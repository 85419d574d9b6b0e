//! Loaded tensors to the bytes of safetensors files. Every encoding here is exact; that the chosen precision holds the numbers is
//! what the first pass established, and is checked again.

use ::safetensors::Dtype;
use bitnet_ternary::layout::hf_u8;
use half::{bf16, f16};

use crate::error::CheckpointError;
use crate::mlx;
use crate::tensor::{DenseTensor, DenseType, Tensor};

/// One stored tensor to be made of one canonical tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Piece {
    /// Dense numbers.
    Dense(DenseType),
    /// trit × scale as dense numbers.
    FakeQuantised(DenseType),
    /// Packed uint8 codes.
    PackedCodes,
    /// The one scale of packed codes.
    PackedScale { scale: f32, dtype: DenseType },
    /// MLX words.
    MlxWords { group_size: usize },
    /// MLX scales.
    MlxScales { group_size: usize, dtype: DenseType },
    /// MLX biases.
    MlxBiases { group_size: usize, dtype: DenseType },
}

impl Piece {
    /// Element type of the stored tensor.
    pub(super) fn dtype(self) -> Dtype {
        let float = match self {
            Self::PackedCodes => return Dtype::U8,
            Self::MlxWords { .. } => return Dtype::U32,
            Self::Dense(dtype) | Self::FakeQuantised(dtype) => dtype,
            Self::PackedScale { dtype, .. } | Self::MlxScales { dtype, .. } | Self::MlxBiases { dtype, .. } => dtype,
        };
        match float {
            DenseType::F32 => Dtype::F32,
            DenseType::F16 => Dtype::F16,
            DenseType::Bf16 => Dtype::BF16,
        }
    }

    /// The bytes of this piece of `tensor`.
    pub(super) fn encode(self, name: &str, tensor: &Tensor) -> Result<Vec<u8>, CheckpointError> {
        match (self, tensor) {
            (Self::Dense(dtype), Tensor::Dense(dense)) => encode_dense(name, dense, dtype),
            (Self::PackedScale { scale, dtype }, Tensor::Ternary(_)) => encode_floats(name, &[scale], dtype),
            (Self::PackedCodes, Tensor::Ternary(matrix)) => {
                hf_u8::pack(matrix).map_err(|source| CheckpointError::Matrix { name: name.to_owned(), source })
            }
            (Self::FakeQuantised(dtype), Tensor::Ternary(matrix)) => {
                let mut values = vec![0.0; matrix.n_cols()];
                let mut bytes = Vec::with_capacity(matrix.n_rows() * matrix.n_cols() * dtype.size_bytes());
                for row in 0..matrix.n_rows() {
                    matrix.dequantise_row(row, &mut values);
                    // A zero under a negative scale would be −0.
                    values.iter_mut().filter(|value| **value == 0.0).for_each(|value| *value = 0.0);
                    bytes.extend(encode_floats(name, &values, dtype)?);
                }
                Ok(bytes)
            }
            (Self::MlxWords { group_size }, Tensor::Ternary(matrix)) => Ok(mlx::groups(name, matrix, group_size)?.words),
            (Self::MlxScales { group_size, dtype }, Tensor::Ternary(matrix)) => {
                encode_floats(name, &mlx::groups(name, matrix, group_size)?.scales, dtype)
            }
            (Self::MlxBiases { group_size, dtype }, Tensor::Ternary(matrix)) => {
                encode_floats(name, &mlx::groups(name, matrix, group_size)?.biases, dtype)
            }
            _ => Err(CheckpointError::tensor(name, "it loads differently than when it was examined: the file has changed")),
        }
    }
}

fn encode_dense(name: &str, dense: &DenseTensor, dtype: DenseType) -> Result<Vec<u8>, CheckpointError> {
    if dense.dtype() == dtype { Ok(dense.bytes().to_vec()) } else { encode_floats(name, &dense.to_f32(), dtype) }
}

/// Whether a precision holds a number exactly.
pub(super) fn holds(dtype: DenseType, value: f32) -> bool {
    let read_back = match dtype {
        DenseType::F32 => value,
        DenseType::F16 => f16::from_f32(value).to_f32(),
        DenseType::Bf16 => bf16::from_f32(value).to_f32(),
    };
    read_back.to_bits() == value.to_bits()
}

fn encode_floats(name: &str, values: &[f32], dtype: DenseType) -> Result<Vec<u8>, CheckpointError> {
    if let Some(value) = values.iter().find(|&&value| !holds(dtype, value)) {
        return Err(CheckpointError::tensor(name, format!("{value:e} is not exact in {dtype:?}: the file has changed")));
    }
    Ok(match dtype {
        DenseType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DenseType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        DenseType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
    })
}
