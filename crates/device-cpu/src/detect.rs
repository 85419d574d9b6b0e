//! Options of the device and the instruction set they lead to, detected once and held as a value that proves it.
//!
//! `target-cpu=native` is never used: a shipped binary must be fast on machines it was not built on. The idea of a proof value
//! is BurntSushi/memchr's (`src/arch/x86_64/avx2/memchr.rs`, `One::new`).

#[cfg(target_arch = "x86_64")]
use crate::arch::Avx2;
use crate::arch::Scalar;
use crate::error::CpuError;
use crate::kernels::Kernels;
use crate::limits::THREADS_MAX;

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
        match (self.isa, fastest()) {
            (IsaChoice::Auto, Some(kernels)) | (IsaChoice::Avx2, Some(kernels)) => Ok(kernels),
            (IsaChoice::Auto, None) | (IsaChoice::Scalar, _) => Ok(Box::new(Scalar)),
            (IsaChoice::Avx2, None) => Err(CpuError::IsaAbsent { isa: "avx2" }),
        }
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

/// AVX2 kernels if this processor has AVX2.
fn fastest() -> Option<Box<dyn Kernels>> {
    #[cfg(target_arch = "x86_64")]
    return Avx2::new().map(|avx2| Box::new(avx2) as Box<dyn Kernels>);
    #[cfg(not(target_arch = "x86_64"))]
    return None;
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
