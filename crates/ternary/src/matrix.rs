//! `TernaryMatrix`: the one in-memory form that every file format decodes to and every device packs its own tiles from.
//!
//! Row-major, four 2-bit codes a byte, least significant bits first, each row starting on a byte. It is made for exactness
//! and clarity, not for speed: devices re-tile it (`device-cpu/src/tile.rs`).

use thiserror::Error;

use crate::quantise::ACTIVATION_GROUP;

/// Largest number of columns for which Σ|x·w| of int8 activations stays exact in i32 with room to spare.
pub const K_MAX: usize = 16_000_000;
/// Largest magnitude of a quantised activation. −128 is never produced: negating it in 8 bits gives −128 again.
pub const ACTIVATION_MAX: i8 = 127;

const _: () = assert!(K_MAX * (ACTIVATION_MAX as usize) < i32::MAX as usize);

/// Why codes and scales do not make a matrix.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MatrixError {
    #[error("a ternary matrix of {n_rows} rows and {n_cols} columns is not representable (columns 1..={K_MAX}, rows at least 1)")]
    Shape { n_rows: usize, n_cols: usize },
    #[error("{what}: expected {expected} elements, got {got}")]
    Length { what: &'static str, expected: usize, got: usize },
    #[error("value {value} in row {row}, column {column} is not a trit (-1, 0 or 1)")]
    NotATrit { row: usize, column: usize, value: i8 },
    #[error("row {row} holds the 2-bit code 3 in column {column}, which no ternary weight has")]
    CodeThree { row: usize, column: usize },
    #[error("scale {index} is {value}: a weight scale must be finite")]
    Scale { index: usize, value: f32 },
    #[error("group size {group_size} does not divide {n_cols} columns")]
    GroupSize { group_size: usize, n_cols: usize },
    #[error("matrices of {expected} and {got} columns cannot be stacked")]
    StackColumns { expected: usize, got: usize },
    #[error("nothing to stack")]
    StackEmpty,
}

/// Real weight = trit × scale. Which weights share a scale differs by format.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// One scale for the matrix (BitNet b1.58).
    Tensor(f32),
    /// One scale a row, `[n_rows]` (TriLM; stacked projections).
    Row(Vec<f32>),
    /// One scale for each `group_size` neighbouring columns of a row, `[n_rows, n_cols / group_size]`, row-major.
    Group { group_size: usize, scales: Vec<f32> },
}

/// A weight matrix `[n_rows, n_cols]` = `[out features, in features]` of trits with real scales.
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryMatrix {
    n_rows: usize,
    n_cols: usize,
    codes: Vec<u8>,
    scales: Scales,
}

impl TernaryMatrix {
    /// Bytes of one row of `n_cols` codes.
    pub const fn row_bytes(n_cols: usize) -> usize {
        n_cols.div_ceil(4)
    }

    /// Takes packed rows: `codes` is `[n_rows, row_bytes(n_cols)]`, code = trit + 1, least significant bits first.
    /// Every code is checked (3 is refused); bits past the last column are cleared.
    pub fn from_codes(n_rows: usize, n_cols: usize, mut codes: Vec<u8>, scales: Scales) -> Result<Self, MatrixError> {
        check_shape(n_rows, n_cols)?;
        let row_bytes = Self::row_bytes(n_cols);
        check_length("packed codes", n_rows * row_bytes, codes.len())?;
        check_scales(n_rows, n_cols, &scales)?;
        for (row, packed) in codes.chunks_exact_mut(row_bytes).enumerate() {
            if !n_cols.is_multiple_of(4) {
                packed[row_bytes - 1] &= (1u8 << (2 * (n_cols % 4))) - 1;
            }
            // All bytes first, which is fast; where one is wrong, only then.
            if packed.iter().fold(0, |wrong, &byte| wrong | code_three(byte)) == 0 {
                continue;
            }
            if let Some(byte) = packed.iter().position(|&byte| code_three(byte) != 0) {
                let slot = code_three(packed[byte]).trailing_zeros() as usize / 2;
                return Err(MatrixError::CodeThree { row, column: byte * 4 + slot });
            }
        }
        Ok(Self { n_rows, n_cols, codes, scales })
    }

