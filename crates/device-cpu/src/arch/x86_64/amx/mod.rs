//! `Amx`: processors with AMX int8 products (Sapphire Rapids on) beside AVX-512 VNNI. Products of many tokens go through its
//! matrix registers, all else through `Avx512Vnni`.
//!
//! The registers hold 8 KiB that the system saves for each thread that uses them, so Linux grants them on request only
//! (Documentation/arch/x86/xstate.rst); other systems are not asked.

mod int8;
mod tmm;

use bitnet_checkpoint::config::Activation;

use super::Avx512Vnni;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::table::DenseRows;
use crate::tile::Tiles;

/// Exists only on processors with AMX-INT8 and what `Avx512Vnni` needs, once the system has granted the registers to the process.
#[derive(Clone, Copy)]
pub(crate) struct Amx(Avx512Vnni);

impl Amx {
    /// Asks the processor, then the system.
    pub(crate) fn new() -> Option<Self> {
        let avx512 = Avx512Vnni::new()?;
        (processor_has_tiles() && system_grants_tiles()).then_some(Self(avx512))
    }
}

/// Whether CPUID names AMX-TILE and AMX-INT8 (leaf 7, EDX bits 24 and 25).
fn processor_has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    std::arch::x86_64::__cpuid(0).eax >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Asks for the registers' state for all threads of this process; asking again is harmless.
#[cfg(target_os = "linux")]
fn system_grants_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call reads its two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn system_grants_tiles() -> bool {
    false
}

impl Kernels for Amx {
    fn isa(&self) -> &'static str {
        "amx"
    }

    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        self.0.norm(row, weight, epsilon);
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        self.0.quantise(row, out);
    }

    fn gate(&self, gate_up: &[f32], activation: Activation, out: &mut [f32]) {
        self.0.gate(gate_up, activation, out);
    }

    fn rotate(&self, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        self.0.rotate(heads, head_dim, cos, sin);
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        if out.n_rows() < int8::TOKENS_MIN || weights.n_groups() > 1 {
            return self.0.linear_int8(x, weights, store, out, scratch);
        }
        // SAFETY: an Amx exists only where the features were detected.
        unsafe { int8::linear(*self, (x, weights, store), out, scratch) }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.0.linear_f32(x, weights, store, out, scratch);
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.0.logits(x, table, out, scratch);
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.0.attention(step, out, scratch);
    }

    fn argmax(&self, values: &[f32]) -> usize {
        self.0.argmax(values)
    }

    fn read_all(&self, bytes: &[u8]) -> i32 {
        self.0.read_all(bytes)
    }

    fn products(&self, n_rounds: usize) -> u64 {
        tmm::products(*self, n_rounds)
    }
}
