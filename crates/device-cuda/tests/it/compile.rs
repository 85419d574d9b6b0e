//! The kernels compile for every architecture that is supported, without a GPU, with NVIDIA's run-time compiler: `cargo xtask nvrtc`
//! fetches it.

use bitnet_device_cuda::{CudaError, compile_all};

fn check(architecture: &str) {
    match compile_all(architecture, None) {
        Ok(files) => assert!(files.iter().all(|(_, size_bytes)| *size_bytes > 1000), "{architecture}: {files:?}"),
        Err(error @ CudaError::NoCompiler { .. }) => println!("not run: {error}"),
        Err(error) => panic!("{architecture}: {error}"),
    }
}

#[test]
fn kernels_compile_for_sm_80() {
    check("sm_80");
}

#[test]
fn kernels_compile_for_sm_89() {
    check("sm_89");
}

#[test]
fn kernels_compile_for_sm_90() {
    check("sm_90a");
}

#[test]
fn kernels_compile_for_sm_100() {
    check("sm_100");
}

#[test]
fn kernels_compile_for_sm_120() {
    check("sm_120");
}