    /// Packs trits `[n_rows, n_cols]`, row-major, each in {−1, 0, 1}.
    pub fn from_trits(n_rows: usize, n_cols: usize, trits: &[i8], scales: Scales) -> Result<Self, MatrixError> {
        check_shape(n_rows, n_cols)?;
        check_length("trits", n_rows.saturating_mul(n_cols), trits.len())?;
        let mut codes = Vec::with_capacity(n_rows * Self::row_bytes(n_cols));
        for (row, values) in trits.chunks_exact(n_cols).enumerate() {
            // All values first, as in `from_codes`.
            let is_trit = |trit: &i8| (-1..=1).contains(trit);
            if values.iter().fold(true, |all, trit| all & is_trit(trit)) {
                Self::pack_row(values, &mut codes);
            } else if let Some(column) = values.iter().position(|trit| !is_trit(trit)) {
                return Err(MatrixError::NotATrit { row, column, value: values[column] });
            }
        }
        Self::from_codes(n_rows, n_cols, codes, scales)
    }

    /// Appends one row of trits as [`Self::from_codes`] takes it.
    pub fn pack_row(trits: &[i8], codes: &mut Vec<u8>) {
        let (fours, rest) = trits.as_chunks::<4>();
        codes.extend(fours.iter().map(|four| join_codes(u32::from_le_bytes(four.map(|trit| (trit + 1) as u8)))));
        if !rest.is_empty() {
            codes.push(rest.iter().enumerate().fold(0, |byte, (slot, &trit)| byte | (((trit + 1) as u8) << (2 * slot))));
        }
    }

    /// Bytes of codes and scales.
    pub fn size_bytes(&self) -> usize {
        let n_scales = match &self.scales {
            Scales::Tensor(_) => 1,
            Scales::Row(scales) | Scales::Group { scales, .. } => scales.len(),
        };
        self.n_rows * Self::row_bytes(self.n_cols) + n_scales * size_of::<f32>()
    }

    /// Out features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// In features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The scales and which weights share them.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Packed codes of one row, `[row_bytes(n_cols)]`. Panics if `row >= n_rows`.
    pub fn row_codes(&self, row: usize) -> &[u8] {
        let row_bytes = Self::row_bytes(self.n_cols);
        &self.codes[row * row_bytes..(row + 1) * row_bytes]
    }

    /// Packed codes of all rows, `[n_rows, row_bytes(n_cols)]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Unpacks one row into `trits[n_cols]`. Panics if `row >= n_rows` or the buffer has another length.
    pub fn unpack_row(&self, row: usize, trits: &mut [i8]) {
        assert_eq!(trits.len(), self.n_cols, "unpack_row needs a buffer of one row");
        for (chunk, &byte) in trits.chunks_mut(4).zip(self.row_codes(row)) {
            for (slot, trit) in chunk.iter_mut().enumerate() {
                *trit = ((byte >> (2 * slot)) & 3) as i8 - 1;
            }
        }
    }

    /// All trits, `[n_rows, n_cols]`, row-major.
    pub fn to_trits(&self) -> Vec<i8> {
        let mut trits = vec![0; self.n_rows * self.n_cols];
        for (row, chunk) in trits.chunks_exact_mut(self.n_cols).enumerate() {
            self.unpack_row(row, chunk);
        }
        trits
    }

    /// Columns that share a scale: all of them unless grouped.
    pub fn group_size(&self) -> usize {
        match self.scales {
            Scales::Group { group_size, .. } => group_size,
            _ => self.n_cols,
        }
    }

    /// The scale of a weight. Panics out of range.
    pub fn scale_at(&self, row: usize, column: usize) -> f32 {
        assert!(row < self.n_rows && column < self.n_cols, "weight [{row}, {column}] is outside the matrix");
        match &self.scales {
            Scales::Tensor(scale) => *scale,
            Scales::Row(scales) => scales[row],
            Scales::Group { group_size, scales } => scales[row * (self.n_cols / group_size) + column / group_size],
        }
    }

