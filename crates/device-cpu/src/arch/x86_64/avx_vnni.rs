//! Kernels of processors with AVX-VNNI: `vnni` for int8 products, AVX2 for all else.

use super::vnni::{self, AvxVnni};
use crate::kernels::{Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::tile::Tiles;

impl Kernels for AvxVnni {
    fn isa(&self) -> &'static str {
        "avx-vnni"
    }

    fn base(&self) -> &dyn Kernels {
        self.avx2()
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { linear_int8(*self, (x, weights, store), out, scratch) }
    }

    fn products(&self, n_rounds: usize) -> u64 {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { products(*self, n_rounds) }
    }
}

/// The register tile is 4 rows × 3 tokens.
#[target_feature(enable = "avx2,f16c,avxvnni")]
fn linear_int8(v: AvxVnni, product: (Int8Rows<'_>, &Tiles, Store), out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    vnni::int8::linear::<_, 1, 1, 1, 3>(v, product, out, scratch);
}

#[target_feature(enable = "avx2,f16c,avxvnni")]
fn products(v: AvxVnni, n_rounds: usize) -> u64 {
    vnni::roof::products::<_, 3>(v, n_rounds)
}
