//! Options of the device and the instruction set they lead to, detected once and held as a value that proves it.
//!
//! `target-cpu=native` is never used: a shipped binary must be fast on machines it was not built on. The idea of a proof value
//! is BurntSushi/memchr's (`src/arch/x86_64/avx2/memchr.rs`, `One::new`).

#[cfg(target_arch = "x86_64")]
use crate::arch::Avx2;
#[cfg(target_arch = "aarch64")]
use crate::arch::Neon;
use crate::arch::Scalar;
use crate::error::CpuError;
use crate::kernels::Kernels;
use crate::limits::THREADS_MAX;

/// Which instruction set to use. A choice that is not `Auto` or `Scalar` is an error on processors that lack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IsaChoice {
    /// The fastest one that this processor has.
    #[default]
    Auto,
    /// Portable code only.
    Scalar,
    /// x86-64: AVX2 and F16C.
    Avx2,
    /// aarch64: NEON, with the int8 products that every such processor has.
    Neon,
    /// aarch64: NEON with `sdot` (FEAT_DotProd).
    NeonDotprod,
    /// aarch64: NEON with `sdot` and `smmla` (FEAT_I8MM).
    NeonI8mm,
}

impl IsaChoice {
    /// Every instruction set by itself, those of one processor from the slowest to the fastest.
    pub const EACH: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Neon, Self::NeonDotprod, Self::NeonI8mm];

    /// What the choice leads to on this processor, or the name of what is absent.
    fn kernels(self) -> Result<Box<dyn Kernels>, &'static str> {
        match self {
            Self::Auto => Self::EACH.iter().rev().find_map(|isa| isa.kernels().ok()).ok_or("auto"),
            Self::Scalar => Ok(Box::new(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().map(boxed).ok_or("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 => Err("avx2"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::new().map(boxed).ok_or("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => Neon::with_dot().map(boxed).ok_or("neon-dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Neon::with_matrix().map(boxed).ok_or("neon-i8mm"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => Err("neon"),
        }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn boxed(kernels: impl Kernels + 'static) -> Box<dyn Kernels> {
    Box::new(kernels)
}

/// How a device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// Threads that compute; by default as many as the process may run on (affinity and cgroup quota included).
    pub n_threads: Option<usize>,
    /// Instruction set.
    pub isa: IsaChoice,
}

impl CpuOptions {
    /// The kernels that the choice leads to on this processor.
    pub(crate) fn kernels(&self) -> Result<Box<dyn Kernels>, CpuError> {
        self.isa.kernels().map_err(|isa| CpuError::IsaAbsent { isa })
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
}
