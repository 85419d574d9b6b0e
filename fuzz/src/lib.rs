//! What the fuzz targets share: a memory budget in proportion to the input, a reader that turns bytes into shapes and flags, and
//! small valid models to put the input beside.
//! It knows no parser. That a small file must not make a reader allocate much is a promise of every parser; libFuzzer alone sees
//! only memory that was touched, so allocations are counted here.

mod allocation;
pub mod models;
pub mod text;

use std::sync::atomic::Ordering;

/// What a refusal may cost however short the input: error messages, and the list of expected tensors of a model of the most layers.
const BUDGET_BYTES_MIN: usize = 4 << 20;

/// Runs `work` and panics if it ever held more than 4 MiB and `bytes_per_input_byte` times the input's length at once.
pub fn within_budget<T>(input: &[u8], bytes_per_input_byte: usize, work: impl FnOnce() -> T) -> T {
    let budget = BUDGET_BYTES_MIN + input.len() * bytes_per_input_byte;
    let before = allocation::HELD_BYTES.load(Ordering::Relaxed);
    allocation::HELD_BYTES_MAX.store(before, Ordering::Relaxed);
    let result = work();
    let held = allocation::HELD_BYTES_MAX.load(Ordering::Relaxed) - before;
    assert!(held <= budget, "{held} bytes were held at once for an input of {} bytes, at most {budget}", input.len());
    result
}

/// Takes small numbers off the front of an input; an input that has run out gives zeros.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the first byte.
    pub fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    /// The next four bytes, least significant first.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// All that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}
