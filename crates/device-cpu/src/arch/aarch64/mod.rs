//! aarch64: `Neon`, the proof that this processor has NEON and the products that it names, and through it the safe door to kernels
//! that use them.
//!
//! Rows that a compiler vectorises by itself are left to `Scalar`: NEON is the baseline of this target.

mod groups;
mod int8;
mod lanes;
mod matrix;
mod panel;
mod products;
mod roof;
mod rows;
mod vector;

use std::arch::is_aarch64_feature_detected;

use crate::arch::{Scalar, eight, sixteen};
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::lane_tile::LaneTiles;
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::tile::Tiles;

use int8::Product;
use products::{Dot, Matrix, Widening};

/// Exists only on processors with NEON, and with the instructions of its level.
#[derive(Clone, Copy)]
pub(crate) struct Neon {
    level: Level,
}

#[derive(Clone, Copy)]
enum Level {
    Widening,
    Dot(Dot),
    /// With `sdot` for tokens that have no partner.
    Matrix(Dot, Matrix),
}

impl Neon {
    /// Asks for what every NEON processor has.
    pub(crate) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self { level: Level::Widening })
    }

    /// Asks for `sdot`, too.
    pub(crate) fn with_dot() -> Option<Self> {
        Self::new().zip(Dot::new()).map(|(_, dot)| Self { level: Level::Dot(dot) })
    }

    /// Asks for `smmla`, too.
    pub(crate) fn with_matrix() -> Option<Self> {
        Self::new().and(Dot::new()).zip(Matrix::new()).map(|(dot, matrix)| Self { level: Level::Matrix(dot, matrix) })
    }
}

impl Kernels for Neon {
    fn isa(&self) -> &'static str {
        match self.level {
            Level::Widening => "neon",
            Level::Dot(_) => "neon-dotprod",
            Level::Matrix(..) => "neon-i8mm",
        }
    }

    fn base(&self) -> &dyn Kernels {
        &Scalar
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { rows::quantise(row, out) }
    }

    fn quantise_groups(&self, row: &[f32], out: GroupRowMut<'_>) {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { rows::quantise_groups(row, out) }
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        let job = Product { x, weights, store };
        match self.level {
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Widening => unsafe { int8::linear(Widening, job, out, scratch) },
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Dot(dot) => unsafe { int8::linear(dot, job, out, scratch) },
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Matrix(dot, matrix) => unsafe { int8::linear_matrix((dot, matrix), job, out, scratch) },
        }
    }

    fn linear_groups(&self, x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        match self.level {
            Level::Widening => self.base().linear_groups(x, weights, store, out, scratch),
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Dot(dot) | Level::Matrix(dot, _) => unsafe { groups::linear(dot, (x, weights, store), out) },
        }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        eight::linear(*self, (x, weights), store, out, scratch);
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        eight::logits(*self, x, table, out, scratch);
    }

    fn dot_row(&self, x: &[f32], head: &DenseRows<'_>, row: usize, _scratch: &mut Scratch) -> f32 {
        eight::dot_row(*self, x, head, row)
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        sixteen::attention(*self, step, out, scratch);
    }

    fn argmax(&self, values: &[f32]) -> usize {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { rows::argmax(values) }
    }

    fn read_all(&self, bytes: &[u8]) -> i32 {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { roof::read_all(bytes) }
    }

    fn products(&self, n_rounds: usize) -> u64 {
        match self.level {
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Widening => unsafe { roof::products(Widening, n_rounds) },
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Dot(dot) => unsafe { roof::products(dot, n_rounds) },
            // SAFETY: a Neon exists only where NEON was detected.
            Level::Matrix(_, matrix) => unsafe { roof::matrix_products(matrix, n_rounds) },
        }
    }
}