    /// The real weights of one row, trit × scale, into `values[n_cols]`.
    pub fn dequantise_row(&self, row: usize, values: &mut [f32]) {
        assert_eq!(values.len(), self.n_cols, "dequantise_row needs a buffer of one row");
        let group_size = self.group_size();
        let codes = self.row_codes(row);
        for (group, chunk) in values.chunks_mut(group_size).enumerate() {
            let scale = self.scale_at(row, group * group_size);
            for (offset, value) in chunk.iter_mut().enumerate() {
                let column = group * group_size + offset;
                let trit = ((codes[column / 4] >> (2 * (column % 4))) & 3) as i8 - 1;
                *value = f32::from(trit) * scale;
            }
        }
    }

    /// How many weights are zero.
    pub fn n_zeros(&self) -> usize {
        // A zero is code 1: low bit set (code 3 never occurs). Padding bits are cleared and do not count.
        self.codes.iter().map(|byte| (byte & 0x55).count_ones() as usize).sum()
    }

    /// The same matrix with the coarsest scales that say the same: groups that agree become one row or tensor scale, and neighbours
    /// that agree become groups of up to `ACTIVATION_GROUP` (a file whose blocks are shorter than the groups of its model repeats scales).
    pub fn with_coarsest_scales(mut self) -> Self {
        if let Scales::Group { group_size, scales } = &self.scales {
            let groups = self.n_cols / group_size;
            if scales.chunks_exact(groups).all(|row| row.iter().all(|&scale| same_bits(scale, row[0]))) {
                self.scales = Scales::Row(scales.iter().step_by(groups).copied().collect());
            }
        }
        while let Scales::Group { group_size, scales } = &self.scales
            && *group_size < ACTIVATION_GROUP
            && (self.n_cols / group_size).is_multiple_of(2)
            && scales.as_chunks::<2>().0.iter().all(|&[a, b]| same_bits(a, b))
        {
            self.scales = Scales::Group { group_size: 2 * group_size, scales: scales.iter().step_by(2).copied().collect() };
        }
        if let Scales::Row(scales) = &self.scales
            && scales.iter().all(|&scale| same_bits(scale, scales[0]))
        {
            self.scales = Scales::Tensor(scales[0]);
        }
        self
    }

    /// Stacks matrices of equal width on top of each other, as one projection (q, k and v; gate and up).
    /// Tensor scales become row scales; mixed groups are expanded to the finest.
    pub fn stack(parts: &[TernaryMatrix]) -> Result<Self, MatrixError> {
        let first = parts.first().ok_or(MatrixError::StackEmpty)?;
        if let Some(other) = parts.iter().find(|part| part.n_cols != first.n_cols) {
            return Err(MatrixError::StackColumns { expected: first.n_cols, got: other.n_cols });
        }
        let n_rows = parts.iter().map(|part| part.n_rows).sum();
        let group_size = parts.iter().map(Self::group_size).min().unwrap_or(first.n_cols);
        if let Some(coarse) = parts.iter().find(|part| part.group_size() % group_size != 0) {
            return Err(MatrixError::GroupSize { group_size, n_cols: coarse.group_size() });
        }
        let groups = first.n_cols / group_size;
        let mut scales = Vec::with_capacity(n_rows * groups);
        for part in parts {
            for row in 0..part.n_rows {
                scales.extend((0..groups).map(|group| part.scale_at(row, group * group_size)));
            }
        }
        let scales = if groups == 1 { Scales::Row(scales) } else { Scales::Group { group_size, scales } };
        let codes = parts.iter().map(|part| part.codes.as_slice()).collect::<Vec<_>>().concat();
        Ok(Self { n_rows, n_cols: first.n_cols, codes, scales })
    }

