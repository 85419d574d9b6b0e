//! Sizes and offsets that come from a file. All arithmetic on them goes through here and is checked, so that no product, sum or
//! padding can wrap: the one class of defect behind most reported GGUF vulnerabilities (llama.cpp#14595, #18674, #26318).
#![deny(clippy::arithmetic_side_effects)]

/// A range of bytes whose end does not wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// `size_bytes` from `start`. `None` if the end wraps.
    pub(super) const fn new(start: u64, size_bytes: u64) -> Option<Self> {
        match start.checked_add(size_bytes) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    pub(super) const fn start(self) -> u64 {
        self.start
    }

    pub(super) const fn end(self) -> u64 {
        self.end
    }

    pub(super) const fn size_bytes(self) -> u64 {
        // Cannot be negative: `end` was made by adding to `start`.
        self.end.saturating_sub(self.start)
    }

    pub(super) const fn is_within(self, limit: u64) -> bool {
        self.end <= limit
    }
}

/// `value` rounded up to a multiple of `alignment`, a power of two. `None` if it wraps.
pub(super) const fn align_up(value: u64, alignment: u64) -> Option<u64> {
    let mask = alignment.saturating_sub(1);
    match value.checked_add(mask) {
        Some(sum) => Some(sum & !mask),
        None => None,
    }
}

/// Number of elements of a shape. `None` if a dimension is zero or the product is beyond `i64`.
pub(super) fn n_elements(dimensions: &[u64]) -> Option<u64> {
    let product = dimensions.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension))?;
    (product > 0 && i64::try_from(product).is_ok()).then_some(product)
}
