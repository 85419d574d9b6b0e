//! The suite that every [`Device`](crate::device::Device) must pass, bit for bit against the
//! [`ReferenceDevice`](crate::reference::ReferenceDevice): single operations ([`check_operations`], or one by one) and whole models
//! ([`check_models`]). Called from each device's tests; a difference panics with what was computed and where it differs.

mod models;
mod operations;
#[cfg(test)]
mod planted_bugs;

pub use models::{check_models, check_models_within};
pub use operations::{
    check_attention, check_attention_within, check_best_logits, check_gate, check_linear, check_norm_quantize, check_operations,
    check_outputs,
};

/// Panics unless the values are the same bits, or, with a tolerance, differ by no more than this share of the largest magnitude.
fn assert_within(what: &str, expected: &[f32], got: &[f32], tolerance: f32) {
    if tolerance == 0.0 {
        return assert_same(what, expected, got);
    }
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    let room = tolerance * expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if let Some(index) = expected.iter().zip(got).position(|(expected, got)| (expected - got).abs() > room || got.is_nan()) {
        panic!(
            "{what}: value {index} of {} is {:e}, the reference has {:e}, and {room:e} is allowed",
            expected.len(),
            got[index],
            expected[index]
        );
    }
}

/// Panics unless the values are the same bits, naming the first that is not.
fn assert_same(what: &str, expected: &[f32], got: &[f32]) {
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    if let Some(index) = expected.iter().zip(got).position(|(expected, got)| expected.to_bits() != got.to_bits()) {
        panic!("{what}: value {index} of {} is {:e}, the reference has {:e}", expected.len(), got[index], expected[index]);
    }
}
