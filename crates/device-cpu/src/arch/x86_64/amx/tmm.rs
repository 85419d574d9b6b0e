//! The eight registers of AMX, 16 rows of 64 bytes each, and one product with them, in assembly: the compiler does not know them.
//!
//! `Registers` lives while they are configured on this thread. Instructions: Intel's "Architecture Instruction Set Extensions",
//! chapter on AMX (`tdpbsud`: signed × unsigned bytes, four to a 32-bit lane).

use std::arch::asm;
use std::marker::PhantomData;

use super::Amx;

/// Rows of a register: tokens of activations and sums, quadruples of columns of codes.
pub(super) const SIDE: usize = 16;
/// Columns of one step.
pub(super) const STEP_COLUMNS: usize = 64;

/// Codes of 64 columns × 16 out features: `[STEP_COLUMNS / 4, SIDE, 4]`.
pub(super) type CodeStep = [u8; SIDE * STEP_COLUMNS];
/// Sums of 16 tokens × 16 out features.
pub(super) type Sums = [i32; SIDE * SIDE];

/// What `ldtilecfg` reads: palette 1, then the row bytes and the rows of each register.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static EVERY_REGISTER_WHOLE: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        bytes[16 + 2 * register] = STEP_COLUMNS as u8;
        bytes[48 + register] = SIDE as u8;
        register += 1;
    }
    Configuration(bytes)
};

/// The configured registers of this thread.
pub(super) struct Registers(PhantomData<*const ()>);

impl Registers {
    /// Configures them.
    pub(super) fn new(_proof: Amx) -> Self {
        // SAFETY: an Amx exists only where AMX was detected and the system granted its use; the configuration is 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                configuration = in(reg) &raw const EVERY_REGISTER_WHOLE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags)
            );
        }
        Self(PhantomData)
    }

    /// `sums[t][f]`, 2 × 2 registers, ← (`adds`: +) activations t · codes f, over as many steps as there are codes. Token i of t
    /// starts at `activations[t][i * stride]`.
    pub(super) fn multiply(&self, activations: [&[i8]; 2], stride: usize, codes: [&[CodeStep]; 2], (sums, adds): (&mut [Sums; 4], bool)) {
        let n_steps = codes[0].len();
        assert!(n_steps > 0 && codes[1].len() == n_steps, "as many steps of codes for both halves");
        let needed = (SIDE - 1) * stride + n_steps * STEP_COLUMNS;
        assert!(activations[0].len() >= needed && activations[1].len() >= needed, "16 tokens of activations");
        // SAFETY: the registers are configured while self lives. Each load reads 16 rows of 64 bytes: of activations up to
        // `needed`, of codes one step (n_steps of them), of sums one of four registers; the asserts above bound them all.
        unsafe {
            asm!(
                "test {adds:e}, {adds:e}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {line}*1]",
                "tileloadd tmm1, [{sums} + {line}*1 + 1024]",
                "tileloadd tmm2, [{sums} + {line}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {line}*1 + 3072]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{x0} + {stride}*1]",
                "tileloadd tmm6, [{codes0} + {line}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{codes1} + {line}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {stride}*1]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {x0}, 64",
                "add {x1}, 64",
                "add {codes0}, 1024",
                "add {codes1}, 1024",
                "dec {n_steps}",
                "jnz 3b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                adds = in(reg) u32::from(adds),
                sums = in(reg) sums.as_mut_ptr(),
                line = in(reg) STEP_COLUMNS,
                stride = in(reg) stride,
                x0 = inout(reg) activations[0].as_ptr() => _,
                x1 = inout(reg) activations[1].as_ptr() => _,
                codes0 = inout(reg) codes[0].as_ptr() => _,
                codes1 = inout(reg) codes[1].as_ptr() => _,
                n_steps = inout(reg) n_steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

/// Does `n_rounds` rounds of products from registers, for `roof`; yields the multiply-adds done.
pub(super) fn products(proof: Amx, n_rounds: usize) -> u64 {
    if n_rounds == 0 {
        return 0;
    }
    let registers = Registers::new(proof);
    // SAFETY: the registers are configured while `registers` lives; the loop reads and writes nothing else.
    unsafe {
        asm!(
            "2:",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "dec {n_rounds}",
            "jnz 2b",
            n_rounds = inout(reg) n_rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack)
        );
    }
    drop(registers);
    (n_rounds * 4 * SIDE * SIDE * STEP_COLUMNS) as u64
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the registers were configured by `new` on this thread, since a Registers is not Send.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
