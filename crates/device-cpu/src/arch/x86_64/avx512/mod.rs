//! Kernels of processors with AVX-512 VNNI: `vnni` for int8 products, 512-bit floats for attention and float products, AVX2 for
//! what is not worth 512 bits.

mod attention;
mod float;
mod vector;

use bitnet_checkpoint::config::Activation;

use super::vnni::{self, Avx512Vnni};
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::table::DenseRows;
use crate::tile::Tiles;

impl Kernels for Avx512Vnni {
    fn isa(&self) -> &'static str {
        "avx512-vnni"
    }

    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        self.avx2().norm(row, weight, epsilon);
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        self.avx2().quantise(row, out);
    }

    fn gate(&self, gate_up: &[f32], activation: Activation, out: &mut [f32]) {
        self.avx2().gate(gate_up, activation, out);
    }

    fn rotate(&self, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        self.avx2().rotate(heads, head_dim, cos, sin);
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { linear_int8(*self, (x, weights, store), out, scratch) }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { float::linear(x, weights, store, out, scratch) }
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, _scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { float::logits(x, table, out) }
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { attention::attention(step, out, scratch) }
    }

    fn argmax(&self, values: &[f32]) -> usize {
        self.avx2().argmax(values)
    }

    fn read_all(&self, bytes: &[u8]) -> i32 {
        self.avx2().read_all(bytes)
    }

    fn products(&self, n_rounds: usize) -> u64 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { products(*self, n_rounds) }
    }
}

/// The register tile is 8 rows × 6 tokens.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn linear_int8(v: Avx512Vnni, product: (Int8Rows<'_>, &Tiles, Store), out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    vnni::int8::linear::<_, 2, 2, 6>(v, product, out, scratch);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn products(v: Avx512Vnni, n_rounds: usize) -> u64 {
    vnni::roof::products::<_, 6>(v, n_rounds)
}
