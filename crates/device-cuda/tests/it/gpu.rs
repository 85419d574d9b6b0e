//! The GPU under test, if there is one.

use bitnet_device_cuda::{CudaDevice, CudaError};

/// A device on the first GPU; `None`, with a note, where there is none. A GPU that is there and does not work is a failure.
pub(crate) fn device() -> Option<CudaDevice> {
    match CudaDevice::new(0) {
        Ok(device) => Some(device),
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice)) => {
            println!("not run: {error}");
            None
        }
        Err(error) => panic!("the GPU does not work: {error}"),
    }
}
