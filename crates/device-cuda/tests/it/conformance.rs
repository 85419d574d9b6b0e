//! The model crate's suite on the first GPU, an operation a test, so that one that fails does not hide the others.

use bitnet_device_cuda::CudaDevice;
use bitnet_model::conformance;

use crate::gpu::device;

fn check(suite: impl FnOnce(&mut CudaDevice)) {
    if let Some(mut device) = device() {
        suite(&mut device);
    }
}

#[test]
fn linear_layers_conform_with_the_reference() {
    check(conformance::check_linear);
}

#[test]
fn norm_quantize_conforms_with_the_reference() {
    check(conformance::check_norm_quantize);
}

#[test]
fn attention_conforms_with_the_reference() {
    check(|device| conformance::check_attention_within(device, 1e-3));
}

#[test]
fn gate_conforms_with_the_reference() {
    check(conformance::check_gate);
}

#[test]
fn outputs_conform_with_the_reference() {
    check(conformance::check_outputs);
}

#[test]
fn best_logits_conform_with_the_reference() {
    check(conformance::check_best_logits);
}

#[test]
fn every_model_conforms_with_the_reference() {
    if device().is_some() {
        conformance::check_models_within(|| device().expect("made before"), 0.05);
    }
}
