//! Options of the device and the instruction set they lead to, detected once and held as a value that proves it.
//!
//! `target-cpu=native` is never used: a shipped binary must be fast on machines it was not built on. The idea of a proof value
//! is BurntSushi/memchr's (`src/arch/x86_64/avx2/memchr.rs`, `One::new`).

#[cfg(target_arch = "aarch64")]
use crate::arch::Neon;
use crate::arch::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::arch::{Amx, Avx2, Avx512Vnni, AvxVnni};
use crate::error::CpuError;
use crate::kernels::Kernels;
use crate::limits::{RESIDENT_TABLE_BYTES_MAX, THREADS_MAX};

/// Which instruction set to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IsaChoice {
    /// The fastest one that this processor has.
    #[default]
    Auto,
    /// Portable code only.
    Scalar,
    /// AVX2 and F16C, or an error.
    Avx2,
    /// AVX2 and AVX-VNNI, or an error.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI, or an error.
    Avx512Vnni,
    /// AMX int8 products beside AVX-512 VNNI, or an error.
    Amx,
    /// NEON with the int8 products that every such processor has, or an error.
    Neon,
    /// NEON and `sdot` (FEAT_DotProd), or an error.
    NeonDotprod,
    /// NEON, `sdot` and `smmla` (FEAT_I8MM), or an error.
    NeonI8mm,
}

impl IsaChoice {
    /// Every instruction set by name, the fastest first. Which of them a processor has is known by making a device.
    pub const NAMED: [Self; 8] =
        [Self::Amx, Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::NeonI8mm, Self::NeonDotprod, Self::Neon, Self::Scalar];

    /// Its name in descriptions and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// The kernels, if this processor has what they need.
    fn kernels(self) -> Option<Box<dyn Kernels>> {
        match self {
            Self::Auto => Self::NAMED.into_iter().find_map(Self::kernels),
            Self::Scalar => Some(Box::new(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Some(Box::new(Avx2::new()?)),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Some(Box::new(AvxVnni::new()?)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Some(Box::new(Avx512Vnni::new()?)),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Some(Box::new(Amx::new()?)),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::Amx => None,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Some(Box::new(Neon::new()?)),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => Some(Box::new(Neon::with_dot()?)),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Some(Box::new(Neon::with_matrix()?)),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => None,
        }
    }
}

/// How a device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute; by default as many as the process may run on (affinity and cgroup quota included).
    pub n_threads: Option<usize>,
    /// Instruction set.
    pub isa: IsaChoice,
    /// A dense embedding or head of at most this many bytes is kept in memory. Rows of larger ones are read from where they are stored
    /// whenever a step needs them.
    pub resident_table_bytes_max: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { n_threads: None, isa: IsaChoice::default(), resident_table_bytes_max: RESIDENT_TABLE_BYTES_MAX }
    }
}

impl CpuOptions {
    /// The kernels that the choice leads to on this processor.
    pub(crate) fn kernels(&self) -> Result<Box<dyn Kernels>, CpuError> {
        self.isa.kernels().ok_or(CpuError::IsaAbsent { isa: self.isa.name() })
    }

    /// The number of threads, within bounds.
    pub(crate) fn threads(&self) -> Result<usize, CpuError> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        match self.n_threads.unwrap_or_else(available) {
            got if got == 0 || got > THREADS_MAX => Err(CpuError::ThreadCount { got, limit: THREADS_MAX }),
            n_threads => Ok(n_threads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_count_outside_its_bounds_is_refused() {
        let threads = |n_threads| CpuOptions { n_threads, ..CpuOptions::default() }.threads();
        assert!(matches!(threads(Some(0)), Err(CpuError::ThreadCount { got: 0, .. })));
        assert!(matches!(threads(Some(THREADS_MAX + 1)), Err(CpuError::ThreadCount { .. })));
        assert_eq!(threads(Some(3)).ok(), Some(3));
        assert!(threads(None).is_ok_and(|n| n >= 1));
    }

    #[test]
    fn forced_scalar_is_scalar_everywhere() {
        let options = CpuOptions { isa: IsaChoice::Scalar, ..CpuOptions::default() };
        assert_eq!(options.kernels().map(|kernels| kernels.isa()).ok(), Some("scalar"));
    }

    #[test]
    fn instruction_set_by_name_is_that_one_or_an_error_that_names_it() {
        for isa in IsaChoice::NAMED {
            match (CpuOptions { isa, ..CpuOptions::default() }).kernels() {
                Ok(kernels) => assert_eq!(kernels.isa(), isa.name()),
                Err(error) => assert!(matches!(error, CpuError::IsaAbsent { isa: name } if name == isa.name())),
            }
        }
    }

    #[test]
    fn automatic_choice_is_the_first_that_exists() {
        let first = IsaChoice::NAMED.into_iter().find_map(IsaChoice::kernels).map(|kernels| kernels.isa());
        assert_eq!(CpuOptions::default().kernels().map(|kernels| kernels.isa()).ok(), first);
    }
}
