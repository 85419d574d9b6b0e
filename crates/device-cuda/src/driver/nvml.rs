//! The energy that a GPU has used, from NVIDIA's management library, which comes with the driver and is loaded while the program runs.
//! Where it is missing, or the GPU has no such counter (before Volta), there is no meter and nothing else changes. Six functions of it are
//! used; their signatures are from its manual (NVML API Reference Guide).

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::{result, sys};
use libloading::Library;

use super::{driver_failed, start_driver};
use crate::error::CudaError;

/// Where the library is, by the platform's habit.
const LIBRARIES: [&str; 3] = ["libnvidia-ml.so.1", "libnvidia-ml.so", "nvml.dll"];
/// Bytes of a PCI address as text, with the zero at its end.
const PCI_TEXT_BYTES: usize = 32;

type Status = c_int;
type Handle = *mut c_void;

/// Counts one GPU's energy.
pub struct EnergyMeter {
    library: Library,
    device: Handle,
}

// SAFETY: NVML may be used from any thread, and its handles are not bound to one.
unsafe impl Send for EnergyMeter {}

impl EnergyMeter {
    /// The meter of GPU `ordinal`, as the driver numbers them.
    ///
    /// # Errors
    /// No driver or no such GPU; no management library; a GPU that counts no energy.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        start_driver()?;
        let address = pci_address(ordinal)?;
        // SAFETY: loading NVIDIA's management library runs its initialisers, which it is made for.
        let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or_else(|| failed("dlopen", "NVIDIA's management library (libnvidia-ml) is not found"))?;
        let mut meter = Self { library, device: null_mut() };
        let init = meter.function::<unsafe extern "C" fn() -> Status>(b"nvmlInit_v2\0")?;
        // SAFETY: takes nothing; each success is met by one nvmlShutdown (Drop).
        meter.check("nvmlInit", unsafe { init() })?;
        let by_address = b"nvmlDeviceGetHandleByPciBusId_v2\0";
        let find = meter.function::<unsafe extern "C" fn(*const c_char, *mut Handle) -> Status>(by_address)?;
        let mut device = null_mut();
        // SAFETY: the address ends with zero (pci_address) and the handle is a live pointer.
        meter.check("nvmlDeviceGetHandleByPciBusId", unsafe { find(address.as_ptr(), &raw mut device) })?;
        meter.device = device;
        meter.joules()?;
        Ok(meter)
    }

    /// Energy that the GPU has used since the driver was loaded. The counter moves some ten times a second.
    pub fn joules(&self) -> Result<f64, CudaError> {
        let read = self.function::<unsafe extern "C" fn(Handle, *mut u64) -> Status>(b"nvmlDeviceGetTotalEnergyConsumption\0")?;
        let mut millijoules = 0;
        // SAFETY: the handle is what NVML gave and the number is live.
        self.check("nvmlDeviceGetTotalEnergyConsumption", unsafe { read(self.device, &raw mut millijoules) })?;
        Ok(millijoules as f64 / 1e3)
    }

    fn function<F: Copy>(&self, name: &'static [u8]) -> Result<F, CudaError> {
        // SAFETY: `F` is the signature that NVML's manual gives for this name.
        let function = unsafe { self.library.get::<F>(name) };
        function.map(|function| *function).map_err(|_| failed("dlsym", &String::from_utf8_lossy(&name[..name.len() - 1])))
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 { Ok(()) } else { Err(failed(call, &format!("NVML error {status}"))) }
    }
}

impl Drop for EnergyMeter {
    fn drop(&mut self) {
        if let Ok(shutdown) = self.function::<unsafe extern "C" fn() -> Status>(b"nvmlShutdown\0") {
            // SAFETY: takes nothing; NVML counts starts and ends, and ignores one too many.
            let _ = unsafe { shutdown() };
        }
    }
}

fn failed(call: &'static str, reason: &str) -> CudaError {
    CudaError::Driver { call, reason: reason.into() }
}

/// Where the GPU is plugged in: NVML numbers GPUs differently from the driver.
fn pci_address(ordinal: usize) -> Result<[c_char; PCI_TEXT_BYTES], CudaError> {
    let device = result::device::get(ordinal as c_int).map_err(|_| CudaError::NoSuchDevice { ordinal })?;
    let mut text = [0; PCI_TEXT_BYTES];
    let room = PCI_TEXT_BYTES as c_int - 1;
    // SAFETY: the text is live and one byte longer than what may be written, so that it ends with zero.
    let status = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), room, device) };
    status.result().map_err(driver_failed("cuDeviceGetPCIBusId"))?;
    Ok(text)
}
