//! `Amx`: processors with AMX int8 products (Sapphire Rapids on) beside AVX-512 VNNI. Products of many tokens go through its
//! matrix registers, all else through `Avx512Vnni`.
//!
//! The registers hold 8 KiB that the system saves for each thread that uses them, so Linux grants them on request only
//! (Documentation/arch/x86/xstate.rst); other systems are not asked.

mod int8;
mod tmm;

use super::Avx512Vnni;
use crate::kernels::{Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
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

    fn base(&self) -> &dyn Kernels {
        &self.0
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        if out.n_rows() < int8::TOKENS_MIN || weights.n_groups() > 1 {
            return self.0.linear_int8(x, weights, store, out, scratch);
        }
        // SAFETY: an Amx exists only where the features were detected.
        unsafe { int8::linear(*self, (x, weights, store), out, scratch) }
    }

    fn products(&self, n_rounds: usize) -> u64 {
        tmm::products(*self, n_rounds)
    }
}