    /// The same weights with rows in another order: row `i` of the result is row `order[i]`. Used where a file stores
    /// query and key rows permuted for interleaved rotary embedding. Panics if `order` is not `[n_rows]` or names a missing row.
    pub fn with_row_order(&self, order: &[usize]) -> Self {
        assert_eq!(order.len(), self.n_rows, "a row order must name every row");
        let codes = order.iter().flat_map(|&row| self.row_codes(row).iter().copied()).collect();
        let scales = match &self.scales {
            Scales::Tensor(scale) => Scales::Tensor(*scale),
            Scales::Row(scales) => Scales::Row(order.iter().map(|&row| scales[row]).collect()),
            Scales::Group { group_size, scales } => {
                let groups = self.n_cols / group_size;
                let rows = order.iter().flat_map(|&row| scales[row * groups..(row + 1) * groups].iter().copied());
                Scales::Group { group_size: *group_size, scales: rows.collect() }
            }
        };
        Self { n_rows: self.n_rows, n_cols: self.n_cols, codes, scales }
    }
}

/// The low bit of each code 3 in a byte.
fn code_three(byte: u8) -> u8 {
    byte & (byte >> 1) & 0x55
}

/// Four codes, one in the low bits of each byte, as one byte.
pub(crate) fn join_codes(codes: u32) -> u8 {
    (codes | (codes >> 6) | (codes >> 12) | (codes >> 18)) as u8
}

fn same_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

