//! Compiled kernels, loaded onto a GPU and launched by name.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::stream::Context;
use super::{Stream, driver_failed};
use crate::error::CudaError;

/// A function of a module. Modules are kept as long as the device, so a kernel never outlives its code.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Kernel(sys::CUfunction);

// SAFETY: a handle that the driver accepts from every thread whose context is current.
unsafe impl Send for Kernel {}

impl Kernel {
    pub(super) fn function(self) -> sys::CUfunction {
        self.0
    }
}

/// The kernels of one file.
pub(crate) struct Module {
    module: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: a module belongs to its context and may be used from any thread that makes that current.
unsafe impl Send for Module {}

impl Module {
    /// Loads machine code.
    pub(crate) fn load(stream: &Stream, image: &[u8]) -> Result<Self, CudaError> {
        assert!(image.starts_with(b"\x7fELF"), "machine code is an ELF file, whose header says how long it is");
        stream.context.make_current().map_err(driver_failed("cuCtxSetCurrent"))?;
        // SAFETY: the image is an ELF file (asserted) that the compiler gave whole; the driver checks the rest and copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(driver_failed("cuModuleLoadData"))?;
        Ok(Self { module, context: stream.context.clone() })
    }

    /// A kernel by name, allowed `shared_bytes` of dynamic shared memory.
    pub(crate) fn kernel(&self, name: &str, shared_bytes: usize) -> Result<Kernel, CudaError> {
        let name = CString::new(name).expect("kernel names are constants without a zero byte");
        // SAFETY: the module lives.
        let function = unsafe { result::module::get_function(self.module, name) }.map_err(driver_failed("cuModuleGetFunction"))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is of the live module.
        let allowed = unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) };
        allowed.map_err(driver_failed("cuFuncSetAttribute"))?;
        Ok(Kernel(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: loaded in `load`, unloaded once.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}
