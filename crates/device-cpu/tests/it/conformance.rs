//! The model crate's suite, on every instruction set and number of threads.

use bitnet_device_cpu::{CpuDevice, CpuOptions, IsaChoice};
use bitnet_model::conformance;

/// Each instruction set of this processor with 1 to 4 threads.
fn options() -> Vec<CpuOptions> {
    let all = (1..=4).flat_map(|n_threads| IsaChoice::NAMED.map(|isa| CpuOptions { n_threads: Some(n_threads), isa }));
    all.filter(|options| CpuDevice::new(*options).is_ok()).collect()
}

#[test]
fn every_operation_conforms() {
    for options in options() {
        conformance::check_operations(|| CpuDevice::new(options).expect("made before"));
    }
}

#[test]
fn every_model_conforms() {
    for options in options() {
        conformance::check_models(|| CpuDevice::new(options).expect("made before"));
    }
}