fn check_shape(n_rows: usize, n_cols: usize) -> Result<(), MatrixError> {
    let fits = n_rows.checked_mul(n_cols).is_some_and(|n| n <= isize::MAX as usize);
    if n_rows == 0 || n_cols == 0 || n_cols > K_MAX || !fits {
        return Err(MatrixError::Shape { n_rows, n_cols });
    }
    Ok(())
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<(), MatrixError> {
    if expected != got {
        return Err(MatrixError::Length { what, expected, got });
    }
    Ok(())
}

fn check_scales(n_rows: usize, n_cols: usize, scales: &Scales) -> Result<(), MatrixError> {
    let values = match scales {
        Scales::Tensor(scale) => std::slice::from_ref(scale),
        Scales::Row(scales) => {
            check_length("row scales", n_rows, scales.len())?;
            scales
        }
        Scales::Group { group_size, scales } => {
            if *group_size == 0 || !n_cols.is_multiple_of(*group_size) {
                return Err(MatrixError::GroupSize { group_size: *group_size, n_cols });
            }
            check_length("group scales", n_rows * (n_cols / group_size), scales.len())?;
            scales
        }
    };
    match values.iter().position(|scale| !scale.is_finite()) {
        Some(index) => Err(MatrixError::Scale { index, value: values[index] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n_rows: usize, n_cols: usize, scales: Scales) -> TernaryMatrix {
        let trits: Vec<i8> = (0..n_rows * n_cols).map(|i| ((i * 7 + i / 5) % 3) as i8 - 1).collect();
        TernaryMatrix::from_trits(n_rows, n_cols, &trits, scales).expect("valid")
    }

    #[test]
    fn trits_packed_and_unpacked_are_the_same() {
        for n_cols in 1..70 {
            let trits: Vec<i8> = (0..3 * n_cols).map(|i| ((i * 5 + i / 3) % 3) as i8 - 1).collect();
            let packed = TernaryMatrix::from_trits(3, n_cols, &trits, Scales::Tensor(1.0)).expect("valid");
            assert_eq!(packed.to_trits(), trits, "n_cols {n_cols}");
            assert_eq!(packed.n_zeros(), trits.iter().filter(|&&trit| trit == 0).count());
        }
    }

    #[test]
    fn code_three_is_refused_with_its_place() {
        let error = TernaryMatrix::from_codes(2, 5, vec![0, 0, 0b0011_0000, 0], Scales::Tensor(1.0)).unwrap_err();
        assert_eq!(error, MatrixError::CodeThree { row: 1, column: 2 });
    }

    #[test]
    fn bad_shapes_lengths_and_scales_are_refused() {
        assert!(matches!(TernaryMatrix::from_trits(0, 4, &[], Scales::Tensor(1.0)), Err(MatrixError::Shape { .. })));
        assert!(matches!(TernaryMatrix::from_trits(usize::MAX, 2, &[], Scales::Tensor(1.0)), Err(MatrixError::Shape { .. })));
        assert!(matches!(TernaryMatrix::from_trits(1, 2, &[2, 0], Scales::Tensor(1.0)), Err(MatrixError::NotATrit { column: 0, .. })));
        assert!(matches!(TernaryMatrix::from_trits(1, 2, &[1, 0], Scales::Tensor(f32::NAN)), Err(MatrixError::Scale { .. })));
        assert!(matches!(TernaryMatrix::from_trits(1, 2, &[1, 0], Scales::Row(vec![])), Err(MatrixError::Length { .. })));
        let group = Scales::Group { group_size: 3, scales: vec![1.0] };
        assert!(matches!(TernaryMatrix::from_trits(1, 4, &[1, 0, 0, 0], group), Err(MatrixError::GroupSize { .. })));
    }

    #[test]
    fn stack_keeps_every_weight_and_scale() {
        let a = matrix(2, 8, Scales::Tensor(0.5));
        let b = matrix(1, 8, Scales::Row(vec![0.25]));
        let c = matrix(1, 8, Scales::Group { group_size: 4, scales: vec![2.0, 3.0] });
        let stacked = TernaryMatrix::stack(&[a.clone(), b.clone(), c.clone()]).expect("same width");
        let mut got = vec![0.0; 8];
        let mut expected = vec![0.0; 8];
        for (row, (part, part_row)) in [(&a, 0), (&a, 1), (&b, 0), (&c, 0)].into_iter().enumerate() {
            stacked.dequantise_row(row, &mut got);
            part.dequantise_row(part_row, &mut expected);
            assert_eq!(got, expected, "row {row}");
        }
        assert_eq!(TernaryMatrix::stack(&[]), Err(MatrixError::StackEmpty));
        let narrow = matrix(1, 4, Scales::Tensor(1.0));
        assert!(matches!(TernaryMatrix::stack(&[a, narrow]), Err(MatrixError::StackColumns { .. })));
    }

    #[test]
    fn equal_group_scales_become_coarser() {
        let same = matrix(2, 8, Scales::Group { group_size: 4, scales: vec![0.5; 4] });
        assert_eq!(same.with_coarsest_scales().scales(), &Scales::Tensor(0.5));
        let rows = matrix(2, 8, Scales::Group { group_size: 4, scales: vec![0.5, 0.5, 2.0, 2.0] });
        assert_eq!(rows.with_coarsest_scales().scales(), &Scales::Row(vec![0.5, 2.0]));
        let groups = matrix(1, 8, Scales::Group { group_size: 4, scales: vec![0.5, 2.0] });
        assert_eq!(groups.clone().with_coarsest_scales(), groups);
        let scales = |group_size, scales| matrix(1, 512, Scales::Group { group_size, scales }).with_coarsest_scales().scales().clone();
        let merged = Scales::Group { group_size: 128, scales: vec![1.0, 2.0, 2.0, 1.0] };
        assert_eq!(scales(64, vec![1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]), merged);
        assert_eq!(scales(128, vec![1.0, 1.0, 2.0, 2.0]), Scales::Group { group_size: 128, scales: vec![1.0, 1.0, 2.0, 2.0] });
        assert_eq!(scales(256, vec![1.0, 2.0]), Scales::Group { group_size: 256, scales: vec![1.0, 2.0] });
    }

    #[test]
    fn row_order_moves_codes_and_scales_together() {
        let rows = matrix(3, 5, Scales::Row(vec![1.0, 2.0, 3.0]));
        let moved = rows.with_row_order(&[2, 0, 1]);
        assert_eq!(moved.row_codes(0), rows.row_codes(2));
        assert_eq!(moved.scales(), &Scales::Row(vec![3.0, 1.0, 2.0]));
    }
}
