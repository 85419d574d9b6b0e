//! The model crate's suite, on every instruction set and number of threads.

use bitnet_device_cpu::{CpuDevice, CpuOptions, IsaChoice};
use bitnet_model::conformance;

/// Each instruction set of this processor.
fn options(n_threads: usize) -> impl Iterator<Item = CpuOptions> {
    let all = IsaChoice::NAMED.map(|isa| CpuOptions { n_threads: Some(n_threads), isa, ..CpuOptions::default() });
    all.into_iter().filter(|options| CpuDevice::new(*options).is_ok())
}

fn check_models(n_threads: usize) {
    for options in options(n_threads) {
        conformance::check_models(|| CpuDevice::new(options).expect("made before"));
    }
}

#[test]
fn every_operation_conforms() {
    for options in (1..=4).flat_map(options) {
        conformance::check_operations(|| CpuDevice::new(options).expect("made before"));
    }
}

#[test]
fn every_model_conforms_with_one_thread() {
    check_models(1);
}

#[test]
fn every_model_conforms_with_two_threads() {
    check_models(2);
}

#[test]
fn every_model_conforms_with_three_threads() {
    check_models(3);
}

#[test]
fn every_model_conforms_with_four_threads() {
    check_models(4);
}
